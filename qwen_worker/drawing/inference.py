"""One job's pictures from a loaded pipeline, one seed at a time.

One picture a call and not a batch: a batch rounds differently, and each seed must give the same bytes alone. Where an
endpoint gives this up for speed, `batching.py` comes first. Knows nothing of how a job arrived or its result leaves.
"""

from typing import NamedTuple

from PIL import Image

from ..errors import JobError
from ..jobs.reply import DrawingResult
from ..jobs.tasks import Layers
from ..loading.loaded import LoadedPipeline, Shortage
from ..log import log_line
from ..memory.cuda import allocated_bytes, peak_vram_gb, release_unused
from ..memory.failures import absorb_failure
from .configured import caches_steps, configured, shares_passes
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


class Attempt(NamedTuple):
    """How a picture is drawn. `apart`: guidance's passes stay two; `tiles`: the VAE works in tiles; `prefix`: with a
    prefix cache, where the pipeline has one.
    """

    apart: bool = False
    tiles: bool = False
    prefix: bool = True


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

    Where a speed-up or the step cache may have failed, all are turned off, and the job is drawn once more from its
    seeds. Raises `Cancelled` within a step once the job is stopped; `JobError` out_of_memory where CUDA has too little
    memory even for decoding in tiles, or internal; and `CudaSpoiledError`.
    """
    # No function around the call: the way from a job to its pipeline is to stay short.
    with absorb_failure() as failures:
        return draw_within_memory(loaded, entry, prompt_cache, previewer)
    cached = caches_steps(loaded, entry.job.request)
    if names := loaded.speed.stand_all_down(failures[0].reason, cached):
        off = ", ".join(names)
        log_line(entry.job.id, "WARN", f"drawn once more; off from now on: {off}, after {failures[0].reason}")
        release_unused(loaded.plan.device)
        entry.job.start_over()
        with absorb_failure() as failures:
            return draw_within_memory(loaded, entry, prompt_cache, previewer)
        if cached:
            loaded.speed.use_step_cache_again()
            log_line(entry.job.id, "WARN", "the job failed without the step cache too, which later jobs have again")
    raise failed_job_error(loaded, entry.job.id, failures[0].reason, bool(entry.job.request.loras))


def draw_within_memory(
    loaded: LoadedPipeline, entry: DrawingJob, prompt_cache: PromptCache, previewer: Previewer
) -> DrawingResult:
    """The pictures, by the first attempt that memory is enough for.

    One shortage may pass. After two jobs of a kind in a row, the next begins with the attempt that went well.
    """
    import torch

    job, canvas, device = entry.job, entry.canvas, loaded.plan.device
    bytes_before = allocated_bytes(device)
    size = planned_size(entry)
    kind = (*size, entry.controlnets is not None)
    first, shortage = 0 if shares_passes(loaded, job.request) else 1, loaded.shortages.get(kind, Shortage(0, 0))
    plan = plan_for(entry, loaded.plan, loaded)
    has_prefix = has_prefix_cache(loaded.pipe)
    attempts = (*ATTEMPTS, WITHOUT_PREFIX) if has_prefix and plan.prefix_cache else ATTEMPTS
    if has_prefix and not plan.prefix_cache:
        job.warn(NO_PREFIX_WARNING)
    if plan.needs_tiles(*size):
        first = ATTEMPTS.index(Attempt(apart=True, tiles=True))
    elif shortage.jobs >= LASTING_SHORTAGE:
        first = max(first, shortage.attempt)
    for number, (apart, tiles, prefix) in list(enumerate(attempts))[first:]:
        pictures: list[Image.Image] = []
        steps = 0
        try:
            with (
                configured(loaded, job.request, entry.loras, plan, apart, tiles),
                vae_tiles(loaded.pipe.vae, tiles),
                prompt_cache.caching(loaded.pipe, job.require_running),
                controlled(loaded, entry) as pipe,
            ):
                for picture_number in range(job.request.num_images):
                    keeps_prefix = prefix and plan.prefix_cache
                    drawn, steps = draw_pictures(pipe, job, canvas, picture_number, previewer, keeps_prefix)
                    pictures += drawn
                    job.require_running()
            if number > first:
                loaded.shortages[kind] = Shortage(number, shortage.jobs + 1)
            elif shortage.jobs < LASTING_SHORTAGE:
                loaded.shortages.pop(kind, None)
            loaded.not_finite.clear()
            quality = recomposition_db(canvas.sources[0], pictures) if isinstance(job.request, Layers) else None
            controlnet = entry.controlnets and entry.controlnets.name
            model, peak = loaded.drawing_model, peak_vram_gb()
            return DrawingResult(
                pictures, steps, model, peak_vram_gb=peak, recomposition_db=quality, controlnet=controlnet
            )
        except torch.OutOfMemoryError:
            pass
        # Outside the handler, where the traceback no longer holds the tensors that filled the card.
        if device == "cuda":
            torch.cuda.empty_cache()
    words = "{}x{}".format(*canvas.size)
    if len(canvas.sources) > 1:
        words += f" with {len(canvas.sources)} input images"
    leaked_bytes = allocated_bytes(device) - bytes_before
    raise JobError(
        "out_of_memory",
        f"{words} did not fit beside {loaded.checkpoint.name} ({loaded.plan})",
        refresh_worker=leaked_bytes > LEAK_BYTES,
    )
