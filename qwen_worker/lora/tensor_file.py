"""A safetensors file from somebody else, kept open: its tensors by its header, each read when it is wanted.

Read and never mapped: a mapped file that somebody writes anew in its place ends the process when it is touched. It can
be read to its end also once it is deleted or another has its name. Knows nothing of what the tensors mean. Imports
torch inside functions.
"""

import hashlib
import math
import os
import time
import weakref
from pathlib import Path
from typing import Any

from ..checkpoints.files import METADATA, place_of, read_header, shape_of
from ..errors import InvalidInput, JobError, LoadError

HEADER_BYTES = 10_000_000  # thirty times what a LoRA of every layer of the 20B transformer needs
START_BYTES = 9  # what tells a safetensors file: its header's length, and the brace that it begins with
NAME_CHARACTERS = 500  # of a tensor's name; the longest of a LoRA of the 20B transformer has some 90
DIMENSIONS = 8
BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # of the kinds of numbers that are read
# How long after a file's last change its times may not tell it from the next one: clocks tick in milliseconds, and
# that of a network volume may be off by more.
RECENT_SECONDS = 60


def require_start(start: bytes, label: str) -> None:
    """Refuse what does not begin as a safetensors file does; `start` is its first `START_BYTES`, or all of fewer."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < START_BYTES or start[8:9] != b"{":
        raise InvalidInput(f"{label} must be a safetensors file, and does not begin as one")
    if length > HEADER_BYTES:
        raise InvalidInput(f"{label} must have a header of at most {HEADER_BYTES:,} bytes, not {length:,}")


class TensorFile:
    """`shapes`, `dtypes`: of the tensors by name; `metadata`: as the header has it.

    Raises `InvalidInput` for a file that is no safetensors, and `JobError` where the disk does not give it.
    """

    def __init__(self, path: Path, label: str):
        self.label = label
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise self.unreadable() from None
        weakref.finalize(self, os.close, self.descriptor)
        self.facts = os.fstat(self.descriptor)
        require_start(bytes(self.read(0, min(START_BYTES, self.facts.st_size))), label)
        try:
            with open(self.descriptor, "rb", closefd=False) as stream:
                header, self.start = read_header(stream, self.facts.st_size, label)
        except LoadError as error:
            raise InvalidInput(error.reason) from None
        self.metadata = header.pop(METADATA, None)
        self.shapes = {name: shape_of(entry) for name, entry in header.items()}
        self.places = {name: place_of(entry) for name, entry in header.items()}
        self.dtypes = {name: str(entry.get("dtype")) for name, entry in header.items()}
        self.require_ordinary()
        self.require_places()

    def require_ordinary(self) -> None:
        """No name or shape that takes minutes to compute with: a header has room for a million dimensions."""
        for name, shape in self.shapes.items():
            if len(name) > NAME_CHARACTERS:
                raise InvalidInput(f"{self.label} has a tensor with a name of {len(name):,} characters")
            if len(shape) > DIMENSIONS or max(shape, default=0) > self.facts.st_size:
                raise InvalidInput(f"{self.label} is corrupt: a tensor has a shape that no file of its size holds")

    def require_places(self) -> None:
        """Each tensor has the room that it takes and all of them lie one after the other, as the format has it."""
        reached = 0
        for begin, end in sorted(self.places.values()):
            if begin != reached:
                raise InvalidInput(f"{self.label} is corrupt: its tensors overlap, or leave gaps")
            reached = end
        for name, (begin, end) in self.places.items():
            size = BYTES.get(self.dtypes[name])
            if size and end - begin != math.prod(self.shapes[name]) * size:
                raise InvalidInput(f"{self.label} is corrupt: a tensor is given more or less room than it takes")

    def tensor(self, name: str) -> Any:
        """Raises `JobError` where the disk does not give it."""
        import torch

        kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        begin, end = self.places[name]
        data = self.read(self.start + begin, end - begin)
        return torch.frombuffer(data, dtype=kinds[self.dtypes[name]]).reshape(self.shapes[name])

    def read(self, start: int, count: int) -> bytearray:
        data, done = bytearray(count), 0
        while done < count:
            try:
                read = os.preadv(self.descriptor, [memoryview(data)[done:]], start + done)
            except OSError:
                raise self.unreadable() from None
            if not read:  # it was cut short in place
                raise self.unreadable()
            done += read
        return data

    def changed(self) -> bool:
        """Whether it was written in place since it was opened: what was read may be of both."""
        now = os.fstat(self.descriptor)
        return (now.st_size, now.st_mtime_ns) != (self.facts.st_size, self.facts.st_mtime_ns)

    def identity(self) -> str:
        """Equal for equal contents only: from where it lies and its times, or from its bytes while these are new."""
        facts = self.facts
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < RECENT_SECONDS * 10**9:
            with open(self.descriptor, "rb", closefd=False) as stream:
                stream.seek(0)
                return hashlib.file_digest(stream, "sha256").hexdigest()
        found = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
        return hashlib.sha256("\0".join(map(str, found)).encode()).hexdigest()

    def unreadable(self) -> JobError:
        return JobError("lora_fetch_failed", f"{self.label} cannot be read on the worker's disk")
