"""A LoRA's safetensors file, from somebody else and kept open: what it holds, and whether it belongs to a transformer.

The header alone says what the file holds, and nothing of it is unpickled. The file is read and never mapped: the
process would end when it touches a mapped file that somebody has cut short in its place. Its descriptor stays open, so
it is read to its end even once it is deleted or another file has its name. Imports torch inside functions. Knows
nothing of where files come from; `adapters.py` reads the matrices.
"""

import hashlib
import json
import math
import os
import re
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.files import METADATA, read_header, shape_of, span_of
from ..errors import InvalidInput, JobError, LoadError
from .names import TensorNames, UnusableLora, group_by_layer, printable

if TYPE_CHECKING:
    import torch

ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration
HEADER_BYTES = 10_000_000  # thirty times what a LoRA of every layer of the 20B transformer needs
START_BYTES = 9  # by which a safetensors file is recognized: its header's length, and the brace that it begins with
NAME_CHARACTERS = 500  # of a tensor's name; the longest of a LoRA of the 20B transformer has some 90
DIMENSIONS = 8
BLOCK = re.compile(r"transformer_blocks\.\d+(?=\.)")
BYTES_BY_DTYPE = {"F32": 4, "F16": 2, "BF16": 2}  # of one number; other dtypes are not read
# A file that changed less than so long ago may change again without other times: clocks tick in milliseconds, and the
# clock of a network volume may be off by more.
RECENT_SECONDS = 60


def require_start(start: bytes, label: str) -> None:
    """Raises `InvalidInput` for a file that does not begin as a safetensors file does.

    `start`: the file's first `START_BYTES`, or all of a shorter file.
    """
    length = int.from_bytes(start[:8], "little")
    if len(start) < START_BYTES or start[8:9] != b"{":
        raise InvalidInput(f"{label} must be a safetensors file, and does not begin as one")
    if length > HEADER_BYTES:
        raise InvalidInput(f"{label} must have a header of at most {HEADER_BYTES:,} bytes, not {length:,}")


class TensorFile:
    """An open safetensors file. `shapes`, `dtypes`: of the tensors by name; `metadata`: as the header has it.

    Raises `InvalidInput` for a file that is no safetensors file, and `JobError` where the disk does not give it.
    """

    def __init__(self, path: Path, label: str):
        self.label = label
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise self.unreadable_error() from None
        weakref.finalize(self, os.close, self.descriptor)
        self.status = os.fstat(self.descriptor)
        require_start(bytes(self.read_bytes(0, min(START_BYTES, self.status.st_size))), label)
        try:
            with open(self.descriptor, "rb", closefd=False) as stream:
                header, self.data_start = read_header(stream, self.status.st_size, label)
        except LoadError as error:
            raise InvalidInput(error.reason) from None
        self.metadata = header.pop(METADATA, None)
        self.shapes = {name: shape_of(entry) for name, entry in header.items()}
        self.ranges = {name: span_of(entry) for name, entry in header.items()}  # (begin, end) after `data_start`
        self.dtypes = {name: str(entry.get("dtype")) for name, entry in header.items()}
        self.require_sizes()
        self.require_ranges()

    def require_sizes(self) -> None:
        """Raises `InvalidInput` for names or shapes that take minutes to compute with.

        A header has room for a million dimensions.
        """
        for name, shape in self.shapes.items():
            if len(name) > NAME_CHARACTERS:
                raise InvalidInput(f"{self.label} has a tensor with a name of {len(name):,} characters")
            if len(shape) > DIMENSIONS or max(shape, default=0) > self.status.st_size:
                raise InvalidInput(f"{self.label} is corrupt: a tensor has a shape that no file of its size holds")

    def require_ranges(self) -> None:
        """Raises `InvalidInput` unless each tensor has the bytes that it takes, and all lie one after the other."""
        previous_end = 0
        for begin, end in sorted(self.ranges.values()):
            if begin != previous_end:
                raise InvalidInput(f"{self.label} is corrupt: its tensors overlap, or leave gaps")
            previous_end = end
        for name, (begin, end) in self.ranges.items():
            size = BYTES_BY_DTYPE.get(self.dtypes[name])
            if size and end - begin != math.prod(self.shapes[name]) * size:
                raise InvalidInput(f"{self.label} is corrupt: a tensor is given more or less room than it takes")

    def read_tensor(self, name: str) -> "torch.Tensor":
        """Raises `JobError` where the disk does not give it."""
        import torch

        dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        begin, end = self.ranges[name]
        data = self.read_bytes(self.data_start + begin, end - begin)
        return torch.frombuffer(data, dtype=dtypes[self.dtypes[name]]).reshape(self.shapes[name])

    def read_bytes(self, start: int, count: int) -> bytearray:
        """`count` bytes from `start` in the file. Raises `JobError` where the disk does not give them."""
        data, done = bytearray(count), 0
        while done < count:
            try:
                read = os.preadv(self.descriptor, [memoryview(data)[done:]], start + done)
            except OSError:
                raise self.unreadable_error() from None
            if not read:  # somebody has cut the file short
                raise self.unreadable_error()
            done += read
        return data

    def is_changed(self) -> bool:
        """Whether the file was written in place since it was opened: what was read may be of both contents."""
        now = os.fstat(self.descriptor)
        return (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns)

    def identity(self) -> str:
        """A digest that is equal for equal contents only.

        It is taken of the file's inode, size and times, or of its bytes while the last change is recent.
        """
        status = self.status
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < RECENT_SECONDS * 10**9:
            with open(self.descriptor, "rb", closefd=False) as stream:
                stream.seek(0)
                return hashlib.file_digest(stream, "sha256").hexdigest()
        facts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()

    def unreadable_error(self) -> JobError:
        return JobError("lora_fetch_failed", f"{self.label} cannot be read on the worker's disk")


