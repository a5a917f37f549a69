"""The README and the pages of docs/: what is made from the code is up to date, what they show runs, no link is dead."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from lightning_kd import cli
from lightning_kd.datamodules import SyntheticDataModule
from lightning_kd.quantization import OpenVINOInt8, TorchAO
from source_tree import modules
from tests.conftest import needs_extra

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
#: What other libraries' users know; it is not installed here, and parsed alone.
OTHERS = re.compile(r"^(import|from) textbrewer|^# torchdistill|teacher\(\*\*batch\)", re.MULTILINE)
#: The Hub name in the docs, under which a tiny model stands in the folder that they are tried in.
TEACHER = "sentence-transformers/all-MiniLM-L6-v2"


def load(path: Path) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, without the indentation of a list around them."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def numbered(language: str) -> list[Any]:
    """Every block of a language with an id such as ``start.md-1``."""
    return [
        pytest.param(page, block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, language), start=1)
    ]


# ---------------------------------------------------------------------------------------------- generated pages


def test_page_of_losses_is_up_to_date() -> None:
    """Stops a loss without a row, and a formula in the docs that is no longer the code's."""
    script = load(ROOT / "docs" / "make_losses.py")
    made = script.page()
    assert made == (ROOT / "docs" / "losses.md").read_text(encoding="utf-8"), "run: python docs/make_losses.py"
    table = [line for line in made.splitlines() if line.startswith("| `")]
    assert len(table) == sum(len(kinds) for kinds in script.families().values()) > 25
    for row in table:
        cells = row.strip("|").split(" | ")
        assert len(cells) == 6 and all(cell.strip() for cell in cells), row


def test_tables_of_speed_are_those_of_the_json() -> None:
    """Stops a figure on the page that no benchmark has given, and one that has been measured again since."""
    script = load(ROOT / "docs" / "make_speed.py")
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert script.page(text) == text, "run: python docs/make_speed.py"
    assert text.count("<!-- end -->") == len(script.PLACES)


def test_the_reference_has_every_public_name_once(tmp_path: Path) -> None:
    """Stops a public class that the reference leaves out, or shows twice under two paths."""
    script = load(ROOT / "docs" / "make_api.py")
    public = {name for name in modules() if not any(part.startswith("_") for part in name.split("."))}
    assert set(script.public_modules()) == public
    entries = script.entries()
    shown: dict[int, list[str]] = {}
    for module, names in entries.items():
        for name in names:
            shown.setdefault(id(getattr(sys.modules[module], name)), []).append(f"{module}.{name}")
    for module in public:
        for name in sys.modules[module].__all__:
            value = getattr(sys.modules[module], name)
            paths = shown.get(id(value), [])
            assert paths, f"{module}.{name} is not in the reference"
            if isinstance(value, type) or callable(value):
                assert len(paths) == 1, f"{module}.{name} is shown as {' and '.join(paths)}"
    assert "SoftTargetKL" in entries["lightning_kd.losses"] and not entries["lightning_kd.losses.soft_target"]
    script.write(tmp_path)
    written = "".join(page.read_text(encoding="utf-8") for page in tmp_path.glob("*.rst"))
    listed = re.findall(r"^\.\. auto(?:class|exception|function|data):: (\S+)$", written, re.MULTILINE)
    assert sorted(listed) == sorted(f"{module}.{name}" for module, names in entries.items() for name in names)


