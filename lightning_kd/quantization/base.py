"""What every quantization backend does: write a folder, and open it again."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

import lightning_kd.students  # noqa: F401  # registered with transformers, or it cannot open a folder that holds one
from lightning_kd._checks import InputError
from lightning_kd.folders import check_config, check_size
from lightning_kd.quantization.analysis import QuantizationScheme
from lightning_kd.quantization.fake_quantize import Rounding

__all__ = [
    "TESTED",
    "Forward",
    "Quantizer",
    "empty_model",
    "example_inputs",
    "fed",
    "float_copy",
    "graph_of",
    "logits_alone",
    "named_logits",
    "quantizable_layers",
    "refuse_layers",
    "try_out",
    "uncalled_layers",
    "unreadable",
]

#: The kinds of models that every backend is tested with, or refuses.
TESTED = frozenset(
    "albert bert big_bird camembert cnn data2vec-text deberta deberta-v2 distilbert electra ernie eurobert gpt2 llama "
    "lstm mobilebert modernbert mpnet qwen2 rembert rnn roberta roformer squeezebert xlm-roberta".split()
)
#: A batch's tensors by name to logits by name, on the CPU.
Forward = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Quantizer(ABC):
    """Post-training quantization by one backend.

    :meth:`convert` writes the int8 model into a folder, :meth:`open` reads it; the configuration and the tokenizer
    beside it are the caller's.
    """

    #: The backend as reports show it, behind ``format``; options that change the arithmetic are in it.
    name: str
    #: What the weights become, as reports show it.
    format: str = "int8"
    #: The file that tells a folder of this backend from others.
    file_name: ClassVar[str]
    #: Whether :meth:`convert` runs the model on training batches to find the range of its activations.
    needs_calibration: bool = False

    @property
    def scheme(self) -> QuantizationScheme:
        """What the backend does to a layer, as nearly as the analysis can say it."""
        return QuantizationScheme(8, activations="static" if self.needs_calibration else "dynamic")

    @property
    def rounding(self) -> Rounding:
        """What the backend rounds, for training with fake quantization.

        Raises:
            InputError: If the backend cannot be trained for.
        """
        raise InputError(
            f"{type(self).__name__} quantizes after training alone (mode: ptq): for quantization-aware training take "
            "ONNXRuntimeInt8, ONNXRuntimeInt4, DynamicInt8 or TorchAO."
        )

    def check(self) -> None:  # noqa: B027  # most backends have something to check, torch's own does not
        """Refuse to start where the backend cannot run.

        Raises:
            InputError: If an extra of the package is missing; the message names it.
        """

    def check_model(self, model: PreTrainedModel) -> None:  # noqa: B027  # most backends take any
        """Refuse, before the first batch, a model that :meth:`convert` would refuse after the last.

        Raises:
            InputError: If the backend cannot quantize it; the message names the layer.
        """

    @abstractmethod
    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        """Write ``model``, quantized, into ``folder``.

        Args:
            model: The float32 student, in eval mode on the CPU; it is not changed.
            calibration: The model's inputs for some training batches; empty unless ``needs_calibration``.
            folder: An existing folder.
            keep_float: Dotted names of the layers that stay in float, among :func:`quantizable_layers`.
        """

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, threads: int | None = None) -> Forward:
        """The model that :meth:`convert` wrote, ready to run on the CPU.

        Args:
            folder: Where it is.
            threads: Threads that it may use, where the backend has threads of its own; all of them unless given.

        Raises:
            InputError: If an extra of the package is missing, or the files are damaged or do not fit each other.
        """


def quantizable_layers(model: nn.Module) -> list[str]:
    """The dotted names of the layers that backends quantize, in the model's own order.

    Example:
        >>> quantizable_layers(nn.Sequential(nn.Embedding(3, 2), nn.ReLU(), nn.Linear(2, 2)))
        ['0', '2']
    """
    return [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding, nn.LSTM, nn.GRU))]


def uncalled_layers(model: PreTrainedModel) -> list[str]:
    """Those of :func:`quantizable_layers` whose weights a forward pass reads itself, as DeBERTa's relative positions.

    In 8 bits they could not be read, so they stay in float.
    """
    alone = copy.deepcopy(model).eval()
    layers = {name: alone.get_submodule(name) for name in quantizable_layers(alone)}
    called: set[nn.Module] = set()
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda module, _: called.add(module))
    with torch.no_grad():
        alone(**example_inputs(alone))
    return [name for name, layer in layers.items() if layer not in called]


def empty_model(folder: Path) -> PreTrainedModel:
    """The model that a folder's configuration describes, with random weights, in eval mode.

    Raises:
        InputError: If ``architectures`` in the configuration names no model that is known here.
    """
    import transformers

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of what is in the file
        raise unreadable(folder / "config.json") from error
    check_config("folder", str(folder), config)
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None) or _own_class(name)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise InputError(
            f"The config.json in {folder} does not name a model of transformers or one that is imported in "
            "`architectures`."
        )
    try:
        check_size("folder", str(folder), kind, config)
        return kind._from_config(config).eval()
    except InputError:
        raise
    except Exception as error:  # a shape that is none
        raise unreadable(folder / "config.json") from error


def _own_class(name: str) -> type | None:
    """The class of that name among the models that transformers does not bring, this package's for instance."""
    kinds: list[type] = [PreTrainedModel]
    for kind in kinds:  # which grows meanwhile
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.__name__ == name), None)


