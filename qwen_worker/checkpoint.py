"""A Qwen-Image checkpoint before it is loaded: where it lies, what it is, how large, and whether its files are whole.

Reads names, configs and safetensors headers, never weights. Knows nothing of torch, diffusers or the network.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from .errors import LoadError

HEADER_LIMIT = 100_000_000  # bytes; the format's own cap on a header
WEIGHTS = ("transformer", "text_encoder", "vae")  # components that hold parameters


@dataclass(frozen=True)
class PipelineClass:
    """What a pipeline class of diffusers serves."""

    tasks: frozenset[str]
    max_images: int  # input images of one edit


EDITS = frozenset({"edit", "background_replacement"})
PIPELINE_CLASSES = {
    "QwenImagePipeline": PipelineClass(frozenset({"generate"}), 0),
    "QwenImageEditPipeline": PipelineClass(EDITS, 1),
    "QwenImageEditPlusPipeline": PipelineClass(EDITS, 3),
    "QwenImage21Pipeline": PipelineClass(EDITS | {"generate"}, 3),
}

# Parameters by component, counted on the installed classes with the released configurations.
SIZE_20B = {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656, "vae": 126_892_531}
SIZE_2_1 = {"transformer": 7_115_124_736, "text_encoder": 8_767_123_696, "vae": 337_740_404}
KNOWN = {
    "Qwen/Qwen-Image": ("QwenImagePipeline", SIZE_20B),
    "Qwen/Qwen-Image-2512": ("QwenImagePipeline", SIZE_20B),
    "Qwen/Qwen-Image-Edit": ("QwenImageEditPipeline", SIZE_20B),
    "Qwen/Qwen-Image-Edit-2509": ("QwenImageEditPlusPipeline", SIZE_20B),
    "Qwen/Qwen-Image-Edit-2511": ("QwenImageEditPlusPipeline", SIZE_20B),
    "Qwen/Qwen-Image-2.1": ("QwenImage21Pipeline", SIZE_2_1),
    "Qwen/Qwen-Image-2.1-Turbo": ("QwenImage21Pipeline", SIZE_2_1),
}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint. `folder` is None while it is known by name only and would have to be downloaded."""

    name: str  # as a caller may see it: the hub id, or a folder's last two names
    class_name: str
    parameters: dict[str, int] = field(hash=False)
    folder: Path | None = None
    hub_id: str | None = None
    revision: str | None = None  # a commit, a branch, or a digest of a plain folder

    @property
    def pipeline_class(self) -> PipelineClass:
        return PIPELINE_CLASSES[self.class_name]

    @cached_property
    def size_multiple(self) -> int:
        """What a side must be a multiple of, in pixels: twice the VAE's spatial compression."""
        if self.class_name == "QwenImage21Pipeline":
            return 32  # the pipeline fixes a compression of 16
        if self.folder is None:
            return 16
        config = read_json(self.folder, "vae/config.json")
        return 2 * 2 ** len(config.get("temperal_downsample", (0, 0, 0)))


def find(model: str, roots: Iterable[Path]) -> Checkpoint | None:
    """The checkpoint on this machine: `model` as a folder, else its hub id below the roots, in order. None if absent.

    Raises `LoadError` where a folder is there and is not a checkpoint that we serve.
    """
    if is_folder(model):
        return inspect(Path(model).expanduser())
    hub_id, _, revision = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise LoadError(f"{label_of(model)} is neither a folder here nor a hub id such as Qwen/Qwen-Image")
    for root in roots:
        for folder, commit in candidates(root, hub_id, revision):
            if is_complete(folder):
                found = inspect(folder)
                return replace(found, name=hub_id, hub_id=hub_id, revision=commit or found.revision)
    return None


def known(model: str) -> Checkpoint | None:
    """The checkpoint by name alone, from the table of released ones."""
    hub_id, _, revision = model.partition("@")
    if hub_id not in KNOWN:
        return None
    class_name, parameters = KNOWN[hub_id]
    return Checkpoint(hub_id, class_name, parameters, hub_id=hub_id, revision=revision or None)


