"""Where the package's modules stand in a source checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDERS", "ROOT", "modules"]

ROOT = Path(__file__).resolve().parents[1]

#: The top-level folders by the name under which they are imported; the first holds the others once installed.
FOLDERS = {
    "lightning_kd": ROOT / "lightning_kd",
    "lightning_kd.callbacks": ROOT / "callbacks",
    "lightning_kd.datamodules": ROOT / "datamodules",
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package is its ``__init__.py``."""
    found: dict[str, Path] = {}
    for name, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((name, *(part for part in parts if part != "__init__")))] = path
    return found
