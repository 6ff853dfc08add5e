"""Components that are not always on the card: a text encoder that streams through it, transformers that take turns.

Weights wait in pinned host memory and never change, so nothing is ever copied back. Streaming is diffusers' group
offloading, leaf by leaf, the next one's copy under the present one's work.
Imports torch: import it inside functions. Knows nothing of plans or jobs.
"""

import time

import torch

# By default torch rounds every pinned block up to a power of two: 5.5 GB of rows take 8.6, a matrix of 75 MB takes 134.
# A plan counts what is asked for. What diffusers pins goes by this setting too.
PINNED_EXACTLY = "pinned_max_round_threshold_mb:1"


def pin_exactly() -> None:
    """Have torch pin as much as it is asked for; what else is set of its allocators stays."""
    before = torch._C._accelerator_getAllocatorSettings()
    if PINNED_EXACTLY.partition(":")[0] not in before:
        torch._C._accelerator_setAllocatorSettings(",".join(filter(None, [before, PINNED_EXACTLY])))


def release_buffers() -> None:
    """Give back pinned memory that nobody holds, as the buffers that weights came through: torch would keep it."""
    torch._C._host_emptyCache()


def stream(module: torch.nn.Module, device: str) -> None:
    """Make a module that lies in host memory compute on `device`, its weights there only while they are used."""
    from diffusers.hooks import apply_group_offloading

    overlapped = {"use_stream": True, "non_blocking": True, "record_stream": True} if device == "cuda" else {}
    apply_group_offloading(module, torch.device(device), torch.device("cpu"), "leaf_level", **overlapped)


class Turns:
    """Transformers of which one at a time is on the device."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.waiting: dict[str, dict[str, torch.Tensor]] = {}  # by name: the parameters' home in host memory
        self.modules: dict[str, torch.nn.Module] = {}
        self.active: str | None = None

    def add(self, name: str, module: torch.nn.Module) -> None:
        """Take in a module, on the device or in the host memory that is to be its home; it gets the turn."""
        if plain(module):
            self.waiting[name] = {key: pinned(p.detach(), self.device) for key, p in module.named_parameters()}
        self.modules[name] = module
        if next(module.parameters()).device.type == self.device.type:
            self.active = name
        else:
            self.activate(name)

    def drop(self, name: str) -> None:
        """Forget a module, if it is one of these."""
        self.waiting.pop(name, None)
        self.modules.pop(name, None)
        if self.active == name:
            self.active = None

    def clear(self) -> None:
        """Nothing on the device: room for a module that is about to be loaded."""
        if self.active is None:
            return
        module = self.modules[self.active]
        if home := self.waiting.get(self.active):
            for key, parameter in module.named_parameters():
                parameter.data = home[key]
        else:
            module.to("cpu")
        self.active = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def activate(self, name: str) -> float:
        """Give a module the turn. Returns the seconds that it took, 0 if it had it."""
        if self.active == name:
            return 0.0
        started = time.perf_counter()
        self.clear()
        module = self.modules[name]
        if name in self.waiting:
            for parameter in module.parameters():
                parameter.data = parameter.data.to(self.device, non_blocking=True)
        else:
            module.to(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.active = name
        return time.perf_counter() - started


def plain(module: torch.nn.Module) -> bool:
    """Whether its parameters are ordinary tensors; quantized ones carry more than their data."""
    return all(type(parameter.data) is torch.Tensor for parameter in module.parameters())


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In host memory from where the device fetches; the tensor itself if it lies there."""
    if device.type == "cuda":
        return tensor if tensor.is_pinned() else tensor.cpu().pin_memory()
    return tensor.to("cpu", copy=True)
