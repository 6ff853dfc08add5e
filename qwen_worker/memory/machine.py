"""What this machine has: GPU, memory, disk. Reads NVML and the cgroup; imports no torch and opens no CUDA context.

Knows nothing of models.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]
    total: int  # bytes
    free: int  # bytes


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes; `gpu` is None where there is none."""

    gpu: Gpu | None
    ram_total: int
    ram_available: int


def read_machine() -> Machine:
    memory = psutil.virtual_memory()
    limit = container_limit()
    total = min(memory.total, limit or memory.total)
    # Inside a container the host's free memory is not ours to use.
    available = min(memory.available, total - resident_bytes()) if limit else memory.available
    return Machine(read_gpu(), total, available)


def resident_bytes() -> int:
    return psutil.Process().memory_info().rss


def memory_in_use(machine: Machine) -> int:
    """Bytes used of the GPU where there is one, else resident in RAM."""
    return machine.gpu.total - machine.gpu.free if machine.gpu else resident_bytes()


def container_limit() -> int | None:
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
            handle = visible_handle(visible)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            capability = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return Gpu(str(name), tuple(capability), int(memory.total), int(memory.free))


def visible_handle(visible: str | None):
    """CUDA_VISIBLE_DEVICES renumbers the cards for CUDA, not for NVML."""
    first = (visible or "0").split(",")[0].strip()
    if first.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first)


def disk_free(folder: Path) -> int:
    """Free bytes where `folder` is or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
