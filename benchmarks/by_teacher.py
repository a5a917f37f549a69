r"""Where students are right: on the rows that their teacher gets right, and on those that it gets wrong.

On the held-out rows of a GLUE set. What distillation took over from the teacher, errors too, is seen in the second
column; hard labels can mend it.

    python benchmarks/by_teacher.py --teacher runs/sst2/teacher/student \
        --students runs/sst2/student/student runs/sst2/no_teacher/student --data ../shared/data/glue
"""

from __future__ import annotations

from itertools import islice

import torch

from _common import parser, report, setting
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.models import ModelSource, load_trained
from lightning_kd.runner import forward_of
from lightning_kd.tasks import SequenceClassification


def correct(folder: str, data: GLUEDataModule, batches: int | None) -> torch.Tensor:
    """Bool ``(rows,)``: where the model in a folder is right, on some batches or all."""
    task = SequenceClassification()
    forward = forward_of(load_trained(ModelSource(folder), task.auto_class, "model"), task)
    outcomes = [
        task.outcomes(forward(task.model_inputs(batch)), batch)
        for batch in islice(data.evaluation_batches("test"), batches)
    ]
    return torch.cat([predicted == target for predicted, target in outcomes])


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--teacher", required=True, help="folder of the teacher")
    arguments.add_argument("--students", nargs="+", required=True, help="folders of its students")
    arguments.add_argument("--name", default="sst2", help="set of GLUE")
    arguments.add_argument("--data", default="nyu-mll/glue", help="GLUE: Hub name or local folder")
    arguments.add_argument("--holdout-size", type=int, default=6000, help="as in the models' configs")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    data = GLUEDataModule(options.name, options.data, options.teacher, holdout_size=options.holdout_size)
    data.setup("test")
    batches = 4 if options.quick else None
    teacher = correct(options.teacher, data, batches)
    rows = []
    for folder in options.students:
        student = correct(folder, data, batches)
        difference = student.float() - teacher.float()
        rows.append(
            {
                "student": folder,
                "accuracy": student.float().mean().item(),
                "where the teacher is right": student[teacher].float().mean().item(),
                "where it is wrong": student[~teacher].float().mean().item(),
                "less the teacher's": difference.mean().item(),
                "standard error": difference.std().item() / len(difference) ** 0.5,
            }
        )
    about = setting(teacher=options.teacher, rows=len(teacher), teacher_wrong=int((~teacher).sum()))
    report(
        f"{len(teacher):,} held-out rows, of which the teacher errs on {int((~teacher).sum()):,}",
        rows,
        about,
        options.json,
    )


if __name__ == "__main__":
    main()
