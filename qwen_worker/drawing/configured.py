"""What a job changes of the pipeline while it is drawn: the scheduler, the LoRAs, the step cache, the speed-ups.

All of it is undone at its end, also where that is an error or a stop. Imports torch inside functions. Knows nothing of
how pictures are drawn.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..jobs.few_step_schedules import FewStepSchedule, schedule_of
from ..jobs.few_steps import takes_few_steps
from ..jobs.request import Drawing, Edit
from ..jobs.tasks import Layers
from ..loading.loaded import LoadedPipeline
from ..lora.file import LoraUse
from ..memory.footprint import Plan
from ..model_settings import Speedup
from ..preset_settings import Preset
from ..speed.limited_guidance import limit_guidance
from ..speed.step_cache import CachedSteps
from .split_passes import split_between_cards


@contextmanager
def configured(
    loaded: LoadedPipeline,
    request: Drawing,
    loras: Sequence[LoraUse],
    plan: Plan,
    apart: bool = False,
    tiles: bool = False,
    rows_apart: bool = False,
) -> Generator[None]:
    """Within, the pipeline is as the request asks for it.

    `plan`: of the job, which says how its LoRAs are applied; `apart`: guidance's passes stay two; `tiles`: pictures are
    decoded in tiles. The two passes are one call only where a picture is decoded whole: the memory for that holds both.
    `rows_apart`: where there is no guidance, the two pictures of a call are drawn on two cards.
    """
    steps = request.num_inference_steps
    drawn = request.drawn_steps
    few = FewStepSchedule({})
    if takes_few_steps(request):
        few = schedule_of(loaded.checkpoint.class_name, [use.source for use in loras], request.num_inference_steps)
    changes = dict(few.scheduler)
    # One step from pure noise cannot be stretched to `shift_terminal`: the scheduler divides 0 by 0 and draws NaN.
    if steps == 1:
        changes["shift_terminal"] = None
    cached_steps = CachedSteps(drawn, request.guided_steps(drawn).start) if caches_steps(loaded, request) else None
    splits = splits_passes(loaded, request) or (rows_apart and splits_rows(loaded, request))
    plain = loaded.pipe.transformer.forward
    with (
        loaded.adapters.apply(loras, plan.streamed_loras, plan.lora_rank),
        loaded.speed.drawing(
            compiled=plan.compiled,
            lora_rank=plan.lora_rank,
            separate_passes=apart or tiles or not shares_passes(loaded, request),
            cached_steps=cached_steps,
        ),
        configured_scheduler(loaded, changes),
        fixed_sigmas(loaded.pipe, few.sigmas),
        split_between_cards(loaded, loras, plan, cached_steps, rows_apart) if splits else nullcontext(),
        limited_guidance(loaded.pipe, request, plain),
    ):
        yield


def caches_steps(loaded: LoadedPipeline, request: Drawing) -> bool:
    """Whether a step cache serves the request; few steps leave it nothing to predict."""
    return request.preset == Preset.BALANCED and loaded.caches_steps and not takes_few_steps(request)


def shares_passes(loaded: LoadedPipeline, request: Drawing) -> bool:
    """Whether guidance's two passes are one call for the request, where its picture is small."""
    is_shared = loaded.speed.has(Speedup.GUIDANCE) and not isinstance(request, Edit | Layers)
    return is_shared and not caches_steps(loaded, request) and not splits_passes(loaded, request)


def splits_passes(loaded: LoadedPipeline, request: Drawing) -> bool:
    """Whether guidance's two passes are computed on two cards for the request."""
    return loaded.active_second_card is not None and request.guidance_scale > 1


def splits_rows(loaded: LoadedPipeline, request: Drawing) -> bool:
    """Whether the second card would idle while the request is drawn, and may draw another picture."""
    return loaded.active_second_card is not None and request.guidance_scale <= 1


def limited_guidance(pipe: Any, request: Drawing, plain: Callable[..., Any]) -> AbstractContextManager[None]:
    """Within, the steps outside of the request's part for guidance have no second pass.

    `plain`: the transformer's forward as it was before anything made guidance's two passes one.
    """
    if request.guidance_scale == 1 or not request.limits_guidance:
        return nullcontext()
    guided = request.guided_steps(request.drawn_steps)
    # The scheduler counts the steps of each picture, and has no number before the first one is over.
    return limit_guidance(pipe.transformer, plain, lambda: (pipe.scheduler.step_index or 0) in guided)


@contextmanager
def fixed_sigmas(pipe: Any, sigmas: Sequence[float]) -> Generator[None]:
    """Within, the pipeline has this schedule as one that its checkpoint fixes; its own where there are none."""
    before = pipe.config.get("sample_sigmas")
    if not sigmas:
        yield
        return
    pipe.register_to_config(sample_sigmas=list(sigmas))
    try:
        yield
    finally:
        pipe.register_to_config(sample_sigmas=before)


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