# ---------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", h).lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_inside_the_repository_is_dead(page: Path) -> None:
    """Stops a link to a page, a config or a heading that was renamed."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        target, _, anchor = link.partition("#")
        path = page if not target else page.parent / target
        assert path.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {link}"


# ---------------------------------------------------------------------------------------------- examples


@cache
def parser(*args: str) -> Any:
    """What parses the options of `fit`, without a run; the arguments choose the module."""

    class ParsedError(Exception):
        pass

    class OnlyParser(cli.DistillationCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise ParsedError(self._subcommand_parsers["fit"])

    with pytest.raises(ParsedError) as raised:
        OnlyParser(["fit", *args])
    rank_zero_only.rank = 0
    return raised.value.args[0]


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv
@pytest.mark.parametrize(("page", "block"), numbered("yaml"))
def test_the_yaml_fits_the_signatures(page: Path, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops an example in the docs from naming an option that was renamed in Python."""
    value = yaml.safe_load(block)
    assert value
    if OTHERS.search(block):
        return
    if "my_kd." in block:
        monkeypatch.setitem(sys.modules, "my_kd", own_package(ROOT / "docs" / "extending.md"))
    if isinstance(value, list):
        value = {"callbacks": value}
    if "callbacks" in value:
        value["trainer"] = {"callbacks": value.pop("callbacks")}
    assert set(value) <= {"model", "data", "trainer", "seed_everything"}, f"{page.name} shows {sorted(value)}"
    data = {"class_path": "lightning_kd.datamodules.SyntheticDataModule"}
    model = {"student": {"path": "somewhere"}, **value.get("model", {})}
    chosen = parser("--model.tasks", "{}") if "tasks" in model else parser()
    chosen.parse_object({"data": data, **value, "model": model})


def own_package(page: Path) -> ModuleType:
    """The module whose parts stand on the page on extending, one after the other."""
    module = ModuleType("my_kd")
    source = "".join(block for block in blocks(page, "python") if block.startswith("# my_kd.py"))
    sys.modules["my_kd"] = module  # dataclasses look for it
    exec(compile(source, "my_kd.py", "exec", dont_inherit=True), vars(module))
    return module


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_fit_the_signatures(page: Path, instantiated: list[Any]) -> None:
    """Stops a command in the docs from naming an option, a config or a subcommand that is not there any more."""
    shown = [command for command in commands(page) if command[0] in cli.DistillationCLI.subcommands()]
    shown = [command for command in shown if not {"experiment.yaml", "teacher.yaml", "student.yaml"} & set(command)]
    for command in shown:
        cli.main(command)
    assert [made.subcommand for made in instantiated] == [command[0] for command in shown]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: a CSV, a tiny model under the Hub name of the docs, and GLUE's layout under its own."""
    root = tmp_path_factory.mktemp("reader")
    data = SyntheticDataModule(num_train=700, num_validation=8, num_test=8)
    data.setup("fit")
    rows, names = data.load_split("train"), data.label_names
    assert rows is not None and names is not None and data.tokenizer is not None
    with (root / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("review", "verdict"), *((row["sentence"], names[row["label"]]) for row in rows)])
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(data.tokenizer), num_labels=2, **shape))
    model.bert.save_pretrained(root / TEACHER)
    data.tokenizer.save_pretrained(root / TEACHER)
    glue = root / "nyu-mll" / "glue"
    for split, count in (("train", 64), ("validation", 16)):
        (glue / "sst2").mkdir(parents=True, exist_ok=True)
        rows.select(range(count)).to_parquet(glue / "sst2" / f"{split}-00000-of-00001.parquet")
    lines = [f"  - split: {split}\n    path: sst2/{split}-*" for split in ("train", "validation")]
    head = "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
    (glue / "README.md").write_text(head + "\n".join(lines) + "\n---\n", encoding="utf-8")
    return root


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of the `lightning-kd` commands on a page."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\w+=\S+ |srun )*(?:lightning-kd|python train\.py) (.*)", line):
                yield shlex.split(found[1], comments=True)


