"""A checkpoint on the Hugging Face hub: what it is there, and its download.

Every failure comes out as a `LoadError`, passing when another try later may help. Knows nothing of torch or pipelines.
"""

import json
from dataclasses import replace
from pathlib import Path

from ..network.hub import READ_FILES, cache_folder, endpoint, explained
from .checkpoint import WEIGHTS, Checkpoint, inspect, require_class, size_multiple_of


def look_up(model: str) -> Checkpoint:
    """A checkpoint that is neither here nor in our table: its class and sizes as the hub states them.

    Parameters are taken as half the bytes, the released checkpoints being bfloat16.
    """
    from huggingface_hub import HfApi, hf_hub_download

    hub_id, _, revision = model.partition("@")
    with explained(hub_id):
        facts = HfApi(endpoint=endpoint()).model_info(hub_id, revision=revision or None, files_metadata=True)
        index = hf_hub_download(hub_id, "model_index.json", revision=facts.sha, endpoint=endpoint())
    class_name = json.loads(Path(index).read_text()).get("_class_name")
    require_class(hub_id, class_name)
    sizes = dict.fromkeys(WEIGHTS, 0)
    for sibling in facts.siblings or []:
        component = sibling.rfilename.split("/")[0]
        if component in sizes and sibling.rfilename.endswith(".safetensors"):
            sizes[component] += (sibling.size or 0) // 2
    return Checkpoint(hub_id, class_name, sizes, size_multiple_of(class_name), hub_id=hub_id, revision=facts.sha)


def fetched_bytes(checkpoint: Checkpoint) -> int:
    """What an earlier download of the checkpoint, whole or cut short, has left in the cache."""
    blobs = cache_folder() / f"models--{checkpoint.hub_id.replace('/', '--')}" / "blobs"
    return sum(file.stat().st_size for file in blobs.iterdir()) if blobs.is_dir() else 0


def download(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint's files in the hub cache, resumed if a download was cut short; its revision becomes the commit."""
    from huggingface_hub import snapshot_download

    with explained(checkpoint.name):
        folder = Path(
            snapshot_download(
                checkpoint.hub_id, revision=checkpoint.revision, allow_patterns=READ_FILES, endpoint=endpoint()
            )
        )
    return replace(inspect(folder), name=checkpoint.name, hub_id=checkpoint.hub_id, revision=folder.name)
