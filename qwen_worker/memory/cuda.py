"""What the worker asks of CUDA through torch: caps, counts, caches, and whether it still works.

Answers on machines without a card too. Imports torch inside functions. Knows nothing of models or jobs.
"""

# torch has no public names for its allocators' settings and pinned buffers: docs/patches.md lists the private ones.
# pyright: reportPrivateUsage=false

import functools
import gc
import os
import sys
from collections.abc import Callable
from importlib import metadata

from ..errors import LoadError, is_out_of_memory
from ..log import log_line
from . import card
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
EXACT_SINCE = (2, 13)  # the first torch that can pin exactly
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch reads the first that is set


def cap_memory(limit_bytes: int, beside_others: bool) -> None:
    """Keep torch from taking more of the card than `limit_bytes`: an error here, not another process's.

    `beside_others`: the limit is for new tensors, beside all that torch holds already. A torch that cannot be kept to a
    share of the card goes on by the plan alone, and the log says so. Raises `LoadError` where torch cannot use the
    card, or something else has taken so much of it that the limit cannot be had.
    """
    import torch

    card.start()
    card.require_kernels()
    room_bytes = card.room_bytes(beside_others) or 0
    if room_bytes < limit_bytes:
        taken = "another process, or a limit of MPS, holds the rest"
        words = (
            f"{room_bytes / GB:.1f} GB of the card can be had and {limit_bytes / GB:.1f} GB were planned with: {taken}"
        )
        raise LoadError(words, transient=True)
    held_bytes = torch.cuda.memory_reserved() if beside_others else 0
    total_bytes = torch.cuda.mem_get_info()[1]  # what the fraction is of: less than the driver's figure for the card
    fraction = min(1.0, (held_bytes + limit_bytes - CONTEXT_BYTES) / total_bytes)
    try:
        torch.cuda.set_per_process_memory_fraction(fraction)  # pyright: ignore[reportUnknownMemberType]  not annotated
    except (AttributeError, RuntimeError, ValueError) as error:
        words = f"{type(error).__name__}: {card.first_words(error)}"
        log_line(None, "WARN", f"torch may take more of the card than its plan: it cannot be kept to a share: {words}")


def configure_allocators() -> None:
    """Have torch's allocators take as much as they are asked for; what else is set of them stays.

    Counts for the card's memory that is allocated afterwards. Only a saving: the log says what torch does not take.
    """
    import torch

    settings = allocator_settings()
    for setting in ALLOCATOR_SETTINGS:  # one by one: a torch that refuses one takes the other
        if setting.partition(":")[0] in settings:
            continue
        extended = ",".join(filter(None, [settings, setting]))
        try:
            torch._C._accelerator_setAllocatorSettings(extended)
        except (AttributeError, RuntimeError, ValueError) as error:
            report_refused_setting(setting, f"{type(error).__name__}: {card.first_words(error)}")
        else:
            settings = extended


def pinned_cost() -> int:
    """The bytes of RAM that a pinned byte takes at the most, by the torch that is installed."""
    release = tuple(int(part) for part in metadata.version("torch").split(".")[:2])
    return 1 if release >= EXACT_SINCE else 2


def allocator_settings() -> str:
    """What torch's allocators are set to; torch 2.11 does not say, and then it is what the environment asks for."""
    import torch

    read: Callable[[], str] | None = getattr(torch._C, "_accelerator_getAllocatorSettings", None)
    if read:
        return read()
    return next((value for name in ALLOCATOR_VARIABLES if (value := os.environ.get(name))), "")


@functools.cache
def report_refused_setting(setting: str, reason: str) -> None:
    """Log it, each once."""
    log_line(None, "WARN", f"torch does not take {setting}, and its allocators take more than they need: {reason}")


def release_pinned_buffers() -> None:
    """Give back pinned memory that no tensor holds, as the buffers that weights came through: torch would keep it."""
    import torch

    release: Callable[[], None] | None = getattr(torch._C, "_host_emptyCache", None)
    if release:
        release()


def release_unused(device: str) -> None:
    """Give back the memory that no tensor holds any more, before something as large is loaded."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def await_kernels(device: str) -> None:
    """Wait for what the device was asked to compute. Raises what has failed there, of which the asking says nothing."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def allocated_bytes(device: str) -> int:
    """The card's memory that torch's tensors hold; 0 for a CPU."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak_vram_gb(reset: bool = False) -> float | None:
    """The most GPU memory that tensors took since the last reset, in GB; None where torch has no GPU in use.

    Not what torch reserved: it keeps what a larger job before needed.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    peak = torch.cuda.max_memory_allocated() / GB
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return round(peak, 3)


def has_spoiled(error: BaseException) -> bool:
    """Whether the error has spoiled CUDA's context: every later call in this process would fail as well.

    Most of CUDA's errors spoil nothing: host memory that cannot be pinned, a kernel that the card cannot run, one that
    asks for too much. An error that does comes back from every later call, so the next call tells.
    """
    is_cudas = type(error).__name__ == "AcceleratorError" or any(words in str(error) for words in CUDA_FAILED)
    if not is_cudas or is_out_of_memory(error):
        return False
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.empty(1, device="cuda").cpu()
    except RuntimeError:
        return True
    return False
