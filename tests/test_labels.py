"""A model whose labels are the data's in another order, or in other spelling, is used as if it had theirs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lightning_kd import DistillationModule, ModelSource
from lightning_kd._checks import InputError
from lightning_kd.callbacks import CompressionReport, TeacherCache, Theseus
from lightning_kd.cli import main
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.labels import label_names_of, label_order, order_outputs
from lightning_kd.schedules import Constant
from lightning_kd.trainer import CompressionTrainer

Make = Callable[..., Any]

BERT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 30}
SHAPES = {
    "albert": {**BERT, "embedding_size": 8},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 30, "pad_token_id": 0}
    | {"eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 2, "max_position_embeddings": 20},
    "bert": BERT,
    "cnn": {"vocab_size": 30, "embedding_size": 8, "channels": 4},
    "deberta-v2": BERT,
    "distilbert": {"dim": 16, "n_heads": 2, "hidden_dim": 24, "n_layers": 2, "vocab_size": 30},
    "electra": {**BERT, "embedding_size": 8},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 30, "n_positions": 20, "pad_token_id": 0},
    "rnn": {"vocab_size": 30, "embedding_size": 8, "hidden_size": 8},
    "roberta": {**BERT, "pad_token_id": 0},
    "xlnet": {"d_model": 16, "n_head": 2, "d_inner": 24, "n_layer": 1, "vocab_size": 30, "pad_token_id": 0},
}


@pytest.mark.parametrize(
    ("own", "wanted", "order"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], ["entailment", "neutral", "contradiction"], [2, 1, 0]),
        (["NOT-ENTAILMENT", "Entailment"], ["entailment", "not_entailment"], [1, 0]),
        (["O", "B-PER", "I-PER"], ["O", "I-PER", "B-PER"], [0, 2, 1]),
        ([":)", ":("], [":(", ":)"], [1, 0]),  # nothing is left of them without punctuation
        (["a", "A"], ["A", "a"], [1, 0]),
        (["a", "A"], ["a", "b"], None),
        (["pos", "neg"], ["positive", "negative"], None),
        (["LABEL_0", "LABEL_1"], ["a", "b"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (None, ["a", "b"], None),
        (["a", "b"], None, None),
        (["a", "b"], [], None),
    ],
)
def test_the_order_of_names(own: list[str] | None, wanted: list[str] | None, order: list[int] | None) -> None:
    """Stops the order from being read the other way round, which two labels cannot tell, or from being guessed."""
    assert label_order(own, wanted) == order


def test_names_come_by_number() -> None:
    """Stops the tenth label from coming before the second where the numbers were written as text, as in YAML."""
    names = [f"label {i}" for i in range(12)]
    config = AutoConfig.for_model("bert", **BERT)
    config.id2label = {str(i): name for i, name in enumerate(names)}
    assert label_names_of(config) == names


@pytest.mark.parametrize(
    ("kind", "auto_class"),
    [
        *((kind, AutoModelForSequenceClassification) for kind in SHAPES),
        *((kind, AutoModelForTokenClassification) for kind in SHAPES if kind != "bart"),  # which is no tagger
    ],
)
def test_outputs_in_another_order(kind: str, auto_class: Any) -> None:
    """Stops another layer than the head from being changed, or its bias from being left behind."""
    own, wanted = ["b", "c", "d", "a"], ["A", "B", "C", "D"]
    config = AutoConfig.for_model(kind, **SHAPES[kind], id2label=dict(enumerate(own)))
    torch.manual_seed(0)
    model = auto_class.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2]]), "attention_mask": torch.ones(2, 4).long()}
    with torch.no_grad():
        before = model(**inputs).logits
        after = order_outputs(model, own, wanted, "the model")(**inputs).logits
    torch.testing.assert_close(after, before[..., [3, 0, 1, 2]], rtol=0, atol=0)
    assert model.config.id2label == dict(enumerate(wanted))
    assert model.config.label2id == {name: i for i, name in enumerate(wanted)}


def test_a_model_without_a_head_to_reorder_is_refused() -> None:
    """Stops a model from being taken for another one whose outputs are known."""
    model = AutoModelForMultipleChoice.from_config(AutoConfig.for_model("bert", **BERT))
    with pytest.raises(InputError, match=r"The labels of it are in another order \(b, a\) than the data's \(a, b\)"):
        order_outputs(model, ["b", "a"], ["a", "b"], "it")
    order_outputs(model, ["A", "B"], ["a", "b"], "it")


@pytest.fixture
def turned(tmp_path: Path, tiny_model: Make) -> Callable[..., Path]:
    """Copies a tiny model whose labels are named so, and its outputs in the order in which SST-2's labels come then."""

    def write(labels: Sequence[str], order: Sequence[int]) -> Path:
        folder = tmp_path / "-".join(["model", *labels])
        source = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        model = AutoModelForSequenceClassification.from_pretrained(source)
        with torch.no_grad():
            for parameter in model.classifier.parameters():
                parameter.copy_(parameter[list(order)])
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {name: i for i, name in enumerate(labels)}
        model.save_pretrained(folder)
        return folder

    return write


