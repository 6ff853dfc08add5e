"""The worker on the null card of this process: real settings, real jobs, through the handler's own door.

The one module here that knows the worker from inside. What of the machine the card's library does not answer is told
here: the host's memory, of which the null card pins only address space, and reads of files that are holes.
"""

import asyncio
import base64
import functools
import gc
import io
import os
import resource
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from PIL import Image

import runpod_handler
from qwen_worker.drawing import finite, job_plan
from qwen_worker.drawing.queue import DrawingJob
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.loading.loaded import LoadedPipeline
from qwen_worker.lora.file import LoraUse
from qwen_worker.memory import container
from qwen_worker.memory.footprint import CONTEXT_BYTES, Plan
from qwen_worker.pictures.canvas import Canvas
from qwen_worker.settings import Settings

from . import arithmetic, fields, sparse
from .card import Card, cache_folder

NOWHERE = "/nowhere"  # in place of a model that the endpoint does not have
UNCOMPILED = "rotary,guidance,attention"  # all speed-ups but compiling, which takes a minute
STEPS = 2


@dataclass(frozen=True)
class Figures:
    """What one job took, in bytes. `allocated`, `reserved`: the most by torch's allocator, with the context set aside.

    `room`: what is planned for it beside the weights, `worked`: what was allocated beside all that was held before;
    `pinned`: the host's, between jobs; `models`: how many were loaded; `fits`, `tiled`: by plan; `out_of_memory`: how
    often torch found no room.
    """

    predicted: int
    allocated: int
    reserved: int
    room: int
    worked: int
    pinned: int
    models: int
    fits: bool
    tiled: bool
    out_of_memory: int


