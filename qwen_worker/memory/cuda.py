"""What the worker asks of CUDA through torch: caps, counts, caches, and whether it still works.

Answers on machines without a card too. Imports torch inside functions. Knows nothing of models or jobs.
"""

import gc
import sys

from ..errors import LoadError
from .footprint import CONTEXT_BYTES, GB

CUDA_FAILED = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")  # in torch's words, and compiled kernels'
# By default torch rounds every pinned block up to a power of two: 5.5 GB of rows take 8.6, a matrix of 75 MB takes 134.
# A plan counts what is asked for. What diffusers pins goes by this setting too.
PINNED_EXACTLY = "pinned_max_round_threshold_mb:1"


def cap_memory(limit: int, beside: bool) -> None:
    """Keep torch from taking more of the card than `limit` bytes: an error here, not another process's.

    `beside`: the limit is of what is free beside all that torch holds. Raises `LoadError` where torch has no card.
    """
    import torch

    if not torch.cuda.is_available():
        raise LoadError("there is a GPU here that torch cannot use: the driver is older than torch's CUDA")
    held = torch.cuda.memory_reserved() if beside else 0
    total = torch.cuda.mem_get_info()[1]  # what the fraction is of: less than the driver's figure for the card
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + limit - CONTEXT_BYTES) / total))


def pin_exactly() -> None:
    """Have torch pin as much as it is asked for; what else is set of its allocators stays."""
    import torch

    before = torch._C._accelerator_getAllocatorSettings()
    if PINNED_EXACTLY.partition(":")[0] not in before:
        torch._C._accelerator_setAllocatorSettings(",".join(filter(None, [before, PINNED_EXACTLY])))


def release_buffers() -> None:
    """Give back pinned memory that nobody holds, as the buffers that weights came through: torch would keep it."""
    import torch

    torch._C._host_emptyCache()


def forget(device: str) -> None:
    """Give back the memory of what nobody holds any more, before something as large is loaded."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def allocated(device: str) -> int:
    """Bytes of the card that torch's tensors hold; 0 for a CPU."""
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


def spoils_the_worker(error: Exception) -> bool:
    """Whether CUDA itself has failed: every later call in this process would as well."""
    return type(error).__name__ == "AcceleratorError" or any(words in str(error) for words in CUDA_FAILED)
