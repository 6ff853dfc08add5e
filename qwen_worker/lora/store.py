"""LoRA files from URLs, on this worker's disk: kept by content, up to a bound, the longest unused going first.

`<sha256>.safetensors` is what came. A file is written beside and renamed when it is whole, so a kill leaves no half
one, and workers that share the disk do not disturb each other; an open file survives its deletion. Knows nothing of
networks, nor of what is in the files.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ABANDONED_SECONDS = 24 * 3600  # after which what was written of a file is what a killed worker left


class Unwritable(Exception):
    """The disk has no room, or may only be read."""


class LoraStore:
    """For any thread. `max_bytes`: of all files in `folder` together."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes

    @contextmanager
    def incoming(self) -> Iterator["Incoming"]:
        """Within, what takes a file's bytes; at its end the file is in the store if any came. Raises `Unwritable`."""
        with writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False)
        part = Path(stream.name)
        try:
            with stream:
                incoming = Incoming(stream)
                yield incoming
                with writable():
                    stream.flush()
            if incoming.bytes:
                with writable():
                    part.rename(self.folder / incoming.file)
                self.evict(kept=self.folder / incoming.file)
        finally:
            part.unlink(missing_ok=True)

    def evict(self, kept: Path) -> None:
        """Delete the longest unused files beyond the bound, but for `kept`, and what killed workers left."""
        total, files = 0, sorted(self.folder.glob("*.safetensors"), key=modified, reverse=True)
        for file in sorted(files, key=lambda file: file != kept):
            total += size(file)
            if total > self.max_bytes and file != kept:
                file.unlink(missing_ok=True)
        for part in self.folder.glob("*.part"):
            if modified(part) < time.time() - ABANDONED_SECONDS:
                part.unlink(missing_ok=True)


class Incoming:
    """A file that is being written: hashed on its way."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.digest, self.bytes = stream, hashlib.sha256(), 0

    def __call__(self, data: bytes) -> None:
        with writable():
            self.stream.write(data)
        self.digest.update(data)
        self.bytes += len(data)

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()

    @property
    def file(self) -> str:
        """The name of the file in the store, once all bytes have come."""
        return f"{self.sha256}.safetensors"


@contextmanager
def writable() -> Iterator[None]:
    """Within, an error of the disk is raised as `Unwritable`."""
    try:
        yield
    except OSError:
        raise Unwritable from None


def modified(file: Path) -> float:
    """In seconds since 1970; 0 for a file that is gone, by another worker's eviction."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def size(file: Path) -> int:
    """In bytes; 0 for a file that is gone, by another worker's eviction."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
