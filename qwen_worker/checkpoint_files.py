"""The files of a checkpoint folder: JSON, and the safetensors of a component by their headers. Reads no weights.

Every failure is a `LoadError` that names the file below the folder, never the folder's path.
"""

import json
import os
import re
from pathlib import Path
from typing import BinaryIO

from .errors import LoadError

HEADER_LIMIT = 100_000_000  # bytes; the format's own cap on a header
METADATA = "__metadata__"  # what a safetensors header holds beside tensors


def is_folder(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or os.path.isdir(model)


def label_of(model: str) -> str:
    """A model setting as a caller may see it: a hub id without its revision, or a folder's last two names."""
    return "/".join(Path(model).absolute().parts[-2:])[-200:] if is_folder(model) else model.partition("@")[0][:200]


def read_json(folder: Path, relative: str) -> dict:
    try:
        value = json.loads((folder / relative).read_text())
    except OSError:
        raise LoadError(f"{label_of(str(folder))} holds no readable {relative}") from None
    except ValueError:
        raise LoadError(f"{relative} is corrupt: not JSON") from None
    if not isinstance(value, dict):
        raise LoadError(f"{relative} is corrupt: not a JSON object")
    return value


def shards(folder: Path, component: str) -> list[Path]:
    """The component's safetensors files. Raises `LoadError` naming the first that is missing."""
    indexes = sorted((folder / component).glob("*.safetensors.index.json"))
    if indexes:
        relative = f"{component}/{indexes[0].name}"
        weight_map = read_json(folder, relative).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise LoadError(f"{relative} is corrupt: its weight_map names no files")
        names = sorted(set(weight_map.values()))
    else:
        names = sorted(file.name for file in (folder / component).glob("*.safetensors"))
        # A download cut short may have brought a shard and not yet the index.
        if numbered := next((re.search(r"-of-(\d+)\.safetensors$", name) for name in names), None):
            raise LoadError(f"{component}/ holds shards of {int(numbered[1])} and no index that names them")
    if not names:
        raise LoadError(f"{label_of(str(folder))} holds no safetensors file in {component}/")
    for name in names:
        if not (folder / component / name).is_file():
            raise LoadError(f"{component}/{name} is named by the index and missing")
    return [folder / component / name for name in names]


def tensors(folder: Path, component: str) -> dict[str, tuple[int, ...]]:
    """The component's tensors by name: their shapes, from the headers."""
    return {
        name: shape
        for file in shards(folder, component)
        for name, shape in header_tensors(file, f"{component}/{file.name}").items()
    }


def header_tensors(file: Path, label: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file, from its header."""
    with file.open("rb") as stream:
        header, _ = read_header(stream, file.stat().st_size, label)
    return {name: shape_of(entry) for name, entry in header.items() if name != METADATA}


def read_header(stream: BinaryIO, size: int, label: str) -> tuple[dict, int]:
    """The header of a safetensors file of `size` bytes, which must be what it says, and where the data begins.

    Layout: an 8-byte little-endian length, a JSON header of that length, then the tensors' bytes
    (https://huggingface.co/docs/safetensors, "Format").
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(HEADER_LIMIT, size):
        raise LoadError(f"{label} is corrupt: it does not begin with a safetensors header")
    ends = 0
    try:
        header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != METADATA:
                shape_of(entry)
                ends = max(ends, place_of(entry)[1])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LoadError(f"{label} is corrupt: its safetensors header cannot be read") from None
    if size != 8 + length + ends:
        raise LoadError(f"{label} is corrupt: its header describes {8 + length + ends:,} bytes and it has {size:,}")
    return header, 8 + length


def shape_of(entry: dict) -> tuple[int, ...]:
    return counts(entry["shape"])


def place_of(entry: dict) -> tuple[int, int]:
    """Where a tensor begins and ends, from the beginning of the data."""
    begin, end = counts(entry["data_offsets"])
    if begin > end:
        raise ValueError("ends before it begins")
    return begin, end


def counts(values: list) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int or value < 0 for value in values):
        raise ValueError("no whole numbers")
    return tuple(values)
