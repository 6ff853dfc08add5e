"""Tensors of safetensors files, read by several threads at once and straight to where they stay.

On a card they arrive through a few pinned buffers, one filled while the other is copied; in host memory (pinned where a
card will fetch from it) bytes are read into the tensor itself. Bytes and dtype stay as they are in the file, and no
second copy is in RAM. Why no loader library: of the fast ones instanttensor wants CUDA, fastsafetensors reads whole
files (a third of the 20B transformer is not wanted) and runai-model-streamer stages in pageable memory.

Imports torch: import it inside functions. Knows nothing of models.
"""

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType

import torch

from ..checkpoints.files import StoredTensor, explain_read_errors
from ..errors import LoadError
from .staging import ArrivingTensor, Piece, PieceReader, checksum_of

READ_BYTES = 32 << 20  # of one read: long enough for a disk to stream, short enough for eight threads to share a tensor
MAX_PIECES = 512  # of one read; the system takes at most 1024
MAX_BYTES_AHEAD = 2 << 30  # that are read and wait to be popped, while nobody waits for others
MAX_BYTES_AHEAD_ON_CARD = 512 << 20  # of the room that a plan leaves a job; the modulation table is built in it too
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class WeightReader:
    """Reads `wanted` in that order, in which they had best be popped too. A context manager; starts at the first `pop`.

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
        self.arriving = {stored.name: ArrivingTensor(stored, dtype_of(stored)) for stored in wanted}
        self.bytes = sum(tensor.stored.size for tensor in self.arriving.values())
        self.reads = deque(reads(self.arriving.values()))
        self.changed = threading.Condition()  # guards what follows, and the tensors' counts
        self.waited_for: list[ArrivingTensor] = []
        self.max_bytes_ahead = MAX_BYTES_AHEAD_ON_CARD if self.device.type == "cuda" else MAX_BYTES_AHEAD
        self.bytes_ahead = 0  # of the tensors that are claimed or read, in part or whole, and not popped
        self.failure: BaseException | None = None
        self.failure_traceback: TracebackType | None = None
        self.checksums: list[tuple[StoredTensor, torch.Tensor]] = []  # of popped tensors that have one in their file
        self.started = self.stopped = False
        count = max(1, min(threads, len(self.reads)))
        self.threads = [threading.Thread(target=self.run, name=f"read-{n}", daemon=True) for n in range(count)]

    def __enter__(self) -> "WeightReader":
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        if self.started:
            for thread in self.threads:
                thread.join()
        # The failure's traceback holds the frames that hold this reader: a circle, which would keep all that was read.
        self.failure = self.failure_traceback = None
        self.arriving.clear()
        self.checksums.clear()

    def start(self) -> None:
        with self.changed:
            if self.started:
                return
            self.started = True
        for thread in self.threads:
            thread.start()

    def place(self, name: str, tensor: torch.Tensor) -> None:
        """Have a tensor read into this one, which is in host memory and of its shape and dtype; before the start."""
        arriving = self.arriving[name]
        arriving.tensor, arriving.memory = tensor, tensor.reshape(-1).view(torch.uint8)

    def pop(self, name: str) -> torch.Tensor:
        """A tensor, once it is there; each can be popped once. Raises what reading raised."""
        self.start()
        with self.changed:
            if self.stopped:
                raise RuntimeError(f"{name} was asked of a reader that is closed")
            arriving = self.arriving.pop(name)
            self.waited_for.append(arriving)
            self.changed.notify_all()
            self.changed.wait_for(lambda: not arriving.missing_bytes or self.failure or self.stopped)
            self.waited_for.remove(arriving)
            if arriving.missing_bytes:
                # The library asks for each of hundreds of tensors: raised as it is, it would get longer at each.
                if self.failure is not None:
                    raise self.failure.with_traceback(self.failure_traceback)
                raise RuntimeError(f"{name} was asked of a reader that is closed")
            self.bytes_ahead -= arriving.stored.size
            self.changed.notify_all()
        tensor = arriving.wait(self.device, self.pinned)
        if arriving.stored.checksum is not None:
            self.checksums.append((arriving.stored, checksum_of(tensor)))
        return tensor

    def verify(self) -> None:
        """Wait for the popped tensors. Raises `LoadError` where one is not what was written."""
        sums = torch.stack([checksum for _, checksum in self.checksums]).tolist() if self.checksums else []
        for (stored, _), checksum in zip(self.checksums, sums, strict=True):
            if checksum != stored.checksum:
                file = f"{stored.file.parent.name}/{stored.file.name}"
                raise LoadError(f"{file} is corrupt: {stored.name} is not what was written")

    def run(self) -> None:
        """The life of one thread."""
        try:
            with PieceReader(self.device, READ_BYTES, self.staged) as reader:
                while pieces := self.claim():
                    for piece in pieces:
                        piece.tensor.allocate(self.device, self.pinned)
                    reader.read(pieces)
                    self.record_arrival(pieces)
        except BaseException as error:  # noqa: BLE001  raised again where the tensor is popped
            with self.changed:
                if self.failure is None:
                    self.failure, self.failure_traceback = error, error.__traceback__
                self.changed.notify_all()

    def claim(self) -> list[Piece]:
        """What the calling thread is to read next, nothing at the end; waits while enough bytes are read ahead."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_over() or self.may_read())
            if self.is_over():
                return []
            pieces = self.reads.popleft()
            for piece in pieces:
                if piece.tensor.unclaimed_bytes == piece.tensor.stored.size:
                    self.bytes_ahead += piece.tensor.stored.size  # its memory is allocated whole
                piece.tensor.unclaimed_bytes -= piece.size
            return pieces

    def is_over(self) -> bool:
        return self.stopped or self.failure is not None or not self.reads

    def may_read(self) -> bool:
        """Within the limit, or beyond it while somebody waits for a tensor further on: callers choose their order."""
        return self.bytes_ahead < self.max_bytes_ahead or any(tensor.unclaimed_bytes for tensor in self.waited_for)

    def record_arrival(self, pieces: list[Piece]) -> None:
        with self.changed:
            for piece in pieces:
                piece.tensor.missing_bytes -= piece.size
            self.changed.notify_all()


