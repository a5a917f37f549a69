"""What a user typed, on the command line and in files, and errors in the words of that."""

from __future__ import annotations

import errno
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_kd._checks import InputError, RunError, expected, nearest
from lightning_kd._secrets import SECRETS

__all__ = ["Typed", "error_sentence", "flat", "run_sentence", "sentence_of", "trainer_words"]

#: What a user calls the types that a value can have.
_TYPES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping of names to values",
}
#: The modules whose classes are most often named alone.
_NAMED = (
    *(f"lightning_kd.{part}" for part in ("callbacks", "datamodules", "losses", "quantization", "schedules", "tasks")),
    *(f"lightning.pytorch.{part}" for part in ("callbacks", "loggers")),
)
#: Errors of the file system that a user can mend.
_MENDABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
}
#: What a disk or a folder can answer in the middle of a run.
_DISK = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.ENOENT: "A file or folder of the run is gone",
    errno.EROFS: "The disk cannot be written to",
    errno.EIO: "The disk does not answer",
}


class Typed:
    """The options on a command line, and the keys in the configuration files that it names.

    Args:
        arguments: The command line, in words.

    Raises:
        InputError: If a configuration file is missing or none, or a key stands for a secret.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        self._values = dict(pairwise(arguments))
        self._values |= {word.partition("=")[0]: word.partition("=")[2] for word in arguments if "=" in word}
        self.keys: dict[str, Any] = {}
        for option, file in _files(arguments):
            try:
                self.keys.update(flat(_read(option, file)))
            except RecursionError as error:
                raise expected(option, "a YAML file", file, "It holds itself, or is nested too deeply.") from error
        for key in (*self.options, *(key for key, value in self.keys.items() if value is not None)):
            if key.rpartition(".")[2].lower() in SECRETS:
                raise InputError(
                    f"`{key}` is a secret, and a configuration is saved and logged: leave it out, and set it in the "
                    "environment (WANDB_API_KEY, HF_TOKEN)."
                )

    def place(self, name: str, under: str = "") -> str:
        """``name`` as it was typed, where that is one place: ``--data.batch_size``, or a key of a file.

        Args:
            name: The end of it.
            under: The beginning of it.
        """
        name = name.removeprefix("--")

        def fits(found: str) -> bool:
            plain = _plain(found)
            return (plain == _plain(name) or plain.endswith(f".{_plain(name)}")) and plain.startswith(under)

        options = [option for option in dict.fromkeys(self.options) if fits(option.removeprefix("--").rstrip("+"))]
        if len(options) == 1:
            return options[0]
        keys = [
            key for key, value in self.keys.items() if fits(key) and not (isinstance(value, dict) and "." not in name)
        ]
        if len(keys) == 1 and not options:
            return keys[0]
        if name.endswith(".path") and not keys and (of := self.place(name.removesuffix(".path"))).startswith("--"):
            return of
        return name if name.startswith(under) else f"{under}.{name}"

    def place_of_value(self, value: str, under: str) -> str:
        """Where a value was typed, if that is one place; otherwise ``under``."""
        found = [key for key, typed in self.keys.items() if typed == value and _plain(key).startswith(under)]
        return found[0].removesuffix(".class_path") if len(found) == 1 else self.place(under)

    def place_of_path(self, path: str) -> str | None:
        """Where a path, or the beginning of it, was typed."""
        typed = {option: value for option, value in self._values.items() if option.startswith("--")}
        above = {path, *map(str, Path(path).parents)} - {"/", "."}
        return next((key for key, value in {**self.keys, **typed}.items() if str(value).rstrip("/") in above), None)

    def has(self, path: str) -> bool:
        """Whether a path was typed as it is, and not its beginning alone."""
        return any(str(value).rstrip("/") == path for value in {**self.keys, **self._values}.values())

    def in_words(self, sentence: str) -> str:
        """A sentence of :func:`lightning_kd._checks.expected` that names the argument as it was typed."""
        return re.sub(r"(?<=[Aa]rgument `)([\w.]+)(?=`)", lambda found: self.place(found[1]), sentence)


def _plain(key: str) -> str:
    """A key without what no argument's name has."""
    return re.sub(r"\[\d+\]|\.init_args(?=\.|$)|\.dict_kwargs(?=\.|$)", "", key)


