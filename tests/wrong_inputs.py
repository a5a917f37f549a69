"""Wrong inputs, and what the command line has to say of each: the table of test_wrong_input.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHAPE = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
}
SOFT = {"class_path": "lightning_kd.losses.SoftTargetKL"}
HIDDEN = {
    "class_path": "lightning_kd.losses.HiddenStateMSE",
    "init_args": {"matches": [{"student_layer": 1, "teacher_layer": 1}]},
}
TEACHERS = {"big": {"path": "{student}"}}
LEARNS = {"model.teachers": TEACHERS, "model.losses": {"soft": SOFT}}
INT8 = {"class_path": "lightning_kd.quantization.DynamicInt8"}


def quantization(**options: Any) -> dict[str, Any]:
    return {"class_path": "lightning_kd.callbacks.QuantizationCallback", "init_args": {"quantizer": INT8, **options}}


def callbacks(*specs: Any) -> dict[str, Any]:
    return {"trainer.callbacks": list(specs)}


def data(kind: str, **options: Any) -> dict[str, Any]:
    return {"data": {"class_path": f"lightning_kd.datamodules.{kind}", "init_args": options}}


def text(**options: Any) -> dict[str, Any]:
    return data("TextDataModule", **{"path": "{csv}", "tokenizer": "{student}", **options})


@dataclass(frozen=True)
class Wrong:
    """A wrong input.

    Attributes:
        typed: The command line; words in braces stand for files and folders of the test.
        says: What the sentence has to hold: the option as it was typed, what came, what to do.
        config: What is changed in a configuration that works, by dotted key.
        missing: A package that is not installed.
        environment: Variables.
    """

    typed: str
    says: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None


FIT = "fit --config {config}"
QUANTIZE = "quantize --config {config}"
PTQ = callbacks(quantization())
#: By what is wrong.
TABLE: dict[str, Wrong] = {
    # ------------------------------------------------------------------------------------ subcommands and options
    "no subcommand": Wrong("", ("subcommand", "fit", "describe")),
    "subcommand": Wrong("fitt --config {config}", ("`fitt`", "Did you mean `fit`?")),
    "option without a subcommand": Wrong("--config {config}", ("subcommand",)),
    "option": Wrong(f"{FIT} --model.temprature 2", ("`--model.temprature`", "Did you mean `--model.temperature`?")),
    "option of the trainer": Wrong(
        f"{FIT} --trainer.max_epoch 3", ("`--trainer.max_epoch`", "Did you mean `--trainer.max_epochs`?")
    ),
    "option of the data": Wrong(
        f"{FIT} --data.btch_size 2", ("`--data.btch_size`", "Did you mean `--data.batch_size`")
    ),
    "single dash": Wrong(f"{FIT} -model.temperature 2", ("`-model.temperature`", "`--model.temperature`")),
    "option of another subcommand": Wrong("validate --config {config} --num_layers 1", ("`--num_layers`",)),
    "value without an option": Wrong(f"{FIT} 3", ("3",)),
    "option without a value": Wrong(f"{FIT} --model.temperature", ("`--model.temperature`", "value")),
    # ------------------------------------------------------------------------------------ the file
    "config file": Wrong("fit --config no.yaml", ("`--config`", "no.yaml")),
    "config is a folder": Wrong("fit --config {student}", ("`--config`", "{student}")),
    "config is no yaml": Wrong("fit --config {broken_yaml}", ("`--config`", "{broken_yaml}", "line")),
    "config is a model": Wrong("fit --config {weights}", ("`--config`", "{weights}")),
    "config is empty": Wrong("fit --config {empty}", ("`--config`", "{empty}")),
    "config is a list": Wrong("fit --config {list_yaml}", ("`--config`", "{list_yaml}")),
    "no config at all": Wrong("fit", ("--config",)),
    # ------------------------------------------------------------------------------------ keys of the file
    "key at the top": Wrong(FIT, ("`modle`", "Did you mean `model`?"), {"modle": {"temperature": 2}}),
    "key of the model": Wrong(FIT, ("`model.temprature`", "`model.temperature`"), {"model.temprature": 2}),
    "key of the student": Wrong(FIT, ("`model.student.paht`", "`model.student.path`"), {"model.student.paht": "x"}),
    "key of a teacher": Wrong(
        FIT, ("`model.teachers.big.paht`", "path"), {"model.teachers": {"big": {"paht": "{student}"}}}
    ),
    "key of a loss": Wrong(
        FIT,
        ("`model.losses.hidden.init_args.matchs`", "matches`"),
        {**LEARNS, "model.losses": {"hidden": {**HIDDEN, "init_args": {"matchs": []}}}},
    ),
    "key of a match": Wrong(
        FIT,
        ("`model.losses.hidden", "studnt_layer", "student_layer"),
        {**LEARNS, "model.losses": {"hidden": {**HIDDEN, "init_args": {"matches": [{"studnt_layer": 1}]}}}},
    ),
    "key of the data": Wrong(FIT, ("`data.init_args.btch_size`", "batch_size`"), {"data.init_args.btch_size": 2}),
    "key of the trainer": Wrong(FIT, ("`trainer.max_epoch`", "`trainer.max_epochs`"), {"trainer.max_epoch": 2}),
    "key of a callback": Wrong(
        FIT,
        ("`trainer.callbacks", "calibration_batchs", "calibration_batches"),
        callbacks(quantization(calibration_batchs=2)),
    ),
    "key of a quantizer": Wrong(
        FIT,
        ("`trainer.callbacks", "quantizer", "bits"),
        callbacks(quantization(quantizer={**INT8, "init_args": {"bits": 4}})),
    ),
    "key of the optimizer": Wrong(
        FIT,
        ("`model.optimizer", "lrr", "lr"),
        {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lrr": 1}}},
    ),
    "key of the report": Wrong(FIT, ("`report.thread`", "`report.threads`"), {"report.thread": 2}),
    "key of the student's config": Wrong(
        FIT, ("`model.student.config`", "hiden_size", "`hidden_size`"), {"model.student.config.hiden_size": 2}
    ),
    # ------------------------------------------------------------------------------------ classes
    "class of a loss": Wrong(
        FIT,
        ("`model.losses.soft", "lightning_kd.losses.SoftTarget", "SoftTargetKL"),
        {**LEARNS, "model.losses": {"soft": {"class_path": "lightning_kd.losses.SoftTarget"}}},
    ),
    "class of the data": Wrong(
        FIT,
        ("`data", "lightning_kd.datamodules.SynteticDataModule", "SyntheticDataModule"),
        {"data": {"class_path": "lightning_kd.datamodules.SynteticDataModule"}},
    ),
    "class of a callback": Wrong(
        FIT,
        ("`trainer.callbacks", "lightning_kd.callbacks.TeacherCach", "TeacherCache"),
        callbacks({"class_path": "lightning_kd.callbacks.TeacherCach"}),
    ),
    "class of another kind": Wrong(
        FIT,
        ("`model.losses.soft", "torch.nn.Linear"),
        {**LEARNS, "model.losses": {"soft": {"class_path": "torch.nn.Linear"}}},
    ),
    "a loss as a callback": Wrong(FIT, ("`trainer.callbacks", "SoftTargetKL"), callbacks(SOFT)),
    "a module that is not there": Wrong(
        FIT, ("`trainer.callbacks", "no_such_module.Callback"), callbacks({"class_path": "no_such_module.Callback"})
    ),
    # ------------------------------------------------------------------------------------ types
    "a word for a number": Wrong(
        f"{FIT} --model.temperature warm", ("`--model.temperature`", "number", "but got warm")
    ),
    "a fraction for a count": Wrong(f"{FIT} --data.batch_size 1.5", ("`--data.batch_size`", "1.5", "whole number")),
    "a number for a name": Wrong(FIT, ("`model.student.path`", "12"), {"model.student.path": 12}),
    "a list for a dict": Wrong(FIT, ("`model.losses`",), {"model.losses": [SOFT]}),
    "a name for a list": Wrong(FIT, ("`model.student.keep_layers`",), {"model.student.keep_layers": "first"}),
    "a name for a yes": Wrong(f"{FIT} --report.teacher maybe", ("`--report.teacher`", "maybe", "true or false")),
    "a choice": Wrong(f"{FIT} --model.student.dtype int8", ("`--model.student.dtype`", "'float32'", "int8")),
    "teachers as one": Wrong(FIT, ("`model.teachers",), {"model.teachers": {"path": "{student}"}}),
    "accelerator": Wrong(FIT, ("`trainer.accelerator`", "gpuu"), {"trainer.accelerator": "gpuu"}),
    "precision": Wrong(FIT, ("`trainer.precision`", "int8"), {"trainer.precision": "int8"}),
    # ------------------------------------------------------------------------------------ ranges
    "temperature": Wrong(f"{FIT} --model.temperature 0", ("`--model.temperature`", "above 0", "got 0")),
    "no number": Wrong(FIT, ("`model.temperature`", "above 0", "nan"), {"model.temperature": float("nan")}),
    "warmup": Wrong(f"{FIT} --model.warmup 2", ("`--model.warmup`", "between 0 and 1")),
    "batch size": Wrong(f"{FIT} --data.batch_size 0", ("`--data.batch_size`", "at least 1", "got 0")),
    "workers": Wrong(f"{FIT} --data.num_workers -1", ("`--data.num_workers`", "0 or more", "-1")),
    "held-out rows": Wrong(f"{FIT} --data.holdout_size 64", ("`--data.holdout_size`", "below the 64 rows")),
    "epochs": Wrong(f"{FIT} --trainer.max_epochs -3", ("`--trainer.max_epochs`", "-3")),
    "training without an end": Wrong(f"{FIT} --trainer.max_epochs -1", ("trainer.max_epochs",)),
    "devices": Wrong(f"{FIT} --trainer.devices 0", ("`--trainer.devices`", "0")),
    "more devices than there are": Wrong(
        f"{FIT} --trainer.accelerator cuda --trainer.devices 99", ("`--trainer.accelerator`", "CUDA", "['cpu']")
    ),
    "calibration": Wrong(
        FIT, ("[0].init_args.calibration_batches`", "at least 1"), callbacks(quantization(calibration_batches=0))
    ),
    "learning rate": Wrong(
        FIT,
        ("`model.optimizer`", "learning rate: -1"),
        {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1}}},
    ),
    "threads": Wrong(f"{FIT} --report.threads 0", ("`--report.threads`", "at least 1", "got 0")),
    "top k": Wrong(
        FIT,
        ("[0].init_args.top_k`", "at least 1"),
        callbacks({"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": {"top_k": 0}}),
    ),
    "too few positions": Wrong(
        FIT,
        ("`data.max_length`", "8 positions"),
        {"data.init_args.max_length": 128, "model.student.config.max_position_embeddings": 8},
    ),
    # ------------------------------------------------------------------------------------ contradictions
    "teacher without a loss": Wrong(FIT, ("`losses`",), {"model.teachers": TEACHERS}),
    "loss without a teacher": Wrong(FIT, ("`teachers`",), {"model.losses": {"soft": SOFT}}),
    "weight of no loss": Wrong(
        FIT, ("loss_weights`", "'sfot'", "Did you mean `soft`?"), {**LEARNS, "model.loss_weights": {"sfot": 1.0}}
    ),
    "teacher of no loss": Wrong(
        FIT, ("loss_teachers`", "'sfot'", "Did you mean `soft`?"), {**LEARNS, "model.loss_teachers": {"sfot": "big"}}
    ),
    "no such teacher": Wrong(
        FIT,
        ("`model.loss_teachers.soft`", "'bgi'", "Did you mean `big`?"),
        {**LEARNS, "model.loss_teachers": {"soft": "bgi"}},
    ),
    "student layer": Wrong(
        FIT,
        ("matches[0].student_layer`", "from 0 (the embeddings) to 2", "got 7"),
        {
            **LEARNS,
            "model.losses": {"h": {**HIDDEN, "init_args": {"matches": [{"student_layer": 7, "teacher_layer": 1}]}}},
        },
    ),
    "teacher layer": Wrong(
        FIT,
        ("matches[0].teacher_layer`", "from 0 (the embeddings) to 2", "got 7"),
        {
            **LEARNS,
            "model.losses": {"h": {**HIDDEN, "init_args": {"matches": [{"student_layer": 1, "teacher_layer": 7}]}}},
        },
    ),
    "kept layer": Wrong(
        FIT,
        ("`model.student.keep_layers`", "from 0 to 1"),
        {"model.student": {"path": "{student}", "keep_layers": [0, 7]}},
    ),
    "from scratch without a shape": Wrong(FIT, ("`model.student.path`",), {"model.student": {"from_scratch": True}}),
    "a teacher from scratch": Wrong(
        FIT,
        ("`model.teachers.big.from_scratch`",),
        {**LEARNS, "model.teachers": {"big": {"path": "{student}", "from_scratch": True}}},
    ),
    "one folder twice": Wrong(
        FIT, ("QuantizationCallbacks", "give one of them an export_dir"), callbacks(quantization(), quantization())
    ),
    "rounding after the end": Wrong(
        FIT,
        ("[0].init_args.start_epoch`", "below trainer.max_epochs, 1"),
        callbacks(quantization(mode="qat", start_epoch=1)),
    ),
    "schedule of no loss": Wrong(
        FIT,
        ("'soft'", "[0].init_args.loss`"),
        callbacks(
            {
                "class_path": "lightning_kd.callbacks.LossWeightSchedule",
                "init_args": {
                    "loss": "soft",
                    "schedule": {"class_path": "lightning_kd.schedules.Linear", "init_args": {"start": 1, "end": 0}},
                },
            }
        ),
    ),
    "heads that do not divide": Wrong(
        FIT, ("model.student.config", "hidden"), {"model.student.config.num_attention_heads": 3}
    ),
    "W&B offline with artifacts": Wrong(
        FIT,
        ("log_model", "offline"),
        {
            "trainer.logger": {
                "class_path": "lightning.pytorch.loggers.WandbLogger",
                "init_args": {"log_model": True, "offline": True, "save_dir": "{root}"},
            }
        },
    ),
    # ------------------------------------------------------------------------------------ folders and files
    "student": Wrong(
        FIT,
        ("`model.student.path`", "'/no/such/model'", "no such folder"),
        {"model.student": {"path": "/no/such/model"}},
    ),
    "student on the hub": Wrong(
        FIT, ("`model.student.path`", "'nobody/nothing'", "spelling"), {"model.student": {"path": "nobody/nothing"}}
    ),
    "student is a file": Wrong(
        FIT, ("`model.student.path`", "{weights}", "folder"), {"model.student": {"path": "{weights}"}}
    ),
    "student is int8": Wrong(FIT, ("`model.student.path`", "{int8}", "int8"), {"model.student": {"path": "{int8}"}}),
    "student is a data set": Wrong(FIT, ("`model.student.path`", "{glue}"), {"model.student": {"path": "{glue}"}}),
    "student is empty": Wrong(FIT, ("`model.student.path`", "{folder}"), {"model.student": {"path": "{folder}"}}),
    "student without weights": Wrong(
        FIT, ("`model.student.path`", "{no_weights}"), {"model.student": {"path": "{no_weights}"}}
    ),
    "student cut off": Wrong(FIT, ("`model.student.path`", "{cut}"), {"model.student": {"path": "{cut}"}}),
    "student is pickled": Wrong(FIT, ("`model.student.path`", "{pickled}"), {"model.student": {"path": "{pickled}"}}),
    "student with code": Wrong(FIT, ("`model.student.path`", "{code}"), {"model.student": {"path": "{code}"}}),
    "teacher": Wrong(
        FIT,
        ("`model.teachers.big.path`", "'/no/such/model'"),
        {**LEARNS, "model.teachers": {"big": {"path": "/no/such/model"}}},
    ),
    "teacher is int8": Wrong(
        FIT, ("`model.teachers.big.path`", "{int8}", "int8"), {**LEARNS, "model.teachers": {"big": {"path": "{int8}"}}}
    ),
    "teacher not fine-tuned": Wrong(
        FIT,
        ("`model.teachers.big.path`", "fine-tune it first"),
        {**LEARNS, "model.teachers": {"big": {"path": "{headless}"}}},
    ),
    "teacher of another task": Wrong(
        FIT,
        ("`model.teachers.big.path`", "{tagger}", "BertForTokenClassification"),
        {**LEARNS, "model.teachers": {"big": {"path": "{tagger}"}}},
    ),
    "labels of the teacher": Wrong(
        FIT, ("the teacher 'big'", "has 3"), {**LEARNS, "model.teachers": {"big": {"path": "{three_labels}"}}}
    ),
    "labels of the student": Wrong(
        FIT, ("model.student.config", "2 labels", "has 3"), {"model.student.config.num_labels": 3}
    ),
    "student of another task": Wrong(
        "validate --config {config}", ("`model.student.path`", "{tagger}"), {"model.student": {"path": "{tagger}"}}
    ),
    "task of other data": Wrong(
        FIT,
        ("TokenClassification", "model.task.class_path", "SequenceClassification"),
        {"model.task": {"class_path": "lightning_kd.tasks.TokenClassification"}},
    ),
    "baseline": Wrong(
        FIT, ("`report.baselines.other`", "no config.json"), {"report.baselines": {"other": "/no/such/model"}}
    ),
    "tokenizer": Wrong(
        f"{FIT} --data.tokenizer /no/such/tokenizer", ("`--data.tokenizer`", "'/no/such/tokenizer'", "no such folder")
    ),
    "tokenizer of another model": Wrong(
        FIT,
        ("`model.student`", "data.tokenizer"),
        {"model.student": {"path": "{student}"}, "data.init_args.tokenizer": "{other_vocabulary}"},
    ),
    "tokenizer is a data set": Wrong(f"{FIT} --data.tokenizer {{glue}}", ("`--data.tokenizer`", "{glue}")),
    "export over a file": Wrong(f"{FIT} --export.path {{csv}}", ("`--export.path`", "{csv}", "folder")),
    "export over other files": Wrong(f"{FIT} --export.path {{home}}", ("`--export.path`", "{home}", "config.json")),
    "int8 over other files": Wrong(
        FIT, ("export_dir", "{home}", "config.json"), callbacks(quantization(export_dir="{home}"))
    ),
    "root folder is a file": Wrong(FIT, ("`trainer.default_root_dir`", "{csv}"), {"trainer.default_root_dir": "{csv}"}),
    "no leave to write": Wrong(
        FIT, ("`trainer.default_root_dir`", "/proc/nowhere"), {"trainer.default_root_dir": "/proc/nowhere"}
    ),
    "cache over other files": Wrong(
        FIT,
        ("{home}",),
        {
            **LEARNS,
            **callbacks({"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": {"path": "{home_parent}"}}),
            "model.teachers": {"home": {"path": "{student}"}},
        },
    ),
    # ------------------------------------------------------------------------------------ checkpoints
    "a secret in the file": Wrong(
        FIT,
        ("`trainer.logger.init_args.settings.api_key`", "WANDB_API_KEY"),
        {
            "trainer.logger": {
                "class_path": "lightning.pytorch.loggers.WandbLogger",
                "init_args": {"settings": {"api_key": "0123"}},
            }
        },
    ),
    "pickled values asked for": Wrong(
        f"{FIT} --ckpt_path {{checkpoint}} --weights_only false", ("`--weights_only`", "unpickled")
    ),
    "checkpoint": Wrong(f"{FIT} --ckpt_path no.ckpt", ("`--ckpt_path`", "'no.ckpt'", "no such file")),
    "checkpoint is a folder": Wrong(f"{FIT} --ckpt_path {{student}}", ("`--ckpt_path`", "{student}", "file")),
    "checkpoint is no checkpoint": Wrong(f"{FIT} --ckpt_path {{csv}}", ("`--ckpt_path`", "{csv}")),
    "checkpoint is cut off": Wrong(f"{FIT} --ckpt_path {{cut_checkpoint}}", ("`--ckpt_path`", "{cut_checkpoint}")),
    "checkpoint with code": Wrong(
        f"{FIT} --ckpt_path {{hostile_checkpoint}}", ("`--ckpt_path`", "{hostile_checkpoint}")
    ),
    "checkpoint of another module": Wrong(
        f"{FIT} --ckpt_path {{foreign_checkpoint}}", ("`--ckpt_path`", "{foreign_checkpoint}")
    ),
    "checkpoint of another student": Wrong(
        f"{FIT} --ckpt_path {{checkpoint}}",
        ("`--ckpt_path`", "word_embeddings.weight of another shape"),
        {"model.student.config.hidden_size": 8},
    ),
    "checkpoint of a later version": Wrong(
        f"{FIT} --ckpt_path {{later_checkpoint}}", ("`--ckpt_path`", "{later_checkpoint}", "version")
    ),
    "checkpoint of an earlier version": Wrong(
        f"{FIT} --ckpt_path {{earlier_checkpoint}}", ("`--ckpt_path`", "{earlier_checkpoint}", "version")
    ),
    "best of nothing": Wrong("validate --config {config} --ckpt_path best", ("`--ckpt_path`", "best")),
    # ------------------------------------------------------------------------------------ data
    "data file": Wrong(FIT, ("`data.init_args.path`", "/no/such.csv"), text(path="/no/such.csv")),
    "data is a model": Wrong(FIT, ("`data.init_args.path`", "{student}"), text(path="{student}")),
    "data on the hub": Wrong(FIT, ("`data.init_args.path`", "'nobody/nothing'"), text(path="nobody/nothing")),
    "data with a script": Wrong(FIT, ("`data.init_args.path`", "{script}", "script"), text(path="{script}")),
    "not UTF-8": Wrong(FIT, ("{latin}", "UTF-8"), text(path="{latin}")),
    "cells": Wrong(FIT, ("{ragged}", "3 cells"), text(path="{ragged}")),
    "text column": Wrong(FIT, ("'txt'", "Did you mean `text`?"), text(text_column="txt", validation_size=2)),
    "label column": Wrong(FIT, ("'lable'", "Did you mean `label`?"), text(label_column="lable", validation_size=2)),
    "no validation": Wrong(FIT, ("data.validation_size",), text()),
    "too much validation": Wrong(FIT, ("`data.init_args.validation_size`", "100"), text(validation_size=100)),
    "three labels for two": Wrong(
        FIT,
        ("3 outputs", "`model.student.path`"),
        {**text(path="{three_csv}", validation_size=2), "model.student": {"path": "{student}"}},
    ),
    "set of GLUE": Wrong(
        FIT,
        ("`data.init_args.name`", "sst3", "'sst2'"),
        data("GLUEDataModule", name="sst3", path="{glue}", tokenizer="{student}"),
    ),
    "a set that is not there": Wrong(
        FIT,
        ("`data.init_args.path`", "'rte'"),
        data("GLUEDataModule", name="rte", path="{no_column}", tokenizer="{student}"),
    ),
    "column": Wrong(
        FIT,
        ("'sentence'", "has text, label"),
        data("GLUEDataModule", name="sst2", path="{no_column}", tokenizer="{student}"),
    ),
    "stride": Wrong(
        FIT,
        ("stride`", "max_length"),
        {
            **data("NERDataModule", path="{folder}", tokenizer="{student}", max_length=16, stride=16),
            "model.task": {"class_path": "lightning_kd.tasks.TokenClassification"},
        },
    ),
    "no test labels": Wrong("test --config {config}", ("test",), text(validation_size=2)),
    # ------------------------------------------------------------------------------------ extras
    "extra onnx": Wrong(
        FIT,
        ("onnxscript", "pip install 'lightning-kd[onnx]'"),
        callbacks(quantization(quantizer={"class_path": "lightning_kd.quantization.ONNXRuntimeInt8"})),
        missing="onnxscript",
    ),
    "extra openvino": Wrong(
        FIT,
        ("openvino", "pip install 'lightning-kd[openvino]'"),
        callbacks(quantization(quantizer={"class_path": "lightning_kd.quantization.OpenVINOInt8"})),
        missing="openvino",
    ),
    "extra torchao": Wrong(
        "analyze --config {config} --student {student}",
        ("torchao", "pip install 'lightning-kd[torchao]'"),
        missing="torchao",
    ),
    "tensorboard": Wrong(
        FIT,
        ("tensorboard", "pip install"),
        {
            "trainer.logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "{root}"},
            }
        },
        missing="tensorboard",
    ),
    # ------------------------------------------------------------------------------------ classes by their names alone
    "short name: data": Wrong(f"{FIT} --data GLUEDataModul", ("`--data`", "Did you mean `GLUEDataModule`?")),
    "short name: callback": Wrong(
        f"{FIT} --trainer.callbacks+=EMAWeightAveragin",
        ("`--trainer.callbacks+`", "Did you mean `EMAWeightAveraging`?"),
    ),
    "short name: within a callback": Wrong(
        f"{FIT} --trainer.callbacks+=QuantizationCallback --trainer.callbacks.quantizer=DynamicInt",
        ("`--trainer.callbacks.quantizer`", "DynamicInt,", "Did you mean `DynamicInt8`?"),
    ),
    "short name: in a file": Wrong(
        FIT, ("`model.losses.soft`", "Did you mean `SoftTargetKL`?"), {"model.losses": {"soft": "SoftTargetK"}}
    ),
    "short name: in a file, with options": Wrong(
        FIT,
        ("`model.losses.soft", "SoftTargetK", "SoftTargetKL"),
        {"model.losses": {"soft": {"class_path": "SoftTargetK", "init_args": {"scale_by_t2": False}}}},
    ),
    # ------------------------------------------------------------------------------------ quantize
    "quantize: from scratch": Wrong(QUANTIZE, ("`model.student.from_scratch`", "nothing is trained"), PTQ),
    "quantize: not fine-tuned": Wrong(
        QUANTIZE, ("`model.student.path`", "{headless}", "classifier"), {**PTQ, "model.student": {"path": "{headless}"}}
    ),
    "fit: not fine-tuned": Wrong(
        f"{FIT} --trainer.max_epochs 0",
        ("`model.student.path`", "{headless}", "classifier"),
        {"model.student": {"path": "{headless}"}},
    ),
    "quantize: other labels": Wrong(
        QUANTIZE, ("model.student has 3", "The data has 2 labels"), {**PTQ, "model.student": {"path": "{three_labels}"}}
    ),
    "quantize: an int8 model": Wrong(
        QUANTIZE, ("`model.student.path`", "{int8}", "int8"), {**PTQ, "model.student": {"path": "{int8}"}}
    ),
    "quantize: no quantizer": Wrong(
        QUANTIZE, ("`quantize`", "--trainer.callbacks+=QuantizationCallback"), {"model.student": {"path": "{student}"}}
    ),
    "quantize: while training": Wrong(
        QUANTIZE,
        ("init_args.mode`", "ptq", "nothing is trained"),
        {**callbacks(quantization(mode="qat")), "model.student": {"path": "{student}"}},
    ),
    "quantize: no such student": Wrong(
        f"{QUANTIZE} --student /no/such/model", ("`--student`", "'/no/such/model'"), PTQ
    ),
    "quantize: layers": Wrong(
        QUANTIZE,
        ("`model.student.keep_layers`", "nothing is trained", "`--student`"),
        {**PTQ, "model.student": {"path": "{student}", "keep_layers": [0]}},
    ),
    "quantize: several tasks": Wrong(
        QUANTIZE,
        ("`quantize`", "of one task"),
        {
            "model": {"student": {"path": "{student}"}, "tasks": {"one": {}}},
            **data(
                "MultiTaskDataModule", tasks={"one": {"class_path": "lightning_kd.datamodules.SyntheticDataModule"}}
            ),
        },
    ),
    "quantize: option": Wrong(f"{QUANTIZE} --studnt {{student}}", ("`--studnt`", "Did you mean `--student`?")),
    # ------------------------------------------------------------------------------------ analyze
    "analyze: option": Wrong("analyze --config {config} --bit 8", ("`--bit`", "Did you mean `--bits`?")),
    "analyze: bits": Wrong("analyze --config {config} --student {student} --bits [9]", ("`--bits`", "between 2 and 8")),
    "analyze: calibration": Wrong(
        "analyze --config {config} --calibration_batches 0", ("`--calibration_batches`", "at least 1")
    ),
    "analyze: no student": Wrong("analyze --config {config}", ("`student`", "Run `fit` first")),
    "analyze: an int8 student": Wrong("analyze --config {config} --student {int8}", ("`--student`", "{int8}", "int8")),
    "analyze: a data set": Wrong("analyze --config {config} --student {glue}", ("`--student`", "{glue}")),
    "analyze: granularity": Wrong(
        "analyze --config {config} --granularity row", ("`--granularity`", "'channel'", "row")
    ),
    # ------------------------------------------------------------------------------------ prune
    "prune: nothing": Wrong("prune --config {config} --student {student}", ("keep_layers", "vocabulary")),
    "prune: both": Wrong(
        "prune --config {config} --student {student} --keep_layers [0] --num_layers 1", ("keep_layers", "num_layers")
    ),
    "prune: option": Wrong("prune --config {config} --num_layer 1", ("`--num_layer`", "Did you mean `--num_layers`?")),
    "prune: too many layers": Wrong(
        "prune --config {config} --student {student} --num_layers 9", ("`--num_layers`", "from 1 to 2")
    ),
    "prune: kept layer": Wrong(
        "prune --config {config} --student {student} --keep_layers [5]", ("`--keep_layers`", "from 0 to 1")
    ),
    "prune: over the model": Wrong(
        "prune --config {config} --student {student} --num_layers 1 --path {student}", ("`--path`", "another folder")
    ),
    "prune: over other files": Wrong(
        "prune --config {config} --student {student} --num_layers 1 --path {home}",
        ("`--path`", "{home}", "config.json"),
    ),
    "prune: an int8 student": Wrong("prune --config {config} --student {int8} --num_layers 1", ("`--student`", "int8")),
    "prune: heads": Wrong(
        "prune --config {config} --student {student} --num_attention_heads 7", ("`--num_attention_heads`",)
    ),
    # ------------------------------------------------------------------------------------ describe
    "describe: nothing": Wrong("describe", ("MODEL",)),
    "describe: no such folder": Wrong("describe /no/such/model", ("`MODEL`", "'/no/such/model'")),
    "describe: a data set": Wrong("describe {glue}", ("`MODEL`", "{glue}")),
    "describe: option": Wrong("describe {student} --tims", ("`--tims`", "Did you mean `--times`?")),
    "describe: length": Wrong("describe {student} --length 0", ("`--length`", "1 or more")),
    "describe: longer than the model reads": Wrong("describe {student} --times --length 999", ("`--length`", "999")),
    "describe: a word": Wrong("describe {student} --threads many", ("`--threads`", "many")),
    "compare: nothing": Wrong("compare", ("`RUN`", "report.json")),
    "compare: no such run": Wrong("compare /no/such/run", ("`RUN`", "'/no/such/run'")),
    "compare: no report": Wrong("compare {weights}", ("{weights}", "not a report")),
    "compare: option": Wrong("compare {student} --pth x", ("`--pth`", "Did you mean `--path`?")),
    "sweep: nothing": Wrong("sweep", ("`FILE`", "sweep file")),
    "sweep: no such file": Wrong("sweep /no/such.yaml", ("`FILE`", "/no/such.yaml")),
    "sweep: no sweep": Wrong("sweep {config}", ("{config}", "method, metric.name and parameters")),
    "sweep: option": Wrong("sweep {config} --jbs 2", ("`--jbs`", "Did you mean `--jobs`?")),
    "sweep: a word": Wrong("sweep {config} --jobs many", ("`--jobs`", "many")),
    "sweep: none": Wrong("sweep {config} --runs 0", ("`--runs`", "at least 1")),
    "describe: cut off": Wrong("describe {cut}", ("`MODEL`", "{cut}")),
    "describe: int8 cut off": Wrong("describe --times {cut_int8}", ("{cut_int8}", "damaged")),
    # ------------------------------------------------------------------------------------ validate, test, predict
    "validate: option": Wrong(
        "validate --config {config} --ckpt_pth x", ("`--ckpt_pth`", "Did you mean `--ckpt_path`?")
    ),
    "predict: callbacks": Wrong(
        "predict --config {config}",
        ("GLUESubmission",),
        callbacks({"class_path": "lightning_kd.callbacks.GLUESubmission"}),
    ),
    "predict: path is a folder": Wrong(
        "predict --config {config} --predictions.path {student}",
        ("`--predictions.path`", "{student}"),
        {"model.student": {"path": "{student}"}},
    ),
}
