"""What the hub states of a checkpoint's files before any is fetched: paths, sizes, hashes. Knows nothing of layers."""

from fnmatch import fnmatch
from typing import cast

from qwen_worker.errors import LoadError
from qwen_worker.network.hub import READ_FILES, explain_errors, hub_endpoint

from .contents import Blob, Model


def look_up(name: str, token: str | None) -> tuple[Model, list[Blob]]:
    """The model and its files. `name`: a hub id, perhaps with @revision. Raises `LoadError`."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub_id, _, revision = name.partition("@")
    hub = HfApi(endpoint=hub_endpoint(), token=token)
    with explain_errors(name):
        # The hub's client leaves `sha` out only where an answer of the hub lacks it, which none does.
        commit = cast(str, hub.model_info(hub_id, revision=revision or None).sha)
        tree = list(hub.list_repo_tree(hub_id, recursive=True, revision=commit))
    blobs = [
        Blob(entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.size, hub_id, commit, entry.path)
        for entry in tree
        if isinstance(entry, RepoFile) and is_read(entry.path)
    ]
    if not any(blob.path == "model_index.json" for blob in blobs):
        raise LoadError(f"{name} holds no model_index.json: it is not a diffusers checkpoint")
    return Model(hub_id, revision or "main", commit, {blob.path: blob.digest for blob in blobs}), blobs


def is_read(path: str) -> bool:
    """Whether a pipeline reads the file. A pattern's * does not cross folders: checkpoints nest samples deeper."""
    return any(path.count("/") == pattern.count("/") and fnmatch(path, pattern) for pattern in READ_FILES)
