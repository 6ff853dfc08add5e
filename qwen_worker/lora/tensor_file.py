"""A safetensors file from somebody else, kept open: what its header says, and its tensors.

The header alone says what the file holds, and nothing of it is unpickled. The file is read and never mapped: the
process would end when it touches a mapped file that somebody has cut short in its place. Its descriptor stays open, so
it is read to its end even once it is deleted or another file has its name. Imports torch inside functions. Knows
nothing of where files come from, nor of LoRAs.
"""

import hashlib
import math
import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.files import HEADER_LIMIT, METADATA, read_header, shape_of, span_of
from ..errors import InvalidInput, JobError, LoadError

if TYPE_CHECKING:
    import torch

START_BYTES = 9  # by which a safetensors file is recognized: its header's length, and the brace that it begins with
# torch's name and the bytes of one number, by the file's name for it. Matrices are of `FLOATS`.
FLOATS = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
}  # fmt: skip
INTEGERS = {
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "U16": ("uint16", 2), "U32": ("uint32", 4), "U64": ("uint64", 8),
}  # fmt: skip
NUMBERS = FLOATS | INTEGERS
# A file that changed less than so long ago may change again without other times: clocks tick in milliseconds, and the
# clock of a network volume may be off by more.
RECENT_SECONDS = 60


def require_start(start: bytes, label: str) -> None:
    """Raises `InvalidInput` for a file that does not begin as a safetensors file does.

    `start`: the file's first `START_BYTES`, or all of a shorter file.
    """
    length = int.from_bytes(start[:8], "little")
    if len(start) < START_BYTES or start[8:9] != b"{":
        raise InvalidInput(f"{label} must be a safetensors file, and does not begin as one")
    if length > HEADER_LIMIT:
        raise InvalidInput(f"{label} must have a header of at most {HEADER_LIMIT:,} bytes, not {length:,}")


class TensorFile:
    """An open safetensors file. `shapes`, `dtypes`: of the tensors by name; `metadata`: as the header has it.

    Raises `InvalidInput` for a file that is no safetensors file, and `JobError` where the disk does not give it.
    """

    def __init__(self, path: Path, label: str):
        self.label = label
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise self.unreadable_error() from None
        weakref.finalize(self, os.close, self.descriptor)
        self.status = os.fstat(self.descriptor)
        require_start(bytes(self.read_bytes(0, min(START_BYTES, self.status.st_size))), label)
        try:
            with open(self.descriptor, "rb", closefd=False) as stream:
                header, self.data_start = read_header(stream, self.status.st_size, label)
        except LoadError as error:
            raise InvalidInput(error.reason) from None
        self.metadata = header.pop(METADATA, None)
        self.shapes = {name: shape_of(entry) for name, entry in header.items()}
        self.ranges = {name: span_of(entry) for name, entry in header.items()}  # (begin, end) after `data_start`
        self.dtypes = {name: str(entry.get("dtype")) for name, entry in header.items()}
        self.require_ranges()

    def __reduce__(self) -> "tuple[type[TensorFile], tuple[Path, str]]":
        """For a child process of this one: by the open descriptor, whatever has become of the file's name."""
        return TensorFile, (Path(f"/proc/{os.getpid()}/fd/{self.descriptor}"), self.label)

    def require_ranges(self) -> None:
        """Raises `InvalidInput` unless each tensor has the bytes that it takes, and all lie one after the other."""
        previous_end = 0
        for begin, end in sorted(self.ranges.values()):
            if begin != previous_end:
                raise InvalidInput(f"{self.label} is corrupt: its tensors overlap, or leave gaps")
            previous_end = end
        for name, (begin, end) in self.ranges.items():
            _, size = NUMBERS.get(self.dtypes[name], ("", 0))
            if size and end - begin != math.prod(self.shapes[name]) * size:
                raise InvalidInput(f"{self.label} is corrupt: a tensor is given more or less room than it takes")

    def read_tensor(self, name: str) -> "torch.Tensor":
        """A tensor of `NUMBERS`. Raises `JobError` where the disk does not give it."""
        import torch

        begin, end = self.ranges[name]
        data = self.read_bytes(self.data_start + begin, end - begin)
        dtype = getattr(torch, NUMBERS[self.dtypes[name]][0])
        return torch.frombuffer(data, dtype=dtype).reshape(self.shapes[name])

    def read_bytes(self, start: int, count: int) -> bytearray:
        """`count` bytes from `start` in the file. Raises `JobError` where the disk does not give them."""
        data, done = bytearray(count), 0
        while done < count:
            try:
                read = os.preadv(self.descriptor, [memoryview(data)[done:]], start + done)
            except OSError:
                raise self.unreadable_error() from None
            if not read:  # somebody has cut the file short
                raise self.unreadable_error()
            done += read
        return data

    def is_changed(self) -> bool:
        """Whether the file was written in place since it was opened: what was read may be of both contents."""
        now = os.fstat(self.descriptor)
        return (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns)

    def identity(self) -> str:
        """A digest that is equal for equal contents only.

        It is taken of the file's inode, size and times, or of its bytes while the last change is recent.
        """
        status = self.status
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < RECENT_SECONDS * 10**9:
            with open(self.descriptor, "rb", closefd=False) as stream:
                stream.seek(0)
                return hashlib.file_digest(stream, "sha256").hexdigest()
        facts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()

    def unreadable_error(self) -> JobError:
        return JobError("lora_fetch_failed", f"{self.label} cannot be read on the worker's disk")
