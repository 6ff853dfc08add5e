"""Files read ahead into the system's page cache, while Python is busy with imports that use no disk to speak of.

What is read is thrown away: the reader proper finds it in memory. Imports no torch. Knows nothing of what is in the
files.
"""

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 16 << 20  # bytes
THREADS = 4


@contextmanager
def reading_ahead(files: Iterable[Path], limit: int) -> Iterator["ReadAhead"]:
    """Within, the files are read, in order and up to `limit` bytes."""
    ahead = ReadAhead(files, limit)
    try:
        yield ahead
    finally:
        ahead.stop()


class ReadAhead:
    """Reads from its making until `stop`, the end of the files or `limit` bytes, whichever comes first."""

    def __init__(self, files: Iterable[Path], limit: int):
        self.stopped = threading.Event()
        self.parts = itertools.islice(parts(files), max(0, limit) // CHUNK)
        self.lock = threading.Lock()
        self.bytes = 0
        self.threads = [threading.Thread(target=self.work, name=f"ahead-{n}", daemon=True) for n in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Returns when no thread reads any more."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def work(self) -> None:
        scratch = memoryview(bytearray(CHUNK))
        try:
            while not self.stopped.is_set():
                with self.lock:
                    file, offset = next(self.parts, (None, 0))
                if file is None:
                    return
                count = read(file, scratch, offset)
                with self.lock:
                    self.bytes += count
        except OSError:
            return  # whoever needs the file meets the error and can say what it means


def parts(files: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """(file, offset) of every chunk, in order."""
    for file in files:
        for offset in range(0, file.stat().st_size, CHUNK):
            yield file, offset


def read(file: Path, scratch: memoryview, offset: int) -> int:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [scratch], offset)
    finally:
        os.close(descriptor)
