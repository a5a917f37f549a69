"""Imports go down only, and a heavy or optional package is imported in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from source_tree import ROOT, modules

#: The rooms of the package by layer. A room imports from lower layers only, and from itself.
LAYERS: dict[str, float] = {
    "outputs": 0,
    "_checks": 0,
    "_secrets": 0,
    "_arguments": 0.1,
    "_progress": 0,
    "folders": 0.5,
    "labels": 0.5,
    "schedules": 1,
    "models": 1,
    "students": 0.5,
    "optim": 1,
    "hyperparameters": 1,
    "sharing": 1,
    "tasks": 1,
    "ensemble": 1,
    "cutting": 1.25,
    "logit_cache": 1.5,
    "losses": 1,
    "quantization": 1,
    "embeddings": 1.5,
    "features": 1.5,
    "finite": 1.5,
    "compatibility": 1.5,
    "student": 1.75,
    "teachers": 1.75,
    "vocabulary": 1.5,
    "pruning": 1.5,
    "module": 2,
    "task_trainer": 1,
    "multi_task": 2.2,
    "runner": 2,
    "measure": 2,
    "report": 2.1,
    "details": 2.2,
    "charts": 2.2,
    "model_card": 2.2,
    "describe": 2.4,
    "compare": 2.4,
    "sweep": 2.4,
    "lightning_kd": 2.5,  # the package's own __init__, which offers what is below it
    "callbacks": 3,
    "datamodules": 3,
    "checkpoints": 1.5,
    "trainer": 3.5,
    "typed": 3.75,
    "cli": 4,
    "start": 5,
}

#: Lower rooms that a room keeps out of all the same: data know nothing of what is done with them.
FORBIDDEN = {"datamodules": {"losses", *(room for room, layer in LAYERS.items() if layer > 1)} - {"datamodules"}}

#: Packages that are extras, and the files of quantization/ within whose functions they are imported.
BACKENDS = {
    "torchao": {"torchao", "analysis"},
    "openvino": {"openvino"},
    "nncf": {"openvino"},
    "onnxruntime": {"onnxruntime"},
}

KNOWN = modules()


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    in_function: bool


def imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import of a module, wherever it stands: in functions and under TYPE_CHECKING, too."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join((*kept, *([node.module] if node.module else [])))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in KNOWN else base, node.lineno, in_function)
        inner = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    return visit(ast.parse(source), False)


def of_file(module: str) -> list[Import]:
    path = KNOWN[module]
    return list(imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def top_level(one: Import) -> str:
    return one.target.split(".")[0]


def wrong_way(module: str, found: list[Import]) -> list[str]:
    """The imports of a module that go up, or sideways."""
    own = room(module)
    messages = []
    for one in found:
        if top_level(one) != "lightning_kd":
            continue
        other = room(one.target)
        if other == own:
            continue
        if LAYERS[other] >= LAYERS[own] or other in FORBIDDEN.get(own, ()):
            messages.append(f"{module}:{one.line} imports {one.target}: {own} must not import {other}")
    return messages


def test_every_room_has_a_layer() -> None:
    unknown = {room(name) for name in KNOWN} - set(LAYERS)
    assert not unknown, f"give these a layer in {Path(__file__).name}: {unknown}"


@pytest.mark.parametrize("module", KNOWN)
def test_imports_go_down(module: str) -> None:
    assert not wrong_way(module, of_file(module))


@pytest.mark.parametrize("module", KNOWN)
def test_top_level_folders_are_imported_by_their_installed_name(module: str) -> None:
    bare = [one for one in of_file(module) if top_level(one) in ("callbacks", "datamodules")]
    assert not bare


def test_wandb_is_imported_in_one_helper() -> None:
    files = {name for name in KNOWN for one in of_file(name) if top_level(one) == "wandb"}
    assert files <= {"lightning_kd.callbacks._loggers"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_is_imported_within_functions_of_its_file(backend: str) -> None:
    """Otherwise `import lightning_kd` fails for whoever installed it without the extra."""
    uses = [(name, one) for name in KNOWN for one in of_file(name) if top_level(one) == backend]
    assert {name for name, _ in uses} == {f"lightning_kd.quantization.{name}" for name in BACKENDS[backend]}
    assert [f"{name}:{one.line}" for name, one in uses if not one.in_function] == []


def test_train_py_is_the_command_line_and_no_more() -> None:
    found = list(imports((ROOT / "train.py").read_text(encoding="utf-8"), "train"))
    assert {one.target for one in found} == {"lightning_kd.start"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lightning_kd.losses.soft_target", "from lightning_kd.module import DistillationModule"),
        ("lightning_kd.losses.soft_target", "from lightning_kd import module"),
        ("lightning_kd.losses.soft_target", "from lightning_kd import DistillationModule"),
        ("lightning_kd.losses.soft_target", "import lightning_kd.callbacks.export"),
        ("lightning_kd.losses.soft_target", "from ..models import freeze"),
        ("lightning_kd.losses.soft_target", "def f():\n    import lightning_kd.cli"),
        ("lightning_kd.module", "from lightning_kd.callbacks import StudentExport"),
        (
            "lightning_kd.module",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lightning_kd.datamodules.glue",
        ),
        ("lightning_kd.datamodules.glue", "from lightning_kd.losses import SoftTargetKL"),
        ("lightning_kd.datamodules.glue", "from lightning_kd.callbacks import StudentExport"),
        ("lightning_kd.outputs", "from . import models"),
    ],
)
def test_the_test_sees_an_import_that_goes_up(module: str, source: str) -> None:
    assert len(wrong_way(module, list(imports(source, module)))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lightning_kd.losses.soft_target", "from .base import DistillationLoss"),
        ("lightning_kd.losses.soft_target", "from lightning_kd.outputs import LossInputs"),
        ("lightning_kd.callbacks.export", "from lightning_kd import Runner"),
        ("lightning_kd.cli", "from lightning_kd import callbacks"),
        ("lightning_kd.cli", "import lightning as L"),
    ],
)
def test_the_test_lets_an_import_go_down(module: str, source: str) -> None:
    assert not wrong_way(module, list(imports(source, module)))


def test_the_test_tells_a_function_from_the_top_of_a_module() -> None:
    at_top = "import nncf\nclass A:\n    import nncf\ntry:\n    import nncf\nexcept ImportError:\n    pass"
    assert [one.in_function for one in imports(at_top, "x")] == [False, False, False]
    assert [one.in_function for one in imports("def f():\n    if f:\n        import nncf", "x")] == [True]
