"""The files of a checkpoint folder: JSON, and the safetensors of a component by their headers. Reads no weights.

Every failure is a `LoadError` that names the file below the folder, never the folder's path. Knows nothing of which
files a checkpoint needs.
"""

import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import LoadError, hide_secrets

CHECKSUMS = "qwen_worker.sums"  # the key in a file's metadata, where this worker wrote the file: checksums by tensor
HEADER_LIMIT = 100_000_000  # bytes; the format's own cap on a header
METADATA = "__metadata__"  # what a safetensors header holds beside tensors

Json = dict[str, Any]  # a JSON object


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie."""

    name: str
    file: Path
    start: int  # of its bytes in the file
    size: int  # in bytes
    dtype: str  # as safetensors calls it: BF16, F32, ...
    shape: tuple[int, ...]
    checksum: int | None = None  # as `weights/staging.py` takes it, where this worker wrote the file


def is_folder(model: str) -> bool:
    """Whether a model setting names a folder and not a hub id."""
    return model.startswith(("/", ".", "~")) or os.path.isdir(model)


def is_missing(source: str) -> bool:
    """Whether it names a file or folder of this machine that is not there."""
    return is_folder(source) and not Path(source).expanduser().exists()


def label_of(model: str) -> str:
    """A model setting as a caller may see it: a hub id without its revision, or a folder's last two names."""
    if is_folder(model):
        return "/".join(Path(model).absolute().parts[-2:])[-200:]
    return hide_secrets(model).partition("@")[0][:200]


def read_json(folder: Path, relative: str) -> Json:
    """The JSON object in a file. Raises `LoadError` where it is not readable or holds something else."""
    try:
        value = json.loads((folder / relative).read_text())
    except OSError:
        raise LoadError(f"{label_of(str(folder))} holds no readable {relative}") from None
    except ValueError:
        raise LoadError(f"{relative} is corrupt: not JSON") from None
    if not isinstance(value, dict):
        raise LoadError(f"{relative} is corrupt: not a JSON object")
    return cast(Json, value)  # the keys of JSON are strings


def shards(folder: Path, component: str) -> list[Path]:
    """The component's safetensors files. Raises `LoadError` naming the first that is missing."""
    indexes = sorted((folder / component).glob("*.safetensors.index.json"))
    if indexes:
        relative = f"{component}/{indexes[0].name}"
        names = indexed_names(read_json(folder, relative).get("weight_map"), relative)
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


def indexed_names(weight_map: object, relative: str) -> list[str]:
    """The files that an index names. `weight_map`: by tensor, its file. Raises `LoadError` where it is none."""
    names = list(cast(Json, weight_map).values()) if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) for name in names):
        raise LoadError(f"{relative} is corrupt: its weight_map names no files")
    return sorted(set(map(str, names)))


def tensor_shapes(folder: Path, component: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the component's tensors by name, from the files' headers."""
    return {name: tensor.shape for name, tensor in stored_tensors(folder, component).items()}


def stored_tensors(folder: Path, component: str) -> dict[str, StoredTensor]:
    """The component's tensors by name, file after file in the order of their bytes."""
    files = shards(folder, component)
    return {tensor.name: tensor for file in files for tensor in tensors_in(file, f"{component}/{file.name}")}


def tensors_in(file: Path, label: str) -> list[StoredTensor]:
    """The tensors of a safetensors file, from its header, in the order of their bytes. `label`: its name in errors."""
    with explain_read_errors(label), file.open("rb") as stream:
        header, data_start = read_header(stream, file.stat().st_size, label)
    try:
        checksums = json.loads(header.pop(METADATA, {}).get(CHECKSUMS, "{}"))
        tensors = [stored_tensor(name, file, data_start, entry, checksums.get(name)) for name, entry in header.items()]
    except (ValueError, KeyError, AttributeError):
        raise LoadError(f"{label} is corrupt: its safetensors header cannot be read") from None
    return sorted(tensors, key=lambda tensor: tensor.start)


@contextmanager
def explain_read_errors(label: str) -> Generator[None]:
    """Raise what the system says of a file that cannot be read as a passing `LoadError`: a volume may come back."""
    try:
        yield
    except OSError as error:
        raise LoadError(f"{label} cannot be read: {error.strerror or type(error).__name__}", transient=True) from None


def stored_tensor(name: str, file: Path, data_start: int, entry: Json, checksum: int | None = None) -> StoredTensor:
    """A tensor by its entry in the header; `data_start`: where the tensors' bytes begin in the file."""
    begin, end = span_of(entry)
    return StoredTensor(name, file, data_start + begin, end - begin, str(entry["dtype"]), shape_of(entry), checksum)


def read_header(stream: BinaryIO, size: int, label: str) -> tuple[Json, int]:
    """The header of a safetensors file of `size` bytes, and where the data begins.

    Layout: an 8-byte little-endian length, a JSON header of that length, then the tensors' bytes
    (https://huggingface.co/docs/safetensors, "Format"). Raises `LoadError` where the file is not what its header says.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(HEADER_LIMIT, size):
        raise LoadError(f"{label} is corrupt: it does not begin with a safetensors header")
    data_bytes = 0
    try:
        header: Json = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != METADATA:
                shape_of(entry)
                data_bytes = max(data_bytes, span_of(entry)[1])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LoadError(f"{label} is corrupt: its safetensors header cannot be read") from None
    file_bytes = 8 + length + data_bytes
    if size != file_bytes:
        raise LoadError(f"{label} is corrupt: its header describes {file_bytes:,} bytes and it has {size:,}")
    return header, 8 + length


def shape_of(entry: Json) -> tuple[int, ...]:
    """The shape in a tensor's entry of a header. Raises `KeyError`, `ValueError`."""
    return whole_numbers(entry["shape"])


def span_of(entry: Json) -> tuple[int, int]:
    """Where a tensor begins and ends, from the beginning of the data. Raises `KeyError`, `ValueError`."""
    begin, end = whole_numbers(entry["data_offsets"])
    if begin > end:
        raise ValueError("ends before it begins")
    return begin, end


def whole_numbers(values: object) -> tuple[int, ...]:
    """A JSON list of sizes or places. Raises `ValueError` for anything else; true and false are no numbers."""
    numbers = cast("list[int]", values) if isinstance(values, list) else None  # of what else, the next line refuses
    if numbers is None or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("no whole numbers")
    return tuple(numbers)
