"""Files that are cut off, flipped or hostile: an answer or an error of ours, never a crash or another result."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from lightning_kd import InputError, Runner
from lightning_kd.charts import draw_report
from lightning_kd.checkpoints import check_checkpoint
from lightning_kd.compare import compare
from lightning_kd.logit_cache import CachedLogits, LogitWriter, Rows
from lightning_kd.quantization import DynamicInt8
from lightning_kd.quantization.base import empty_model
from lightning_kd.report import print_table, report_notes, report_table
from lightning_kd.typed import Typed
from source_tree import ROOT

#: The same examples in every run: a new one that fails is a finding, not an accident of the day.
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What can happen to a file: cut off, a bit turned over, a stretch of other bytes, more at its end."""
    kind = draw(st.sampled_from(["cut", "flip", "other", "more"]))
    at, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))
    other = draw(st.binary(min_size=1, max_size=64))

    def damage(content: bytes) -> bytes:
        place = int(at * len(content))
        if kind == "cut":
            return content[:place]
        if kind == "flip":
            return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
        if kind == "other":
            return content[:place] + other + content[place + len(other) :]
        return content + other

    return damage


#: What no number, text, list or mapping of a file should be.
HOSTILE = st.sampled_from(
    [
        10**18,
        10**400,
        2**31,
        -1,
        0,
        math.nan,
        math.inf,
        -math.inf,
        None,
        True,
        "",
        "../../x",
        "x" * 10_000,
        [],
        {},
        [[]],
    ]
) | st.integers(2, 900).map(lambda depth: json.loads("[" * depth + "]" * depth))


def paths(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else []
    found = [(*above, key) for key, _ in inner]
    return found + [path for key, value in list(inner)[:20] for path in paths(value, (*above, key))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def open_or_refuse(opened: Callable[[], Any]) -> Any:
    """The result; None where the files are refused in our words."""
    try:
        return opened()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 12_000
        return None


# -------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "whole.ckpt"
    weights = {f"student.layer.{i}": torch.randn(7, 5) for i in range(3)}
    torch.save({"state_dict": weights, "student_config": {"model_type": "bert"}, "lightning_kd_format": 1}, path)
    return path


@settings(FUZZ, max_examples=100)
@given(damage=damages())
def test_a_damaged_checkpoint(checkpoint: Path, damage: Callable[[bytes], bytes]) -> None:
    """Stops weights in which a bit has turned over from being trained on."""
    path = checkpoint.with_name("damaged.ckpt")
    path.write_bytes(damage(checkpoint.read_bytes()))

    def read() -> dict[str, torch.Tensor]:
        check_checkpoint("ckpt_path", str(path))
        weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
        return weights

    found = open_or_refuse(read)
    whole = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert found is None or all(torch.equal(found[name], value) for name, value in whole.items())


@pytest.mark.parametrize("hostile", [-1, 10**18, 1.5, True, "1", [], None])
@pytest.mark.parametrize("key", ["state_dict", "student_config", "lightning_kd_format"])
def test_a_checkpoint_of_other_values(key: str, hostile: Any, checkpoint: Path) -> None:
    """Stops a version that is no number from passing for a good one."""
    path = checkpoint.with_name("hostile.ckpt")
    torch.save({**torch.load(checkpoint, weights_only=True), key: hostile}, path)
    if key == "lightning_kd_format" and hostile is None:  # of a version before there were any
        check_checkpoint("ckpt_path", str(path))
        return
    with pytest.raises(InputError, match="`ckpt_path`"):
        check_checkpoint("ckpt_path", str(path))


# -------------------------------------------------------------------------------------------------- cached logits

ROWS = Rows(np.arange(6), np.array([0, 3, 5, 9, 10, 12, 14]))
IDENTITY = {"format": 2, "teacher": "a", "rows": "b", "dtype": "float16", "top_k": None}


def cache(folder: Path, top_k: int | None = None) -> Path:
    identity = {**IDENTITY, "top_k": top_k}
    writer = LogitWriter(folder, ROWS, identity, top_k=top_k)
    logits = torch.arange(18.0).reshape(6, 3).sin()
    writer.prepare({"logits": (False, logits[0])})
    writer.write(0, iter([(range(6), {"logits": logits})]))
    writer.finish()
    return folder


def read_cache(folder: Path, top_k: int | None) -> torch.Tensor:
    cached = CachedLogits(folder, ROWS, {**IDENTITY, "top_k": top_k})
    return cached(torch.tensor([5, 0, 2]), torch.ones(3, 4))["logits"]


@settings(FUZZ, max_examples=100)
@given(damage=damages(), number=st.integers(0, 10), top_k=st.sampled_from([None, 2]))
def test_a_damaged_cache(
    tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], bytes], number: int, top_k: int | None
) -> None:
    """Stops a student from learning from logits that are not the teacher's."""
    folder = cache(tmp_path_factory.mktemp("cache") / "big", top_k)
    whole = read_cache(folder, top_k)
    files = sorted(folder.iterdir())
    file = files[number % len(files)]
    file.write_bytes(damage(file.read_bytes()))
    found = open_or_refuse(lambda: read_cache(folder, top_k))
    assert found is None or torch.equal(found, whole)
    shutil.rmtree(folder.parent)