@dataclass(frozen=True)
class LoraLayer:
    """What is added to one linear layer: y += scaling * up(down(x)), with `up` (out, rank) and `down` (rank, in)."""

    names: TensorNames
    rank: int
    inputs: int
    outputs: int
    scaling: float  # alpha / rank

    @property
    def parameters(self) -> int:
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """An open LoRA. `key`: equal for equal contents only; `layers`: by the transformer's own names.

    `is_immutable`: nobody writes to this file, as to those that were fetched.
    """

    key: str
    layers: Mapping[str, LoraLayer] = field(repr=False)
    tensors: TensorFile = field(repr=False)
    is_immutable: bool = False

    def is_changed(self) -> bool:
        """Whether the file was written in place since it was opened: what is read from now on has another key."""
        return not self.is_immutable and self.tensors.is_changed()

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers.values())

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
    """A LoRA as one job uses it. `label`: its name in the errors.

    `from_settings`: the endpoint names it and not the job; the plan has room for it.
    """

    file: LoraFile
    scale: float
    label: str
    from_settings: bool = False


def open_lora(path: Path, key: str | None, label: str) -> LoraFile:
    """The file, its header read and checked. A file without a key is identified by its own status or bytes.

    Raises `InvalidInput` for a file that is no LoRA, and `JobError` where the disk does not give it.
    """
    tensors = TensorFile(path, label)
    try:
        names_by_layer = group_by_layer(tensors.shapes)
        for name, dtype in tensors.dtypes.items():
            if dtype not in BYTES_BY_DTYPE:
                raise UnusableLora(
                    f"holds {printable(name)} as {printable(dtype)}; {', '.join(BYTES_BY_DTYPE)} are read"
                )
        alphas = Alphas.from_metadata(tensors.metadata)
        layers = {layer: lora_layer(layer, names, tensors, alphas) for layer, names in names_by_layer.items()}
    except UnusableLora as error:
        raise InvalidInput(f"{label} {error}") from None
    return LoraFile(key or tensors.identity(), layers, tensors, is_immutable=key is not None)


def lora_layer(layer: str, names: TensorNames, tensors: TensorFile, alphas: "Alphas") -> LoraLayer:
    """One layer of the file. Raises `UnusableLora` where its tensors are no LoRA's."""
    shapes = tensors.shapes
    down, up = shapes[names.down], shapes[names.up]
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not all((*down, *up)):
        sizes = f"{shape_text(down)} and {shape_text(up)}"
        raise UnusableLora(f"has matrices of {sizes} for {printable(layer)}, which do not make a product")
    rank = down[0]
    if not names.alpha:
        return LoraLayer(names, rank, down[1], up[0], alphas.scaling_of(layer, rank))
    if math.prod(shapes[names.alpha]) != 1:
        size = shape_text(shapes[names.alpha])
        raise UnusableLora(f"holds {printable(names.alpha)} as {size}; an alpha is one number")
    alpha = float(tensors.read_tensor(names.alpha).item())
    if not math.isfinite(alpha):
        raise UnusableLora(f"has an alpha of {alpha} for {printable(layer)}")
    return LoraLayer(names, rank, down[1], up[0], alpha / rank)


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


@dataclass(frozen=True)
class Alphas:
    """What peft's configuration, in the file's metadata, says of the layers' alphas."""

    default: float | None = None  # of layers that have none of their own
    by_layer: Mapping[str, float] = field(default_factory=dict[str, float])  # by the layer's name, or an end of it
    uses_root: bool = False  # peft's rslora: scaling is alpha / sqrt(rank) in place of alpha / rank

    @classmethod
    def from_metadata(cls, metadata: Any) -> "Alphas":
        """Raises `UnusableLora` for a configuration that cannot be read, or is a DoRA's."""
        try:
            facts = json.loads((metadata or {}).get(ADAPTER_METADATA, "{}"))
            facts = {name.removeprefix("transformer."): value for name, value in facts.items()}
            if facts.get("use_dora"):
                raise UnusableLora("is a DoRA by its metadata, which cannot be applied")
            pattern = facts.get("alpha_pattern") or {}
            by_layer = {name.removeprefix("^"): float(alpha) for name, alpha in pattern.items()}
            default = facts.get("lora_alpha")
            return cls(None if default is None else float(default), by_layer, bool(facts.get("use_rslora")))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise UnusableLora(f"has {ADAPTER_METADATA} that cannot be read") from None

    def scaling_of(self, layer: str, rank: int) -> float:
        """By the layer's alpha, which peft files under its whole name or an end of it. Raises `UnusableLora`."""
        ends = (layer[start:] for start in range(len(layer)) if start == 0 or layer[start - 1] == ".")
        alpha = next((self.by_layer[end] for end in ends if end in self.by_layer), self.default)
        if alpha is None:
            return 1.0
        if not math.isfinite(alpha):
            raise UnusableLora(f"has an alpha of {alpha} for {printable(layer)} in its metadata")
        return alpha / (math.sqrt(rank) if self.uses_root else rank)


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
