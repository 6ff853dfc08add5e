"""LoRA files from elsewhere, on this worker's disk: kept by content, up to a bound, the longest unused going first.

`<sha256>.safetensors` is what came; `<sha256 of a name>.json` says what a URL or a hub file led to when it was last
asked, and by which validator it can be asked again. A file is written beside and renamed when it is whole, so a kill
leaves no half one, and workers that share the disk do not disturb each other; an open file survives its deletion.
Knows nothing of networks, nor of what is in the files.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ABANDONED_SECONDS = 24 * 3600  # after which what was written of a file is what a killed worker left
MAX_NAMES = 1000


class Unwritable(Exception):
    """The disk has no room, or may only be read."""


@dataclass(frozen=True)
class Known:
    """What a name led to."""

    sha256: str
    validator: str  # an ETag, or a commit


class LoraStore:
    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def known(self, name: str) -> Known | None:
        """What the name led to, if that is still here."""
        try:
            found = Known(**json.loads(self.note(name).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if self.has(found.sha256) else None

    def note(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}.json"

    def use(self, name: str, known: Known) -> Path:
        """The file, no longer the longest unused; the name leads to it."""
        path = self.path(known.sha256)
        with contextlib.suppress(OSError):  # another worker's eviction, or a disk that may only be read
            os.utime(path)
            if self.known(name) != known:
                self.write(self.note(name), json.dumps(vars(known)).encode())
        return path

    @contextmanager
    def incoming(self) -> Iterator["Incoming"]:
        """Within, what takes a file's bytes; at its end the file is in the store if any came. Raises `Unwritable`."""
        with writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False)
        part = Path(stream.name)
        try:
            with stream:
                one = Incoming(stream)
                yield one
                with writable():
                    stream.flush()
            if one.bytes:
                self.take_in(part, one.sha256)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the store's disk, within. Raises `Unwritable`."""
        with writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=self.folder, suffix=".part", ignore_cleanup_errors=True)
        with folder as path:
            yield Path(path)

    def adopt(self, file: Path) -> str:
        """Take in a whole file that lies on the store's disk; its hash."""
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        self.take_in(file, sha256)
        return sha256

    def take_in(self, file: Path, sha256: str) -> None:
        with writable():
            file.rename(self.path(sha256))
        self.evict(kept=sha256)

    def write(self, path: Path, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as stream:
            stream.write(data)
        Path(stream.name).rename(path)

    def evict(self, kept: str) -> None:
        """Delete the longest unused files beyond the bound, but for the one that has just come, and what is stale."""
        total, files = 0, sorted(self.folder.glob("*.safetensors"), key=modified, reverse=True)
        for file in sorted(files, key=lambda one: one.stem != kept):
            total += size(file)
            if total > self.max_bytes and file.stem != kept:
                file.unlink(missing_ok=True)
        for part in self.folder.glob("*.part"):
            if modified(part) < time.time() - ABANDONED_SECONDS:
                part.unlink() if part.is_file() else shutil.rmtree(part, ignore_errors=True)
        for note in sorted(self.folder.glob("*.json"), key=modified, reverse=True)[MAX_NAMES:]:
            note.unlink(missing_ok=True)


class Incoming:
    """A file that is being written: hashed on its way."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.digest, self.bytes = stream, hashlib.sha256(), 0

    def __call__(self, data: bytes) -> None:
        with writable():
            self.stream.write(data)
        self.digest.update(data)
        self.bytes += len(data)

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()


@contextmanager
def writable() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise Unwritable from None


def modified(file: Path) -> float:
    """0 for one that is gone: another worker's eviction."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
