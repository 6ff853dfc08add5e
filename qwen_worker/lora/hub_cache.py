"""LoRA files from the hub, in a cache of the hub's library that holds nothing else, up to a bound.

The library fetches a file once for all who ask for it at once, goes on where a connection broke, compares the size and
stores the file by the hub's hash of it, so that two commits with an equal file share one. This cache is apart from the
one of models: no eviction can meet a checkpoint, and no job can add a commit to a checkpoint's repository, where
another commit than the one that is complete would be looked at. Knows nothing of jobs.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidInput
from ..network import hub
from .store import ABANDONED_SECONDS, modified, writable
from .tensor_file import START_BYTES, require_start

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, HFCacheInfo


class HubCache:
    """For any thread. `max_bytes`: of all files in `folder` together.

    The time of a file's last change is when it was last used: whoever uses it sets it.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes

    def fetch(self, hub_id: str, name: str, commit: str, label: str) -> Path:
        """The LoRA of a repository at a commit, from the hub if it is not here yet.

        Raises `InvalidInput` for what does not begin as a safetensors file, which is not kept, and what `fetch_file`
        raises.
        """
        path, is_new = self.fetch_file(hub_id, name, commit)
        if not is_new:
            return path
        try:
            with path.open("rb") as stream:
                require_start(stream.read(START_BYTES), label)
        except InvalidInput:
            self.delete([path.resolve()])
            raise
        self.evict(kept=path.resolve())
        return path

    def fetch_file(self, hub_id: str, name: str, commit: str) -> tuple[Path, bool]:
        """A file of a repository, and whether it has just come. Raises `LoadError`, where the hub does not give it, and
        `Unwritable`.
        """
        from huggingface_hub import try_to_load_from_cache

        hub_id = self.spelling_of(hub_id)
        if isinstance(file := try_to_load_from_cache(hub_id, name, self.folder, commit), str):
            return Path(file), False
        with writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError
        return hub.download_file(hub_id, name, commit, self.folder), True

    def spelling_of(self, hub_id: str) -> str:
        """The id as its folder here has it already: the hub takes ids in any case, and each would have a copy."""
        folder = f"models--{hub_id.replace('/', '--')}"
        found = next(
            (path.name for path in self.folder.glob("models--*") if path.name.lower() == folder.lower()), folder
        )
        return found.removeprefix("models--").replace("--", "/", 1)

    def evict(self, kept: Path) -> None:
        """Delete the longest unused contents beyond the bound, but for `kept`, and what killed workers left."""
        from huggingface_hub import scan_cache_dir

        with contextlib.suppress(OSError):  # another worker's eviction under the scan: the next fetch evicts again
            cache = scan_cache_dir(self.folder)
            for part in cache.incomplete_files:
                if modified(part.file_path) < time.time() - ABANDONED_SECONDS:
                    part.file_path.unlink(missing_ok=True)
            contents = {file.file_path.resolve(): file for file in files_of(cache)}
            total, doomed = 0, set[Path]()
            for blob in sorted(contents, key=lambda blob: (blob != kept, -contents[blob].blob_last_modified)):
                total += contents[blob].size_on_disk
                if total > self.max_bytes and blob != kept:
                    doomed.add(blob)
            if doomed:
                self.delete(doomed)

    def delete(self, blobs: Collection[Path]) -> None:
        """Delete contents under all their names, and then each commit of which no file is left."""
        from huggingface_hub import scan_cache_dir

        with contextlib.suppress(OSError):
            cache = scan_cache_dir(self.folder)
            cache.delete_files(*(file for file in files_of(cache) if file.file_path.resolve() in blobs)).execute()
            cache = scan_cache_dir(self.folder)
            fetching = {part.file_path.parents[1] for part in cache.incomplete_files}  # repositories' folders
            idle = (repo for repo in cache.repos if repo.repo_path not in fetching)
            empty = [commit.commit_hash for repo in idle for commit in repo.revisions if not commit.files]
            if empty:
                cache.delete_revisions(*empty).execute()


def files_of(cache: "HFCacheInfo") -> Iterator["CachedFileInfo"]:
    return (file for repo in cache.repos for revision in repo.revisions for file in revision.files)
