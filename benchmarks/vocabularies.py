r"""What a teacher gives a student that reads another vocabulary: SST-2 and CoNLL-2003, three seeds.

The students of configs/<set>/other_vocabulary.yaml, from random weights, read a cased WordPiece vocabulary or a BPE of
8,000 tokens that is trained on the training rows; each is trained by the uncased teacher of configs/<set>/teacher.yaml,
and on the hard labels instead, on a part of the rows that the teacher was fine-tuned on. The score is that of the last
weights on held-out rows, which no run trains on and nothing is chosen by; the spread is over the seeds, each of which
draws other training rows. A run that has its report under --out is not run again. Needs both
teachers. From local folders:

    python benchmarks/vocabularies.py --data ../shared/data --vocabulary ../shared/data/vocab/bert-base-cased \
        --json benchmarks/results/vocabularies.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from _common import fit, parser, report, setting, spread
from lightning_kd.datamodules import GLUEDataModule, NERDataModule

#: By set: its place on the Hub and under --data, the score, training rows and epochs.
SETS = {
    "sst2": ("nyu-mll/glue", "glue", "accuracy", 4096, 4),
    "conll2003": ("eriktks/conll2003", "conll2003", "f1", 2048, 10),
}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def train_bpe(texts: Iterator[str], folder: Path) -> Path:
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


def training_texts(name: str, path: str) -> Iterator[str]:
    """The training rows as text."""
    if name == "sst2":
        rows = GLUEDataModule("sst2", path=path).load_split("train")
        yield from rows["sentence"]
    else:
        yield from map(" ".join, NERDataModule(path).load_split("train")["tokens"])


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
    table = []
    for name in options.only:
        hub, folder, score, train_rows, epochs = SETS[name]
        path = str(options.data / folder) if options.data else hub
        bpe = train_bpe(training_texts(name, path), out / name / "bpe")
        for kind, tokenizer in (("cased WordPiece", options.vocabulary), ("BPE", bpe)):
            common: dict[str, object] = {"data.path": path, "data.tokenizer": tokenizer, "report.teacher": "false"}
            common |= {"data.max_train_rows": train_rows, "trainer.max_epochs": epochs}
            if options.quick:
                common |= {"data.max_train_rows": 64, "data.holdout_size": 64, "trainer.max_epochs": 1}
            with_teacher = {"model.teachers.teacher.path": options.teachers.resolve() / name / "teacher" / "student"}
            without = {"model.teachers": "{}", "model.losses": "{}", "model.hard_label_weight": 1.0}
            scores: dict[str, list[float]] = {}
            for student, more in (("no teacher", without), ("taught", with_teacher)):
                for seed in seeds:
                    run = out / name / f"{kind} {student} {seed}".replace(" ", "_")
                    seeded = {"seed_everything": seed, "data.seed": seed}
                    models_of = fit(f"configs/{name}/other_vocabulary.yaml", run, **common, **more, **seeded)
                    own = next(iter(models_of.values()))[score]
                    scores.setdefault(student, []).append(own)
                    print(name, kind, student, seed, own, file=sys.stderr)
            for student, values in scores.items():
                row = {"set": name, "vocabulary": kind, "student": student, "rows": train_rows, "score": score}
                table.append(row | spread(values))
    report("Students that read another vocabulary", table, setting(seeds=seeds), options.json)


if __name__ == "__main__":
    main()
