"""Snapshots made of links to the blobs, in the layout of the hub's cache, where the worker looks for checkpoints.

The links are relative and symbolic: a hard link would not survive between two layers of an image. Knows no hub.
"""

import os
from pathlib import Path, PurePosixPath

from .contents import Contents, Model

MODELS, WEIGHTS = "models", "weights"  # below the root: snapshots of links; a folder of blobs for each layer


def layer_folder(root: Path, number: int) -> Path:
    """The folder of the blobs of one layer."""
    return root / WEIGHTS / f"{number:02}"


def missing(contents: Contents, model: Model, root: Path) -> list[str]:
    """The model's files whose blobs are not there in full."""

    def is_whole(digest: str) -> bool:
        blob = layer_folder(root, contents.layer_of(digest)) / digest
        return blob.is_file() and blob.stat().st_size == contents.blobs[digest].size

    return [path for path, digest in model.files.items() if not is_whole(digest)]


def link(contents: Contents, model: Model, root: Path) -> None:
    """Lay out `model` below `root`/models; its blobs need not be there."""
    cache = root / MODELS / f"models--{model.hub_id.replace('/', '--')}"
    snapshot = cache / "snapshots" / model.commit
    for path, digest in model.files.items():
        place = snapshot / PurePosixPath(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        blob = layer_folder(root, contents.layer_of(digest)) / digest
        place.symlink_to(os.path.relpath(blob, place.parent))
    reference = cache / "refs" / model.revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(model.commit)