@settings(FUZZ, max_examples=100)
@given(value=HOSTILE, data=st.data())
def test_a_hostile_cache(tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject) -> None:
    """Stops a cache from naming a file elsewhere, or from asking for more memory than there is."""
    folder = cache(tmp_path_factory.mktemp("cache") / "big", 2)
    whole = read_cache(folder, 2)
    content = json.loads((folder / "identity.json").read_text())
    path = data.draw(st.sampled_from(paths(content)))
    (folder / "identity.json").write_text(json.dumps(changed(content, path, value)))
    found = open_or_refuse(lambda: read_cache(folder, 2))
    assert found is None or torch.equal(found, whole)
    shutil.rmtree(folder.parent)


def test_a_cache_names_files_of_its_own_alone(tmp_path: Path) -> None:
    """Stops a cache from someone else from having other files read, or written to."""
    folder = cache(tmp_path / "big")
    shutil.copy(folder / "logits.npy", tmp_path / "elsewhere.npy")
    content = json.loads((folder / "identity.json").read_text())
    content["logits"]["logits"]["files"]["all"] = "../elsewhere.npy"
    (folder / "identity.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged"):
        read_cache(folder, None)
    folder.rename(tmp_path / "big.partial")
    before = (tmp_path / "elsewhere.npy").read_bytes()
    with pytest.raises(InputError, match="damaged"):
        LogitWriter(folder, ROWS, IDENTITY).write(0, iter([([0], {"logits": torch.ones(1, 3)})]))
    assert (tmp_path / "elsewhere.npy").read_bytes() == before


# -------------------------------------------------------------------------------------------------- exported folders

TEXTS = ["ba be bi", "do du"]


