"""Whether torch can compute on the card that is here, or why not in words, and how much of it this process may have.

What a driver, an image or another process spoils shows here, before weights are read. Imports torch inside functions.
Knows nothing of models or jobs.
"""

import functools
import sys
import threading
from typing import TYPE_CHECKING

from ..errors import LoadError, is_out_of_memory
from .footprint import CONTEXT_BYTES
from .nvml import Gpu, Unreadable, driver_cuda, driver_version, read_card

if TYPE_CHECKING:
    import torch

NEWER_BUILD = "--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130"  # with kernels for Blackwell cards
OLDER_BUILD = "--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126"  # for drivers from 525
SIDE = 256  # of the matrices that try the card: every sum of their product is a number that bfloat16 has
PINNED_BYTES = 1_000_000
starting = threading.Lock()


def try_out() -> None:
    """Compute one product in bfloat16, and copy it back through pinned memory. Raises `LoadError` with what fails.

    Memory that cannot be pinned is no failure: the worker goes on without, as it says then.
    """
    import torch

    start()
    require_kernels()
    step = "a product in bfloat16"
    try:
        ones = torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device="cuda")
        product = ones @ ones
        torch.cuda.synchronize()
        step = "a copy from the card"
        host = host_memory()
        copied = host[: product.nbytes].view(torch.bfloat16).copy_(product.flatten())
        right = bool((copied == SIDE).all())
    except RuntimeError as error:
        raise LoadError(f"{name()} cannot be used: {step} fails: {first_words(error)}") from None
    if not right:
        raise LoadError(f"{name()} cannot be used: a product in bfloat16 is wrong")


def host_memory() -> "torch.Tensor":
    """Bytes for a copy from the card, pinned where that can be had."""
    import torch

    try:
        return torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return torch.empty(PINNED_BYTES, dtype=torch.uint8)


def start() -> None:
    """Open CUDA, if it is not open. Raises `LoadError` with torch's words, or with the versions that do not agree."""
    import torch

    try:
        with starting:  # the context's bytes are measured once
            torch.cuda.init()
            open_context()
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        raise LoadError(why_not_started(first_words(error))) from None


def why_not_started(words: str) -> str:
    """`words`: torch's own."""
    import torch

    if torch.version.cuda is None:
        return f"there is a GPU here, and torch {torch.__version__} is a build for CPUs"
    built = built_for()
    driver, newest = driver_version() or "of an unknown version", driver_cuda()
    if newest and newest[0] < built[0]:
        too_old = f"the driver {driver} runs CUDA up to {newest[0]}.{newest[1]} and is too old for torch's CUDA"
        other_build = f", or an image with {OLDER_BUILD}" if built[0] > 12 and newest[0] == 12 else ""
        return f"{too_old} {torch.version.cuda}: a host with a newer driver is needed{other_build}"
    return f"torch cannot use the GPU: {words} (driver {driver}, torch's CUDA {torch.version.cuda})"


def built_for() -> tuple[int, ...]:
    """The CUDA that torch is built for, as (12, 6)."""
    import torch

    return tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])


def require_kernels() -> None:
    """Refuse a card that this build of torch has no kernels for: its first operation would fail. Raises `LoadError`."""
    import torch

    capability, architectures = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if architectures and not any(runs_on(architecture, capability) for architecture in architectures):
        major, minor = capability
        advice = f": build the image with {NEWER_BUILD}" if capability[0] >= 10 and built_for() < (12, 8) else ""
        raise LoadError(
            f"torch for CUDA {torch.version.cuda} has no kernels for {name()} (compute capability {major}.{minor}), "
            f"only {' '.join(architectures)}{advice}"
        )


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architecture`, as torch lists it, runs on a card of this compute capability.

    sm_86 is code for cards of major version 8 from 8.6; sm_90a for 9.0 alone, compute_90 for all cards from 9.0.
    """
    kind, _, number = architecture.partition("_")
    major, minor = divmod(int(number.rstrip("af")), 10)
    if kind == "compute":
        return (major, minor) <= capability
    return major == capability[0] and (minor == capability[1] if number.endswith("a") else minor <= capability[1])


@functools.cache
def open_context() -> int:
    """The bytes of the card that CUDA's context takes of it, which is made here; 0 where NVML does not say."""
    import torch

    before_bytes = nvml_free_bytes()
    torch.cuda.mem_get_info()
    return min(max(0, before_bytes - nvml_free_bytes()), CONTEXT_BYTES)


def nvml_free_bytes() -> int:
    try:
        return read_card().free_bytes
    except Unreadable:
        return 0


def read_device() -> Gpu:
    """The card as torch sees it. Raises `LoadError` where it sees none."""
    import torch

    start()
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return Gpu(name(), torch.cuda.get_device_capability(), total_bytes, free_bytes)


def room_bytes(beside_others: bool) -> int | None:
    """What this process may have of the card, its context included; None before CUDA is open.

    That is what nobody holds, and what torch holds by now, unless new tensors come `beside_others`. Other processes and
    limits that NVML knows nothing of, as under MPS, are counted.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    held_bytes = 0 if beside_others else torch.cuda.memory_reserved()
    return torch.cuda.mem_get_info()[0] + held_bytes + open_context()


def name() -> str:
    import torch

    return torch.cuda.get_device_name()


def first_words(error: Exception) -> str:
    """The first sentence of what torch says: advice, addresses and a traceback may follow."""
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