def is_folder(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or Path(model).is_dir()


def label_of(model: str) -> str:
    """A model setting as a caller may see it: no path of this machine."""
    return "/".join(Path(model).absolute().parts[-2:]) if is_folder(model) else model


def candidates(root: Path, hub_id: str, revision: str) -> list[tuple[Path, str | None]]:
    """(folder, commit) below a root, in the layout of the hub's cache or as a plain ORG/NAME folder."""
    cache = root / f"models--{hub_id.replace('/', '--')}"
    snapshots = cache / "snapshots"
    reference = cache / "refs" / (revision or "main")
    if reference.is_file():
        commit = reference.read_text().strip()
        return [(snapshots / commit, commit)]
    present = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
    if revision:
        return [(folder, folder.name) for folder in present if folder.name.startswith(revision)]
    # Without a ref, one snapshot is unambiguous; several are not ours to choose from.
    if len(present) == 1:
        return [(present[0], present[0].name)]
    return [(root / hub_id, None)]


def inspect(folder: Path) -> Checkpoint:
    """What the folder holds, from its configs and headers. Raises `LoadError` naming the file or the class."""
    name = label_of(str(folder))
    if not folder.is_dir():
        raise LoadError(f"{name} is not a folder on this worker")
    if not (folder / "model_index.json").is_file():
        raise LoadError(f"{name} holds no model_index.json: it is not a diffusers checkpoint")
    class_name = read_json(folder, "model_index.json").get("_class_name")
    require_class(name, class_name)
    if read_json(folder, "transformer/config.json").get("guidance_embeds"):
        raise LoadError(f"{name} is guidance-distilled (guidance_embeds), which diffusers' {class_name} cannot run")
    parameters = {component: count_parameters(folder, component) for component in WEIGHTS}
    return Checkpoint(name, class_name, parameters, folder, revision=folder_digest(folder))


def require_class(name: str, class_name: str | None) -> None:
    if class_name not in PIPELINE_CLASSES:
        raise LoadError(f"{name} names the pipeline class {class_name}; served are {', '.join(PIPELINE_CLASSES)}")


def is_complete(folder: Path) -> bool:
    """Whether every file that the indexes name is there; an interrupted download leaves some out."""
    try:
        return (folder / "model_index.json").is_file() and all(shards(folder, component) for component in WEIGHTS)
    except LoadError:
        return False


def shards(folder: Path, component: str) -> list[Path]:
    """The component's safetensors files. Raises `LoadError` naming the first that is missing."""
    indexes = sorted((folder / component).glob("*.safetensors.index.json"))
    if indexes:
        weight_map = read_json(folder, f"{component}/{indexes[0].name}").get("weight_map", {})
        files = [folder / component / name for name in sorted(set(weight_map.values()))]
    else:
        files = sorted((folder / component).glob("*.safetensors"))
    if not files:
        raise LoadError(f"{label_of(str(folder))} holds no safetensors file in {component}/")
    for file in files:
        if not file.is_file():
            raise LoadError(f"{component}/{file.name} is named by the index and missing")
    return files


def count_parameters(folder: Path, component: str) -> int:
    return sum(shard_parameters(file, f"{component}/{file.name}") for file in shards(folder, component))


def shard_parameters(file: Path, label: str) -> int:
    """Parameters in a safetensors file, from its header; its length must be what the header says.

    Layout: an 8-byte little-endian length, a JSON header of that length, then the tensors' bytes
    (https://huggingface.co/docs/safetensors, "Format").
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size):
            raise LoadError(f"{label} is corrupt: it does not begin with a safetensors header")
        try:
            header = json.loads(stream.read(length))
            tensors = [entry for key, entry in header.items() if key != "__metadata__"]
            ends = max((entry["data_offsets"][1] for entry in tensors), default=0)
            count = sum(product(entry["shape"]) for entry in tensors)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise LoadError(f"{label} is corrupt: its safetensors header cannot be read") from None
    if size != 8 + length + ends:
        raise LoadError(f"{label} is corrupt: its header describes {8 + length + ends:,} bytes and it has {size:,}")
    return count


def product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


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


def folder_digest(folder: Path) -> str:
    """A plain folder has no commit: a digest of its configs and of its weight files' headers and sizes stands in."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".json", ".safetensors", ".txt") or not file.is_file():
            continue
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
    return f"folder-{digest.hexdigest()[:12]}"
