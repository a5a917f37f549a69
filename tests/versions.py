"""Runs the tests with other versions of what the package needs than `constraints.txt` pins.

    python tests/versions.py lowest   # the lower bounds in pyproject.toml
    python tests/versions.py newest   # the newest that the bounds and the index allow

Each makes an environment of its own, about 2 GB with a CPU build of torch, under `build/versions/`, and prints what it
has there; further arguments go to pytest, which leaves out slow tests unless told otherwise. `make versions` runs both.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lower_bounds(project: dict[str, object]) -> list[str]:
    """The lower bounds of the dependencies and of all extras but ``dev``, as pins.

    The tools of ``dev`` are those of ``constraints.txt``: what checks the package is not what it runs with.
    """
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict) and isinstance(project["dependencies"], list)
    needed = [*project["dependencies"], *(line for name, lines in extras.items() if name != "dev" for line in lines)]
    pins = []
    for requirement in needed:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
        assert match, f"{requirement} has no plain lower bound"
        pins.append(f"{match[1]}=={match[2]}")
    return pins


def main(which: str, arguments: list[str]) -> int:
    """Install and test; the exit status of pytest."""
    folder = ROOT / "build" / "versions" / which
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    constraints: list[str] = []
    if which == "lowest":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pins = folder / "constraints.txt"
        pins.write_text("\n".join(lower_bounds(project)) + "\n", encoding="utf-8")
        constraints = ["-c", str(pins)]
    subprocess.run([*pip, *constraints, "-e", f"{ROOT}[dev]"], check=True)
    subprocess.run([python, "-m", "pip", "list", "--disable-pip-version-check"], check=True)
    return subprocess.run([python, "-m", "pytest", "-m", "not slow", *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("lowest", "newest"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
