"""`quantize`, `analyze` and `prune` from their arguments on; what they find is tested beside what finds it."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import CompressionReport, QuantizationCallback
from lightning_kd.cli import main
from lightning_kd.datamodules import GLUEDataModule, NERDataModule, QADataModule
from lightning_kd.losses import SoftTargetKL
from lightning_kd.pruning import Importance, importance
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt8, OpenVINOInt8
from lightning_kd.tasks import QuestionAnswering, TokenClassification
from lightning_kd.trainer import CompressionTrainer
from tests.conftest import WORDS, needs_extra
from tests.datamodules.test_ner import TAGS, random_rows, write
from tests.datamodules.test_qa import random_rows as random_questions
from tests.datamodules.test_qa import write as write_questions

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv
ROOT = Path(__file__).resolve().parents[1]
Make = Callable[..., Any]


def test_takes_the_config_of_fit(tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops an experiment from having to be written down a second time to be analyzed."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(CompressionTrainer, "analyze", recorded(calls))
    options = {"model.student.path": tiny_model(), "trainer.default_root_dir": tmp_path, "data.path": tmp_path}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    config = str(ROOT / "configs" / "sst2" / "no_teacher.yaml")
    main(["analyze", "--config", config, *arguments, "--bits", "[4,8]", "--granularity", "group"])
    (call,) = calls
    assert isinstance(call["model"], DistillationModule) and isinstance(call["datamodule"], GLUEDataModule)
    assert (call["bits"], call["granularity"], call["symmetric"]) == ([4, 8], "group", True)


def recorded(calls: list[dict[str, Any]]) -> Any:
    """The method with its own signature, which the command line reads, and without its work."""

    @wraps(CompressionTrainer.analyze)
    def analyze(self: CompressionTrainer, **options: Any) -> None:
        calls.append(options)

    return analyze


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "--granularity=row",
            "error: Expected argument `--granularity` to be one of 'tensor', 'channel', 'group', but got row.",
        ),
        ("--granularty=row", "error: There is no option `--granularty`. Did you mean `--granularity`?"),
    ],
)
def test_a_wrong_value_is_one_sentence(option: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops an analysis per row, which is called per channel, from being a page of jsonargparse's workings."""
    with pytest.raises(SystemExit):
        main(["analyze", "--config", str(ROOT / "configs" / "sst2" / "no_teacher.yaml"), option])
    assert capsys.readouterr().err.startswith(sentence)


# ---------------------------------------------------------------------------------------------- quantize

QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
BATCH = {name: torch.ones(1, 5, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


def test_a_trained_model_is_quantized_as_it_is(tmp_path: Path, tiny_model: Any, glue_folder: Path) -> None:
    """Stops a model that is to be quantized alone from being trained, or from having to be written down in YAML."""
    source, root = tiny_model(), tmp_path / "run"
    model = ["--model.student.path", str(source)]
    others = ["--report.baselines", json.dumps({"other": str(tiny_model(seed=2))})]
    data = ["--data", "GLUEDataModule", "--data.name", "sst2", "--data.path", str(glue_folder)]
    trainer = ["--trainer.default_root_dir", str(root), "--trainer.logger", "false", "--trainer.max_epochs", "3"]
    callback = ["--trainer.callbacks+=QuantizationCallback", "--trainer.callbacks.quantizer=DynamicInt8"]
    main(["quantize", *model, *data, *others, *trainer, *callback])
    stored, exported = (load_file(folder / "model.safetensors") for folder in (source, root / "student"))
    assert stored.keys() == exported.keys()
    assert all(torch.equal(stored[name], exported[name]) for name in stored)
    assert list(DynamicInt8.open(root / "int8")(BATCH)) == ["logits"]
    rows = {row["name"]: row for row in json.loads((root / "report.json").read_text())["rows"]}
    assert list(rows) == ["other", "model", "int8, torch"]
    assert not list(root.rglob("*.ckpt"))
    card = (root / "int8" / "README.md").read_text()
    assert "The int8, torch form of a model (bert, 3 layers, 0.0 M parameters), quantized with lightning-kd." in card
    assert "| training | none |" in card and "distill" not in card and "| loss |" not in card


def test_the_config_for_a_model_of_ones_own_runs(
    tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a config that parses, and asks for rows that its file does not set aside."""
    for quantizer in (ONNXRuntimeInt8(), OpenVINOInt8()):
        needs_extra(quantizer)
    pairs = product(WORDS[:40], WORDS[:40])
    lines = [f"{first} {second},{'negative' if first < second else 'positive'}" for first, second in pairs]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    main(["quantize", f"--config={ROOT / 'configs/own_data/quantize.yaml'}", f"--model.student.path={tiny_model()}"])
    report = json.loads((tmp_path / "runs/own_data/quantize/report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["model", "int8, ONNX Runtime", "int8, OpenVINO"]
    assert report["split_rows"] == {"validation": 500, "test": 500}
    teacher = yaml.safe_load((ROOT / "configs/own_data/teacher.yaml").read_text())["data"]["init_args"]
    ours = yaml.safe_load((ROOT / "configs/own_data/quantize.yaml").read_text())["data"]["init_args"]
    assert {name: teacher[name] for name in ours} == ours  # or rows that were learned from would be held out


def test_the_student_of_a_config_is_quantized_again(tmp_path: Path, tiny_model: Any, glue: Any) -> None:
    """Stops another backend from taking a second training, or the config's teacher for the student."""
    teacher, student = str(tiny_model()), str(tiny_model(seed=3))
    teachers, losses = {"big": ModelSource(teacher)}, {"soft": SoftTargetKL()}
    module = DistillationModule(ModelSource(teacher, keep_layers=[0]), teachers, losses=losses)
    callbacks: list[Any] = [QuantizationCallback(DynamicInt8()), report := CompressionReport()]
    trainer = CompressionTrainer(default_root_dir=tmp_path, max_epochs=2, callbacks=callbacks, **QUIET)
    with pytest.raises(InputError, match=r"`model.student.keep_layers` to be left out, as .* `--student`"):
        trainer.quantize(module, glue())
    with pytest.raises(InputError, match="fine-tune it first"):
        trainer.quantize(copy.deepcopy(module), glue(), str(tiny_model(head=False)))
    assert trainer.max_epochs == 2  # or a fit after this would train nothing, in silence
    trainer.quantize(module, data := glue(), student)
    assert data.tokenizer.name_or_path == student  # not the teacher's
    assert trainer.global_step == 0 and trainer.max_epochs == 2 and report.report is not None
    assert [row.name for row in report.report.rows] == ["teacher", "student", "int8, torch"]
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    model.config.save_pretrained(tmp_path)
    DynamicInt8().convert(model, [], tmp_path)
    found, expected = (DynamicInt8.open(folder)(BATCH)["logits"] for folder in (tmp_path / "int8", tmp_path))
    assert torch.equal(found, expected)


# ---------------------------------------------------------------------------------------------- prune

#: Opens a folder as somebody does who has transformers alone.
OPEN = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
inputs = tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
assert "lightning_kd" not in sys.modules
print(json.dumps(model.eval()(**inputs).logits.tolist()))
"""


def prune(root: Path, source: Path, data: Any, task: Any = None, **options: Any) -> Path:
    """The folder that is written of the model in ``source``."""
    module = DistillationModule(ModelSource(str(source)), **({} if task is None else {"task": task}))
    CompressionTrainer(default_root_dir=root, **QUIET).prune(module, data, **options)
    return root / "pruned"


def logits(folder: Path, texts: list[str]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")).logits


@pytest.mark.slow
def test_a_pruned_folder_is_the_student_of_a_distillation(
    tiny_model: Make, glue_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], log: Any
) -> None:
    """Stops a folder that only this library opens, and a teacher that is fed its student's token numbers."""
    source = tiny_model()
    data = [f"--data.path={glue_folder}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    config = str(ROOT / "configs" / "sst2" / "prune.yaml")
    where = [f"--model.student.path={source}", f"--trainer.default_root_dir={tmp_path}", "--data.holdout_size=4"]
    sizes = ["--keep_layers=[0, 2]", "--intermediate_size=8", "--hidden_size=8"]  # the teacher here has three layers
    main(["prune", "--config", config, *where, *data, *sizes])
    folder, out = tmp_path / "pruned", capsys.readouterr().out
    assert out.count("accuracy 0.") + out.count("accuracy 1.") == 2 and "layer 2: attention" in out
    assert "train: 0.00% of 20 texts are cut into other tokens than before" in log.text
    assert "validation: " in log.text and f"Pruned: {folder}" in log.text
    shapes = {name: tuple(value.shape) for name, value in load_file(folder / "model.safetensors").items()}
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == (8, 8)
    assert not any("layer.2." in name for name in shapes)
    assert (folder / "model.safetensors").stat().st_size < 0.5 * (source / "model.safetensors").stat().st_size
    texts = [" ".join(WORDS[:5]), "ban"]
    command = [sys.executable, "-c", OPEN, str(folder), json.dumps(texts)]
    plain = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    torch.testing.assert_close(torch.tensor(plain), logits(folder, texts))
    config = str(ROOT / "configs" / "sst2" / "smallest.yaml")
    teachers = json.dumps({"teacher": {"path": str(source)}})
    end = ["--trainer.callbacks=[]", "--trainer.logger=false", "--trainer.max_epochs=1", f"--model.teachers={teachers}"]
    where = [
        f"--model.student.path={folder}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--data.holdout_size=4",
    ]
    main(["fit", "--config", config, *where, *data, *end])
    assert "Another vocabulary than the student's is read by teacher" in log.text
    assert logits(tmp_path / "run" / "student", texts).shape == (2, 2)


def test_nothing_but_the_vocabulary_changes_no_logits(tiny_model: Make, glue: Make, tmp_path: Path) -> None:
    """Stops tokens that are renumbered in the tokenizer and not in the model, or the other way round."""
    data = glue()
    folder = prune(tmp_path, tiny_model(), data, vocabulary=True)
    texts = [row[0] for row in data.texts("train")]
    torch.testing.assert_close(logits(folder, texts), logits(tiny_model(), texts), rtol=0, atol=1e-6)
    first, second = (AutoTokenizer.from_pretrained(path) for path in (tiny_model(), folder))
    assert [first.tokenize(text) for text in texts] == [second.tokenize(text) for text in texts]
    assert len(second) < len(first)


def test_nothing_is_chosen_by_rows_that_are_measured_on(
    tiny_model: Make, write_glue: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops words of the validation or held-out rows from staying, and importance from being of them."""
    columns = {
        "train": {"sentence": [f"ba {WORDS[i]}" for i in range(20)], "label": [0, 1] * 10, "idx": list(range(20))},
        "validation": {"sentence": ["tu tun"], "label": [1], "idx": [0]},
    }
    data = GLUEDataModule("sst2", str(write_glue({"sst2": columns})), holdout_size=5, batch_size=4)
    seen: list[int] = []

    def watched(model: Any, task: Any, batches: Any) -> Importance:
        seen.extend(i for batch in batches for i in batch["index"].tolist())
        return importance(model, task, batches)

    monkeypatch.setattr("lightning_kd.trainer.importance", watched)
    folder = prune(tmp_path, tiny_model(), data, vocabulary=True, intermediate_size=8, importance_batches=3)
    rows = set(data._rows["train"].index.tolist())
    assert len(seen) == 12 and set(seen) < rows
    kept = AutoTokenizer.from_pretrained(folder).get_vocab().keys()
    assert {WORDS[i] for i in rows} < kept
    assert not kept & {"tu", "tun", *(WORDS[i] for i in set(range(20)) - rows - {0})}


def test_layers_that_are_found_are_kept(tiny_model: Make, glue: Make, tmp_path: Path, log: Any) -> None:
    """Stops the layers that were found from being others than those that are written, with the neurons of others."""
    options = {"intermediate_size": 8, "importance_batches": 2}
    folder = prune(tmp_path / "found", tiny_model(), glue(), num_layers=2, **options)
    lines = re.findall(r"Loss of the layers (\[.*\]) on 2 training batches: (\d\.\d{4})", log.text)
    assert [len(json.loads(layers)) for layers, _ in lines] == [3, 2]
    given = prune(tmp_path / "given", tiny_model(), glue(), keep_layers=json.loads(lines[-1][0]), **options)
    assert (folder / "model.safetensors").read_bytes() == (given / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["tags", "answers"])
def test_taggers_and_answerers_are_pruned(tiny_model: Make, tmp_path: Path, kind: str) -> None:
    """Stops windows, and labels that stand at tokens, from being read as one text with one label."""
    source = tmp_path / "trained"
    common = {"max_length": 32, "stride": 8, "batch_size": 8}
    if kind == "tags":
        head: Any = AutoModelForTokenClassification
        splits = {"train": random_rows(24, 0), "validation": random_rows(12, 1)}
        path, names = write(tmp_path / "data", splits), TAGS
        make: Any = NERDataModule
    else:
        head = AutoModelForQuestionAnswering
        path = write_questions(
            tmp_path / "data", {"train": random_questions(24, 0), "validation": random_questions(9, 1)}
        )
        names, make = ["start", "end"], QADataModule
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    head.from_pretrained(tiny_model(head=False), **labels).save_pretrained(source)
    AutoTokenizer.from_pretrained(tiny_model()).save_pretrained(source)
    data = make(str(path), **common)
    task = TokenClassification() if kind == "tags" else QuestionAnswering()
    folder = prune(tmp_path, source, data, task, keep_layers=[0, 2], hidden_size=8, vocabulary=True)
    model = head.from_pretrained(folder)
    assert model.config.hidden_size == 8 and model.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size < 131


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {},
            "Nothing to prune: give keep_layers, num_layers, intermediate_size, hidden_size or vocabulary: true.",
        ),
        ({"num_layers": 4}, "`num_layers` to be from 1 to 3, which the model has, but got 4."),
        ({"num_layers": 0}, "`num_layers` to be from 1 to 3, which the model has, but got 0."),
        (
            {"num_layers": 1, "keep_layers": [0]},
            "Both keep_layers and num_layers say which layers stay: leave one of them out.",
        ),
        ({"intermediate_size": 99}, "`intermediate_size` to be from 1 to 24"),
        ({"num_attention_heads": 1}, "`num_attention_heads` cannot be cut alone"),
        ({"keep_layers": [3]}, "`keep_layers` to be different layers from 0 to 2, but got [3]"),
        ({"vocabulary": True, "min_count": 0}, "`min_count` to be at least 1, but got 0"),
        ({"hidden_size": 8, "importance_batches": 0}, "`importance_batches` to be at least 1, but got 0"),
        ({"vocabulary": True, "student": "/nowhere"}, "There is no such folder."),
    ],
)
def test_wrong_values_write_nothing(
    tiny_model: Make, glue: Make, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    """Stops half a folder under the name that the next run reads."""
    with pytest.raises(InputError) as error:
        prune(tmp_path, tiny_model(), glue(), **options)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_trained_model_is_not_replaced(tiny_model: Make, glue: Make, tmp_path: Path) -> None:
    """Stops a teacher from being lost to its own student."""
    before = (tiny_model() / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="`path` to be another folder than the trained model's"):
        prune(tmp_path, tiny_model(), glue(), keep_layers=[0], path=str(tiny_model()))
    assert (tiny_model() / "model.safetensors").read_bytes() == before
