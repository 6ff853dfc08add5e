"""What this machine has: GPU, memory, disk. Opens no CUDA context, but where NVML cannot say what CUDA would use.

Knows nothing of models.
"""

import ctypes
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..errors import LoadError
from . import card, container, nvml
from .nvml import Gpu


@dataclass(frozen=True)
class Machine:
    """`gpu` is None where there is none that can be used; `gpu_obstacle`: why a driver that is here shows none.

    `process_bytes`: the RAM that this process holds, which is not available any more.
    """

    gpu: Gpu | None
    ram_total_bytes: int
    ram_available_bytes: int
    process_bytes: int = 0
    gpu_obstacle: str = ""


def read_machine() -> Machine:
    """What there is now."""
    gpu, obstacle = look_for_gpu()
    return Machine(gpu, *read_ram(), resident_bytes(), obstacle)


def read_ram() -> tuple[int, int]:
    """The bytes of RAM in all, and those that are available now.

    A container may not use all that its host has free: its tightest limit counts.
    """
    memory = psutil.virtual_memory()
    total_bytes, available_bytes = memory.total, memory.available
    for limit in container.read_limits():
        used_bytes = resident_bytes() if limit.used_bytes is None else limit.used_bytes
        total_bytes = min(total_bytes, limit.bytes)
        available_bytes = min(available_bytes, max(0, limit.bytes - used_bytes))
    return total_bytes, available_bytes


def resident_bytes() -> int:
    """RAM that this process holds."""
    return psutil.Process().memory_info().rss


def bytes_in_use(machine: Machine) -> int:
    """Of the GPU, by all processes, where there is one; else the RAM that this process holds."""
    return machine.gpu.total_bytes - machine.gpu.free_bytes if machine.gpu else resident_bytes()


def read_gpu() -> Gpu | None:
    """The first GPU that CUDA uses, or None where none can be used."""
    return look_for_gpu()[0]


def read_second_gpu() -> Gpu | None:
    """The second GPU that CUDA uses, or None where there is none, or where NVML cannot tell."""
    try:
        return nvml.read_card(1)
    except nvml.Unreadable:
        return None


def look_for_gpu() -> tuple[Gpu | None, str]:
    """The first GPU that CUDA uses, or None and, where a driver is here, why it cannot be used.

    NVML answers where it can. Where it cannot, as in a container without its library, torch may see a card all the
    same: CUDA is opened then.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return None, ""
    try:
        return nvml.read_card(), ""
    except nvml.Unreadable as unreadable:
        if not has_driver():
            return None, ""
        try:
            return card.read_device(), ""
        except LoadError as failure:
            return None, f"{unreadable}; {failure.reason}"


def has_driver() -> bool:
    """Whether there is NVIDIA's driver library, which torch asks for a card: without it torch need not be imported."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def free_disk_bytes(folder: Path) -> int:
    """Free bytes of the disk on which `folder` is or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
