"""The table of all tasks in docs/tasks.md, from the reports that are kept in benchmarks/results.

python benchmarks/tasks.py
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SETS = ("conll2003", "wnut_17", "weibo_ner", "squad_small", "stsb")


def main() -> None:
    """Print the table."""
    header = ["set, score", "model", "size", "held out", "validation", "kept", "ms, p50", "smaller", "faster"]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for name in SETS:
        report = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        score = "spearman" if name == "stsb" else report["main_metric"]
        whole = report["rows"][0]["metrics"]["test"][score]["value"]
        for number, row in enumerate(report["rows"]):
            held_out, validation = (row["metrics"][split][score] for split in ("test", "validation"))
            lines.append(
                [
                    "" if number else f"{name}, {score}",
                    row["name"],
                    f"{row['bytes'] / 1e6:.1f} MB",
                    *(f"{value['value']:.3f} ± {value['standard_error']:.3f}" for value in (held_out, validation)),
                    f"{100 * held_out['value'] / whole:.1f} %",
                    f"{row['latency_p50']:.2f}",
                    f"{row['times_smaller']:.1f} x",
                    f"{row['times_faster']:.1f} x",
                ]
            )
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
