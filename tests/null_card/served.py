"""The worker on the null card of this process: real settings, real jobs, through the handler's own door.

The one module here that knows the worker from inside. What of the machine the card's library does not answer is told
here: the host's memory, of which the null card pins only address space, and reads of files that are holes.
"""

import asyncio
import base64
import gc
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

import runpod_handler
from qwen_worker.loading.loaded import Loaded
from qwen_worker.memory import machine
from qwen_worker.memory.footprint import CONTEXT_BYTES, Plan
from qwen_worker.settings import Settings

from . import arithmetic, fields, sparse
from .card import Card

SPEEDUPS = "rotary,guidance,attention"  # all but compiling, which takes a minute
STEPS = 2


@dataclass(frozen=True)
class Figures:
    """What one job took, in bytes. `allocated`, `reserved`: the most by torch's allocator, with the context set aside.

    `pinned`: the host's, between jobs.
    """

    predicted: int
    allocated: int
    reserved: int
    limit: int
    pinned_planned: int
    pinned: int
    tiled: bool


class Served:
    """One worker, for one call of a test. `settings`: as the environment would have them."""

    def __init__(self, card: Card, checkpoints: Path, edit: str = "edit", **settings: Any):
        tell_host_memory(round(card.ram * 1e9))
        sparse.skip_holes()
        os.environ.setdefault("RUNPOD_DEBUG_LEVEL", "INFO")
        own = {
            "QWEN_IMAGE_MODEL": str(checkpoints / "generate"),
            "QWEN_EDIT_MODEL": str(checkpoints / edit),
            "QWEN_MODEL_ROOTS": "",
            "QWEN_LORA_ROOTS": str(checkpoints),
            "QWEN_SPEEDUPS": SPEEDUPS,
            "QWEN_FALLBACK": "forbid",
        }
        os.environ.update({name: str(value) for name, value in (own | settings).items()})
        self.worker = runpod_handler.Worker(Settings())
        self.kernels = arithmetic.install()
        self.on_inference_thread(arithmetic.SmallByCpu().__enter__)
        self.jobs = 0

    def on_inference_thread(self, work: Callable[[], Any]) -> Any:
        """What the work returns, once everything that was submitted before is over."""
        return self.worker.inference_thread.submit(work).result()

    def ask(self, **job: Any) -> dict[str, Any]:
        """The reply to a job."""
        self.jobs += 1
        return asyncio.run(self.worker.answer({"id": f"job-{self.jobs}", "input": job}))

    def plan(self, task: str) -> Plan:
        """The plan of the task's model, made and not loaded."""
        return self.on_inference_thread(lambda: self.worker.pipelines.place(task))

    def loaded(self, task: str) -> Loaded | None:
        return self.worker.pipelines.get(task)

    def draw(self, **job: Any) -> tuple[dict[str, Any], Figures]:
        """The reply to a job whose model is loaded, and what it took."""
        fields.reset_peaks()
        torch.cuda.reset_peak_memory_stats()
        reply = self.ask(**job)
        plan = self.loaded(job["task"]).plan
        wanted = job["width"], job["height"], len(job.get("images", ()))
        tiled = plan.tiles(*wanted)
        taken = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        figures = Figures(
            plan.peak(*wanted, tiled),
            *(CONTEXT_BYTES + most for most in taken),
            plan.limit,
            plan.ram,
            fields.read("pinned"),
            tiled,
        )
        return reply, figures

    def stop_inside(self, block: int, **job: Any) -> bool:
        """Stop a job while the transformer's block computes; whether it has ended as stopped."""
        transformer = self.loaded(job["task"]).pipe.transformer

        async def stopped() -> bool:
            loop, running = asyncio.get_running_loop(), asyncio.create_task(self.answer(job))
            hook = transformer.transformer_blocks[block].register_forward_pre_hook(
                lambda *_: loop.call_soon_threadsafe(running.cancel) and None
            )
            try:
                await running
            except asyncio.CancelledError:
                return True
            finally:
                hook.remove()
            return False

        found = asyncio.run(stopped())
        self.on_inference_thread(lambda: None)
        return found

    async def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        self.jobs += 1
        return await self.worker.answer({"id": f"job-{self.jobs}", "input": job})

    def held(self) -> dict[str, int]:
        """What is held between jobs: bytes of tensors on the card, bytes pinned, streams and events."""
        gc.collect()
        return {"allocated": torch.cuda.memory_allocated()} | {
            name: fields.read(name) for name in ("pinned", "streams", "events")
        }


def tell_host_memory(size: int) -> None:
    """Have the worker find a host of so many free bytes, less what is pinned; no container's limit."""
    real = psutil.virtual_memory

    def virtual_memory() -> Any:
        return real()._replace(total=size, available=size - fields.read("pinned"))

    psutil.virtual_memory = virtual_memory
    machine.CGROUP_LIMITS = ()


def job(task: str, width: int, height: int, references: int = 0, **more: Any) -> dict[str, Any]:
    """A job's input."""
    made = {"task": task, "prompt": "a fox in the snow", "num_inference_steps": STEPS, "seed": 1}
    if references:
        made["images"] = [reference()] * references
    return made | {"width": width, "height": height} | more


def reference() -> str:
    """A picture of a megapixel, as a job brings it."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(data, "PNG", compress_level=1)
    return base64.b64encode(data.getvalue()).decode()
