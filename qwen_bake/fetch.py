"""Blobs from the hub, each fetched once: a fetch goes on where an earlier one broke off, and keeps nothing unverified.

By plain HTTP ranges: the hub's own download functions begin a file anew in each process, and its transfer library
writes pieces in no order, so that neither can be resumed. Knows nothing of layers and models.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from qwen_worker.errors import LoadError
from qwen_worker.network.hub import explain_errors, hub_endpoint

from .contents import Blob

ATTEMPTS = 5  # beside those that the hub's client makes while a connection breaks off


def fetch(
    blob: Blob, folder: Path, partial: Path, token: str | None, pause: Callable[[float], None] = time.sleep
) -> None:
    """Fetch the blob to `folder`/digest. `partial` keeps what has come so far between runs. Raises `LoadError`."""
    target, part = folder / blob.digest, partial / blob.digest
    if target.is_file() and digest_of(target, blob) == blob.digest:
        return
    target.unlink(missing_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            download(blob, part, token)
            require_digest(blob, part)
            break
        except LoadError as failure:
            if not failure.transient or attempt == ATTEMPTS:
                raise
            print(f"{failure.reason}; tried again", flush=True)
            pause(2.0**attempt)
    part.chmod(0o644)  # the worker is not the user who builds
    shutil.move(part, target)


def download(blob: Blob, part: Path, token: str | None) -> None:
    """Go on with the file `part` where it ends. Raises `LoadError`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get  # pyright: ignore[reportUnknownVariableType]  its progress bar
    from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType]  its user agent

    url = hf_hub_url(blob.hub_id, blob.path, revision=blob.commit, endpoint=hub_endpoint())
    # If the server compressed the file, the number of bytes that have come would not say where to go on.
    headers = build_hf_headers(token=token or False) | {"Accept-Encoding": "identity"}
    if part.is_file() and part.stat().st_size > blob.size:
        part.unlink()
    with part.open("ab") as stream, explain_errors(f"{blob.hub_id}/{blob.path}"):
        name = f"{blob.hub_id}/{blob.path}"
        http_get(
            url, stream, resume_size=stream.tell(), headers=headers, expected_size=blob.size, displayed_filename=name
        )


def require_digest(blob: Blob, part: Path) -> None:
    """Keep what the hub's listing states; throw away anything else. Raises `LoadError`, transient: a line may err."""
    digest = digest_of(part, blob)
    if digest != blob.digest:
        part.unlink()
        raise LoadError(
            f"{blob.hub_id}/{blob.path}: the hash must be {blob.digest} as the hub states, not {digest}", transient=True
        )


def digest_of(file: Path, blob: Blob) -> str:
    """The file's hash by the blob's own function: SHA-256, or git's for files that are no LFS objects."""
    with file.open("rb") as stream:
        if len(blob.digest) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        header = f"blob {file.stat().st_size}\0".encode()
        return hashlib.sha1(header + stream.read(), usedforsecurity=False).hexdigest()
