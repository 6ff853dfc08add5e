"""The way of bytes from a file into a tensor: into its own memory, or through pinned buffers onto a card.

Everything of CUDA's streams and events in reading weights is here. Imports torch: import it inside functions. Knows
nothing of which tensors are wanted, or when.
"""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.files import StoredTensor, explain_read_errors
from ..errors import LoadError

SUM_BLOCK = 4096  # bytes


class Arriving:
    """A tensor on its way. `missing` and `unclaimed` are bytes, kept by the reader."""

    def __init__(self, stored: StoredTensor, dtype: torch.dtype):
        self.stored, self.dtype = stored, dtype
        self.missing = self.unclaimed = stored.size
        self.tensor: torch.Tensor | None = None
        self.bytes: torch.Tensor | None = None  # the tensor's memory, flat
        self.made: torch.cuda.Event | None = None  # on a card: from then on the memory is the tensor's alone
        self.copies: list[torch.cuda.Event] = []  # on a card: when what was read so far has come
        self.lock = threading.Lock()

    def make(self, device: torch.device, pinned: bool) -> None:
        """Its memory, if it has none yet."""
        with self.lock:
            if self.tensor is not None:
                return
            tensor = torch.empty(self.stored.shape, dtype=self.dtype, device=device, pin_memory=pinned)
            if device.type == "cuda":
                # The allocator may hand out memory whose last use is still queued on this stream.
                self.made = torch.cuda.current_stream(device).record_event()
            self.bytes = tensor.reshape(-1).view(torch.uint8)
            self.tensor = tensor

    def arrived(self, device: torch.device, pinned: bool) -> torch.Tensor:
        """The tensor, for use on the present stream."""
        self.make(device, pinned)  # one without bytes was never read
        for copied in self.copies:
            torch.cuda.current_stream(device).wait_event(copied)
        return self.tensor


@dataclass(frozen=True)
class Piece:
    """Bytes of one tensor that one read brings."""

    tensor: Arriving
    start: int  # in the tensor
    size: int

    @property
    def target(self) -> torch.Tensor:
        return self.tensor.bytes[self.start : self.start + self.size]


@dataclass
class Buffer:
    memory: torch.Tensor
    copied: Any = None  # the event after which it may be filled again


@dataclass
class Lane:
    """One thread's way. `staged`: through two buffers, one filled while the other is copied from."""

    device: torch.device
    chunk: int
    staged: bool
    files: dict[Path, int] = field(default_factory=dict)  # its own descriptors: readahead is kept by descriptor
    buffers: list[Buffer] = field(default_factory=list)
    stream: Any = None

    def __enter__(self) -> "Lane":
        on_card = self.device.type == "cuda"
        if self.staged:
            memory = [torch.empty(self.chunk, dtype=torch.uint8, pin_memory=on_card) for _ in range(2)]
            self.buffers = [Buffer(one) for one in memory]
        self.stream = torch.cuda.Stream(self.device) if on_card else None
        return self

    def __exit__(self, *_) -> None:
        for descriptor in self.files.values():
            os.close(descriptor)
        if self.stream is not None:
            self.stream.synchronize()  # the buffers are read until then

    def bring(self, pieces: list[Piece]) -> None:
        """Read pieces that follow one another in one file into their tensors; on a card the copies may still run."""
        if not self.staged:
            self.read(pieces, [view(piece.target) for piece in pieces])
            return
        buffer = self.buffers[0]
        self.buffers.reverse()
        if buffer.copied is not None:
            buffer.copied.synchronize()
        size = sum(piece.size for piece in pieces)
        self.read(pieces, [view(buffer.memory[:size])])
        if self.stream is None:
            copy(buffer.memory, pieces)
            return
        for piece in pieces:
            self.stream.wait_event(piece.tensor.made)
        with torch.cuda.stream(self.stream):
            copy(buffer.memory, pieces)
            buffer.copied = self.stream.record_event()
        for piece in pieces:
            piece.tensor.copies.append(buffer.copied)

    def read(self, pieces: list[Piece], views: list[memoryview]) -> None:
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


def copy(memory: torch.Tensor, pieces: list[Piece]) -> None:
    """Lay what was read in one into the pieces' tensors."""
    start = 0
    for piece in pieces:
        piece.target.copy_(memory[start : start + piece.size], non_blocking=True)
        start += piece.size


def view(memory: torch.Tensor) -> memoryview:
    return memoryview(memory.numpy())


def checksum_of(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's bytes as a tensor (), on its device, not waited for: damage to a stored tensor shows by it.

    Of the bytes' 64-bit words, each block weighted by its place, modulo 2^64: a flipped bit always changes it; blocks
    that were zeroed or changed places do, but for chance. No protection against intent.
    """
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    whole = flat.numel() // SUM_BLOCK * SUM_BLOCK
    rest = flat.new_zeros(SUM_BLOCK)
    rest[: flat.numel() - whole] = flat[whole:]
    blocks = flat[:whole].view(torch.int64).view(-1, SUM_BLOCK // 8)
    sums = torch.cat([blocks.sum(dim=1), rest.view(torch.int64).sum(dim=0, keepdim=True)])
    # Odd weights: an even one would lose a word's highest bit.
    return (sums * torch.arange(1, 2 * len(sums), 2, device=sums.device)).sum()
