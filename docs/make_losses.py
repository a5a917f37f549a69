"""Writes docs/losses.md from the docstrings of the losses: python docs/make_losses.py."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from types import FunctionType

from transformers import BertConfig

import lightning_kd.losses as catalogue
from lightning_kd.losses import DistillationLoss, LayerMap, LayerPairMatch
from lightning_kd.losses.layer_pairs import LayerPairLoss

PAGE = Path(__file__).with_name("losses.md")

HEAD = """# Losses

Every distillation loss of the library, made from the docstrings by `python docs/make_losses.py`. `s` is the student and
`t` the teacher; `M` are the rows or tokens that count. A loss is named in YAML by its class:

```yaml
model:
  losses:
    soft: {class_path: lightning_kd.losses.SoftTargetKL}
    hidden:
      class_path: lightning_kd.losses.HiddenStateMSE
      init_args:
        matches: {strategy: uniform, embeddings: true} # or a list of {student_layer: 1, teacher_layer: 4}
  loss_weights: {hidden: 0.1}
```

Any number of losses can be combined, each under a name of its own; every loss is a mean over what it compares, and its
weight stands in `loss_weights`. Layers are counted as the field does: 0 is the output of the embeddings, -1 the last.

"""


def families() -> dict[str, list[type[DistillationLoss]]]:
    """The exported losses by the module that holds them, in the order of the modules' names."""
    found: dict[str, list[type[DistillationLoss]]] = {}
    for name in catalogue.__all__:
        kind = getattr(catalogue, name)
        if isinstance(kind, type) and issubclass(kind, DistillationLoss) and not inspect.isabstract(kind):
            found.setdefault(kind.__module__, []).append(kind)
    return dict(sorted(found.items()))


def formulas(kind: type[DistillationLoss]) -> list[str]:
    """The formulas in the docstrings of the exported functions that a loss calls."""
    source = "".join(inspect.getsource(base) for base in kind.__mro__ if base.__module__ == kind.__module__)
    found = []
    for name, function in vars(sys.modules[kind.__module__]).items():
        if isinstance(function, FunctionType) and re.search(rf"\b{name}\(", source):
            math = re.search(r"\.\. math::\n?((?:.*\S.*\n)+)", inspect.getdoc(function) or "")
            if math and name in catalogue.__all__:
                found.append(" ".join(math.group(1).split()))
    return found


def sections(kind: type[DistillationLoss]) -> tuple[str, str, str]:
    """The first line without its citation, the citation, and the section on relations, as Markdown."""
    text = inspect.getdoc(kind) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    cited = re.fullmatch(r"(.*?)\s*\(([^()]*\d{4}[^()]*)\)\.", summary)
    relations = re.search(r"^Relations:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    if cited is None or relations is None:
        raise ValueError(f"{kind.__name__} lacks a citation in its first line, or a section on its relations.")
    return cited.group(1), link(cited.group(2)), plain(relations.group(1))


def needs(kind: type[DistillationLoss]) -> str:
    """What a loss reads of both models."""
    matches = inspect.signature(kind).parameters.get("matches")
    if matches is None or matches.default is not inspect.Parameter.empty:
        loss = kind()
    else:
        pairs = [LayerPairMatch((0, 1), (0, 1))] if issubclass(kind, LayerPairLoss) else LayerMap()
        loss = kind(pairs)
    config = BertConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=2, num_labels=3)
    loss.build(config, config)
    asked = loss.needs("student")
    parts = [f.name.replace("_", " ") for f in dataclasses.fields(asked) if getattr(asked, f.name)]
    return ", ".join(parts or ["logits"])


def plain(text: str) -> str:
    """Roles and double backquotes of a docstring as Markdown, on one line."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


def without_bars(formula: str) -> str:
    """LaTeX without the character that ends a cell of a table."""
    return formula.replace(r"\|", r"\Vert ").replace("|", r"\vert ")


def link(citation: str) -> str:
    """A citation whose arXiv number is a link."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", plain(citation))


def page() -> str:
    """The whole page."""
    rows = [
        "| loss | what it compares | formula | it reads | paper | when to take it, and its siblings |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kinds in families().values():
        for kind in kinds:
            what, paper, relations = sections(kind)
            math = "<br>".join(f"${without_bars(formula)}$" for formula in formulas(kind))
            rows.append(f"| `{kind.__name__}` | {plain(what)} | {math} | {needs(kind)} | {paper} | {relations} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
