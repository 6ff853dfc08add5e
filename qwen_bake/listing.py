"""What the hub states of a checkpoint's files before any is fetched: paths, sizes, hashes."""

from fnmatch import fnmatch

from qwen_worker.errors import LoadError
from qwen_worker.network.hub import READ_FILES, endpoint, explained

from .contents import Blob, Model


def look_up(asked: str, token: str | None) -> tuple[Model, list[Blob]]:
    """`asked` is a hub id, perhaps with @revision. Raises `LoadError`."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub_id, _, revision = asked.partition("@")
    hub = HfApi(endpoint=endpoint(), token=token)
    with explained(asked):
        commit = hub.model_info(hub_id, revision=revision or None).sha
        tree = list(hub.list_repo_tree(hub_id, recursive=True, revision=commit))
    blobs = [
        Blob(one.lfs.sha256 if one.lfs else one.blob_id, one.size, hub_id, commit, one.path)
        for one in tree
        if isinstance(one, RepoFile) and is_read(one.path)
    ]
    if not any(blob.path == "model_index.json" for blob in blobs):
        raise LoadError(f"{asked} holds no model_index.json: it is not a diffusers checkpoint")
    return Model(hub_id, revision or "main", commit, {blob.path: blob.digest for blob in blobs}), blobs


def is_read(path: str) -> bool:
    """Whether a pipeline reads the file. A pattern's * does not cross folders: checkpoints nest samples deeper."""
    return any(path.count("/") == pattern.count("/") and fnmatch(path, pattern) for pattern in READ_FILES)
