"""`lightning-kd describe`: where the parameters of models are, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from lightning_kd._arguments import ArgumentParser
from lightning_kd._checks import InputError, check_range, expected
from lightning_kd.folders import check_config, check_size
from lightning_kd.measure import paired_speedup, time_interleaved
from lightning_kd.models import check_folder, layer_list, num_positions
from lightning_kd.quantization import Forward
from lightning_kd.runner import Runner, quantizer_of, task_of

__all__ = ["Part", "describe", "main", "parts_of", "table_of"]

_ROUNDS, _TEXTS = 20, 5
#: How the names of a layer's attention start.
_ATTENTION = "attention|attn|self_attn|sa_layer_norm"


@dataclass(frozen=True)
class Part:
    """What a part of a model takes.

    Attributes:
        bytes: Of its weights.
        parameters: How many there are; None where a file does not say.
    """

    bytes: int
    parameters: int | None = None

    def __add__(self, other: Part) -> Part:
        known = self.parameters is not None and other.parameters is not None
        return Part(self.bytes + other.bytes, (self.parameters or 0) + (other.parameters or 0) if known else None)


def parts_of(model: PreTrainedModel) -> dict[str, Part]:
    """Embeddings, each layer's attention and feed-forward layers with their norms, pooler and head.

    What lies in none of these is called by the first part of its name. A parameter that is shared counts once, where
    it comes first.
    """
    try:
        stem = layer_list(model, "describe")
    except InputError:  # layers that share their weights, or none
        stem = ""
    names = {id(module): name for name, module in model.named_modules()}
    embedding = names[id(model.get_input_embeddings())]
    decoder = names.get(id(model.get_output_embeddings()), "-")
    in_layers = re.compile(rf"{re.escape(stem)}\.(\d+)\.(?:({_ATTENTION})|)")
    attentive = any((layer := in_layers.match(name)) and layer[2] for name, _ in model.named_parameters())
    found: dict[str, Part] = {}
    for name, parameter in model.named_parameters():
        layer, inner = in_layers.match(name), name.removeprefix(f"{model.base_model_prefix}.")
        if layer:
            part = f"layer {layer[1]}" + (f": {'attention' if layer[2] else 'feed-forward'}" if attentive else "")
        elif inner.startswith("embeddings") or name.startswith(f"{embedding}."):
            part = "embeddings"
        else:
            first = inner.partition(".")[0]
            of_encoder = inner != name or (model.base_model is model and not name.startswith(f"{decoder}."))
            part = first if first == "pooler" or of_encoder else "head"
        found[part] = found.get(part, Part(0, 0)) + Part(parameter.nbytes, parameter.numel())
    return found


def table_of(columns: Mapping[str, Mapping[str, Part]]) -> Table:
    """One column a model, one row a part; the last rows are the sums, and their ratio to the first model's."""
    table = Table(title="Millions of parameters, and MB of their weights", title_justify="left")
    table.add_column("", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", overflow="fold")
    for part in sorted({part: None for parts in columns.values() for part in parts}, key=_place):
        table.add_row(part, *(_cell(parts.get(part)) for parts in columns.values()))
    table.add_section()
    sums = [sum(parts.values(), Part(0, 0)) for parts in columns.values()]
    table.add_row("all", *map(_cell, sums))
    if len(sums) > 1:
        table.add_row("times smaller", *(f"{sums[0].bytes / max(1, each.bytes):.1f}" for each in sums))
    return table


def _place(part: str) -> tuple[int, int]:
    """Rows in the order in which a batch passes them; files, which have their own names, last."""
    layer = re.match(r"layer (\d+)", part)
    order = ["embeddings", "layer", "pooler", "head"]
    kind = part.partition(" ")[0]
    return (order.index(kind) if kind in order else 1 + 3 * ("." in part)), int(layer[1]) if layer else 0


def _cell(part: Part | None) -> str:
    if part is None:
        return "-"
    size = f"{part.bytes / 1e6:6.2f}"
    return size if part.parameters is None else f"{part.parameters / 1e6:.3f} {size}"


@dataclass(frozen=True)
class _Opened:
    """A model that is described; ``forward`` where it is to be timed."""

    parts: dict[str, Part]
    forward: Forward | None
    vocab_size: int
    input_names: Sequence[str]
    positions: int | None = None


def describe(paths: Sequence[str], times: bool = False, length: int = 32, threads: int = 1) -> Table:
    """Parameters and bytes by part, and times, of folders and Hub names.

    Args:
        paths: Float folders, int8 folders of a run, or Hub names.
        times: Add the median latency of one row, and how many times faster than the first each model is.
        length: Tokens in the row, 1 or more.
        threads: Of each model, 1 or more.

    Raises:
        InputError: If there is no such model, or a value is out of its range.
    """
    check_range("length", length, 1)
    check_range("threads", threads, 1)
    models = {path: _open(path, times, threads) for path in dict.fromkeys(paths)}
    positions = {path: model.positions for path, model in models.items() if model.positions is not None}
    if times and positions and length > min(positions.values()):
        shortest = min(positions, key=lambda path: positions[path])
        raise expected("length", f"at most {positions[shortest]}, the positions that {shortest} has", length)
    table = table_of({path: model.parts for path, model in models.items()})
    if times:
        limit = min(model.vocab_size for model in models.values())
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(limit, (_TEXTS, 1, length), generator=generator)
        batches = {path: [_inputs(row, model.input_names) for row in rows] for path, model in models.items()}
        forwards = {path: model.forward for path, model in models.items() if model.forward is not None}
        seconds = time_interleaved(forwards, batches, _ROUNDS, threads)
        table.caption = f"ms: a row of {length} tokens on {threads} {'thread' if threads == 1 else 'threads'}, in turns"
        table.add_row("ms, p50", *(f"{np.median(values) * 1e3:.2f}" for values in seconds.values()))
        if len(models) > 1:
            first = next(iter(seconds.values()))
            table.add_row("times faster", *(f"{paired_speedup(first, values):.1f}" for values in seconds.values()))
    return table


def _inputs(ids: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    constant = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {"input_ids": ids, **{name: value for name, value in constant.items() if name in names}}


def _open(path: str, times: bool, threads: int) -> _Opened:
    config = _config_of(path)
    folder = Path(path).expanduser()
    if folder.is_dir() and quantizer_of(folder) is not None:
        files = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".bin", ".xml", ".onnx", ".data")]
        runner = Runner.open(folder, threads) if times else None
        names = runner.tokenizer.model_input_names if runner else []
        parts = {file.name: Part(file.stat().st_size) for file in files}
        positions = getattr(config, "max_position_embeddings", None)
        return _Opened(parts, runner.forward if runner else None, config.vocab_size, names, positions)
    model = _load(path, config)
    parts = parts_of(model)
    if not times:
        return _Opened(parts, None, config.vocab_size, [])
    model = model.float().eval()

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {"output": model(**inputs)[0]}

    return _Opened(parts, forward, config.vocab_size, _input_names(path), num_positions(model))


