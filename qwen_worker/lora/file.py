"""A LoRA's safetensors file: what it holds, by its header alone, and whether that belongs to a transformer.

Nothing of it is unpickled. Its matrices are read by `adapters.py`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .names import Names, NotALora, layers, shown
from .tensor_file import BYTES, TensorFile

METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration


@dataclass(frozen=True)
class Layer:
    """What is added to one linear layer: y += scaling * up(down(x)), (out, rank) and (rank, in)."""

    names: Names
    rank: int
    inputs: int
    outputs: int
    scaling: float  # alpha / rank

    @property
    def parameters(self) -> int:
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """`key` is equal for equal contents only."""

    key: str
    layers: Mapping[str, Layer] = field(repr=False)  # by the transformer's own names
    tensors: TensorFile = field(repr=False)
    lasting: bool = False  # a copy of the store's, which nobody writes to

    def changed(self) -> bool:
        """Whether it was written in place since it was opened: its key is not that of what is read from now on."""
        return not self.lasting and self.tensors.changed()

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers.values())


@dataclass(frozen=True)
class LoraUse:
    """A LoRA as one job has it. `label`: its name in the errors; `own`: the endpoint's, for which there is room."""

    file: LoraFile
    scale: float
    label: str
    own: bool = False


def opened(path: Path, key: str | None, label: str) -> LoraFile:
    """The file, its header read and checked. Without a key it gets its own.

    Raises `InvalidInput` for what is no LoRA, and `JobError` where the disk does not give it.
    """
    tensors = TensorFile(path, label)
    try:
        named = layers(tensors.shapes)
        for name, dtype in tensors.dtypes.items():
            if dtype not in BYTES:
                raise NotALora(f"holds {shown(name)} as {shown(dtype)}; {', '.join(BYTES)} are read")
        alphas = Alphas.of(tensors.metadata)
        found = {layer: described(layer, names, tensors, alphas) for layer, names in named.items()}
    except NotALora as error:
        raise InvalidInput(f"{label} {error}") from None
    return LoraFile(key or tensors.identity(), found, tensors, lasting=key is not None)


def described(layer: str, names: Names, tensors: TensorFile, alphas: "Alphas") -> Layer:
    shapes = tensors.shapes
    down, up = shapes[names.down], shapes[names.up]
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not all((*down, *up)):
        raise NotALora(f"has matrices of {by(down)} and {by(up)} for {shown(layer)}, which do not make a product")
    rank = down[0]
    if not names.alpha:
        return Layer(names, rank, down[1], up[0], alphas.scaling_of(layer, rank))
    if math.prod(shapes[names.alpha]) != 1:
        raise NotALora(f"holds {shown(names.alpha)} as {by(shapes[names.alpha])}; an alpha is one number")
    alpha = float(tensors.tensor(names.alpha).item())
    if not math.isfinite(alpha):
        raise NotALora(f"has an alpha of {alpha} for {shown(layer)}")
    return Layer(names, rank, down[1], up[0], alpha / rank)


def by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


@dataclass(frozen=True)
class Alphas:
    """What peft's configuration, in the file's metadata, says of the layers' alphas."""

    standard: float | None = None
    own: Mapping[str, float] = field(default_factory=dict)  # by layer
    by_root: bool = False  # scaled by alpha / sqrt(rank)

    @classmethod
    def of(cls, metadata: Any) -> "Alphas":
        """Raises `NotALora` for a configuration that says more than alphas, or is not one."""
        try:
            facts = json.loads((metadata or {}).get(METADATA, "{}"))
            facts = {name.removeprefix("transformer."): value for name, value in facts.items()}
            if facts.get("use_dora"):
                raise NotALora("is a DoRA by its metadata, which cannot be applied")
            own = {name.removeprefix("^"): float(alpha) for name, alpha in (facts.get("alpha_pattern") or {}).items()}
            standard = facts.get("lora_alpha")
            return cls(None if standard is None else float(standard), own, bool(facts.get("use_rslora")))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise NotALora(f"has {METADATA} that cannot be read") from None

    def scaling_of(self, layer: str, rank: int) -> float:
        """peft names a layer by its whole name, or by its end."""
        ends = (layer[start:] for start in range(len(layer)) if start == 0 or layer[start - 1] == ".")
        alpha = next((self.own[end] for end in ends if end in self.own), self.standard)
        if alpha is None:
            return 1.0
        if not math.isfinite(alpha):
            raise NotALora(f"has an alpha of {alpha} for {shown(layer)} in its metadata")
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def require_layers(use: LoraUse, there: Mapping[str, tuple[int, int]], model: str) -> None:
    """Refuse a LoRA that is made for another model. `there`: (outputs, inputs) of the model's linear layers."""
    wrong = []
    for name, layer in sorted(use.file.layers.items()):
        if name not in there:
            wrong.append(f"{shown(name)} is none of its layers")
        elif there[name] != (layer.outputs, layer.inputs):
            wrong.append(f"{name} is {by(there[name])} there and {layer.outputs}x{layer.inputs} in the LoRA")
    if wrong:
        many = f"{len(wrong)} of {len(use.file.layers)} layers do not match: "
        rest = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InvalidInput(f"{use.label} is not made for {model}; {many}{'; '.join(wrong[:3])}{rest}")
