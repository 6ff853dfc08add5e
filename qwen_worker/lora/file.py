"""A LoRA's file: what it adds to which layers, how strongly, and whether it belongs to a transformer.

Knows nothing of where files come from; `matrices.py` reads the matrices.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InvalidInput
from .names import LOHA_PARTS, Kind, TensorNames, UnusableLora, group_by_layer, printable
from .strength import CONFIG_NAME, read_alphas, require_scaling
from .tensor_file import FLOATS, NUMBERS, TensorFile

CONFIG_BYTES = 1_000_000  # five times what peft writes for patterns that name every layer of the 20B transformer
BLOCK = re.compile(r"transformer_blocks\.\d+(?=\.)")

Sides = tuple[int, int]  # of a matrix: (rows, columns)


@dataclass(frozen=True)
class LoraLayer:
    """What is added to one linear layer, times `scaling`; `products.py` computes it.

    `names`, `sides`: of the matrices' tensors, by part. `rank`: of the matrices whose product has the alpha's scaling,
    0 for a LoKr of whole matrices.
    """

    kind: Kind
    names: Mapping[str, str]
    sides: Mapping[str, Sides]
    inputs: int
    outputs: int
    rank: int
    scaling: float = 1.0  # alpha / rank

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.sides.values())

    @property
    def scratch_parameters(self) -> int:
        """What a pass has beside the matrices: of a LoHa three products, each as large as the layer."""
        return 3 * self.inputs * self.outputs if self.kind is Kind.LOHA else 0


@dataclass(frozen=True, eq=False)
class LoraFile:
    """An open LoRA. `key`: equal for equal contents only; `layers`: by the transformer's own names.

    `is_immutable`: nobody writes to this file, as to those that were fetched. `warnings`: what of the file is not used,
    as predicates of it.
    """

    key: str
    layers: Mapping[str, LoraLayer] = field(repr=False)
    tensors: TensorFile = field(repr=False)
    is_immutable: bool = False
    warnings: tuple[str, ...] = ()

    def is_changed(self) -> bool:
        """Whether the file was written in place since it was opened: what is read from now on has another key."""
        return not self.is_immutable and self.tensors.is_changed()

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def scratch_parameters(self) -> int:
        """The most that a pass has beside the matrices, of any one layer."""
        return max(layer.scratch_parameters for layer in self.layers.values())

    @property
    def scalings(self) -> tuple[float, float]:
        """The least and the most of the layers' alpha / rank."""
        scalings = [layer.scaling for layer in self.layers.values()]
        return min(scalings), max(scalings)

    @property
    def parameters_at_once(self) -> int:
        """The most that a pass computes with at a time: those of one block, and of all layers outside of blocks."""
        by_block: Counter[str] = Counter()
        for name, layer in self.layers.items():
            by_block[streamed_block(name)] += layer.parameters
        return by_block.pop("", 0) + max(by_block.values(), default=0)


def streamed_block(layer: str) -> str:
    """The block whose pass alone needs the layer's matrices, by its name.

    Empty for a layer outside of the blocks, and for one of the modulation, whose rows a table has for all blocks.
    """
    match = BLOCK.match(layer)
    return match[0] if match and "_mod." not in layer else ""


@dataclass(frozen=True)
class LoraUse:
    """A LoRA as one job uses it. `label`: its name in the errors; `source`: the path that names it.

    `from_settings`: the endpoint names it and not the job; the plan has room for it.
    """

    file: LoraFile
    scale: float
    label: str
    from_settings: bool = False
    source: str = ""


def open_lora(
    path: Path, key: str | None, label: str, config: Path | None = None, doubts: Iterable[str] = ()
) -> LoraFile:
    """The file, its header read and checked. A file without a key is identified by its own status or bytes.

    `config`: peft's configuration, which lies beside the file and belongs to it; `doubts`: warnings in case that the
    file itself says no alpha. Raises `InvalidInput` for a file that is no LoRA, and `JobError` where the disk does not
    give it.
    """
    tensors = TensorFile(path, label)
    try:
        names_by_layer, text_encoder = group_by_layer(tensors.shapes)
        layers = {layer: lora_layer(layer, names, tensors) for layer, names in names_by_layer.items()}
        config_text = read_config(config) if config else None
        ranks = {layer.rank for name, layer in layers.items() if not names_by_layer[name].alpha}
        alphas, warning = read_alphas(tensors.metadata, config_text, tensors.shapes, ranks)
        for name, layer in layers.items():
            own = own_alpha(name, names_by_layer[name].alpha, tensors)
            if own is None:
                scaling = alphas.scaling_of(name, layer.kind, layer.rank)
            else:
                scaling = require_scaling(own, layer.rank, f"for {printable(name)}") if layer.rank else 1.0
            layers[name] = replace(layer, scaling=scaling)
    except UnusableLora as error:
        raise InvalidInput(f"{label} {error}") from None
    warnings = [*doubts, *filter(None, [warning])] if ranks and not alphas.source else []
    if text_encoder:
        warnings.append(f"has a part for the text encoder ({len(text_encoder)} tensors), which was not applied")
    is_immutable, key = key is not None, key or tensors.identity()
    if config_text is not None:
        key = hashlib.sha256(key.encode() + config_text).hexdigest()
    return LoraFile(key, layers, tensors, is_immutable, tuple(warnings))


