"""A checkpoint on the Hugging Face hub: what it is there, and its download.

Every failure comes out as a `LoadError`, transient where a later try may help. Knows nothing of torch or pipelines.
"""

import json
from dataclasses import replace
from pathlib import Path

from ..network.hub import READ_FILES, explain_errors, hub_cache_folder, hub_endpoint
from .checkpoint import WEIGHTS, Checkpoint, inspect, require_class, size_multiple_of


def look_up(model: str) -> Checkpoint:
    """A checkpoint that is neither on this machine nor among the released ones: its class and sizes, from the hub.

    A parameter is counted for every two bytes, since the released checkpoints are bfloat16.
    """
    from huggingface_hub import (
        HfApi,
        hf_hub_download,  # pyright: ignore[reportUnknownVariableType]  of its progress bar's type
    )

    hub_id, _, revision = model.partition("@")
    with explain_errors(hub_id):
        repository = HfApi(endpoint=hub_endpoint()).model_info(hub_id, revision=revision or None, files_metadata=True)
        commit = repository.sha
        index = hf_hub_download(hub_id, "model_index.json", revision=commit, endpoint=hub_endpoint())
    class_name = require_class(hub_id, json.loads(Path(index).read_text()).get("_class_name"))
    parameters = {component: 0 for component in WEIGHTS}
    for file in repository.siblings or []:
        component = file.rfilename.split("/")[0]
        if component in parameters and file.rfilename.endswith(".safetensors"):
            parameters[component] += (file.size or 0) // 2
    return Checkpoint(hub_id, class_name, parameters, size_multiple_of(class_name), hub_id=hub_id, revision=commit)


def fetched_bytes(checkpoint: Checkpoint) -> int:
    """What an earlier download of a hub's checkpoint, whole or cut short, has left in the cache."""
    blobs = hub_cache_folder() / f"models--{checkpoint.name.replace('/', '--')}" / "blobs"
    return sum(file.stat().st_size for file in blobs.iterdir()) if blobs.is_dir() else 0


def download(checkpoint: Checkpoint) -> Checkpoint:
    """A hub's checkpoint, its files in the hub cache and its revision a commit; goes on with a download cut short."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]  of its progress bar's type

    with explain_errors(checkpoint.name):
        folder = Path(
            snapshot_download(
                checkpoint.name, revision=checkpoint.revision, allow_patterns=READ_FILES, endpoint=hub_endpoint()
            )
        )
    return replace(inspect(folder), name=checkpoint.name, hub_id=checkpoint.hub_id, revision=folder.name)
