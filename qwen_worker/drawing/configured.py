"""What a job changes of the pipeline while it is drawn: the scheduler, the LoRAs, the step cache, the speed-ups.

All of it is undone at its end, also where that is an error or a stop. Imports torch inside functions. Knows nothing of
how pictures are drawn.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from ..jobs.few_steps import takes_few_steps
from ..jobs.presets import FEW_STEP_SCHEDULER
from ..jobs.request import Drawing, Edit
from ..loading.loaded import LoadedPipeline
from ..lora.file import LoraUse
from ..memory.footprint import Plan
from ..model_settings import Speedup
from ..preset_settings import Preset
from .partial_denoise import drawn_steps, fixed_steps


@contextmanager
def configured(
    loaded: LoadedPipeline,
    request: Drawing,
    loras: Sequence[LoraUse],
    plan: Plan,
    apart: bool = False,
    tiles: bool = False,
) -> Generator[None]:
    """Within, the pipeline is as the request asks for it.

    `plan`: of the job, which says how its LoRAs are applied; `apart`: guidance's passes stay two; `tiles`: pictures are
    decoded in tiles. The two passes are one call only where a picture is decoded whole: the memory for that holds both.
    """
    steps = fixed_steps(loaded.pipe) or request.num_inference_steps
    drawn = drawn_steps(steps, request.strength) if isinstance(request, Edit) else steps
    changes: dict[str, Any] = dict(FEW_STEP_SCHEDULER) if takes_few_steps(request) else {}
    # One step from pure noise cannot be stretched to `shift_terminal`: the scheduler divides 0 by 0 and draws NaN.
    if steps == 1:
        changes["shift_terminal"] = None
    cached = caches_steps(loaded, request)
    with (
        loaded.adapters.apply(loras, plan.streamed_loras, plan.lora_rank),
        loaded.speed.drawing(
            compiled=plan.compiled,
            lora_rank=plan.lora_rank,
            separate_passes=apart or tiles or not shares_passes(loaded, request),
            cached_steps=drawn if cached else 0,
        ),
        configured_scheduler(loaded, changes),
    ):
        yield


def caches_steps(loaded: LoadedPipeline, request: Drawing) -> bool:
    """Whether a step cache serves the request; few steps leave it nothing to predict."""
    return request.preset == Preset.BALANCED and loaded.caches_steps and not takes_few_steps(request)


def shares_passes(loaded: LoadedPipeline, request: Drawing) -> bool:
    """Whether guidance's two passes are one call for the request, where its picture is small."""
    is_shared = loaded.speed.has(Speedup.GUIDANCE) and not isinstance(request, Edit)
    return is_shared and not caches_steps(loaded, request)


@contextmanager
def configured_scheduler(loaded: LoadedPipeline, changes: Mapping[str, Any]) -> Generator[None]:
    """Within, the scheduler has these values in its configuration, and the modulation table learns its timesteps."""
    import torch

    pipe = loaded.pipe
    scheduler = pipe.scheduler
    if any(scheduler.config.get(name) != value for name, value in changes.items()):
        pipe.scheduler = type(scheduler).from_config(scheduler.config, **changes)
    dtype = getattr(torch, loaded.plan.dtype)
    try:
        with loaded.table.following_schedules(pipe.scheduler, dtype) if loaded.table else nullcontext():
            yield
    finally:
        pipe.scheduler = scheduler
