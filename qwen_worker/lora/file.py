"""A LoRA's safetensors file, from somebody else and kept open: what it holds, and whether it belongs to a transformer.

What it holds is told by its header alone, and nothing of it is unpickled. It is read and never mapped: a mapped file
that somebody writes anew in its place ends the process when it is touched. It can be read to its end also once it is
deleted or another has its name. Imports torch inside functions. Its matrices are read by `adapters.py`.
"""

import hashlib
import json
import math
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.files import METADATA, read_header, shape_of, span_of
from ..errors import InvalidInput, JobError, LoadError
from .names import Names, NotALora, layers, shown

ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration
HEADER_BYTES = 10_000_000  # thirty times what a LoRA of every layer of the 20B transformer needs
START_BYTES = 9  # what tells a safetensors file: its header's length, and the brace that it begins with
NAME_CHARACTERS = 500  # of a tensor's name; the longest of a LoRA of the 20B transformer has some 90
DIMENSIONS = 8
BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # of the kinds of numbers that are read
# How long after a file's last change its times may not tell it from the next one: clocks tick in milliseconds, and
# that of a network volume may be off by more.
RECENT_SECONDS = 60


def require_start(start: bytes, label: str) -> None:
    """Refuse what does not begin as a safetensors file does; `start` is its first `START_BYTES`, or all of fewer."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < START_BYTES or start[8:9] != b"{":
        raise InvalidInput(f"{label} must be a safetensors file, and does not begin as one")
    if length > HEADER_BYTES:
        raise InvalidInput(f"{label} must have a header of at most {HEADER_BYTES:,} bytes, not {length:,}")


class TensorFile:
    """`shapes`, `dtypes`: of the tensors by name; `metadata`: as the header has it.

    Raises `InvalidInput` for a file that is no safetensors, and `JobError` where the disk does not give it.
    """

    def __init__(self, path: Path, label: str):
        self.label = label
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise self.unreadable() from None
        weakref.finalize(self, os.close, self.descriptor)
        self.facts = os.fstat(self.descriptor)
        require_start(bytes(self.read(0, min(START_BYTES, self.facts.st_size))), label)
        try:
            with open(self.descriptor, "rb", closefd=False) as stream:
                header, self.start = read_header(stream, self.facts.st_size, label)
        except LoadError as error:
            raise InvalidInput(error.reason) from None
        self.metadata = header.pop(METADATA, None)
        self.shapes = {name: shape_of(entry) for name, entry in header.items()}
        self.places = {name: span_of(entry) for name, entry in header.items()}
        self.dtypes = {name: str(entry.get("dtype")) for name, entry in header.items()}
        self.require_ordinary()
        self.require_places()

    def require_ordinary(self) -> None:
        """No name or shape that takes minutes to compute with: a header has room for a million dimensions."""
        for name, shape in self.shapes.items():
            if len(name) > NAME_CHARACTERS:
                raise InvalidInput(f"{self.label} has a tensor with a name of {len(name):,} characters")
            if len(shape) > DIMENSIONS or max(shape, default=0) > self.facts.st_size:
                raise InvalidInput(f"{self.label} is corrupt: a tensor has a shape that no file of its size holds")

    def require_places(self) -> None:
        """Each tensor has the room that it takes and all of them lie one after the other, as the format has it."""
        reached = 0
        for begin, end in sorted(self.places.values()):
            if begin != reached:
                raise InvalidInput(f"{self.label} is corrupt: its tensors overlap, or leave gaps")
            reached = end
        for name, (begin, end) in self.places.items():
            size = BYTES.get(self.dtypes[name])
            if size and end - begin != math.prod(self.shapes[name]) * size:
                raise InvalidInput(f"{self.label} is corrupt: a tensor is given more or less room than it takes")

    def tensor(self, name: str) -> Any:
        """Raises `JobError` where the disk does not give it."""
        import torch

        kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        begin, end = self.places[name]
        data = self.read(self.start + begin, end - begin)
        return torch.frombuffer(data, dtype=kinds[self.dtypes[name]]).reshape(self.shapes[name])

    def read(self, start: int, count: int) -> bytearray:
        data, done = bytearray(count), 0
        while done < count:
            try:
                read = os.preadv(self.descriptor, [memoryview(data)[done:]], start + done)
            except OSError:
                raise self.unreadable() from None
            if not read:  # it was cut short in place
                raise self.unreadable()
            done += read
        return data

    def changed(self) -> bool:
        """Whether it was written in place since it was opened: what was read may be of both."""
        now = os.fstat(self.descriptor)
        return (now.st_size, now.st_mtime_ns) != (self.facts.st_size, self.facts.st_mtime_ns)

    def identity(self) -> str:
        """Equal for equal contents only: from where it lies and its times, or from its bytes while these are new."""
        facts = self.facts
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < RECENT_SECONDS * 10**9:
            with open(self.descriptor, "rb", closefd=False) as stream:
                stream.seek(0)
                return hashlib.file_digest(stream, "sha256").hexdigest()
        found = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
        return hashlib.sha256("\0".join(map(str, found)).encode()).hexdigest()

    def unreadable(self) -> JobError:
        return JobError("lora_fetch_failed", f"{self.label} cannot be read on the worker's disk")


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
            facts = json.loads((metadata or {}).get(ADAPTER_METADATA, "{}"))
            facts = {name.removeprefix("transformer."): value for name, value in facts.items()}
            if facts.get("use_dora"):
                raise NotALora("is a DoRA by its metadata, which cannot be applied")
            own = {name.removeprefix("^"): float(alpha) for name, alpha in (facts.get("alpha_pattern") or {}).items()}
            standard = facts.get("lora_alpha")
            return cls(None if standard is None else float(standard), own, bool(facts.get("use_rslora")))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise NotALora(f"has {ADAPTER_METADATA} that cannot be read") from None

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
