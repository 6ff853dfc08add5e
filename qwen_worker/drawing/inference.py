"""One job's pictures from a loaded pipeline, one seed at a time.

One picture a call and not a batch: a batch rounds differently, and each seed must give the same bytes alone. Where an
endpoint gives this up for speed, `batching.py` comes first. Knows nothing of how a job arrived or its result leaves.
"""

from contextlib import nullcontext

from PIL import Image

from ..errors import JobError
from ..jobs.reply import DrawingResult
from ..jobs.tasks import Layers
from ..loading.loaded import Attempt, LoadedPipeline, Shortage
from ..loading.rank_messages import ON_SECOND
from ..log import log_line
from ..memory.cuda import allocated_bytes, peak_vram_gb, release_unused
from ..memory.failures import absorb_failure
from ..memory.footprint import Plan
from .configured import caches_steps, configured, shares_passes, splits_rows
from .control import controlled
from .finite import failed_job_error
from .job_plan import plan_for, planned_size
from .layers import recomposition_db
from .pipeline_call import draw_pictures, vae_tiles
from .prefix_cache import has_prefix_cache
from .preview import Previewer
from .prompt_cache import PromptCache
from .prompts import require_short_prompts
from .queue import DrawingJob

LEAK_BYTES = 1_000_000_000  # memory that does not come back after a failed job: the worker is better restarted


def require_drawable(loaded: LoadedPipeline, entry: DrawingJob) -> None:
    """Refuse a prompt of more tokens than the pipeline keeps, and LoRAs that are made for another model.

    Raises `InvalidInput`, or `JobError` model_unavailable.
    """
    require_short_prompts(loaded.pipe, entry.job)
    loaded.adapters.require_made_for_model(entry.loras)


LASTING_SHORTAGE = 2  # jobs of one kind in a row that had too little memory
# After a lack of memory the next one is taken, which needs less. Its pictures differ by rounding, or by faint seams.
ATTEMPTS = Attempt(), Attempt(apart=True), Attempt(apart=True, tiles=True)
NO_PREFIX_WARNING = (
    "the card has no room to keep what is computed of the input pictures: each step computes it anew, which is slower; "
    "with a smaller reference_pixels there is less to keep"
)
WITHOUT_PREFIX = Attempt(apart=True, tiles=True, prefix=False)


def draw(loaded: LoadedPipeline, entry: DrawingJob, prompt_cache: PromptCache, previewer: Previewer) -> DrawingResult:
    """The pictures of the job's seeds, RGB of its canvas' `result_size`.

    Where a speed-up, the step cache or the second card may have failed, all are turned off, and the job is drawn once
    more from its seeds. Raises `Cancelled` within a step once the job is stopped; `JobError` out_of_memory where CUDA
    has too little memory even for decoding in tiles, or internal; and `CudaSpoiledError`.
    """
    # No function around the call: the way from a job to its pipeline is to stay short.
    with absorb_failure() as failures:
        return draw_within_memory(loaded, entry, prompt_cache, previewer)
    cached, second, reason = caches_steps(loaded, entry.job.request), loaded.active_second_card, failures[0].reason
    names = loaded.speed.stand_all_down(reason, cached) + ["second card"] * (second is not None)
    if names:
        off = ", ".join(names)
        log_line(entry.job.id, "WARN", f"drawn once more; off from now on: {off}, after {reason}")
        release_unused(loaded.plan.device)
        entry.job.start_over()
        with second.pause() if second else nullcontext(), absorb_failure() as failures:
            drawn = draw_within_memory(loaded, entry, prompt_cache, previewer)
            if second:
                second.stand_down(reason)
            return drawn
        if cached:
            loaded.speed.use_step_cache_again()
            log_line(entry.job.id, "WARN", "the job failed without the step cache too, which later jobs have again")
    raise failed_job_error(loaded, entry.job.id, failures[0].reason, bool(entry.job.request.loras))


def draws_pairs(loaded: LoadedPipeline, entry: DrawingJob) -> bool:
    """Whether two of the job's pictures are drawn at a time, one on each card."""
    request, canvas = entry.job.request, entry.canvas
    is_plain = not (request.preview or canvas.start or canvas.control or isinstance(request, Layers))
    return request.num_images > 1 and is_plain and splits_rows(loaded, request)


