"""The card that a part has to itself: its cap, and the memory in use on it, seen from both sides.

torch counts what it has reserved, NVML what is in use on the card: the difference is the CUDA context with its
libraries. Imports torch inside functions. Knows nothing of models.
"""

import importlib
import time
from collections.abc import Iterable
from typing import Any

from qwen_worker.loading import libraries
from qwen_worker.memory.footprint import GB, GIB
from qwen_worker.memory.machine import read_gpu


class Card:
    """The card as this process uses it, or the CPU where there is none; make it before torch opens a context.

    `cap_gb`: GB (1e9) of a smaller card that this one stands in for, None for all of it.
    """

    def __init__(self, cap_gb: float | None):
        gpu = read_gpu()
        self.device = "cuda" if gpu else "cpu"
        self.cap_bytes = round(cap_gb * GB) if gpu and cap_gb else None
        self.bytes_before = gpu.total_bytes - gpu.free_bytes if gpu else 0
        self.times_full_before = 0

    def open_context(self) -> float:
        """Import what pipelines are made of and open the context; the seconds that both took, which no load counts."""
        import torch

        started = time.perf_counter()
        libraries.import_all()
        importlib.import_module("diffusers").QwenImageEditPipeline  # noqa: B018  imported when it is first asked for
        if self.device == "cuda":
            torch.zeros(1, device="cuda")
        return time.perf_counter() - started

    def set_cap(self) -> None:
        """Let torch take the cap less a GiB, which is the context's: more is an error, as on a card of that size."""
        import torch

        if self.cap_bytes:
            total = torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, (self.cap_bytes - GIB) / total))

    def reset_peaks(self) -> None:
        """Give torch's unused memory back and count peaks from here on."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.times_full_before = times_full()

    def peaks(self) -> dict[str, float]:
        """The peaks since the last `reset_peaks` in GB, by the names of a row's fields; empty on a CPU."""
        import torch

        gpu = read_gpu()
        if self.device == "cpu" or gpu is None:
            return {}
        reserved = torch.cuda.max_memory_reserved()
        context = gpu.total_bytes - gpu.free_bytes - self.bytes_before - torch.cuda.memory_reserved()
        return {
            "allocated peak GB": gb(torch.cuda.max_memory_allocated()),
            "reserved peak GB": gb(reserved),
            "context GB": gb(context),
            "peak GB": gb(reserved + context),
            "times full": times_full() - self.times_full_before,
            "pinned GB": gb(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)),
        }

    def weights_gb(self, pipes: Iterable[Any]) -> float:
        """GB of these pipelines' weights that lie on the device between jobs."""
        import torch

        if self.device == "cuda":
            return gb(torch.cuda.memory_allocated())
        components = (component for pipe in pipes for component in pipe.components.values())
        modules = (component for component in components if hasattr(component, "parameters"))
        held = {p.data_ptr(): p.numel() * p.element_size() for module in modules for p in module.parameters()}
        return round(sum(held.values()) / GB, 6)


def times_full() -> int:
    """How often torch found no room, under the cap or on the card, and emptied its cache or gave up."""
    import torch

    counts = torch.cuda.memory_stats()
    return counts.get("num_alloc_retries", 0) + counts.get("num_ooms", 0)


def gb(count: float) -> float:
    """Bytes as GB, for a row."""
    return round(count / GB, 2)
