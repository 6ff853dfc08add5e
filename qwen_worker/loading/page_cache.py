"""Files read ahead into the system's page cache, while Python is busy with imports that use no disk to speak of.

What is read is thrown away: the reader proper finds it in memory, or reads it itself where reading ahead has failed.
Imports no torch. Knows nothing of what is in the files.
"""

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..memory.failures import attempt

CHUNK_BYTES = 16 << 20
THREADS = 4


class ReadAhead:
    """`with ahead:`, once or several times: within, the files are read, in order and on from where it was left.

    That ends with the files or after `limit_bytes` at the latest.
    """

    def __init__(self, files: Iterable[Path], limit_bytes: int):
        self.stopped = threading.Event()
        self.chunks = itertools.islice(chunks_of(files), max(0, limit_bytes) // CHUNK_BYTES)
        self.lock = threading.Lock()
        self.bytes = 0  # that have been read
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "ReadAhead":
        self.stopped.clear()
        attempt(self.start)
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when no thread reads any more."""
        self.stopped.set()
        for thread in self.threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def start(self) -> None:
        """Raises `RuntimeError` where the system starts no more threads."""
        self.threads = [
            threading.Thread(target=self.read_chunks, name=f"ahead-{number}", daemon=True) for number in range(THREADS)
        ]
        for thread in self.threads:
            thread.start()

    def read_chunks(self) -> None:
        """On each thread: the next chunk that no other thread has, until there is none."""
        scratch = memoryview(bytearray(CHUNK_BYTES))
        try:
            while not self.stopped.is_set():
                with self.lock:
                    file, offset = next(self.chunks, (None, 0))
                if file is None:
                    return
                count = read_chunk(file, scratch, offset)
                with self.lock:
                    self.bytes += count
        except OSError:
            return  # the reader proper meets the error too, and says what it means


def chunks_of(files: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """(file, offset) of every chunk, in order."""
    for file in files:
        for offset in range(0, file.stat().st_size, CHUNK_BYTES):
            yield file, offset


def read_chunk(file: Path, scratch: memoryview, offset: int) -> int:
    """Read the file from `offset` on, as much as `scratch` holds; how many bytes that were."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [scratch], offset)
    finally:
        os.close(descriptor)
