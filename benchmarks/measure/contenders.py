"""The two that are compared, each able to draw one job and say what drew it: our worker, and stock diffusers.

Our worker takes a job the whole path from its input to its reply. Stock diffusers draws as the model card says: the
checkpoint's own pipeline in bfloat16 (float32 on a CPU), and the picture is encoded as a worker has to. Imports torch
inside functions; knows nothing of rows and records.
"""

import asyncio
import base64
import functools
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_worker.errors import LoadError
from qwen_worker.memory.machine import Machine

from .stage_times import Stages, Stopwatch

PROMPT = "a large red circle on the left, on a blue background"
INSTRUCTION = "make the background green"


class Failed(Exception):
    """Why a contender could not do a job, in words for the record."""


class Ours:
    """Our worker on the checkpoints below `folder`. `machine`: the machine that it plans for, if not this one."""

    name = "ours"

    def __init__(
        self, folder: Path, tasks: tuple[str, ...], machine: Callable[[], Machine] | None = None, **settings: Any
    ):
        from qwen_worker.settings import Settings
        from runpod_handler import Worker

        models = {"generate": "QWEN_IMAGE_MODEL", "edit": "QWEN_EDIT_MODEL"}
        served = {setting: str(folder / task) if task in tasks else "/none" for task, setting in models.items()}
        # Every job encodes its text, as a job with a new prompt does.
        self.worker = Worker(Settings(**served, QWEN_FALLBACK="forbid", QWEN_PROMPT_CACHE_MB=0, **settings))
        if machine:
            self.worker.pipelines.planner.machine = machine
        self.timings: dict[str, float] = {}  # of the last job, as its reply has them

    def load(self, task: str) -> float:
        """Load the task's pipeline; the seconds of the load. Raises `LoadError`."""
        if failure := self.worker.loader.why_not_loaded(task):
            raise failure
        return self.loaded(task).load_seconds

    def loaded(self, task: str) -> Any:
        return self.worker.pipelines.get(task)

    def shared(self, task: str) -> tuple[str, ...]:
        """The names of the task's components that a pipeline loaded before had in memory already."""
        return self.loaded(task).shared

    def pipe(self, task: str) -> Any:
        return self.loaded(task).pipe

    def draw(self, task: str, side: int, **fields: Any) -> int:
        """Draw one job of `side` pixels square; the denoising steps that it ran. Raises `Failed`."""
        job = {"task": task, "prompt": PROMPT if task == "generate" else INSTRUCTION, "width": side, "height": side}
        if task == "edit":
            job |= {"image": base64.b64encode(picture_file(side)).decode(), "draw_size": "asked"}  # as the others draw
        job |= {"seed": 1}
        reply = asyncio.run(self.worker.answer({"id": f"{task}-{side}", "input": job | fields}))
        if "error" in reply:
            raise Failed(reply["error"])
        self.timings = reply["metadata"]["timings"]
        return reply["metadata"]["steps"]


class Stock:
    """A diffusers pipeline as it comes, for one task."""

    name = "stock"

    def __init__(self, pipe: Any):
        self.pipeline, self.timings = pipe, {}
        pipe.set_progress_bar_config(disable=True)

    def pipe(self, task: str) -> Any:
        return self.pipeline

    def draw(self, task: str, side: int, num_inference_steps: int = 50, guidance_scale: float = 4.0) -> int:
        """Draw one picture and encode it; the denoising steps that it took. Raises `Failed`."""
        import torch

        call = {"prompt": PROMPT if task == "generate" else INSTRUCTION, "negative_prompt": " "}
        call |= {"image": Image.open(io.BytesIO(picture_file(side)))} if task == "edit" else {}
        try:
            drawn = self.pipeline(
                **call,
                true_cfg_scale=guidance_scale,
                width=side,
                height=side,
                num_inference_steps=num_inference_steps,
                generator=torch.Generator("cpu").manual_seed(1),
            )
        except torch.OutOfMemoryError as error:
            raise Failed(f"out of memory: {str(error).splitlines()[0][:200]}") from None
        buffer = io.BytesIO()
        drawn.images[0].save(buffer, format="PNG", compress_level=1)
        base64.b64encode(buffer.getvalue())
        return num_inference_steps


def time_job(contender: Ours | Stock, device: str, task: str, side: int, **fields: Any) -> Stages:
    """Draw one job and time its stages. Raises `Failed`."""
    with Stopwatch(device).on(contender.pipe(task)) as watch:
        steps = contender.draw(task, side, **fields)
    return watch.stages(steps)


def time_load(load: Callable[[], Any]) -> tuple[Any, float]:
    """What `load` returns, and the seconds until all of it is on its device. Raises `LoadError` where memory ends."""
    import torch

    started = time.perf_counter()
    try:
        loaded = load()
    except torch.OutOfMemoryError as error:
        raise LoadError(f"out of memory while loading: {str(error).splitlines()[0][:200]}") from None
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return loaded, time.perf_counter() - started


@functools.cache
def picture_file(side: int) -> bytes:
    """The input picture of an edit as a PNG file."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((side, side)).save(buffer, format="PNG")
    return buffer.getvalue()