PLAIN, TURNED = (("negative", "positive"), (0, 1)), (("POSITIVE", "NEGATIVE"), (1, 0))


def student_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.lightning_module.model.state_dict().items()}


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_with_another_order_teaches_the_same(
    cached: bool, turned: Callable[..., Path], distillation: Make, glue: Make, make_trainer: Make, log: Any
) -> None:
    """Stops a student from learning the opposite of what its teacher says."""
    found, reports = [], []
    for labels in (PLAIN, TURNED):
        module = distillation(teachers={"t": ModelSource(str(turned(*labels)))}, hard_label_weight=0.0)
        report = CompressionReport(baselines={"same": str(turned(*labels))})
        trainer = make_trainer(callbacks=[report, *([TeacherCache(dtype="float32")] if cached else [])])
        trainer.fit(module, datamodule=glue(holdout_size=4))
        found.append(student_of(trainer))
        reports.append([row.metrics["validation"]["accuracy"].value for row in report.report.rows])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=0)
    assert reports[0] == reports[1] and reports[0][0] == reports[0][1]
    assert "The labels of `model.teachers.t` are put into the data's order: negative, positive" in log.text


def test_cached_logits_are_of_one_order(
    tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make, turned: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops logits that were cached in one order from being read in another, where nothing else has changed."""
    module = {"teachers": {"t": ModelSource(str(turned(*PLAIN)))}}
    cache = {"path": str(tmp_path / "cache"), "dtype": "float32"}
    make_trainer(callbacks=[TeacherCache(**cache)]).fit(distillation(**module), datamodule=glue())
    make_trainer(callbacks=[TeacherCache(**cache)]).fit(distillation(**module), datamodule=glue())
    monkeypatch.setattr(GLUEDataModule, "_read_label_names", lambda self: ["positive", "negative"])
    with pytest.raises(InputError, match="were computed with other labels, or another order of them: delete"):
        make_trainer(callbacks=[TeacherCache(**cache)]).fit(distillation(**module), datamodule=glue())


def test_a_student_with_another_order_scores_and_starts_as_it_was_trained(
    turned: Callable[..., Path], glue: Make, make_trainer: Make
) -> None:
    """Stops the accuracy of a finished model from being 1 minus what it is."""
    scores, weights = [], []
    for labels in (PLAIN, TURNED):
        source = ModelSource(str(turned(*labels)))
        trainer = make_trainer()
        scores.append(trainer.validate(DistillationModule(source), datamodule=glue(), verbose=False))
        trainer = make_trainer()
        trainer.fit(DistillationModule(source), datamodule=glue())
        weights.append(student_of(trainer))
    assert scores[0] == scores[1]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


def test_what_is_cut_and_analyzed_is_in_the_order_of_the_data(
    turned: Callable[..., Path], glue: Make, tmp_path: Path
) -> None:
    """Stops neurons from being chosen, and bits from being judged, by the opposite of the labels."""
    weights, tables = [], []
    for name, labels in (("plain", PLAIN), ("turned", TURNED)):
        source, root = str(turned(*labels)), tmp_path / name
        options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
        trainer = CompressionTrainer(default_root_dir=root, **options)
        trainer.prune(DistillationModule(ModelSource(source)), glue(), intermediate_size=8)
        weights.append(load_file(root / "pruned" / "model.safetensors"))
        trainer.analyze(DistillationModule(ModelSource(source)), glue(), student=source, bits=[2])
        tables.append((root / "analysis" / "analysis.csv").read_text())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=0)
    assert tables[0] == tables[1]


def test_theseus_takes_a_teacher_of_another_order(turned: Callable[..., Path], glue: Make, make_trainer: Make) -> None:
    """Stops a student whose head was put into order from being refused as another one than its teacher's."""
    weights = []
    for labels in (PLAIN, TURNED):
        source = str(turned(*labels))
        trainer = make_trainer(callbacks=[Theseus(Constant(0.5), teacher=source)], limit_val_batches=0)
        trainer.fit(DistillationModule(ModelSource(source, keep_layers=[1])), datamodule=glue())
        weights.append(student_of(trainer))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


def test_other_names_are_refused_or_said_to_be_the_same(
    turned: Callable[..., Path], distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops the remedy that the message names from failing, and a finished model of other labels from being scored."""
    folder = str(turned(("pos", "neg"), (1, 0)))
    with pytest.raises(InputError, match=r"but those of model\.student are pos, neg: .* by id2label in its config\.$"):
        make_trainer().validate(DistillationModule(ModelSource(folder)), datamodule=glue())
    names = {"id2label": {"0": "positive", "1": "negative"}}
    scores = [
        make_trainer().validate(DistillationModule(source), datamodule=glue(), verbose=False)
        for source in (ModelSource(folder, config=names), ModelSource(str(turned(*PLAIN))))
    ]
    assert scores[0] == scores[1]
    module = distillation(teachers={"t": ModelSource(folder, config=names)})
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=glue())
    report = CompressionReport(baselines={"other": folder})
    with pytest.raises(InputError, match=r"those of `report\.baselines\.other` are pos, neg"):
        make_trainer(callbacks=[report]).fit(distillation(), datamodule=glue())


def test_a_checkpoint_of_another_order_is_refused(
    tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a checkpoint's head from being loaded under the names of another data set."""
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(distillation(), datamodule=glue())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    stored = torch.load(tmp_path / "one.ckpt", weights_only=True)
    stored["student_config"]["id2label"] = {0: "positive", 1: "negative"}
    torch.save(stored, tmp_path / "other.ckpt")
    make_trainer().validate(distillation(), datamodule=glue(), ckpt_path=str(tmp_path / "one.ckpt"))
    with pytest.raises(InputError, match="those of the checkpoint are positive, negative: names and order"):
        make_trainer().validate(distillation(), datamodule=glue(), ckpt_path=str(tmp_path / "other.ckpt"))


def test_names_are_given_by_number_in_yaml(turned: Make, glue_folder: Path, tmp_path: Path, log: Any) -> None:
    """Stops a key that is a number, as it is written in YAML, from ending the command line in a TypeError."""
    source = str(turned(("pos", "neg"), (1, 0)))
    names = {"path": source, "config": {"id2label": {0: "positive", 1: "negative"}}}
    config = {
        "model": {
            "student": names,
            "teachers": {"t": names},
            "losses": {"soft": {"class_path": "lightning_kd.losses.SoftTargetKL"}},
        },
        "data": {
            "class_path": "lightning_kd.datamodules.GLUEDataModule",
            "init_args": {"name": "sst2", "path": str(glue_folder)},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": str(tmp_path / "run"), "logger": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "config.yaml")])
    for who in ("student", "teachers.t"):
        assert f"The labels of `model.{who}` are put into the data's order: negative, positive" in log.text
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["teachers"]["t"]["config"] == names["config"]
    stored = AutoConfig.from_pretrained(tmp_path / "run" / "student")
    assert stored.id2label == {0: "negative", 1: "positive"}
