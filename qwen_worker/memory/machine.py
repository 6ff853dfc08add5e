"""What this machine has: GPU, memory, disk. Reads NVML and the cgroup; imports no torch and opens no CUDA context.

Knows nothing of models.
"""

# pynvml has neither stubs nor annotations; its functions and their results are still checked against its source.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]  # CUDA's compute capability, as (8, 9)
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """`gpu` is None where there is none."""

    gpu: Gpu | None
    ram_total_bytes: int
    ram_available_bytes: int


def read_machine() -> Machine:
    memory = psutil.virtual_memory()
    limit_bytes = container_limit_bytes()
    total_bytes = min(memory.total, limit_bytes or memory.total)
    available_bytes = memory.available
    if limit_bytes:  # inside a container the host's free memory is not the worker's to use
        available_bytes = min(available_bytes, total_bytes - resident_bytes())
    return Machine(read_gpu(), total_bytes, available_bytes)


def resident_bytes() -> int:
    """RAM that this process holds."""
    return psutil.Process().memory_info().rss


def bytes_in_use(machine: Machine) -> int:
    """Of the GPU, by all processes, where there is one; else the RAM that this process holds."""
    return machine.gpu.total_bytes - machine.gpu.free_bytes if machine.gpu else resident_bytes()


def container_limit_bytes() -> int | None:
    """The RAM that the cgroup allows this process; None without a cgroup or a limit."""
    for path in CGROUP_LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def read_gpu() -> Gpu | None:
    """The first GPU that CUDA would use, or None without a driver, a card or permission to see one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return None
    try:
        pynvml.nvmlInit()
        try:
            handle = nvml_handle(visible)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return Gpu(str(name), (major, minor), int(memory.total), int(memory.free))


def nvml_handle(visible: str | None) -> Any:
    """NVML's handle of the first card in CUDA_VISIBLE_DEVICES, which renumbers the cards for CUDA, not for NVML."""
    first = (visible or "0").split(",")[0].strip()
    if first.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first)


def free_disk_bytes(folder: Path) -> int:
    """Free bytes of the disk on which `folder` is or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
