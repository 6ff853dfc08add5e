"""A checkpoint on the Hugging Face hub: what it is there, and its download.

Every failure comes out as a `LoadError`, transient where a later try may help. Knows nothing of torch or pipelines.
"""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import LoadError
from ..network.hub import (
    READ_FILES,
    WEIGHT_FILES,
    download_file,
    explain_errors,
    hub_cache_folder,
    hub_endpoint,
    listing,
)
from .checkpoint import Checkpoint, inspect
from .classes import WEIGHTS, require_class, size_multiple_of
from .files import Json, describe_contents, limits_of, read_json
from .stored_quantization import quantization_of


def look_up(model: str) -> Checkpoint:
    """A checkpoint that is neither on this machine nor among the released ones: its class and sizes, from the hub.

    A parameter is counted for every two bytes, since the released checkpoints are bfloat16; of a component that is
    stored quantized, its bytes. Raises `LoadError`, also for a repository that holds no checkpoint of diffusers.
    """
    hub_id, _, revision = model.partition("@")
    commit, sizes = listing(hub_id, revision)
    if "model_index.json" not in sizes:
        raise LoadError(f"{hub_id} is on the hub and holds no model_index.json: {describe_contents(sizes)}")
    index = read_remote(hub_id, "model_index.json", commit)
    class_name = require_class(hub_id, index.get("_class_name"))
    stored = {component: weight_bytes(sizes, component) for component in WEIGHTS}
    packed: dict[str, int] = {}
    for component in WEIGHTS:
        config = f"{component}/config.json"
        if config in sizes and quantization_of(read_remote(hub_id, config, commit), component):
            packed[component] = stored.pop(component)
    parameters = {component: stored.get(component, 0) // 2 for component in WEIGHTS}
    multiple = size_multiple_of(class_name)
    described = Checkpoint(hub_id, class_name, parameters, multiple, hub_id=hub_id, revision=commit, packed=packed)
    return replace(described, warning=limits_of(index))


def weight_bytes(sizes: Mapping[str, int], component: str) -> int:
    """The bytes of a component's weights, of those that are read. `sizes`: of a repository's files, by name."""
    names = (name for name in sizes if name.startswith(f"{component}/") and name.count("/") == 1)
    return sum(sizes[name] for name in names if any(fnmatchcase(name, pattern) for pattern in WEIGHT_FILES))


def read_remote(hub_id: str, name: str, commit: str) -> Json:
    """The JSON object in a file of a repository. Raises `LoadError`."""
    file = download_file(hub_id, name, commit, hub_cache_folder())
    folder = file.parents[name.count("/")]
    return read_json(folder, name)


def fetched_bytes(checkpoint: Checkpoint) -> int:
    """What an earlier download of a hub's checkpoint, whole or cut short, has left in the cache."""
    blobs = hub_cache_folder() / f"models--{checkpoint.name.replace('/', '--')}" / "blobs"
    return sum(map(size_of, blobs.iterdir())) if blobs.is_dir() else 0


def size_of(file: Path) -> int:
    """Bytes of a file; 0 of one that is gone, as one is whose download has just ended: it has got its own name."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def download(checkpoint: Checkpoint) -> Checkpoint:
    """A hub's checkpoint, its files in the hub cache and its revision a commit; goes on with a download cut short."""
    # The patterns' * crosses folders.
    folder = download_files(checkpoint.name, checkpoint.revision, READ_FILES, ["*/*/*"])
    return replace(inspect(folder), name=checkpoint.name, hub_id=checkpoint.hub_id, revision=folder.name)


def download_files(hub_id: str, revision: str | None, patterns: list[str], left_out: list[str]) -> Path:
    """The folder of a repository in the hub's cache, with its files of these patterns. Raises `LoadError`."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]  of its progress bar's type

    with explain_errors(hub_id):
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=left_out,
                endpoint=hub_endpoint(),
            )
        )
