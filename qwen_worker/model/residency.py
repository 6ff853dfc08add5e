"""Components that are not always on the card: a text encoder that streams through it, transformers that are swapped.

Weights wait in pinned host memory and never change, so nothing is ever copied back. Streaming is diffusers' group
offloading, leaf by leaf: the next leaf is copied while the present one computes.
Imports torch: import it inside functions. Knows nothing of plans or jobs.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .host_memory import pinning

# Of pinned memory that is asked for at once. torch rounds a block below a MiB up to a power of two, and for one of some
# MiB it hands out a larger buffer that weights came through: tensor by tensor, an NF4 transformer takes 0.4 GB more.
BLOCK_BYTES = 1 << 30
ALIGNMENT = 16  # bytes

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TraceableWrapperSubclass


def stream(module: torch.nn.Module, device: str) -> None:
    """Make a module that lies in host memory compute on `device`, its weights there only while they are used."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    if device == "cuda":
        for parameter in module.parameters():  # diffusers pins what is not, and fails where it cannot
            parameter.data = pinning.pin(parameter.data)
    overlapped = device == "cuda" and not pinning.refusal
    with vision_apart(module) as parts:
        for part in parts:
            apply_group_offloading(
                part,
                torch.device(device),
                torch.device("cpu"),
                "leaf_level",
                use_stream=overlapped,
                non_blocking=overlapped,
                record_stream=overlapped,
            )


@contextmanager
def vision_apart(module: torch.nn.Module) -> Iterator[list[torch.nn.Module]]:
    """Within, the module lacks its vision tower, if it has one. Gives the module and the tower.

    diffusers takes the order in which layers are fetched from the first run. A prompt without a picture leaves the
    tower out: in one order with the rest, its layers would be missed with a warning, and their runs be noted for ever.
    """
    inner = getattr(module, "model", None)
    tower = getattr(inner, "visual", None)
    if inner is None or tower is None:
        yield [module]
        return
    inner.visual = torch.nn.Identity()
    try:
        yield [module, tower]
    finally:
        inner.visual = tower


@dataclass(frozen=True)
class Home:
    """Where a plain tensor waits in host memory, and the attribute that holds it or its copy on the device."""

    owner: Any
    attribute: str
    tensor: torch.Tensor

    def load(self, device: torch.device) -> None:
        """Have the owner hold a copy on the device, which is still on its way when this returns."""
        setattr(self.owner, self.attribute, self.tensor.to(device, non_blocking=True))

    def unload(self) -> None:
        """Have the owner hold the tensor in host memory."""
        setattr(self.owner, self.attribute, self.tensor)


class Swap:
    """Transformers of which one at a time is on the device."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.homes: dict[str, list[Home]] = {}  # by the module's name, of its parameters
        self.modules: dict[str, torch.nn.Module] = {}
        self.active: str | None = None

    def add(self, name: str, module: torch.nn.Module) -> None:
        """Add a module, on the device or in the host memory that is to be its home; it is active then."""
        found = [place for parameter in module.parameters() for place in plain_tensors(parameter)]
        waiting = pin_together([tensor for _, _, tensor in found], self.device)
        self.homes[name] = [
            Home(owner, attribute, tensor) for (owner, attribute, _), tensor in zip(found, waiting, strict=True)
        ]
        self.modules[name] = module
        if next(module.parameters()).device.type == self.device.type:
            self.active = name
        else:
            self.activate(name)

    def drop(self, name: str) -> None:
        """Forget a module, if it is one of these."""
        self.homes.pop(name, None)
        self.modules.pop(name, None)
        if self.active == name:
            self.active = None

    def clear(self) -> None:
        """Bring the active module back to host memory: room on the device for one that is about to be loaded."""
        if self.active is not None:
            for home in self.homes[self.active]:
                home.unload()
        self.active = None

    def activate(self, name: str) -> float:
        """Bring a module to the device. Returns the seconds that it took, 0 if it was there.

        Raises `torch.OutOfMemoryError`; no module is on the device then.
        """
        if self.active == name:
            return 0.0
        started = time.perf_counter()
        self.clear()
        self.active = name  # from its first tensor on: if the device is short of memory, `clear` brings it back whole
        try:
            for home in self.homes[name]:
                home.load(self.device)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            self.clear()
            raise
        return time.perf_counter() - started


def plain_tensors(holder: "torch.Tensor | TraceableWrapperSubclass") -> Iterator[tuple[Any, str, torch.Tensor]]:
    """(owner, attribute, tensor) of what a parameter consists of: its data, or a quantized one's values and scales."""
    if not is_traceable_wrapper_subclass(holder):
        yield holder, "data", holder.detach()
        # bitsandbytes keeps an NF4 weight's scales, 0.2 GB of a transformer, in an object beside the data. The object's
        # other tensors are tables of some kilobytes: they stay where they are.
        if (state := getattr(holder, "quant_state", None)) is not None:
            yield state, "absmax", state.absmax
        return
    for name in holder.__tensor_flatten__()[0]:
        inner = getattr(holder, name)
        if is_traceable_wrapper_subclass(inner):
            yield from plain_tensors(inner)
        else:
            yield holder, name, inner


def pin_together(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """What `pin` returns of each; copies that are pinned lie side by side in large blocks."""
    if device.type != "cuda":
        return [pin(tensor, device) for tensor in tensors]
    moved = [tensor for tensor in tensors if not tensor.is_pinned() and tensor.is_contiguous()]
    left_bytes, block = sum(map(aligned_bytes, moved)), torch.empty(0, dtype=torch.uint8)
    copies: dict[int, torch.Tensor] = {}
    for tensor in moved:
        size = aligned_bytes(tensor)
        if len(block) < size:
            block = pinning.empty((max(size, min(BLOCK_BYTES, left_bytes)),), torch.uint8)
        memory, block = block[: tensor.nbytes], block[size:]
        copies[id(tensor)] = memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        left_bytes -= size
    return [copies[id(tensor)] if id(tensor) in copies else pin(tensor, device) for tensor in tensors]


def aligned_bytes(tensor: torch.Tensor) -> int:
    """The tensor's bytes, and those up to where a tensor of any dtype may begin."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy in the host memory that a card fetches from, or the tensor itself if it lies there; for a CPU, a copy."""
    if device.type == "cuda":
        return pinning.pin(tensor)
    return tensor.to("cpu", copy=True)