def _files(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word, after in zip(arguments, [*arguments[1:], None], strict=False):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            if equals:
                yield option, value
            elif after is not None and not after.startswith("--"):
                yield option, after


def _read(option: str, file: str) -> dict[str, Any]:
    """The content of a configuration file."""
    if "\n" in file or file.lstrip().startswith("{"):  # a configuration itself
        return {}
    what, path = "a YAML file", Path(file)
    if not path.is_file():
        raise expected(option, what, file, "That is a folder." if path.is_dir() else "There is no such file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise expected(option, what, file, f"It cannot be read{where}: {reason}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise expected(option, what, file, "It cannot be read as text.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = "is empty" if content is None else "has no names at its top"
        raise expected(option, "a YAML file that says what to run (model, data, trainer)", file, f"It {kind}.")
    return content


def flat(content: Any, start: str = "") -> dict[str, Any]:
    """All keys of mappings and lists in each other, with those above them, and their values.

    Example:
        >>> flat({"model": {"tasks": ["a"]}})
        {'model': {'tasks': ['a']}, 'model.tasks': ['a']}
    """
    inner: list[tuple[str, Any]] = []
    if isinstance(content, dict):
        inner = [(f"{start}.{key}" if start else str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        inner = [(f"{start}[{i}]", value) for i, value in enumerate(content)]
    found = {key: value for key, value in inner if not key.endswith("]")}
    for key, value in inner:
        found.update(flat(value, key))
    return found


# -------------------------------------------------------------------------------------------------- of the parser


def sentence_of(message: str, typed: Typed, options: Sequence[str]) -> str:
    """A message of jsonargparse's, which takes a line for each type that a value may have, as one sentence.

    Args:
        message: The message.
        typed: What was typed.
        options: All options that there are, with their dashes.
    """
    keys = re.findall(r'Parser key "([^"]+)":', message)
    classes = re.findall(r"(?:given class_path |Namespace\(class_path=)'([^']+)'", message)
    place = ".".join(keys)
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        word = found[1].partition("=")[0]
        what = f"There is no option `{word}`." if word.startswith("-") else f"`{word}` belongs to no option."
        return f"{what} {nearest(word, options)}".strip()
    named = re.search(r"Expected a dot import path string: (\w+)$", message, re.MULTILINE)
    if named and (near := nearest(named[1], _known_classes())):
        return f"`{typed.place_of_value(named[1], place)}` names the class {named[1]}, but there is none. {near}"
    if found := re.search(r"does not accept option '([^']+)'", message):
        return _no_key(found[1], typed, [option.removeprefix("--") for option in options])
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        where = typed.place(found[1], keys[0] if keys else "")
        valid = _parameters(classes[-1]) if classes else []
        near = nearest(found[1], valid)
        full = where.removesuffix(found[1])
        near = near.replace("`", f"`{full}", 1) if near else f"{classes[-1]} has {', '.join(valid) or 'none'}."
        return f"There is no option `{where}`. {near}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        name = f"{found[1]}.{found[2]}"
        valid = [f"{found[1]}.{each}" for each in getattr(sys.modules.get(found[1]), "__all__", [])]
        way_out = nearest(name, valid) or "Check the spelling."
        return f"`{typed.place_of_value(name, place)}` names the class {name}, but there is none. {way_out}"
    if found := re.search(r"No module named '([\w.]+)'", message):
        name = classes[-1] if classes else found[1]
        return f"`{typed.place_of_value(name, place)}` names {name}, but there is no module {found[1]}."
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        return f"`{typed.place_of_value(found[1], place)}` names {found[1]}, which is no {found[2]}."
    if found := re.search(r"argument (?:-\w, ?)?(--?[\w.+]+)\S*: expected", message):
        return f"The option `{found[1]}` needs a value."
    if found := re.search(r"following arguments are required: (?:\w+\.)?(\S+)", message):
        name = found[1].rstrip(",")
        return f"`--{name}` is missing: give a configuration with `--config FILE`, or this option."
    if found := re.search(r"Expected a dot import path string: (.*)", message):
        return (
            f"Expected argument `{typed.place(place)}` to have a class_path, or options below a name, but {found[1]!r} "
            "stands there."
        )
    if types := _types(message):
        value = re.findall(r"(?:Got value|Given value): (.*)", message)
        got = re.sub(r"^NestedArg\(key='[^']*', val=(.*)\)$", r"\1", value[0].strip()) if value else "something else"
        where = typed.place(keys[-1], keys[0] if len(keys) > 1 else "") if keys else place
        return f"Expected argument `{where}` to be {types}, but got {got}."
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = re.sub(r'Parser key "([^"]+)":', r"`\1`:", "; ".join(line for line in lines if line))
    return text.replace(":; ", ": ").rstrip(".") + "."


def _no_key(key: str, typed: Typed, valid: Sequence[str]) -> str:
    """Of a key that no option has, the part that is wrong, and what is near to it."""
    parts = key.split(".")
    for i in range(1, len(parts) + 1):
        start = ".".join(parts[:i])
        if not any(f"{each}.".startswith(f"{start}.") for each in valid):
            break
    siblings = {".".join(each.split(".")[:i]) for each in valid if each.split(".")[: i - 1] == parts[: i - 1]}
    near = nearest(start, [each for each in siblings if not each.endswith("+")])
    return f"There is no option `{typed.place(start)}`. {near}".strip()


def _types(message: str) -> str:
    """What a value may be, of all that a message says was expected."""
    found: list[str] = []
    for plain, choices in re.findall(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[([^]]*)\])", message):
        name = f"one of {choices}" if choices else _TYPES.get(plain, plain.rpartition(".")[2])
        if plain != "NoneType":
            found.append(name)
    return " or ".join(dict.fromkeys(found))


def _known_classes() -> list[str]:
    """The names that a class is known by without its module."""
    return [name for module in _NAMED for name in getattr(sys.modules.get(module), "__all__", ())]


def _parameters(class_path: str) -> list[str]:
    """The names of the parameters of a class, which the parser has imported by now."""
    module, _, name = class_path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)
        return [each for each in inspect.signature(made).parameters if each not in ("params", "args", "kwargs")]
    except (ImportError, AttributeError, TypeError, ValueError):  # no class, or one that does not say: none to offer
        return []


# -------------------------------------------------------------------------------------------------- of a run


def error_sentence(error: BaseException, typed: Typed | None = None) -> str | None:
    """What is wrong, of an error that the user can mend; None of any other.

    Args:
        error: The error.
        typed: What was typed, if that is known.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    own = next((each for each in chain if isinstance(each, InputError)), None)
    if own is not None:
        return str(own)
    lightning = next((each for each in chain if isinstance(each, MisconfigurationException)), None)
    if lightning is not None:
        return trainer_words(str(lightning))
    if isinstance(error, OSError) and error.errno in _MENDABLE and error.filename is not None:
        path, typed = str(error.filename), typed or Typed([])
        place = typed.place_of_path(path)
        in_run = place is not None and place.endswith("default_root_dir") and not typed.has(path)
        if error.errno in _DISK and (place is None or in_run):
            return None  # what the run has made itself
        what = f"Expected argument `{place}` to be a path" if place else f"Expected {path} to be a path"
        return f"{what} that can be read and written, but got: {error.strerror}, {path}."
    return None


def run_sentence(error: BaseException) -> str | None:
    """What has ended a run that was right when it began, if it is known."""
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{_DISK[error.errno]}{'' if error.filename is None else f': {error.filename}'}."
    what = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, RuntimeError) and what.startswith("DataLoader worker (pid"):
        died = f": {what.rstrip('. ')}"
    elif isinstance(error, (ConnectionError, EOFError)) and _takes_a_batch(error):
        died = " while it handed one over"
    else:
        return None
    return (
        f"A process that makes batches has died{died}. Most often the system has ended it for want of memory: set "
        "data.num_workers lower, or to 0."
    )


def _takes_a_batch(error: BaseException) -> bool:
    """Whether an error comes from where torch's loader waits for a worker's batch."""
    return any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))


def trainer_words(message: str) -> str:
    """A message of Lightning's trainer in one line, which names the option."""

    def option(found: re.Match[str]) -> str:
        name, value = found["name"] or found["argument"], found["value"]
        if name not in inspect.signature(L.Trainer).parameters:
            return found[0]
        return f"argument `trainer.{name}`" + ("" if value is None else f" ({value})")

    alone = r"`(?:Trainer\()?(?P<name>\w+)(?:=(?P<value>[^)`]*))?\)?`(?! argument)"
    return re.sub(rf"{alone}|`(?P<argument>\w+)` argument of `Trainer`", option, " ".join(message.split()))