def _config_of(path: str) -> PretrainedConfig:
    check_folder("MODEL", path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of what is in the file
        way_out = "Check the spelling, and that the Hub can be reached."
        raise expected("MODEL", "a local folder with a config.json or a Hub name", path, way_out) from error
    check_config("MODEL", path, config)
    return config


def _load(path: str, config: PretrainedConfig) -> PreTrainedModel:
    """The model with the head that is stored, in the type of the stored weights."""
    architecture = (config.architectures or ["AutoModel"])[0]
    kind = getattr(transformers, architecture, None) or task_of(config).auto_class
    try:
        check_size("MODEL", path, kind, config)
        return kind.from_pretrained(path, config=config, dtype="auto")
    except InputError:
        raise
    except Exception as error:  # whatever transformers, safetensors and torch make of what is in the files
        reason = str(error).partition("\n")[0]
        raise expected("MODEL", f"a model with weights for {architecture}", path, reason) from error


def _input_names(path: str) -> list[str]:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False).model_input_names
    except Exception:  # whatever transformers makes of what is in the files
        return ["attention_mask"]  # a folder without a tokenizer


def main(arguments: Sequence[str]) -> None:
    """Run ``lightning-kd describe`` with ``arguments``."""
    parser = ArgumentParser("describe", "Where the parameters of models are.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder, float or int8, or Hub name")
    parser.add_argument("--times", action="store_true", help="add the median latency of one row, measured in turns")
    parser.add_argument("--length", type=int, default=32, help="tokens in that row (default: 32)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each model (default: 1)")
    given = parser.parse_args(arguments)
    Console().print(describe(given.models, given.times, given.length, given.threads))
