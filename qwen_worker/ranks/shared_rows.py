"""Host memory that both ranks see: the rows of the modulation table, 5.5 GB for 20B, are there once.

A file without a name that lies in memory, and not one below /dev/shm: containers often have 64 MB there. Each rank
registers it with CUDA, so that its card fetches from it as from pinned memory. Imports torch: import it inside
functions. Knows nothing of rows.
"""

import ctypes
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from ..log import log_line


@dataclass(frozen=True)
class SharedHandle:
    """By which the other rank finds the memory: the path is readable for as long as rank 0 has it."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class SharedRows:
    """One block of such memory, from `make` to `close`."""

    def __init__(self) -> None:
        self.descriptor = -1
        self.tensor: torch.Tensor | None = None
        self.registered = False

    @property
    def handle(self) -> SharedHandle | None:
        """None before `make`."""
        if self.tensor is None:
            return None
        path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        return SharedHandle(path, tuple(self.tensor.shape), self.tensor.dtype)

    def make(self, shape: Sequence[int], dtype: torch.dtype, pinned: bool) -> torch.Tensor:
        """An uninitialized tensor. Raises `OSError` where the system has no such memory."""
        self.descriptor = os.memfd_create("modulation table")
        os.ftruncate(self.descriptor, math.prod(shape) * dtype.itemsize)
        path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        return self.map(SharedHandle(path, tuple(shape), dtype), pinned)

    def map(self, handle: SharedHandle, pinned: bool) -> torch.Tensor:
        """The tensor that another rank has made, or this one. Raises `RuntimeError` where it is gone."""
        count = math.prod(handle.shape)
        flat = torch.from_file(handle.path, shared=True, size=count, dtype=handle.dtype)
        self.tensor = flat.view(handle.shape)
        if pinned:
            self.register(self.tensor)
        return self.tensor

    def register(self, tensor: torch.Tensor) -> None:
        """Pin the memory; where the system refuses, copies to the card wait, and the log says so."""
        refused = int(cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
        self.registered = not refused
        if refused:
            # CUDA's last error would be taken for that of the next kernel, which fails then.
            with suppress(AttributeError):  # a torch that has CUDA's runtime within itself does not show it
                ctypes.CDLL(None).cudaGetLastError()
            words = f"the modulation table is not pinned, so that copies of it wait: CUDA error {refused}"
            log_line(None, "WARN", words)

    def close(self) -> None:
        """Give the memory back once no tensor has it any more."""
        if self.registered and self.tensor is not None:
            cudart().cudaHostUnregister(self.tensor.data_ptr())
        self.tensor, self.registered = None, False
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def cudart() -> Any:
    """CUDA's runtime, as torch gives it to Python."""
    return torch.cuda.cudart()
