"""Reports of many runs side by side."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from lightning_kd import InputError
from lightning_kd.compare import compare, main
from lightning_kd.measure import Estimate
from lightning_kd.report import Details, Disagreement, Report, ReportRow, Times, read_report, write_text


def row(name: str, accuracy: float, size: int, latency: float, **more: object) -> ReportRow:
    metrics = {"test": {"accuracy": Estimate(accuracy, 0.01)}, "validation": {"accuracy": Estimate(accuracy, 0.02)}}
    return ReportRow(name, size // 4, size, metrics, latency, 2 * latency, 1000 / latency, **more)


def report(accuracy: float, **changes: object) -> Report:
    rows = [
        row("teacher", 0.9, 4_000_000, 8.0, kept=100.0, times_smaller=1.0, times_faster=1.0),
        row("student", accuracy, 2_000_000, 4.0, kept=accuracy / 0.009, times_smaller=2.0, times_faster=2.0),
        row("int8, torch", accuracy - 0.01, 500_000, 2.0, agreement=0.99, kept_float=("head",)),
    ]
    rows[2] = replace(rows[2], more_threads={2: Times(1.0, 2.0, 3.0, None)})
    setting = {"data": "sst2", "seed": "0", "threads": 1, "latency_rows": 4, "processor": "x86_64", "versions": {}}
    details = Details(
        [[1.0, 0.9], [0.9, 1.0]], ["a"], {"student": [[3]]}, {}, [Disagreement(3, 0.5, ["t"], "a", "a", "b")]
    )
    whole = Report(rows, "accuracy", "test", {"test": 30, "validation": 40}, setting, details)
    return replace(whole, **changes)


def written(root: Path, name: str, content: Report) -> Path:
    write_text(root / name / "report.json", content.json())
    return root / name


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Stops a field from being lost on its way through JSON, and an older report from being refused."""
    content = report(0.85)
    folder = written(tmp_path, "run", content)
    assert read_report(folder) == read_report(folder / "report.json") == content
    text = (folder / "report.json").read_text()
    write_text(folder / "report.json", text[: text.index('"details"')].rstrip(" ,\n") + "}")
    assert read_report(folder) == replace(content, details=Details())


def test_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops the figures of one run from standing under the name of another, and a teacher from standing there twice."""
    runs = [written(tmp_path / "runs", name, report(accuracy)) for name, accuracy in (("a/x", 0.85), ("b/x", 0.8))]
    found = compare(runs)
    assert [(r.name, r.metrics["test"]["accuracy"].value) for r in found.rows] == [
        ("a/x: teacher", 0.9),
        ("a/x: student", 0.85),
        ("a/x: int8, torch", pytest.approx(0.84)),
        ("b/x: student", 0.8),
        ("b/x: int8, torch", pytest.approx(0.79)),
    ]
    main([*map(str, runs), "--path", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "b/x: student" in out and "Each run was timed by itself" in out
    with (tmp_path / "out" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == [r.name for r in found.rows]
    assert rows[3]["accuracy, test"] == "0.8" and rows[3]["accuracy, validation, standard error"] == "0.02"
    assert rows[4]["bytes"] == "500000" and rows[4]["agreement"] == "0.99" and rows[0]["agreement"] == ""
    assert "| b/x: student | 0.5 M | 2.0 MB | 0.8000 ± 0.0100 |" in (tmp_path / "out" / "compare.md").read_text()
    assert min(imread(tmp_path / "out" / "compare.png").shape[:2]) > 300


F1 = [replace(row("model", 0.9, 4_000_000, 8.0), metrics={"test": {"f1": Estimate(0.9, 0.01)}})]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"main_metric": "f1", "rows": F1}, r"the same main metric, but .*a is about accuracy and .*b about f1"),
        ({"main_split": "validation"}, r"the same main split"),
        ({"split_rows": {"test": 31, "validation": 40}}, r"the same rows, but .*a has 30 of test and .*b 31"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """Stops figures of different rows from being read as better and worse."""
    with pytest.raises(InputError, match=message):
        compare([written(tmp_path, "a", report(0.8)), written(tmp_path, "b", report(0.8, **changes))])


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    """Stops a traceback from JSON where the path was wrong."""
    with pytest.raises(InputError, match=r"`RUN` to be a run's folder with a report\.json, but got .*nothing"):
        compare([tmp_path / "nothing"])
    write_text(tmp_path / "report.json", "{}")
    with pytest.raises(InputError, match=r"report\.json is not a report, or is damaged"):
        compare([tmp_path])


def test_a_figure_stands_under_its_own_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops one run's F1 from standing in another's column of accuracy, and brackets in a name from being lost."""
    other = report(0.8)
    rows = [
        replace(r, metrics={"test": {"f1": Estimate(0.7, 0.1), **r.metrics["test"]}}, name=f"{r.name} [a]")
        for r in other.rows
    ]
    runs = [written(tmp_path, "x", report(0.85)), written(tmp_path, "y", replace(other, rows=rows))]
    main([*map(str, runs), "--path", str(tmp_path / "out")])
    with (tmp_path / "out" / "compare.csv").open() as file:
        cells = {
            r["name"]: (r["accuracy, test"], r["f1, test"], r["accuracy, validation"]) for r in csv.DictReader(file)
        }
    assert cells["x: student"] == ("0.85", "", "0.85") and cells["y: student [a]"] == ("0.8", "0.7", "")
    assert "| y: student [a] | 0.5 M | 2.0 MB | 0.8000 ± 0.0100 |  | 0.7000 ± 0.1000 |" in (
        (tmp_path / "out" / "compare.md").read_text()
    )
    assert "[a]" in capsys.readouterr().out
