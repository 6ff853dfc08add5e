"""How fast a checkpoint's files can be read at all: the seconds of a load are held against it. Knows no torch."""

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from qwen_worker.checkpoints.classes import WEIGHTS
from qwen_worker.checkpoints.files import shards

THREADS = 8
PIECE = 1 << 24  # bytes of one read
RAM_DISKS = ("tmpfs", "ramfs")  # file systems whose pages are the files themselves
READ_SECONDS = 10  # the rate is steady by then, and time on a lent machine is short


def weight_files(folder: Path, without: Iterable[str] = ()) -> list[Path]:
    """The files that a load of the checkpoint reads. `without`: components that are in memory already."""
    return [file for component in WEIGHTS if component not in set(without) for file in shards(folder, component)]


def is_on_ram_disk(file: Path) -> bool:
    """Whether the file lies in memory, of which nothing can be dropped."""
    kinds = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((kinds[parent] for parent in file.resolve().parents if parent in kinds), "") in RAM_DISKS


def drop_from_cache(files: Sequence[Path]) -> None:
    """Ask the system to forget the files' pages, so that the next read comes from the disk. No use on a RAM disk."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def read_rate(files: Sequence[Path], seconds: float = READ_SECONDS) -> float:
    """Bytes a second that several threads read, for at most `seconds`; what they read is not kept."""
    end = time.perf_counter() + seconds
    spans = []
    for file in files:
        length = file.stat().st_size
        part = max(PIECE, -(-length // THREADS))
        spans += [(file, start, min(part, length - start)) for start in range(0, length, part)]
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        total = sum(threads.map(lambda span: read_span(*span, end), spans))
    return total / (time.perf_counter() - started)


def read_span(file: Path, start: int, length: int, end: float) -> int:
    """Read from `start` until `length` bytes are read or the clock is at `end`; the bytes that were read."""
    buffer, done = bytearray(min(PIECE, length)), 0
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while done < length and time.perf_counter() < end:
            count = stream.readinto(memoryview(buffer)[: min(len(buffer), length - done)])
            if not count:
                break
            done += count
    return done