class Served:
    """One worker, for one call of a test.

    `generate`, `edit`: checkpoints of `sparse`, None for a model that the endpoint does not have; `settings`: of the
    worker, as the environment would have them.
    """

    def __init__(self, card: Card, generate: str | None = None, edit: str | None = None, **settings: Any):
        tell_host_memory(round(card.ram * 1e9))
        sparse.skip_holes()
        # Nothing has drawn the pictures: they are full of numbers that no colour has.
        warnings.filterwarnings("ignore", "(overflow|invalid value) encountered", RuntimeWarning)
        finite.FiniteCheck.require_numbers = lambda check: None
        checkpoints = sparse.folder()
        own = {
            "QWEN_IMAGE_MODEL": checkpoints / generate if generate else NOWHERE,
            "QWEN_EDIT_MODEL": checkpoints / edit if edit else NOWHERE,
            "QWEN_MODEL_ROOTS": NOWHERE,
            "QWEN_LORA_ROOTS": checkpoints,
            "QWEN_SPEEDUPS": UNCOMPILED,
            "QWEN_COMPILED_FOLDER": cache_folder() / "compiled",
            "QWEN_FALLBACK": "forbid",
            "QWEN_SELF_CHECK": "off",  # no number is right here
        }
        os.environ.update({name: str(value) for name, value in (own | settings).items()})
        self.worker = runpod_handler.Worker(Settings())
        self.kernels = arithmetic.install()
        self.on_inference_thread(arithmetic.SmallByCpu().__enter__)
        self.jobs = 0

    def on_inference_thread(self, work: Callable[[], Any]) -> Any:
        """What the work returns, once everything that was submitted before is over."""
        return self.worker.inference_thread.submit(work).result()

    def plan(self, task: str) -> Plan:
        """The plan of the task's model, made and not loaded. Raises `LoadError`."""
        return self.on_inference_thread(functools.partial(self.worker.pipelines.place, task))

    def loaded(self, task: str) -> LoadedPipeline:
        """The task's pipeline; raises `AssertionError` where it is not loaded."""
        found = self.worker.pipelines.get(task)
        assert found is not None, f"{task} is not loaded"
        return found

    def ask(self, task: str, width: int, height: int, references: int = 0, **more: Any) -> dict[str, Any]:
        """The reply to a job."""
        return asyncio.run(self.answer(job(task, width, height, references, **more)))

    async def answer(self, fields_of_job: dict[str, Any]) -> dict[str, Any]:
        self.jobs += 1
        return await self.worker.answer({"id": f"job-{self.jobs}", "input": fields_of_job})

    def load(self, task: str) -> dict[str, int]:
        """Load the task's model if it is not; the most that was taken meanwhile, in bytes. Raises `LoadError`."""
        fields.reset_peaks()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        if failure := self.worker.loader.why_not_loaded(task):
            raise failure
        return {
            "allocated": CONTEXT_BYTES + torch.cuda.max_memory_allocated(),
            "reserved": CONTEXT_BYTES + torch.cuda.max_memory_reserved(),
            "pinned": fields.read("pinned_peak"),
        }

    def draw(
        self, task: str, width: int, height: int, references: int = 0, **more: Any
    ) -> tuple[dict[str, Any], Figures]:
        """The reply to a job, its model loaded before, and what it took. Raises `LoadError`."""
        self.load(task)
        torch.cuda.reset_peak_memory_stats()
        before, held = torch.cuda.memory_stats()["num_ooms"], torch.cuda.memory_allocated()
        reply = self.ask(task, width, height, references, **more)
        plan = self.loaded(task).plan
        if "loras" in more:
            plan = self.plan_with_loras(task, width, height, references, **more)
        tiled = plan.needs_tiles(width, height, references)
        predicted = plan.peak_bytes(width, height, references, tiled)
        return reply, Figures(
            predicted=predicted,
            allocated=CONTEXT_BYTES + torch.cuda.max_memory_allocated(),
            reserved=CONTEXT_BYTES + torch.cuda.max_memory_reserved(),
            room=predicted - CONTEXT_BYTES - plan.weight_bytes,
            worked=torch.cuda.max_memory_allocated() - held,
            pinned=fields.read("pinned"),
            models=len(self.worker.pipelines.loaded),
            fits=plan.fits(width, height, references),
            tiled=tiled,
            out_of_memory=torch.cuda.memory_stats()["num_ooms"] - before,
        )

    def plan_with_loras(self, task: str, width: int, height: int, references: int, **more: Any) -> Plan:
        """The loaded task's plan for a job that brings LoRAs."""
        files = [self.worker.loras.open(lora["path"], "a LoRA", threading.Event()) for lora in more["loras"]]
        request = parse(job(task, width, height, references, **more), "planned")
        uses = tuple(LoraUse(file, 1.0, "a LoRA") for file in files)
        canvas = Canvas([Image.new("RGB", (8, 8))] * references, None, (width, height))
        loaded = self.loaded(task)
        return job_plan.plan_for(DrawingJob(Job("planned", request), canvas, uses), loaded.plan, loaded)

    def stop_inside(self, block: int, task: str, width: int, height: int, references: int = 0) -> bool:
        """Stop a job while a block of the transformer computes; whether it has ended as stopped."""
        blocks = self.loaded(task).pipe.transformer.transformer_blocks

        async def stopped() -> bool:
            loop = asyncio.get_running_loop()
            running = asyncio.create_task(self.answer(job(task, width, height, references)))

            def stop(*_: Any) -> None:
                loop.call_soon_threadsafe(running.cancel)

            hook = blocks[block].register_forward_pre_hook(stop)
            try:
                await running
            except asyncio.CancelledError:
                return True
            finally:
                hook.remove()
            return False

        found = asyncio.run(stopped())
        self.on_inference_thread(gc.collect)
        return found

    def held(self) -> dict[str, int]:
        """What is held between jobs: bytes of tensors on the card, bytes pinned, streams and events."""
        self.on_inference_thread(gc.collect)
        counted = {name: fields.read(name) for name in ("pinned", "streams", "events")}
        return {"allocated": torch.cuda.memory_allocated()} | counted

    def resident(self) -> int:
        """The most of the host's memory that this process has really taken, in bytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tell_host_memory(size: int) -> None:
    """Have the worker find a host of so many free bytes, less what is pinned; no container's limit."""
    real = psutil.virtual_memory

    def virtual_memory() -> Any:
        return real()._replace(total=size, available=size - fields.read("pinned"))

    psutil.virtual_memory = virtual_memory
    container.read_limits = list


def job(task: str, width: int, height: int, references: int = 0, **more: Any) -> dict[str, Any]:
    """A job's input. `references`: how many pictures of a megapixel an edit is given."""
    made = {"task": task, "prompt": "a fox in the snow", "num_inference_steps": STEPS, "seed": 1}
    pictures = {"images": [reference()] * references, "draw_size": "asked"} if references else {}
    return made | pictures | {"width": width, "height": height} | more


@functools.cache
def reference() -> str:
    """A picture of a megapixel, as a job brings it."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(data, "PNG", compress_level=1)
    return base64.b64encode(data.getvalue()).decode()
