"""Components whose weights are stored quantized: by which library, and how many bytes that takes.

Told from `quantization_config` in a component's config.json and from headers; this worker's own prepared checkpoints
say it otherwise (`weights/quantized.py`). Knows nothing of how such a component is loaded.
"""

import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import LoadError
from .files import Json, StoredTensor, read_json

MAX_FIELDS = 100  # of a quantization_config; the libraries' own have up to thirty
# By component, the methods that its library loads, each by the package of its name. transformers loads weights of a
# method that it does not know as if they were plain ones.
METHODS = {
    "transformer": ("bitsandbytes", "torchao", "sdnq", "modelopt"),
    "text_encoder": ("bitsandbytes", "torchao", "sdnq"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
PARAMETERS = ("weight", "bias")  # the last part of the names of what is not quantized
NF4_PART = re.compile(r"(.+)\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)")


@dataclass(frozen=True)
class StoredQuantization:
    """How a component is stored. `bits`: 4 or 8 of bitsandbytes, None of the others."""

    method: str
    bits: int | None = None

    def __str__(self) -> str:
        return self.method + (f" in {self.bits} bits" if self.bits else "")


def stored_quantization(folder: Path, component: str) -> StoredQuantization | None:
    """How the component in a checkpoint's folder is stored; None where it is not quantized.

    Raises `LoadError` for a config that cannot be used, and for what is not loaded here.
    """
    return quantization_of(read_json(folder, f"{component}/config.json"), component)


def quantization_of(config: Json, component: str) -> StoredQuantization | None:
    """As `stored_quantization`, by what the component's config.json holds."""
    entry: Any = config.get("quantization_config")
    if entry is None:
        return None
    label = f"{component}/config.json is corrupt: quantization_config"
    if not isinstance(entry, dict):
        raise LoadError(f"{label} is not an object")
    fields = cast(Json, entry)
    if len(fields) > MAX_FIELDS:
        raise LoadError(f"{label} has {len(fields):,} fields, and at most {MAX_FIELDS} are read")
    bits = 4 if fields.get("load_in_4bit") is True else 8 if fields.get("load_in_8bit") is True else None
    method = fields.get("quant_method") or ("bitsandbytes" if bits else None)
    if not isinstance(method, str) or not re.fullmatch(r"[\w.-]{1,40}", method, re.ASCII):
        raise LoadError(f"{label} names no quant_method")
    if method == "bitsandbytes" and bits is None:
        raise LoadError(f"{label} says neither load_in_4bit nor load_in_8bit")
    stored = StoredQuantization(method, bits if method == "bitsandbytes" else None)
    require_loadable(component, stored)
    return stored


def require_loadable(component: str, stored: StoredQuantization) -> None:
    """Refuse a method that the component's library does not load, or whose own package is missing. `LoadError`."""
    text = f"{component}/ is stored quantized by {stored}"
    served = METHODS.get(component, ())
    if stored.method not in served:
        choices = f"served are {', '.join(served)}, and weights" if served else "needed are weights"
        raise LoadError(f"{text}, which is not loaded here; {choices} that are not quantized")
    if importlib.util.find_spec(stored.method) is None:
        raise LoadError(f"{text}, and the package {stored.method} that loads it is not installed on this worker")


def plain_tensors(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """The tensors of a quantized component that are not quantized, nor a scale or another part of what is."""
    return [t for t in tensors if t.dtype in FLOATS and t.name.rpartition(".")[2] in PARAMETERS]


def nf4_parts(names: Iterable[str]) -> Mapping[str, list[str]]:
    """By the names of weights that bitsandbytes has stored in 4 bits, the tensors that each consists of."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        if match := NF4_PART.fullmatch(name):
            parts.setdefault(match[1], [match[1]]).append(name)
    return parts
