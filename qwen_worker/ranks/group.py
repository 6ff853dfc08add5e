"""Tensors between the two ranks: torch.distributed, by NCCL between cards and by gloo between processors.

Whoever sends has told the other over the channel what comes, so that none waits for what is never sent. On cards both
calls are queued like a kernel, and the host does not wait. Imports torch: import it inside functions. Knows nothing of
what the tensors are.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  torch documents it there

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
# How long one exchange may take. NCCL's waits on the card for what the other card was doing, and ends the process when
# it is over; gloo's waits for a processor, and the channel says sooner when nothing will come.
SECONDS = {"nccl": 60, "gloo": 3600}
LOOPBACK = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}  # both ranks are on one machine
RANKS = 2


@dataclass(frozen=True)
class TensorShape:
    """Stands for a tensor in a message: the tensor itself comes by the group."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self, device: str) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


def open_store() -> TCPStore:
    """Where the ranks find each other: a free port of loopback, of rank 0."""
    return TCPStore("127.0.0.1", 0, RANKS, is_master=True, wait_for_workers=False)


def join(store: TCPStore, rank: int, device: str) -> None:
    """Meet the other rank, and add up a number with it. Raises `RuntimeError` with what fails, or for a wrong sum."""
    for name, value in LOOPBACK.items():
        os.environ.setdefault(name, value)
    backend = BACKENDS[device]
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=SECONDS[backend])
    )
    try:
        total = torch.full((1,), rank + 1.0, device=device)
        dist.all_reduce(total)
        if (found := total.item()) != 3:
            raise RuntimeError(f"the ranks' numbers 1 and 2 were added up to {found:g}")
    except RuntimeError:
        leave()
        raise


def reach_store(port: int) -> TCPStore:
    """Rank 1's way to the store of rank 0."""
    return TCPStore("127.0.0.1", port, RANKS, is_master=False)


class Meeting(threading.Thread):
    """`join` of rank 0, begun at once on a thread of its own. `failure`: why it has failed, empty before it has.

    Where the other rank fails within its own `join`, no call of torch.distributed ends this one's wait. Whoever hears
    of that goes on, and leaves the thread behind.
    """

    def __init__(self, store: TCPStore, device: str):
        super().__init__(name="meeting", daemon=True)
        self.store, self.device, self.failure = store, device, ""
        self.start()

    def run(self) -> None:
        try:
            join(self.store, 0, self.device)
        except (RuntimeError, ValueError) as error:
            self.failure = str(error).partition("\n")[0] or type(error).__name__


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def send(tensors: Sequence[torch.Tensor], rank: int) -> int:
    """Send each, contiguous ones, to the other `rank`. Returns their bytes.

    Takes no memory: the other has been told, and would wait for what is not sent.
    """
    for tensor in tensors:
        dist.send(tensor, rank)
    return sum(tensor.nbytes for tensor in tensors)


def receive(tensors: Sequence[torch.Tensor], rank: int) -> None:
    """Fill these with what the other `rank` sends."""
    for tensor in tensors:
        dist.recv(tensor, rank)


def pack(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value for a message, with a `TensorShape` for each tensor in it; these are added to `tensors`, contiguous."""
    if isinstance(value, torch.Tensor):
        tensors.append(value.contiguous())
        return TensorShape(tuple(value.shape), value.dtype)
    if isinstance(value, (list, tuple)):
        return type(value)(pack(one, tensors) for one in value)
    return value


def shapes_in(value: Any) -> list[TensorShape]:
    """Those in a packed value, in their order."""
    if isinstance(value, TensorShape):
        return [value]
    return [shape for one in value for shape in shapes_in(one)] if isinstance(value, (list, tuple)) else []


def unpack(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value that was packed; takes its tensors from the front of the list."""
    if isinstance(value, TensorShape):
        return tensors.pop(0)
    return type(value)(unpack(one, tensors) for one in value) if isinstance(value, (list, tuple)) else value
