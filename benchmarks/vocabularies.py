r"""What a teacher gives a student that reads another vocabulary: SST-2 and CoNLL-2003, three seeds.

The students of configs/<set>/other_vocabulary.yaml, from random weights, read a cased WordPiece vocabulary or a BPE of
8,000 tokens that is trained on the training rows. 2,048 training rows have their labels, the same for every seed. Each
student is trained for 1,500 steps in three ways: on the hard labels of these rows, by the uncased teacher of
configs/<set>/teacher.yaml on the same rows, and by the teacher on these and on the other training rows (16,384 at most)
without their labels, which a teacher alone can make use of. The score is that of the last weights on held-out rows,
which neither teacher nor students train on and nothing is chosen by. A run that has its report under --out is not run
again. Needs both teachers. From local folders:

    python benchmarks/vocabularies.py --data ../shared/data --vocabulary ../shared/data/vocab/bert-base-cased \
        --json benchmarks/results/vocabularies.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from _common import ROOT, fit, parser, report, setting, spread
from lightning_kd.datamodules import GLUEDataModule, NERDataModule

LABELLED, UNLABELLED, STEPS = 2048, 16384, 1500
#: By set: its place on the Hub and under --data, and the score.
SETS = {"sst2": ("nyu-mll/glue", "glue", "accuracy"), "conll2003": ("eriktks/conll2003", "conll2003", "f1")}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}

Rows = list[dict[str, Any]]


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


def read(name: str, path: str, vocabulary: str) -> dict[str, Rows]:
    """The rows to train on, those held out as for the teacher, and those to validate on; labels in words."""
    data: GLUEDataModule | NERDataModule
    if name == "sst2":
        data = GLUEDataModule("sst2", path=path, tokenizer=vocabulary, holdout_size=6000)
    else:
        data = NERDataModule(path, tokenizer=vocabulary, holdout_size=2000)
    data.setup("fit")
    names, found = data.label_names or [], {}
    for split in ("train", "test", "validation"):
        whole = data.load_split("train" if split == "test" else split)
        assert whole is not None  # noqa: S101  # both sets have it
        rows = whole.select(data.token_rows(split).index)
        if name == "sst2":
            labels = [names[label] for label in rows["label"]]
            found[split] = [{"text": t, "label": label} for t, label in zip(rows["sentence"], labels, strict=True)]
        else:
            tags = [[names[tag] for tag in row] for row in rows[data.label_column]]
            found[split] = [{"tokens": w, "ner_tags": t} for w, t in zip(rows["tokens"], tags, strict=True)]
    return found


def write(folder: Path, splits: dict[str, Rows]) -> Path:
    """The rows as JSON Lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def write_data(name: str, splits: dict[str, Rows], folder: Path, quick: bool) -> dict[str, Path]:
    """A folder with the labelled rows alone, and one with the others, too."""
    label = "label" if name == "sst2" else "ner_tags"
    order = np.random.default_rng(0).permutation(len(splits["train"]))
    chosen = [splits["train"][i] for i in order[: LABELLED + UNLABELLED]]
    labelled, rest = (chosen[:64], chosen[64:128]) if quick else (chosen[:LABELLED], chosen[LABELLED:])
    unlabelled = [{**row, label: None} for row in rest]
    others = {split: rows[: 64 if quick else None] for split, rows in splits.items() if split != "train"}
    return {
        "labelled": write(folder / "labelled", {**others, "train": labelled}),
        "all": write(folder / "all", {**others, "train": labelled + unlabelled}),
    }


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
        texts = (row["text"] if name == "sst2" else " ".join(row["tokens"]) for row in splits["train"])
        bpe = train_bpe(texts, out / name / "bpe")
        taught = {"model.teachers.teacher.path": options.teachers.resolve() / name / "teacher" / "student"}
        arms: list[tuple[str, str, dict[str, Any]]] = [
            ("no teacher", "labelled", without),
            ("taught", "labelled", taught),
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