@pytest.fixture(scope="module")
def exported(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name in ("float", "int8"):
        folders[name] = tmp_path_factory.mktemp("exported") / name
        shutil.copytree(tiny_model(), folders[name])
        config = AutoConfig.from_pretrained(folders[name])
        config.lightning_kd_format = 1
        config.save_pretrained(folders[name])
    DynamicInt8().convert(empty_model(folders["float"]), [], folders["int8"])
    (folders["int8"] / "model.safetensors").unlink()
    return folders


def predict(folder: Path) -> list[dict[str, Any]]:
    records = Runner.open(folder).predict(TEXTS)
    assert len(records) == len(TEXTS)
    assert all(0 <= record["score"] <= 1 for record in records if "label" in record)
    return records


@settings(FUZZ, max_examples=60)
@given(damage=damages(), kind=st.sampled_from(["float", "int8"]), number=st.integers(0, 10))
def test_a_damaged_folder(
    exported: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    damage: Callable[[bytes], bytes],
    kind: str,
    number: int,
) -> None:
    """Stops a folder that was copied by half from ending in a traceback of another library."""
    folder = tmp_path_factory.mktemp("damaged") / kind
    shutil.copytree(exported[kind], folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    file = files[number % len(files)]
    content = file.read_bytes()
    if file.suffix == ".safetensors":  # a bit in the weights shows in nothing but the weights: its header alone
        header = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(damage(content[:header]) + content[header:])
    else:
        file.write_bytes(damage(content))
    open_or_refuse(lambda: predict(folder))
    shutil.rmtree(folder.parent)


@settings(FUZZ, max_examples=80)
@given(value=HOSTILE, kind=st.sampled_from(["float", "int8"]), data=st.data())
def test_a_hostile_folder(
    exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, value: Any, kind: str, data: st.DataObject
) -> None:
    """Stops a folder of someone else's from taking all memory, all time, or the process down."""
    folder = tmp_path_factory.mktemp("hostile") / kind
    shutil.copytree(exported[kind], folder)
    file = folder / data.draw(
        st.sampled_from(["config.json", "config.json", "tokenizer_config.json", "tokenizer.json"])
    )
    content = json.loads(file.read_text())
    file.write_text(json.dumps(changed(content, data.draw(st.sampled_from(paths(content))), value)))
    open_or_refuse(lambda: predict(folder))
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_than_weights(layers: int, exported: dict[str, Path], tmp_path: Path) -> None:
    """Stops a damaged number of layers from giving a smaller model that answers all the same."""
    folder = tmp_path / "float"
    shutil.copytree(exported["float"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(InputError, match="its weights have more"):
        Runner.open(folder)


# -------------------------------------------------------------------------------------------------- configurations


@settings(FUZZ, max_examples=100)
@given(damage=damages())
def test_a_damaged_configuration(tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], bytes]) -> None:
    """Stops a file that is no YAML from ending in a traceback."""
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_bytes(
        damage(b"model:\n  student: &s\n    path: a\n  teachers:\n    big: *s\ntrainer: {max_epochs: 3}\n")
    )
    open_or_refuse(lambda: Typed(["fit", "--config", str(file)]))


@pytest.mark.parametrize("content", ["a: &a\n  b: *a\n", "[" * 1200, "a: " * 1200, "? [1]\n: 2\n"])
def test_a_hostile_configuration(content: str, tmp_path: Path) -> None:
    """Stops a file that holds itself, or is nested without end, from taking the process down."""
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match="`--config`"):
        Typed(["fit", "--config", str(tmp_path / "config.yaml")])


# -------------------------------------------------------------------------------------------------- reports


@settings(FUZZ, max_examples=60)
@given(value=HOSTILE, data=st.data())
def test_a_hostile_report(tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject) -> None:
    """Stops `compare` from a traceback, a chart without end or a figure under another name."""
    content = json.loads((ROOT / "benchmarks" / "results" / "stsb.json").read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("run")
    report = changed(content, data.draw(st.sampled_from(paths(content))), value)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    found = open_or_refuse(lambda: compare([folder]))
    if found is not None:
        header, cells = report_table(found)
        assert all(len(line) == len(header) for line in cells)
        print_table("", header, cells, report_notes(found))
        draw_report(found, folder / "compare.png")
    shutil.rmtree(folder)


@settings(FUZZ, max_examples=100)
@given(damage=damages())
def test_a_damaged_report(tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], bytes]) -> None:
    """Stops a file that is cut off from being taken for a report."""
    folder = tmp_path_factory.mktemp("run")
    whole = (ROOT / "benchmarks" / "results" / "stsb.json").read_bytes()
    (folder / "report.json").write_bytes(damage(whole))
    open_or_refuse(lambda: compare([folder]))
    shutil.rmtree(folder)
