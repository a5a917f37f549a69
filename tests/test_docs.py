"""The pages of docs/ that are made from the code are those of this code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_page_of_losses_is_up_to_date() -> None:
    """Stops a loss without a row, and a formula in the docs that is no longer the code's."""
    spec = importlib.util.spec_from_file_location("make_losses", ROOT / "docs" / "make_losses.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.page()
    assert made == (ROOT / "docs" / "losses.md").read_text(encoding="utf-8"), "run: python docs/make_losses.py"
    table = [line for line in made.splitlines() if line.startswith("| `")]
    assert len(table) == sum(len(kinds) for kinds in script.families().values()) > 25
    for row in table:
        cells = row.strip("|").split(" | ")
        assert len(cells) == 6 and all(cell.strip() for cell in cells), row


def test_tables_of_speed_are_those_of_the_json() -> None:
    """Stops a figure on the page that no benchmark has given, and one that has been measured again since."""
    spec = importlib.util.spec_from_file_location("make_speed", ROOT / "docs" / "make_speed.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert script.page(text) == text, "run: python docs/make_speed.py"
    assert text.count("<!-- end -->") == len(script.PLACES)