def read_config(path: Path) -> bytes:
    """Raises `UnusableLora` where it is too large, or cannot be read."""
    try:
        with path.open("rb") as stream:
            text = stream.read(CONFIG_BYTES + 1)
    except OSError:
        raise UnusableLora(f"has an {CONFIG_NAME} beside it that cannot be read") from None
    if len(text) > CONFIG_BYTES:
        raise UnusableLora(f"has an {CONFIG_NAME} beside it of more than {CONFIG_BYTES / 1e6:g} MB")
    return text


def lora_layer(layer: str, names: TensorNames, tensors: TensorFile) -> LoraLayer:
    """One layer of the file, not scaled yet. Raises `UnusableLora` where its tensors are no LoRA's."""
    sides: dict[str, Sides] = {}
    for part, name in names.matrices.items():
        shape, dtype = tensors.shapes[name], tensors.dtypes[name]
        if dtype not in FLOATS:
            raise UnusableLora(f"holds {printable(name)} as {printable(dtype)}; {', '.join(FLOATS)} are read")
        if len(shape) != 2 or not all(shape):
            raise mismatch_error(layer, [tensors.shapes[name] for name in names.matrices.values()])
        sides[part] = shape[0], shape[1]
    outputs, inputs, rank = MEASURES[names.kind](layer, sides)
    return LoraLayer(names.kind, names.matrices, sides, inputs, outputs, rank)


def measure_lora(layer: str, sides: Mapping[str, Sides]) -> tuple[int, int, int]:
    """(outputs, inputs, rank) of up (out, rank) times down (rank, in). Raises `UnusableLora`."""
    outputs, inputs = product_sides(layer, sides["up"], sides["down"], sides)
    return outputs, inputs, sides["down"][0]


def measure_lokr(layer: str, sides: Mapping[str, Sides]) -> tuple[int, int, int]:
    """Of the Kronecker product of w1 (a, b) and w2 (c, d), a matrix (ac, bd)."""
    rank = 0
    wholes: list[Sides] = []
    for part in ("lokr_w1", "lokr_w2"):
        if part in sides:
            wholes.append(sides[part])
            continue
        first, second = sides[f"{part}_a"], sides[f"{part}_b"]
        wholes.append(product_sides(layer, first, second, sides))
        rank = second[0]
        # A product of more columns than it has rows and columns would take a pass more room than the layer itself.
        if rank > max(wholes[-1]):
            words = f"makes {part} of {printable(layer)}, which is {shape_text(wholes[-1])},"
            raise UnusableLora(f"{words} of factors of rank {rank:,}; their rank must be at most the longer side")
    (a, b), (c, d) = wholes
    return a * c, b * d, rank


def measure_loha(layer: str, sides: Mapping[str, Sides]) -> tuple[int, int, int]:
    """Of the products w1_a w1_b and w2_a w2_b, multiplied number by number."""
    w1_a, w1_b, w2_a, w2_b = (sides[part] for part in LOHA_PARTS)
    first, second = product_sides(layer, w1_a, w1_b, sides), product_sides(layer, w2_a, w2_b, sides)
    if first != second:
        raise mismatch_error(layer, sides.values())
    return *first, w1_b[0]


MEASURES = {Kind.LORA: measure_lora, Kind.LOKR: measure_lokr, Kind.LOHA: measure_loha}


def product_sides(layer: str, first: Sides, second: Sides, sides: Mapping[str, Sides]) -> Sides:
    """Of first times second, two of a layer's matrices. Raises `UnusableLora` where these do not make a product."""
    if first[1] != second[0]:
        raise mismatch_error(layer, sides.values())
    return first[0], second[1]


def mismatch_error(layer: str, shapes: Iterable[Sequence[int]]) -> UnusableLora:
    sizes = " and ".join(map(shape_text, shapes))
    return UnusableLora(f"has matrices of {sizes} for {printable(layer)}, which do not make a product")


def own_alpha(layer: str, name: str, tensors: TensorFile) -> float | None:
    """The alpha that a layer has in the file; None where it has none. Raises `UnusableLora` for what is no number."""
    if not name:
        return None
    if math.prod(tensors.shapes[name]) != 1:
        raise UnusableLora(f"holds {printable(name)} as {shape_text(tensors.shapes[name])}; an alpha is one number")
    if tensors.dtypes[name] not in NUMBERS:
        raise UnusableLora(f"holds {printable(name)} as {printable(tensors.dtypes[name])}; an alpha is a number")
    return float(tensors.read_tensor(name).item())


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def require_layers(use: LoraUse, model_shapes: Mapping[str, tuple[int, int]], model: str) -> None:
    """Raises `InvalidInput` for a LoRA that is made for another model.

    `model_shapes`: (outputs, inputs) of the model's linear layers, by name.
    """
    wrong: list[str] = []
    for name, layer in sorted(use.file.layers.items()):
        if name not in model_shapes:
            wrong.append(f"{printable(name)} is none of its layers")
        elif (shape := model_shapes[name]) != (layer.outputs, layer.inputs):
            wrong.append(f"{name} is {shape_text(shape)} there and {layer.outputs}x{layer.inputs} in the LoRA")
    if wrong:
        many = f"{len(wrong)} of {len(use.file.layers)} layers do not match: "
        rest = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InvalidInput(f"{use.label} is not made for {model}; {many}{'; '.join(wrong[:3])}{rest}")
