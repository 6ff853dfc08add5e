"""What the worker asks of CUDA through torch: caps, counts, caches, and whether it still works.

Answers on machines without a card too. Imports torch inside functions. Knows nothing of models or jobs.
"""

# torch has no public names for its allocators' settings and pinned buffers: docs/patches.md lists the private ones.
# pyright: reportPrivateUsage=false

import gc
import sys

from ..errors import LoadError
from .footprint import CONTEXT_BYTES, GB

CUDA_FAILED = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")  # in torch's words, and compiled kernels'
# What is set of torch's allocators where the environment has not set the same.
ALLOCATOR_SETTINGS = (
    # By default torch rounds every pinned block up to a power of two: the modulation table's 5.5 GB take 8.6, a matrix
    # of 75 MB takes 134. A plan counts what is asked for. What diffusers pins goes by this setting too.
    "pinned_max_round_threshold_mb:1",
    # By default memory that torch has freed is kept in blocks that cannot be joined: a VAE finds no room for a tensor
    # of a gigabyte beside several gigabytes in smaller blocks, and the cap counts them all.
    "expandable_segments:True",
)


def cap_memory(limit_bytes: int, beside_others: bool) -> None:
    """Keep torch from taking more of the card than `limit_bytes`: an error here, not another process's.

    `beside_others`: the limit is for new tensors, beside all that torch holds already. Raises `LoadError` where torch
    has no card.
    """
    import torch

    if not torch.cuda.is_available():
        raise LoadError("there is a GPU here that torch cannot use: the driver is older than torch's CUDA")
    held_bytes = torch.cuda.memory_reserved() if beside_others else 0
    total_bytes = torch.cuda.mem_get_info()[1]  # what the fraction is of: less than the driver's figure for the card
    fraction = min(1.0, (held_bytes + limit_bytes - CONTEXT_BYTES) / total_bytes)
    torch.cuda.set_per_process_memory_fraction(fraction)  # pyright: ignore[reportUnknownMemberType]  not annotated


def configure_allocators() -> None:
    """Have torch's allocators take as much as they are asked for; what else is set of them stays.

    Counts for the card's memory that is allocated afterwards.
    """
    import torch

    before = torch._C._accelerator_getAllocatorSettings()
    added = [setting for setting in ALLOCATOR_SETTINGS if setting.partition(":")[0] not in before]
    if added:
        torch._C._accelerator_setAllocatorSettings(",".join(filter(None, [before, *added])))


def release_pinned_buffers() -> None:
    """Give back pinned memory that no tensor holds, as the buffers that weights came through: torch would keep it."""
    import torch

    torch._C._host_emptyCache()


def release_unused(device: str) -> None:
    """Give back the memory that no tensor holds any more, before something as large is loaded."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def allocated_bytes(device: str) -> int:
    """The card's memory that torch's tensors hold; 0 for a CPU."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak_vram_gb(reset: bool = False) -> float | None:
    """The most GPU memory that torch has reserved since the last reset, in GB; None where torch has no GPU in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    peak = torch.cuda.max_memory_reserved() / GB
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return round(peak, 3)


def is_cuda_failure(error: Exception) -> bool:
    """Whether CUDA itself has failed: every later call in this process would as well."""
    return type(error).__name__ == "AcceleratorError" or any(words in str(error) for words in CUDA_FAILED)
