r"""How long the imports take, and the answers of the command line that need no model and no data.

Each is a fresh process, all of them in turn, in rounds. What an import adds to those of lightning and transformers is
taken within the process; what a command adds is the difference to the process of the same round that imports the two
and nothing else. The last column counts the files of models and of data sets that the process has opened: there should
be none.

    python benchmarks/startup.py --json benchmarks/results/startup.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from _common import ROOT, parser, report, setting

PEERS = "import lightning, transformers"
IMPORTS = ("import lightning_kd", "from lightning_kd import DistillationModule", "import lightning_kd.cli")
#: Prints how long an import takes behind those of the two.
TIMED = f"""
{PEERS}, time
began = time.perf_counter()
{{}}
print(time.perf_counter() - began)
"""
COMMANDS = {
    "lightning-kd fitt": ["fitt"],
    "lightning-kd --help": ["--help"],
    "lightning-kd fit --help": ["fit", "--help"],
    "lightning-kd fit, a mistyped option": ["fit", "--config", "configs/sst2/student.yaml", "--model.temprature", "3"],
    "lightning-kd fit, no such config": ["fit", "--config", "nowhere.yaml"],
}
#: Runs the command line and says at the end which files of models and data it has opened.
WATCHED = """
import atexit, json, sys
opened = []
endings = (".safetensors", ".bin", ".parquet", ".arrow", "tokenizer.json")
def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith(endings):
        opened.append(str(arguments[0]))
sys.addaudithook(watch)
atexit.register(lambda: print(json.dumps(opened)))
from lightning_kd.start import main
main()
"""


def seconds(code: str, arguments: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """One process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return time.perf_counter() - began, done


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    options = arguments.parse_args()
    runs: dict[str, tuple[str, list[str]]] = {PEERS: (PEERS, [])}
    runs |= {name: (TIMED.format(name), []) for name in IMPORTS}
    runs |= {name: (WATCHED, typed) for name, typed in COMMANDS.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    added: dict[str, list[float]] = {name: [] for name in runs}
    opened: dict[str, Any] = {}
    for number in range(1 if options.quick else 9):
        print(f"round {number + 1}", file=sys.stderr)
        for name, (code, typed) in runs.items():
            each, done = seconds(code, typed)
            if name not in COMMANDS and done.returncode:
                sys.exit(done.stderr)
            if name in COMMANDS:
                if not (done.returncode == 2 and done.stderr) and not (done.returncode == 0 and "--help" in typed):
                    sys.exit(f"{name}: {done.stderr}")
                opened[name] = len(json.loads(done.stdout.splitlines()[-1]))
            taken[name].append(each)
            added[name].append(float(done.stdout) if name in IMPORTS else each - taken[PEERS][-1])
    found = []
    for name, times in taken.items():
        row = {"process": name, "s": statistics.median(times), "lowest": min(times), "highest": max(times)}
        row["over the imports, s"] = statistics.median(added[name])
        found.append(row | {"files opened": opened.get(name, "")})
    report("Start", found, setting(rounds=len(taken[PEERS])), options.json)


if __name__ == "__main__":
    main()
