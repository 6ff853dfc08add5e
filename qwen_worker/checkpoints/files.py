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
# Of one safetensors file. The format allows headers ten times as long, which take minutes. The 20B transformer has
# 1,900 tensors in all of its files, and in 4 bits some 7,000, with names of up to 60 characters; a LoRA of all its
# layers has a header of 300,000 bytes.
HEADER_LIMIT, MAX_TENSORS, MAX_NAME, MAX_DIMENSIONS = 10_000_000, 50_000, 500, 8
JSON_LIMIT = 50_000_000  # bytes; an index of the 20B transformer has a few hundred thousand
SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"  # names of weights' files begin with these
PREPARED_STEM = "weights"  # and in prepared checkpoints with this
SINGLE_FILE = "single_file.json"  # beside a file that stands for a component, whose name it holds
# ComfyUI's folders of models, as far as no checkpoint of diffusers has a folder of that name.
COMFY_FOLDERS = {
    "checkpoints", "clip", "clip_vision", "controlnet", "diffusion_models", "embeddings", "loras", "split_files",
    "style_models", "text_encoders", "unet", "upscale_models", "vae_approx",
}  # fmt: skip
MAX_NAMES, MAX_DEPTH = 2000, 4  # of a folder that is no checkpoint, to say what it is
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
        return "/".join(Path(model).absolute().parts[1:][-2:])[-200:]
    return hide_secrets(model).partition("@")[0][:200]


def limits_of(index: Json) -> str | None:
    """The warning for a checkpoint whose model_index.json says in `_draws_only` how little it draws."""
    what = index.get("_draws_only")
    if not isinstance(what, str) or not what:
        return None
    return f"the model is a small one for tests, and draws {what[:100]} only"  # it goes into replies: not at any length


def names_below(folder: Path) -> list[str]:
    """The first of the files and folders in a folder and below it: files before folders, which end with a slash."""
    names: list[str] = []
    with explain_read_errors(label_of(str(folder))):
        os.listdir(folder)  # the walk passes over what cannot be read
    for place, folders, files in os.walk(folder):
        below = os.path.relpath(place, folder)
        prefix = "" if below == "." else f"{below}/"
        names += [f"{prefix}{name}/" for name in folders] + [f"{prefix}{name}" for name in files]
        if prefix.count("/") + 1 >= MAX_DEPTH:
            folders.clear()
        if len(names) > MAX_NAMES:
            break
    return sorted(names, key=lambda name: (name.endswith("/"), name.count("/"), name))


def describe_contents(names: Iterable[str]) -> str:
    """What a folder or repository without model_index.json seems to be, and what is needed in its place.

    `names`: of its files, with their folders before them; perhaps of folders, which end with a slash.
    """
    names = list(names)
    in_comfy = (name for name in names if COMFY_FOLDERS & set(name.split("/")[:-1]))
    gguf = (name for name in names if name.lower().endswith(".gguf"))
    part = (name for name in names if re.search(rf"({DIFFUSERS_STEM}|{TRANSFORMERS_STEM})[^/]*{SUFFIX}$", name))
    single = (name for name in names if name.lower().endswith((SUFFIX, ".ckpt", ".pt", ".pth")))
    kinds = {
        "a ComfyUI folder": in_comfy,
        "no diffusers checkpoint but GGUF files": gguf,
        "a part of a diffusers checkpoint": part,
        "no diffusers checkpoint but single files such as ComfyUI's": single,
    }
    found = ((kind, name) for kind, candidates in kinds.items() for name in candidates)
    kind, example = next(found, ("empty" if not names else "no diffusers checkpoint", ""))
    what = f"{kind} ({example[-80:]}), which the worker does not read" if example else kind
    place = ", and a transformer's file goes into QWEN_IMAGE_TRANSFORMER or QWEN_EDIT_TRANSFORMER" if example else ""
    return f"it is {what}; what is needed is a checkpoint in diffusers' layout, such as Qwen/Qwen-Image{place}"


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
    if (place / SINGLE_FILE).is_file():
        return [place / str(read_json(folder, f"{component}/{SINGLE_FILE}").get("file"))]
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
    # A name with a slash would lead out of the folder,
    # and no disk has one of more than 255 characters.
    if wrong := next((name for name in files if not re.fullmatch(rf"[\w.-]{{1,200}}{SUFFIX}", name, re.ASCII)), None):
        raise LoadError(f"{relative} is corrupt: {json.dumps(wrong[:60])} is no name of a safetensors file")
    return files


def stored_tensors(folder: Path, component: str) -> dict[str, StoredTensor]:
    """The component's tensors by name, file after file in the order of their bytes. Raises `LoadError`."""
    tensors: dict[str, StoredTensor] = {}
    for file in shards(folder, component):
        tensors |= {tensor.name: tensor for tensor in tensors_in(file, f"{component}/{file.name}")}
        if len(tensors) > MAX_TENSORS:
            raise LoadError(f"{component}/ holds more than {MAX_TENSORS:,} tensors")
    return tensors


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
    (https://huggingface.co/docs/safetensors, "Format"). Raises `LoadError` where the file is not what its header says,
    and for a header that nobody writes and that would take long to go through.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= size:
        raise LoadError(f"{label} is corrupt: it does not begin with a safetensors header")
    if length > HEADER_LIMIT:
        raise LoadError(f"{label} has a header of {length:,} bytes, and at most {HEADER_LIMIT:,} are read")
    text = stream.read(length)
    if (count := text.count(b'"data_offsets"')) > MAX_TENSORS:
        raise LoadError(f"{label} has {count:,} tensors, and at most {MAX_TENSORS:,} are read")
    data_bytes = 0
    try:
        header: Json = json.loads(text)
        for name, entry in header.items():
            if name != METADATA:
                require_possible(name, shape_of(entry), size, label)
                data_bytes = max(data_bytes, span_of(entry)[1])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LoadError(f"{label} is corrupt: its safetensors header cannot be read") from None
    file_bytes = 8 + length + data_bytes
    if size != file_bytes:
        raise LoadError(f"{label} is corrupt: its header describes {file_bytes:,} bytes and it has {size:,}")
    return header, 8 + length


def require_possible(name: str, shape: tuple[int, ...], file_bytes: int, label: str) -> None:
    """Refuse names and shapes that take minutes to compute with: a header has room for a million dimensions."""
    if len(name) > MAX_NAME:
        raise LoadError(f"{label} has a tensor with a name of {len(name):,} characters")
    if len(shape) > MAX_DIMENSIONS or max(shape, default=0) > file_bytes:
        raise LoadError(f"{label} is corrupt: a tensor has a shape that no file of its size holds")


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
