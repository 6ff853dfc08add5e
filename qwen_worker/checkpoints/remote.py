"""A checkpoint on the Hugging Face hub: what it is there, and its download.

Every failure comes out as a `LoadError`, transient where a later try may help. Knows nothing of torch or pipelines.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import LoadError
from ..network.hub import (
    READ_FILES,
    download_file,
    explain_errors,
    hub_cache_folder,
    hub_endpoint,
    listing,
)
from .checkpoint import Checkpoint, inspect
from .classes import WEIGHTS, require_class, size_multiple_of
from .files import Json, describe_contents, limits_of, read_json
from .makers import read_schedule
from .remote_headers import inspect_remote, is_weight_file
from .stored_quantization import quantization_of


def look_up(model: str, without: Collection[str] = ()) -> Checkpoint:
    """A checkpoint that is neither on this machine nor among the released ones: what its headers on the hub say.

    Of the components `without` nothing is fetched but their config.

    Of one that is stored quantized, its files' sizes say it; where they are plain, a parameter counts for two bytes.
    Raises `LoadError`, also for a repository that holds no checkpoint of diffusers.
    """
    hub_id, _, revision = model.partition("@")
    commit, sizes = listing(hub_id, revision)
    if "model_index.json" not in sizes:
        raise LoadError(f"{hub_id} is on the hub and holds no model_index.json: {describe_contents(sizes)}")
    index = read_remote(hub_id, "model_index.json", commit)
    class_name = require_class(hub_id, index.get("_class_name"))
    configs = {component: f"{component}/config.json" for component in WEIGHTS}
    quantized = {
        component
        for component, name in configs.items()
        if name in sizes and quantization_of(read_remote(hub_id, name, commit), component)
    }
    if not quantized:
        return inspect_remote(hub_id, commit, sizes, without)
    # What is stored in 4 bits says in its weights, and not in headers, how much they are: its bytes are counted.
    stored = {component: weight_bytes(sizes, component) for component in WEIGHTS}
    return Checkpoint(
        hub_id,
        class_name,
        {component: 0 if component in quantized else count // 2 for component, count in stored.items()},
        size_multiple_of(class_name),
        hub_id=hub_id,
        revision=commit,
        packed={component: stored[component] for component in quantized},
        warning=limits_of(index),
        stored_bytes=sum(stored.values()),
        schedule=read_schedule(class_name, index),
    )


def weight_bytes(sizes: Mapping[str, int], component: str) -> int:
    """The bytes of a component's weights, of those that are read. `sizes`: of a repository's files, by name."""
    return sum(size for name, size in sizes.items() if name.startswith(f"{component}/") and is_weight_file(name))


def read_remote(hub_id: str, name: str, commit: str) -> Json:
    """The JSON object in a file of a repository. Raises `LoadError`."""
    file = download_file(hub_id, name, commit, hub_cache_folder())
    folder = file.parents[name.count("/")]
    return read_json(folder, name)


def fetched_bytes(checkpoint: Checkpoint) -> int:
    """What an earlier download of a hub's checkpoint, whole or cut short, has left in the cache."""
    return cached_bytes(checkpoint.name)


def cached_bytes(hub_id: str) -> int:
    """What the cache has of a repository."""
    blobs = hub_cache_folder() / f"models--{hub_id.replace('/', '--')}" / "blobs"
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
