"""The files of a checkpoint folder: JSON, and the safetensors of a component by their headers. Reads no weights.

Every failure is a `LoadError` that names the file below the folder, never the folder's path.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import LoadError

SUMS = "qwen_worker.sums"  # in a file's metadata: a sum for each tensor that we wrote, as JSON
HEADER_LIMIT = 100_000_000  # bytes; the format's own cap on a header
METADATA = "__metadata__"  # what a safetensors header holds beside tensors


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes lie."""

    name: str
    file: Path
    start: int  # of its bytes in the file
    size: int  # in bytes
    dtype: str  # as safetensors calls it: BF16, F32, ...
    shape: tuple[int, ...]
    checksum: int | None = None  # as `checksum.py` takes it, where we wrote the file


def is_folder(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or os.path.isdir(model)


def is_missing(source: str) -> bool:
    """Whether it names a file or folder of this machine that is not there."""
    return is_folder(source) and not Path(source).expanduser().exists()


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
    return {name: one.shape for name, one in stored(folder, component).items()}


def stored(folder: Path, component: str) -> dict[str, Stored]:
    """The component's tensors by name, file after file in the order of their bytes."""
    return {one.name: one for file in shards(folder, component) for one in in_file(file, f"{component}/{file.name}")}


def in_file(file: Path, label: str) -> list[Stored]:
    """The tensors of a safetensors file, from its header, in the order of their bytes."""
    with readable(label), file.open("rb") as stream:
        header, data = read_header(stream, file.stat().st_size, label)
    try:
        sums = json.loads(header.pop(METADATA, {}).get(SUMS, "{}"))
        found = [entry_of(name, file, data, entry, sums.get(name)) for name, entry in header.items()]
    except (ValueError, KeyError, AttributeError):
        raise LoadError(f"{label} is corrupt: its safetensors header cannot be read") from None
    return sorted(found, key=lambda one: one.start)


@contextmanager
def readable(label: str) -> Iterator[None]:
    """Within, a file that cannot be read is a `LoadError` that says what the system says: a volume may come back."""
    try:
        yield
    except OSError as error:
        raise LoadError(f"{label} cannot be read: {error.strerror or type(error).__name__}", passing=True) from None


def entry_of(name: str, file: Path, data: int, entry: dict, checksum: int | None = None) -> Stored:
    """`data`: where the tensors' bytes begin in the file."""
    begin, end = place_of(entry)
    return Stored(name, file, data + begin, end - begin, str(entry["dtype"]), shape_of(entry), checksum)


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
