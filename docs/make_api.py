"""The API reference: which public name stands on which page, from the `__all__` of every module.

A name is documented once, under the shortest path that it is imported by: `lightning_kd.losses.SoftTargetKL`, not
`lightning_kd.losses.soft_target.SoftTargetKL`. `docs/conf.py` writes the pages whenever the docs are built.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

#: The packages within `lightning_kd`, and itself; each has a page.
PACKAGES = ("", "losses", "tasks", "quantization", "students", "callbacks", "datamodules")


def public_modules() -> dict[str, ModuleType]:
    """Every module whose name has no leading underscore, packages before their modules."""
    packages = [".".join(filter(None, ("lightning_kd", name))) for name in PACKAGES]
    found = {name: importlib.import_module(name) for name in packages}
    for name in packages:
        own = Path(str(found[name].__file__)).parent  # not __path__: in a checkout that also leads to tests/
        for info in sorted(pkgutil.iter_modules([str(own)]), key=lambda info: info.name):
            if not info.name.startswith("_"):
                found.setdefault(f"{name}.{info.name}", importlib.import_module(f"{name}.{info.name}"))
    return found


def entries() -> dict[str, dict[str, str]]:
    """By module, the names that are documented there and how: ``class``, ``exception``, ``function`` or ``data``."""
    modules = public_modules()
    taken: set[tuple[str, str]] = set()
    found: dict[str, dict[str, str]] = {name: {} for name in modules}
    for name, module in modules.items():
        for exported in module.__all__:
            value = getattr(module, exported)
            known = inspect.isclass(value) or inspect.isfunction(value)
            if not known and hasattr(module, "__path__"):
                continue  # an alias or a constant: its comment stands in the module that defines it
            key = (value.__module__, value.__qualname__) if known else (name, exported)
            if key not in taken:
                taken.add(key)
                found[name][exported] = _kind(value)
    return found


def _kind(value: object) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isfunction(value) else "data"


def page(package: str, found: dict[str, dict[str, str]]) -> str:
    """The reStructuredText of one package: what it exports, then what its modules have beside that."""
    parts = [_section(package, found[package], "=")]
    for name, names in found.items():
        inside = name.startswith(f"{package}.") and name.rpartition(".")[0] == package
        if inside and names and not hasattr(importlib.import_module(name), "__path__"):
            parts.append(_section(name, names, "-"))
    return "\n".join(parts)


def _section(name: str, names: dict[str, str], rule: str) -> str:
    lines = [name, rule * len(name), "", f".. automodule:: {name}", "   :no-members:", ""]
    for exported, kind in names.items():
        lines += [f".. auto{kind}:: {name}.{exported}"]
        lines += ["   :members:", "   :show-inheritance:"] if kind in ("class", "exception") else []
        lines += ["   :no-value:"] if kind == "data" else []
        lines.append("")
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Write a page for each package, and their overview, into ``folder``."""
    found = entries()
    names = [".".join(filter(None, ("lightning_kd", name))) for name in PACKAGES]
    overview = ["API reference", "=============", "", ".. toctree::", "   :maxdepth: 2", ""]
    write_changed(folder / "index.rst", "\n".join([*overview, *(f"   {name}" for name in names), ""]))
    for name in names:
        write_changed(folder / f"{name}.rst", page(name, found))


def write_changed(path: Path, text: str) -> None:
    """Write a page only if it has changed, so that Sphinx reads no other again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
