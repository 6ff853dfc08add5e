"""The way of bytes from a file into a tensor: into the tensor's own memory, or through pinned buffers onto a card.

Everything of CUDA's streams and events in reading weights is here. Imports torch: import it inside functions. Knows
nothing of which tensors are wanted, or when.
"""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoints.files import StoredTensor, explain_read_errors
from ..errors import LoadError
from ..model.host_memory import pinning

SUM_BLOCK = 4096  # bytes


class ArrivingTensor:
    """A tensor on its way. `missing_bytes` and `unclaimed_bytes` are counted by the reader, under its lock."""

    def __init__(self, stored: StoredTensor, dtype: torch.dtype):
        self.stored, self.dtype = stored, dtype
        self.missing_bytes = self.unclaimed_bytes = stored.size
        self.tensor: torch.Tensor | None = None
        self.memory: torch.Tensor | None = None  # the tensor's bytes, (size,)
        # On a card: after this event nothing that was queued earlier uses the memory any more.
        self.allocated: torch.Event | None = None
        self.copies: list[torch.Event] = []  # on a card: each is reached when a part of the bytes has arrived
        self.lock = threading.Lock()

    def allocate(self, device: torch.device, pinned: bool) -> torch.Tensor:
        """The tensor; its memory is allocated by the first call."""
        with self.lock:
            if self.tensor is None:
                if device.type == "cpu":
                    tensor = pinning.empty(self.stored.shape, self.dtype, pinned)
                else:
                    tensor = torch.empty(self.stored.shape, dtype=self.dtype, device=device)
                if device.type == "cuda":
                    # The allocator may hand out memory whose last use is still queued on this stream.
                    self.allocated = torch.cuda.current_stream(device).record_event()
                self.memory = tensor.reshape(-1).view(torch.uint8)
                self.tensor = tensor
            return self.tensor

    def wait(self, device: torch.device, pinned: bool) -> torch.Tensor:
        """The tensor, once all its bytes are read: the present stream waits for copies that still run."""
        tensor = self.allocate(device, pinned)  # nothing was read for a tensor without bytes
        for copied in self.copies:
            torch.cuda.current_stream(device).wait_event(copied)
        return tensor


@dataclass(frozen=True)
class Piece:
    """Bytes of one tensor that one read brings: `size` of them, from `start` in the tensor."""

    tensor: ArrivingTensor
    start: int
    size: int

    @property
    def memory(self) -> torch.Tensor:
        """(size,) bytes of the tensor's memory, which must be allocated."""
        assert self.tensor.memory is not None
        return self.tensor.memory[self.start : self.start + self.size]


@dataclass
class Buffer:
    """Host memory that bytes wait in. `copied`: the event after which it may be filled again."""

    memory: torch.Tensor
    copied: torch.Event | None = None


@dataclass
class PieceReader:
    """Reads pieces in one thread. `staged`: through two buffers, one of which is filled while the other is copied."""

    device: torch.device
    buffer_bytes: int
    staged: bool
    files: dict[Path, int] = field(default_factory=dict[Path, int])  # own descriptors: each has a readahead of its own
    buffers: list[Buffer] = field(default_factory=list[Buffer])
    stream: torch.cuda.Stream | None = None

    def __enter__(self) -> "PieceReader":
        on_card = self.device.type == "cuda"
        if self.staged:
            memory = [pinning.empty((self.buffer_bytes,), torch.uint8, on_card) for _ in range(2)]
            self.buffers = list(map(Buffer, memory))
        self.stream = torch.cuda.Stream(self.device) if on_card else None
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.files.values():
            os.close(descriptor)
        if self.stream is not None:
            self.stream.synchronize()  # copies read the buffers until then

    def read(self, pieces: list[Piece]) -> None:
        """Read pieces that follow one another in one file into their tensors; on a card the copies may still run."""
        if not self.staged:
            self.read_into(pieces, [memory_view(piece.memory) for piece in pieces])
            return
        buffer = self.buffers[0]
        self.buffers.reverse()
        if buffer.copied is not None:
            buffer.copied.synchronize()
        size = sum(piece.size for piece in pieces)
        self.read_into(pieces, [memory_view(buffer.memory[:size])])
        if self.stream is None:
            distribute(buffer.memory, pieces)
            return
        for piece in pieces:
            if piece.tensor.allocated is not None:
                self.stream.wait_event(piece.tensor.allocated)
        with torch.cuda.stream(self.stream):
            distribute(buffer.memory, pieces)
            buffer.copied = self.stream.record_event()
        for piece in pieces:
            piece.tensor.copies.append(buffer.copied)

    def read_into(self, pieces: list[Piece], views: list[memoryview]) -> None:
        """Fill the views with the pieces' bytes. Raises `LoadError` where the file ends before."""
        first = pieces[0]
        file, offset = first.tensor.stored.file, first.tensor.stored.start + first.start
        label = f"{file.parent.name}/{file.name}"
        while views:
            with explain_read_errors(label):
                if file not in self.files:
                    self.files[file] = os.open(file, os.O_RDONLY)
                count = os.preadv(self.files[file], views, offset)
            if not count:
                raise LoadError(f"{label} is corrupt: it ends before its last tensor does")
            offset += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]


def distribute(memory: torch.Tensor, pieces: list[Piece]) -> None:
    """Copy bytes that one read brought into the pieces' tensors, one piece after the other."""
    start = 0
    for piece in pieces:
        piece.memory.copy_(memory[start : start + piece.size], non_blocking=True)
        start += piece.size


def memory_view(memory: torch.Tensor) -> memoryview:
    """The bytes of a tensor (n,) in host memory, for the system to write to."""
    return memory.numpy().data


def checksum_of(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's bytes, which shows damage: a tensor () on its device, not waited for.

    The bytes are summed as 64-bit words, each block weighted by its place, modulo 2^64. A flipped bit always changes
    the sum; zeroed or exchanged blocks change it but for chance. No protection against intent.
    """
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    whole = flat.numel() // SUM_BLOCK * SUM_BLOCK
    rest = flat.new_zeros(SUM_BLOCK)
    rest[: flat.numel() - whole] = flat[whole:]
    blocks = flat[:whole].view(torch.int64).view(-1, SUM_BLOCK // 8)
    sums = torch.cat([blocks.sum(dim=1), rest.view(torch.int64).sum(dim=0, keepdim=True)])
    # Odd weights: an even one would lose a word's highest bit.
    return (sums * torch.arange(1, 2 * len(sums), 2, device=sums.device)).sum()