def refuse_layers(quantizer: Quantizer, model: nn.Module, kinds: tuple[type[nn.Module], ...], way_out: str) -> None:
    """Raise if a model has layers that a backend would leave in float.

    Args:
        quantizer: The backend.
        model: The model.
        kinds: What it cannot quantize.
        way_out: What to do.
    """
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            raise InputError(
                f"{type(quantizer).__name__} ({quantizer.name}) cannot quantize {type(module).__name__} layers such as "
                f"{name}: {way_out}"
            )


def refuse_decoder(quantizer: Quantizer, model: nn.Module) -> None:
    """Raise if a model reads from left to right: those of transformers cannot be traced as classifiers.

    Args:
        quantizer: The backend, which needs a graph.
        model: The model.
    """
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        raise InputError(
            f"{type(quantizer).__name__} ({quantizer.name}) cannot convert {type(model).__name__}, a decoder: "
            "take DynamicInt8 or TorchAO."
        )


@contextmanager
def graph_of(quantizer: Quantizer, model: nn.Module) -> Iterator[None]:
    """Say in a sentence that no graph could be made of a model within.

    Args:
        quantizer: The backend.
        model: The model.

    Raises:
        InputError: In place of whatever the tracer raises.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever a tracer makes of a model that it does not know
        raise _cannot("convert", quantizer, model, error, "DynamicInt8 or TorchAO") from error


def _cannot(do: str, quantizer: Quantizer, model: nn.Module, error: Exception, way_out: str) -> InputError:
    reason = " ".join(re.sub("\x1b\\[[0-9;]*m", "", str(error.__cause__ or error)).split())[:200]
    kind = type(model).__name__
    return InputError(f"{type(quantizer).__name__} ({quantizer.name}) cannot {do} {kind} (`{reason}`): take {way_out}.")


def float_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU in float32, whatever the model was trained in."""
    alone = cast(PreTrainedModel, copy.deepcopy(model).cpu().float())
    alone.config.dtype = torch.float32  # or its folder would be opened in another
    return alone


def try_out(quantizer: Quantizer, model: PreTrainedModel) -> None:
    """Quantize and run a copy of a model whose kind is not among :data:`TESTED`, so that it fails before a training.

    Args:
        quantizer: The backend.
        model: The model, on any device; it is not changed.

    Raises:
        InputError: If it cannot be quantized.
    """
    inner = getattr(model.config, "encoder", model.config)  # of a bi-encoder
    if getattr(inner, "model_type", None) in TESTED:
        return
    rank_zero_info(f"{type(model).__name__} is of no kind that is tested: trying {quantizer.name} before the training")
    alone = float_copy(model).eval()
    example = example_inputs(alone)
    alone.config.architectures = [type(model).__name__]
    with isolate_rng(), TemporaryDirectory() as folder:
        alone.config.save_pretrained(folder)
        try:
            quantizer.convert(alone, [example] if quantizer.needs_calibration else [], Path(folder))
        except InputError:
            raise
        except Exception as error:  # whatever a backend makes of a model that it does not know
            raise _cannot("convert", quantizer, model, error, "another quantizer") from error
        try:
            quantizer.open(Path(folder))(example)
        except Exception as error:  # said of the folder, which is none of the user's
            raise _cannot("run what it makes of", quantizer, model, error, "another quantizer") from error


def example_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows of 16 tokens, or of as many as the model has places for, for what runs or traces it."""
    places = getattr(model.config, "max_position_embeddings", None) or 18
    length = max(2, min(16, places - 2))  # RoBERTa leaves two of its places out
    example = {name: torch.ones(2, length, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    if getattr(model.config, "type_vocab_size", 0) > 1:  # two texts, as some models need
        example["token_type_ids"] = (torch.arange(length) >= length // 2).long().repeat(2, 1)
    return example


def logits_alone(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[PreTrainedModel, list[str]]:
    """A copy in eval mode whose forward pass gives a tuple of its logits, for what traces it, and their names.

    Its parts are told nothing (as ``config.return_dict`` would tell them): some read each other's outputs by name.

    Args:
        model: The model.
        inputs: A batch.

    Returns:
        The copy, and ``logits``, or ``start_logits`` and ``end_logits``.
    """
    kind: Any = type(model)

    @wraps(kind.forward)
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        outputs = kind.forward(self, *args, **kwargs)
        return tuple(outputs[name] for name in names)

    alone = copy.deepcopy(model).eval()
    with torch.no_grad():
        names = [name for name in alone(**inputs) if name.endswith("logits")]
    alone.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return alone, names


def fed(inputs: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Any]:
    """What a graph with inputs of these names is given, as arrays; one text where the batch has no token types.

    Args:
        inputs: A batch.
        names: The graph's inputs.
    """
    if "token_type_ids" in names and "token_type_ids" not in inputs:
        inputs = {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}
    return {name: value.numpy() for name, value in inputs.items() if name in names}


def named_logits(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's outputs by the names that tasks have for them: ``logits``, or ``start`` and ``end``."""
    return {name.removesuffix("_logits"): value for name, value in outputs.items() if name.endswith("logits")}


def unreadable(path: Path) -> InputError:
    """What to raise on a file that its backend cannot read."""
    return InputError(f"{path} is damaged or does not fit the files beside it: copy or export the folder again.")
