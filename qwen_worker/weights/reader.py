"""Tensors of safetensors files, read by several threads at once and straight to where they stay.

On a card they arrive through a few pinned buffers, one read while the other is copied; in host memory (pinned where a
card will fetch from it) the bytes are read into the tensor itself. Bytes and dtype stay as they are in the file, and no
second copy is in RAM. Why no loader library: of the fast ones instanttensor wants CUDA, fastsafetensors reads whole
files (a third of the 20B transformer is not wanted) and runai-model-streamer stages in pageable memory.

Imports torch: import it inside functions. Knows nothing of models.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

import torch

from ..checkpoints.files import StoredTensor
from ..errors import LoadError
from .staging import Arriving, Lane, Piece, checksum_of

# Bytes of one read: long enough for a disk to stream, short enough for eight threads to share a tensor.
CHUNK = 32 << 20
PIECES = 512  # parts of one read; the system takes at most 1024
AHEAD = 2 << 30  # bytes that may lie there untaken while nobody waits for others
AHEAD_ON_CARD = 512 << 20  # of the room that a plan leaves a job, which the modulation's table is built in too
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class WeightReader:
    """Reads `wanted` in that order, in which they had best be taken too. A context manager; starts at the first `take`.

    `pinned`: for host memory, whether a card will fetch from it. `staged`: through buffers, as it must be on a card.
    """

    def __init__(
        self,
        wanted: Iterable[StoredTensor],
        device: str,
        threads: int,
        pinned: bool = False,
        staged: bool | None = None,
    ):
        self.device, self.pinned = torch.device(device), pinned
        self.staged = self.device.type == "cuda" if staged is None else staged
        self.arriving = {one.name: Arriving(one, dtype_of(one)) for one in wanted}
        self.bytes = sum(one.stored.size for one in self.arriving.values())
        self.reads = deque(reads(self.arriving.values()))
        self.changed = threading.Condition()
        self.waited_for: list[Arriving] = []
        self.ahead = AHEAD_ON_CARD if self.device.type == "cuda" else AHEAD
        self.untaken = 0  # bytes that are claimed or there, and not taken
        self.failure: BaseException | None = None
        self.checksums: list[tuple[StoredTensor, torch.Tensor]] = []  # of what was taken and has one in its file
        self.stopped = False
        self.began = self.ended = 0.0  # by the clock: the first read, and the last
        count = max(1, min(threads, len(self.reads)))
        self.threads = [threading.Thread(target=self.work, name=f"read-{n}", daemon=True) for n in range(count)]

    def __enter__(self) -> "WeightReader":
        return self

    def __exit__(self, *_) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        if self.began:
            for thread in self.threads:
                thread.join()

    def start(self) -> None:
        with self.changed:
            if self.began:
                return
            self.began = time.perf_counter()
        for thread in self.threads:
            thread.start()

    def take(self, name: str) -> torch.Tensor:
        """A tensor, once it is there; each can be taken once. Raises what reading raised."""
        self.start()
        with self.changed:
            one = self.arriving.pop(name)
            self.waited_for.append(one)
            self.changed.notify_all()
            self.changed.wait_for(lambda: not one.missing or self.failure or self.stopped)
            self.waited_for.remove(one)
            if one.missing:
                raise self.failure or RuntimeError(f"{name} was asked of a reader that is closed")
            self.untaken -= one.stored.size
            self.changed.notify_all()
        tensor = one.arrived(self.device, self.pinned)
        if one.stored.checksum is not None:
            self.checksums.append((one.stored, checksum_of(tensor)))
        return tensor

    def verify(self) -> None:
        """Wait for what was taken. Raises `LoadError` where it is not what was written."""
        found = torch.stack([taken for _, taken in self.checksums]).tolist() if self.checksums else []
        for (stored, _), taken in zip(self.checksums, found, strict=True):
            if taken != stored.checksum:
                file = f"{stored.file.parent.name}/{stored.file.name}"
                raise LoadError(f"{file} is corrupt: {stored.name} is not what was written")

    def work(self) -> None:
        """The life of one thread."""
        try:
            with Lane(self.device, CHUNK, self.staged) as lane:
                while pieces := self.claim():
                    for piece in pieces:
                        piece.tensor.make(self.device, self.pinned)
                    lane.bring(pieces)
                    self.settle(pieces)
        except BaseException as error:  # noqa: BLE001  raised again where the tensor is taken
            with self.changed:
                self.failure = self.failure or error
                self.changed.notify_all()

    def claim(self) -> list[Piece]:
        """What a thread is to read next, nothing at the end; waits while enough lies there untaken."""
        with self.changed:
            self.changed.wait_for(lambda: self.over() or self.may_go_on())
            if self.over():
                return []
            pieces = self.reads.popleft()
            for piece in pieces:
                piece.tensor.unclaimed -= piece.size
                self.untaken += piece.size
            return pieces

    def over(self) -> bool:
        return self.stopped or self.failure is not None or not self.reads

    def may_go_on(self) -> bool:
        """Also beyond the limit while somebody waits for what is further on: the order of taking is not ours."""
        return self.untaken < self.ahead or any(one.unclaimed for one in self.waited_for)

    def settle(self, pieces: list[Piece]) -> None:
        with self.changed:
            for piece in pieces:
                piece.tensor.missing -= piece.size
            self.ended = time.perf_counter()
            self.changed.notify_all()


def reads(tensors: Iterable[Arriving]) -> Iterator[list[Piece]]:
    """The tensors' bytes in reads of at most `CHUNK`, each of bytes that follow one another in one file."""
    pieces: list[Piece] = []
    room, end = CHUNK, None
    for tensor in tensors:
        start = 0
        while start < tensor.stored.size:
            place = (tensor.stored.file, tensor.stored.start + start)
            if pieces and (not room or place != end or len(pieces) == PIECES):
                yield pieces
                pieces, room = [], CHUNK
            size = min(room, tensor.stored.size - start)
            pieces.append(Piece(tensor, start, size))
            start, room, end = start + size, room - size, (place[0], place[1] + size)
    if pieces:
        yield pieces


def dtype_of(stored: StoredTensor) -> torch.dtype:
    """Its dtype. Raises `LoadError` where the header contradicts itself."""
    label = f"{stored.file.parent.name}/{stored.file.name}"
    if stored.dtype not in DTYPES:
        raise LoadError(f"{label} holds {stored.name} as {stored.dtype[:20]}, which is not read")
    size = math.prod(stored.shape) * DTYPES[stored.dtype].itemsize
    if stored.size != size:
        raise LoadError(f"{label} is corrupt: {stored.name} must have {size:,} bytes by its shape, not {stored.size:,}")
    return DTYPES[stored.dtype]
