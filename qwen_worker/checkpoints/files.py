"""The files of a checkpoint folder: JSON, and the safetensors of a component by their headers. Reads no weights.

Every failure is a `LoadError` that names the file below the folder, never the folder's path. Knows nothing of which
files a checkpoint needs.
"""

import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import LoadError, hide_secrets

CHECKSUMS = "qwen_worker.sums"  # the key in a file's metadata, where this worker wrote the file: checksums by tensor
HEADER_LIMIT = 100_000_000  # bytes; the format's own cap on a header
JSON_LIMIT = 50_000_000  # bytes; an index of the 20B transformer has a few hundred thousand
SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"  # names of weights' files begin with these
PREPARED_STEM = "weights"  # and in prepared checkpoints with this
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


def spellings(folder: Path, name: str) -> Iterator[Path]:
    """The entries of a folder that have this name in any case: as it is written first, then in alphabetical order."""
    if (folder / name).exists():
        yield folder / name
    with suppress(OSError):  # no such folder, or one that cannot be read
        entries = sorted(os.listdir(folder))
        yield from (folder / entry for entry in entries if entry != name and entry.lower() == name.lower())


def label_of(model: str) -> str:
    """A model setting as a caller may see it: a hub id without its revision, or a folder's last two names."""
    if is_folder(model):
        return "/".join(Path(model).absolute().parts[-2:])[-200:]
    return hide_secrets(model).partition("@")[0][:200]


def describe_contents(names: Iterable[str]) -> str:
    """What a folder or repository without model_index.json seems to be, and what is needed in its place."""
    kinds = {"GGUF files": (".gguf",), "single files such as ComfyUI's": (SUFFIX, ".ckpt", ".pt", ".pth")}
    files = sorted(names)
    for kind, suffixes in kinds.items():
        if name := next((name for name in files if name.lower().endswith(suffixes)), None):
            return (
                f"it is not a diffusers checkpoint, but {kind} ({name[-80:]}), which are not read; needed is a "
                "checkpoint in diffusers' layout, such as Qwen/Qwen-Image"
            )
    return "it is not a diffusers checkpoint"


def read_json(folder: Path, relative: str) -> Json:
    """The JSON object in a file. Raises `LoadError` where it is not readable or holds something else."""
    try:
        with (folder / relative).open("rb") as stream:
            text = stream.read(JSON_LIMIT + 1)
        if len(text) > JSON_LIMIT:
            raise LoadError(f"{relative} is corrupt: it has more than {JSON_LIMIT:,} bytes")
        value = json.loads(text)
    except OSError:
        raise LoadError(f"{label_of(str(folder))} holds no readable {relative}") from None
    except (ValueError, RecursionError):
        raise LoadError(f"{relative} is corrupt: not JSON") from None
    if not isinstance(value, dict):
        raise LoadError(f"{relative} is corrupt: not a JSON object")
    return cast(Json, value)  # the keys of JSON are strings


def shards(folder: Path, component: str) -> list[Path]:
    """The component's safetensors files, those alone that its library's `from_pretrained` reads.

    Variants, backups and averaged weights may lie beside them. Raises `LoadError` naming the first that is missing.
    """
    place = folder / component
    # A prepared checkpoint's weights have a name of their own, which no library reads.
    for stem in (weights_stem(component), PREPARED_STEM):
        index, single = f"{stem}{INDEX_SUFFIX}", f"{stem}{SUFFIX}"
        has_index, has_single = (place / index).is_file(), (place / single).is_file()
        # Where both are there, transformers reads the one file, and diffusers the shards.
        if has_single and not (has_index and stem != TRANSFORMERS_STEM):
            return [place / single]
        if has_index:
            weight_map = read_json(folder, f"{component}/{index}").get("weight_map")
            return indexed_files(place, indexed_names(weight_map, f"{component}/{index}"))
    raise LoadError(describe_other_files(folder, component))


def indexed_files(place: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names in a component's folder. Raises `LoadError` naming the first that is missing."""
    for name in names:
        if not (place / name).is_file():
            raise LoadError(f"{place.name}/{name} is named by the index and missing")
    return [place / name for name in names]


def weights_stem(component: str) -> str:
    """What the component's library calls files of weights, before the number of a shard and the suffix."""
    return TRANSFORMERS_STEM if component == "text_encoder" else DIFFUSERS_STEM


def describe_other_files(folder: Path, component: str) -> str:
    """Why a component without the weights that its library reads cannot be loaded, by what lies in its folder."""
    stem = weights_stem(component)
    names = sorted(file.name for file in (folder / component).glob(f"*{SUFFIX}"))
    # A download cut short may have brought a shard and not yet the index.
    if numbered := next((re.match(rf"{stem}-\d+-of-(\d+){SUFFIX}$", name) for name in names), None):
        return f"{component}/ holds shards of {int(numbered[1])} and no index that names them"
    if names:
        others = f"{names[0][:100]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        return f"{component}/ holds no {stem}{SUFFIX} and no index, which are what its library reads, but {others}"
    return f"{label_of(str(folder))} holds no safetensors file in {component}/"


def indexed_names(weight_map: object, relative: str) -> list[str]:
    """The files that an index names. `weight_map`: by tensor, its file. Raises `LoadError` where it is none."""
    names = list(cast(Json, weight_map).values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise LoadError(f"{relative} is corrupt: its weight_map names no files")
    files = sorted(set(map(str, names)))
    # A name with a slash would lead out of the folder.
    if wrong := next((name for name in files if not re.fullmatch(rf"[\w.-]+{SUFFIX}", name, re.ASCII)), None):
        raise LoadError(f"{relative} is corrupt: {json.dumps(wrong[:60])} is no name of a safetensors file")
    return files


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
