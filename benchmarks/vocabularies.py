r"""What a teacher gives a student that reads another vocabulary: SST-2 and CoNLL-2003, three seeds.

The students of configs/<set>/other_vocabulary.yaml, from random weights, read a cased WordPiece vocabulary or a BPE of
8,000 tokens that is trained on the training rows. 2,048 training rows have their labels, the same for every seed. Each
student is trained for 1,500 steps in two ways: on the hard labels of these rows, and by the uncased teacher of
configs/<set>/teacher.yaml on these and on the other training rows (16,384 at most) without their labels, which a
teacher alone can make use of. The score is that of the last weights on held-out rows, which neither teacher nor
students train on and nothing is chosen by. A run that has its report under --out is not run again. Needs both teachers.
From local folders:

    python benchmarks/vocabularies.py --data ../shared/data --vocabulary ../shared/data/vocab/bert-base-cased \
        --json benchmarks/results/vocabularies.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from _common import ROOT, fit, parser, report, setting, spread
from lightning_kd.datamodules import GLUEDataModule, NERDataModule

LABELLED, UNLABELLED, STEPS = 2048, 16384, 1500
#: By set: its place on the Hub and under --data, and the score.
SETS = {"sst2": ("nyu-mll/glue", "glue", "accuracy"), "conll2003": ("eriktks/conll2003", "conll2003", "f1")}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def train_bpe(texts: Iterable[str], folder: Path) -> Path:
    """A byte-level BPE tokenizer of some texts, in a folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    ends = [(token, bpe.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    bpe.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=512, **SPECIAL).save_pretrained(folder)
    return folder


def read(name: str, path: str, vocabulary: str) -> dict[str, Dataset]:
    """The rows to train on, those held out as for the teacher, and those to validate on."""
    data: GLUEDataModule | NERDataModule
    if name == "sst2":
        data = GLUEDataModule("sst2", path=path, tokenizer=vocabulary, holdout_size=6000)
    else:
        data = NERDataModule(path, tokenizer=vocabulary, holdout_size=2000)
    data.setup("fit")
    found = {}
    for split in ("train", "test", "validation"):
        whole = data.load_split("train" if split == "test" else split)
        assert whole is not None  # both sets have it
        rows = whole.select(data.token_rows(split).index)
        found[split] = rows.rename_column("sentence", "text") if name == "sst2" else rows
    return found


def write_data(name: str, splits: dict[str, Dataset], folder: Path, quick: bool) -> dict[str, Path]:
    """A folder with the labelled rows alone, and one with the others, too."""
    label = "label" if name == "sst2" else "ner_tags"
    order = np.random.default_rng(0).permutation(len(splits["train"]))
    cut, end = (64, 128) if quick else (LABELLED, LABELLED + UNLABELLED)
    labelled, rest = splits["train"].select(order[:cut]), splits["train"].select(order[cut:end])
    columns = {column: [None] * len(rest) if column == label else list(rest[column]) for column in rest.column_names}
    unlabelled = Dataset.from_dict(columns, features=rest.features)
    folders = {}
    for part, rows in (("labelled", labelled), ("all", concatenate_datasets([labelled, unlabelled]))):
        folders[part] = folder / part
        folders[part].mkdir(parents=True, exist_ok=True)
        for split, others in {**splits, "train": rows}.items():
            chosen = others.select(range(64)) if quick and split != "train" else others
            chosen.to_parquet(folders[part] / f"{split}.parquet")
    return folders


def write_config(name: str, file: Path) -> Path:
    """The config of the set with its rows read from a folder."""
    config = yaml.safe_load((ROOT / f"configs/{name}/other_vocabulary.yaml").read_text(encoding="utf-8"))
    kind = "TextDataModule" if name == "sst2" else "NERDataModule"
    config["data"] = {"class_path": f"lightning_kd.datamodules.{kind}", "init_args": {"path": "", "batch_size": 32}}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, help="folder with glue/ and conll2003/; the Hub unless given")
    arguments.add_argument("--vocabulary", default="google-bert/bert-base-cased", help="the cased one: name or folder")
    arguments.add_argument("--teachers", type=Path, default=Path("runs"), help="folder of <set>/teacher/student")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/vocabularies"), help="folder of the runs")
    arguments.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS), help="sets")
    options = arguments.parse_args()
    seeds = [0] if options.quick else [0, 1, 2]
    out = options.out.resolve() / ("quick" if options.quick else "full")
    without = {"model.teachers": "{}", "model.losses": "{}", "model.hard_label_weight": 1.0}
    table = []
    for name in options.only:
        hub, folder, score = SETS[name]
        vocabulary = str(Path(options.vocabulary).resolve()) if options.data else options.vocabulary
        splits = read(name, str(options.data / folder) if options.data else hub, vocabulary)
        rows = write_data(name, splits, out / name / "data", options.quick)
        config = write_config(name, out / name / "config.yaml")
        texts = splits["train"]["text"] if name == "sst2" else map(" ".join, splits["train"]["tokens"])
        bpe = train_bpe(texts, out / name / "bpe")
        taught = {"model.teachers.teacher.path": options.teachers.resolve() / name / "teacher" / "student"}
        arms: list[tuple[str, str, dict[str, Any]]] = [
            ("no teacher", "labelled", without),
            ("taught, unlabelled rows too", "all", taught),
        ]
        for kind, tokenizer in (("cased WordPiece", vocabulary), ("BPE", bpe)):
            scores: dict[str, list[float]] = {}
            for student, part, more in arms:
                cache = {"path": str(out / name / kind.replace(" ", "_") / f"cache_{part}")}
                callbacks = [{"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": cache}]
                for seed in seeds:
                    run = out / name / f"{kind} {student} {seed}".replace(",", "").replace(" ", "_")
                    common = {"data.path": rows[part], "data.tokenizer": tokenizer, "report.teacher": "false"}
                    common |= {"trainer.max_steps": 2 if options.quick else STEPS, "trainer.max_epochs": -1}
                    common |= {"trainer.check_val_every_n_epoch": 1000, "seed_everything": seed}
                    own = fit(str(config), run, callbacks if "model.losses" not in more else (), **common, **more)
                    scores.setdefault(student, []).append(next(iter(own.values()))[score])
                    print(name, kind, student, seed, scores[student][-1], file=sys.stderr, flush=True)
            for student, values in scores.items():
                table.append({"set": name, "vocabulary": kind, "student": student, "score": score} | spread(values))
    report("Students that read another vocabulary", table, setting(seeds=seeds), options.json)


if __name__ == "__main__":
    main()
