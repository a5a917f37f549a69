"""One wording for what a user got wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["InputError", "RunError", "check_positive", "check_range", "expected", "nearest"]


class InputError(ValueError):
    """A value that the user gave and can mend; the command line prints it as one sentence, without a traceback."""


class RunError(RuntimeError):
    """What ends a run that was right when it began; the command line prints it as one sentence, too."""


def expected(name: str, what: str, got: Any, way_out: str = "") -> InputError:
    """The one form of a message about a wrong value.

    Args:
        name: The argument as the user writes it.
        what: What it should be, with the valid set.
        got: What came.
        way_out: A sentence that says what to do.

    Example:
        >>> str(expected("temperature", "a number above 0", 0))
        'Expected argument `temperature` to be a number above 0, but got 0.'
    """
    shown = repr(got) if isinstance(got, str) else str(got)
    return InputError(f"Expected argument `{name}` to be {what}, but got {shown}.{' ' + way_out if way_out else ''}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A "did you mean" sentence, or nothing.

    Example:
        >>> nearest("hiden", ["hidden", "soft"])
        'Did you mean `hidden`?'
        >>> nearest("xyz", ["hidden", "soft"])
        ''
    """
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f"Did you mean `{close[0]}`?" if close else ""


def unknown_subcommand(name: str, valid: Iterable[str]) -> str:
    """What to say where a subcommand does not exist."""
    names = list(valid)
    hint = nearest(name, names)
    return f"There is no subcommand `{name}`. {hint}{' ' if hint else ''}There are {', '.join(names)}."


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above 0."""
    if not 0 < value < float("inf"):
        raise expected(name, "a number above 0", value)


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise unless ``value`` is finite and ``low <= value <= high``."""
    if not low <= value <= high or value == float("inf"):
        raise expected(
            name, f"between {low:g} and {high:g}" if high < float("inf") else f"a finite number, {low:g} or more", value
        )