class PlainReader:
    """Reads a tensor when it is popped, by one plain read in the calling thread: the way without the worker's own.

    A context manager as `WeightReader`.
    """

    def __init__(self, wanted: Iterable[StoredTensor], device: str):
        self.stored = {stored.name: stored for stored in wanted}
        self.device = device

    def __enter__(self) -> "PlainReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.stored.clear()

    def pop(self, name: str) -> torch.Tensor:
        """A tensor. Raises `LoadError` where the file ends before it does, or cannot be read."""
        stored = self.stored.pop(name)
        label = f"{stored.file.parent.name}/{stored.file.name}"
        dtype = dtype_of(stored)
        with explain_read_errors(label), stored.file.open("rb") as stream:
            stream.seek(stored.start)
            content = bytearray(stream.read(stored.size))
        if len(content) != stored.size:
            raise LoadError(f"{label} is corrupt: it ends before its last tensor does")
        if not content:
            return torch.empty(stored.shape, dtype=dtype, device=self.device)
        return torch.frombuffer(content, dtype=dtype).reshape(stored.shape).to(self.device)

    def verify(self) -> None:
        """Nothing: only the worker's own files have checksums, and these are read by `WeightReader`."""


def reads(tensors: Iterable[ArrivingTensor]) -> Iterator[list[Piece]]:
    """The tensors' bytes in reads of at most `READ_BYTES`, each of bytes that follow one another in one file."""
    pieces: list[Piece] = []
    room, end = READ_BYTES, None
    for tensor in tensors:
        start = 0
        while start < tensor.stored.size:
            place = (tensor.stored.file, tensor.stored.start + start)
            if pieces and (not room or place != end or len(pieces) == MAX_PIECES):
                yield pieces
                pieces, room = [], READ_BYTES
            size = min(room, tensor.stored.size - start)
            pieces.append(Piece(tensor, start, size))
            start, room, end = start + size, room - size, (place[0], place[1] + size)
    if pieces:
        yield pieces


def dtype_of(stored: StoredTensor) -> torch.dtype:
    """torch's dtype of a stored tensor. Raises `LoadError` where the file's header contradicts itself."""
    label = f"{stored.file.parent.name}/{stored.file.name}"
    if stored.dtype not in DTYPES:
        raise LoadError(f"{label} holds {stored.name} as {stored.dtype[:20]}, which is not read")
    size = math.prod(stored.shape) * DTYPES[stored.dtype].itemsize
    if stored.size != size:
        raise LoadError(f"{label} is corrupt: {stored.name} must have {size:,} bytes by its shape, not {stored.size:,}")
    return DTYPES[stored.dtype]