def attempts_for(loaded: LoadedPipeline, entry: DrawingJob, plan: Plan, shortage: Shortage) -> tuple[Attempt, ...]:
    """One attempt at the job or more, each of which needs less memory than the one before it.

    `shortage`: of the jobs of its kind before it, whose plan may have had a prefix cache where this one has none.
    """
    attempts = (*ATTEMPTS, WITHOUT_PREFIX) if has_prefix_cache(loaded.pipe) and plan.prefix_cache else ATTEMPTS
    first = Attempt(apart=not shares_passes(loaded, entry.job.request))
    if plan.needs_tiles(*planned_size(entry)):
        first = Attempt(apart=True, tiles=True)
    number = attempts.index(first)
    if shortage.jobs >= LASTING_SHORTAGE:
        enough = attempts.index(shortage.attempt) if shortage.attempt in attempts else len(attempts) - 1
        number = max(number, enough)
    return attempts[number:]


def draw_within_memory(
    loaded: LoadedPipeline, entry: DrawingJob, prompt_cache: PromptCache, previewer: Previewer
) -> DrawingResult:
    """The pictures, by the first attempt that memory is enough for.

    One shortage may pass. After two jobs of a kind in a row, the next begins with the attempt that went well.
    """
    import torch

    job, canvas, device, where = entry.job, entry.canvas, loaded.plan.device, ""
    bytes_before, passes_before = allocated_bytes(device), loaded.second_card_passes
    kind = (*planned_size(entry), entry.controlnets is not None)
    shortage, plan = loaded.shortages.get(kind, Shortage()), plan_for(entry, loaded.plan, loaded)
    if has_prefix_cache(loaded.pipe) and not plan.prefix_cache:
        job.warn(NO_PREFIX_WARNING)
    attempts = attempts_for(loaded, entry, plan, shortage)
    for attempt in attempts:
        apart, tiles, prefix = attempt
        pictures: list[Image.Image] = []
        steps = 0
        try:
            pair = not tiles and draws_pairs(loaded, entry)
            with (
                configured(loaded, job.request, entry.loras, plan, apart, tiles, rows_apart=pair),
                vae_tiles(loaded.pipe.vae, tiles),
                prompt_cache.caching(loaded.pipe, job.require_running),
                controlled(loaded, entry) as pipe,
            ):
                count, keeps_prefix = job.request.num_images, prefix and plan.prefix_cache
                for start in range(0, count, 1 + pair):
                    numbers = range(start, min(start + 1 + pair, count))
                    drawn, steps = draw_pictures(pipe, job, canvas, numbers, previewer, keeps_prefix)
                    pictures += drawn
                    job.require_running()
            if attempt is not attempts[0]:
                loaded.shortages[kind] = Shortage(attempt, shortage.jobs + 1)
            elif shortage.jobs < LASTING_SHORTAGE:
                loaded.shortages.pop(kind, None)
            loaded.not_finite.clear()
            quality = recomposition_db(canvas.sources[0], pictures) if isinstance(job.request, Layers) else None
            return DrawingResult(
                pictures,
                steps,
                loaded.drawing_model,
                peak_vram_gb=peak_vram_gb(),
                recomposition_db=quality,
                batch=1 + pair,
                gpus=1 + (loaded.second_card_passes > passes_before),
                controlnet=entry.controlnets and entry.controlnets.name,
            )
        except torch.OutOfMemoryError as error:
            where = f" {ON_SECOND}" if str(error).startswith(ON_SECOND) else ""
        # Outside the handler, where the traceback no longer holds the tensors that filled the card.
        if device == "cuda":
            torch.cuda.empty_cache()
    raise too_large_error(loaded, entry, where, allocated_bytes(device) - bytes_before)


def too_large_error(loaded: LoadedPipeline, entry: DrawingJob, where: str, leaked_bytes: int) -> JobError:
    """The error of a job that no attempt had memory enough for. `where`: words for the card that ran out of it."""
    canvas = entry.canvas
    words = "{}x{}".format(*canvas.size)
    if len(canvas.sources) > 1:
        words += f" with {len(canvas.sources)} input images"
    return JobError(
        "out_of_memory",
        f"{words} did not fit beside {loaded.checkpoint.name}{where} ({loaded.plan})",
        refresh_worker=leaked_bytes > LEAK_BYTES,
    )