@pytest.fixture(scope="module")
def started(folder: Path) -> Path:
    """The folder after the page on starting: its files written, its commands run, both word for word."""
    page = ROOT / "docs" / "start.md"
    files = {match[1]: block for block in blocks(page, "yaml") if (match := re.match(r"# (\w+\.yaml)", block))}
    for name, block in files.items():
        (folder / name).write_text(block, encoding="utf-8")
    assert set(files) == {"teacher.yaml", "student.yaml"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lightning-kd"])
        ran = list(commands(page))
        for arguments in ran:
            cli.main(arguments)
    assert [arguments[-1] for arguments in ran] == ["teacher.yaml", "student.yaml"]
    return folder


@pytest.mark.slow
def test_the_page_on_starting_ends_in_what_it_says(started: Path) -> None:
    """Stops the first page that a reader follows from leading to an error, or to less than it promises."""
    report = json.loads((started / "runs/student/report.json").read_text(encoding="utf-8"))
    assert [row["name"].partition(",")[0] for row in report["rows"]] == ["teacher", "student", "int8"]
    sizes = [row["bytes"] for row in report["rows"]]
    assert sizes == sorted(sizes, reverse=True)
    assert (started / "runs/student/report.md").is_file() and (started / "runs/student/report.png").is_file()


@pytest.fixture(scope="module")
def served(started: Path) -> Path:
    """The folder with the student in the form of the other backends, and where other pages expect a teacher."""
    source = started / "runs/student/student"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    for name, quantizer in (("openvino", OpenVINOInt8(activations="float")), ("torchao", TorchAO())):
        needs_extra(quantizer)
        into = started / f"runs/student/int8-{name}"
        into.mkdir()
        quantizer.convert(model.eval(), [], into)
        model.config.save_pretrained(into)
        tokenizer.save_pretrained(into)
    (started / "runs/sst2/teacher").mkdir(parents=True)
    (started / "runs/sst2/teacher/student").symlink_to(started / "runs/teacher/student")
    return started


#: What a block is shortened by: fewer rows and epochs than its reader has.
SHORTER = {
    "holdout_size=6000": "holdout_size=16",
    "max_epochs=2": "max_epochs=1",
    "runs/stsb/bi_encoder/sentence_encoder": TEACHER,
}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), numbered("python"))
def test_the_python_runs(
    page: Path, block: str, served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stops a snippet that was never tried, or that the code has left behind."""
    code = compile(block, f"{page.name}", "exec", dont_inherit=True)
    if OTHERS.search(block) or block.startswith("# my_kd.py"):
        return  # parsed; the second runs below
    for long, short in SHORTER.items():
        block = block.replace(long, short)
    monkeypatch.chdir(served)
    monkeypatch.setitem(sys.modules, "my_kd", own_package(ROOT / "docs" / "extending.md"))
    if "my_kd" in block:
        letters(served)
    code = compile(block, f"{page.name}", "exec", dont_inherit=True)
    exec(code, given(block, served))
    if "print(" in block:
        assert capsys.readouterr().out.strip()


def given(block: str, root: Path) -> dict[str, Any]:
    """The names that a block takes for granted."""
    names: dict[str, Any] = {"__name__": "reader"}
    if "batches)" in block:
        source = root / "runs/student/student"
        names["model"] = AutoModelForSequenceClassification.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        names["batches"] = [dict(tokenizer(["the plot was dull"], return_tensors="pt"))]
    return names


def letters(root: Path) -> None:
    """Run the experiment of the page on extending, on letters that differ by two words."""
    if (root / "runs/letters").is_dir():
        return
    (root / "letters").mkdir()
    for split, count in (("train", 80), ("validation", 20)):
        kinds = ("negative\tthe plot was dull", "positive\tthe music was superb")
        lines = [f"{kinds[i % 2]} {i}" for i in range(count)]
        (root / "letters" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (config,) = [block for block in blocks(ROOT / "docs" / "extending.md", "yaml") if "my_kd." in block]
    (root / "experiment.yaml").write_text(config, encoding="utf-8")
    cli.main(["fit", "--config", "experiment.yaml"])
    report = json.loads((root / "runs/letters/report.json").read_text(encoding="utf-8"))
    assert report["rows"][-1]["name"].startswith("float16")
