"""One job's pictures from a loaded pipeline, one seed at a time.

One picture a call and not a batch: a batch rounds differently, and each seed must give the same bytes alone. Where an
endpoint gives this up for speed, `batching.py` comes first. Knows nothing of how a job arrived or its result leaves.
"""

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import Image

from ..errors import Cancelled, JobError
from ..jobs.job import Job
from ..jobs.reply import DrawingResult
from ..jobs.request import MAX_PROMPT_TOKENS, Edit
from ..jobs.served import require_tokens
from ..loading.loaded import LoadedPipeline, Shortage
from ..log import log_line
from ..lora.ranks import padded_parameters, padded_rank
from ..memory.cuda import allocated_bytes, peak_vram_gb, release_unused
from ..memory.failures import absorb_failure
from ..memory.footprint import UNCOMPILED_DENOISE, Plan
from ..pictures.images import to_rgb
from ..pictures.inputs import Canvas
from ..settings import Speedup
from ..speed.speedups import COMPILED_LORAS
from .configured import caches_steps, configured, shares_passes
from .finite import FiniteCheck, failed_job_error
from .partial_denoise import PartialDenoise, drawn_steps, own_sigmas
from .preview import Previewer
from .prompt_cache import PromptCache
from .queue import DrawingJob

LEAK_BYTES = 1_000_000_000  # memory that does not come back after a failed job: the worker is better restarted
# From so many steps on, a job with its own LoRAs may be the first to compile a graph for them. It depends on the job
# alone, and not on what is compiled already: the same job gives the same picture.
COMPILED_LORA_STEPS = 20
MAX_SEQUENCE_LENGTH = 1024  # always passed: diffusers cuts at 512 tokens in silence


def require_drawable(loaded: LoadedPipeline, entry: DrawingJob) -> None:
    """Refuse a prompt of more tokens than the pipeline keeps, and LoRAs that are made for another model.

    The pipeline would drop the rest of the prompt in silence. A rewritten prompt that is too long gives way to the
    caller's own. Raises `InvalidInput`, or `JobError` model_unavailable.
    """
    job = entry.job
    tokenizer = getattr(loaded.pipe, "tokenizer", None) or loaded.pipe.processor.tokenizer
    tokens = len(tokenizer(job.instruction).input_ids)
    if tokens > MAX_PROMPT_TOKENS and job.instruction != job.request.instruction:
        job.draw_own_words(f"the rewritten one has {tokens} tokens and the model takes at most {MAX_PROMPT_TOKENS}")
    for name, text in (("prompt", job.instruction), ("negative_prompt", job.request.negative_prompt or "")):
        require_tokens(name, len(tokenizer(text).input_ids))
    loaded.adapters.require_made_for_model(entry.loras)


class Attempt(NamedTuple):
    """How a picture is drawn. `apart`: guidance's passes stay two; `tiles`: the VAE works in tiles."""

    apart: bool = False
    tiles: bool = False


LASTING_SHORTAGE = 2  # jobs of one size in a row that had too little memory
# After a lack of memory the next one is taken, which needs less. Its pictures differ by rounding, or by faint seams.
ATTEMPTS = Attempt(), Attempt(apart=True), Attempt(apart=True, tiles=True)


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

    One shortage may pass. After two jobs of a size in a row, the next begins with the attempt that went well.
    """
    import torch

    job, canvas, device = entry.job, entry.canvas, loaded.plan.device
    bytes_before = allocated_bytes(device)
    size = *canvas.size, len(canvas.sources)
    first, shortage = 0 if shares_passes(loaded, job.request) else 1, loaded.shortages.get(size, Shortage(0, 0))
    plan = plan_for(entry, loaded.plan, loaded)
    if plan.needs_tiles(*size):
        first = len(ATTEMPTS) - 1
    elif shortage.jobs >= LASTING_SHORTAGE:
        first = max(first, shortage.attempt)
    for number, (apart, tiles) in list(enumerate(ATTEMPTS))[first:]:
        pictures: list[Image.Image] = []
        steps = 0
        try:
            with (
                configured(loaded, job.request, entry.loras, plan, apart, tiles),
                vae_tiles(loaded.pipe.vae, tiles),
                prompt_cache.caching(loaded.pipe, job.require_running),
            ):
                for picture_number in range(job.request.num_images):
                    picture, steps = draw_picture(loaded.pipe, job, canvas, picture_number, previewer)
                    pictures.append(picture)
                    job.require_running()
            if number > first:
                loaded.shortages[size] = Shortage(number, shortage.jobs + 1)
            elif shortage.jobs < LASTING_SHORTAGE:
                loaded.shortages.pop(size, None)
            loaded.not_finite.clear()
            return DrawingResult(pictures, steps, loaded.drawing_model, peak_vram_gb=peak_vram_gb())
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


def plan_for(entry: DrawingJob, plan: Plan, loaded: LoadedPipeline | None) -> Plan:
    """The plan with the room that the job's own LoRAs take, and blocks that the loaded pipeline does not compile.

    Of the ways to apply the LoRAs, the first is taken that has room for a picture which is decoded without tiles.
    """
    if loaded and not loaded.speed.has(Speedup.COMPILE):
        plan = replace(plan, compiled=False)
    if all(use.from_settings for use in entry.loras):
        return plan
    size, ways = (*entry.canvas.size, len(entry.canvas.sources)), plans_with_loras(entry, plan, loaded)
    fitting = [way for way in ways if way.fits(*size)] or ways
    return next((way for way in fitting if not way.needs_tiles(*size)), fitting[0])


def plans_with_loras(entry: DrawingJob, plan: Plan, loaded: LoadedPipeline | None) -> list[Plan]:
    """The plan for each way in which the job's LoRAs could be applied, the best first.

    By compiled blocks before others, where they are much faster and the job has steps enough to pay for a graph that is
    not compiled yet; on the card before in host memory, where there is so much of it.
    """
    request, always_applied = entry.job.request, loaded.adapters.always_applied if loaded else ()
    job_files = [use.file for use in entry.loras if not use.from_settings]
    parameters, scratch = sum(file.parameters for file in job_files), max(file.scratch_parameters for file in job_files)
    is_held = plan.with_loras(parameters).lora_bytes <= plan.kept_lora_bytes
    stock = [plan.with_loras(parameters + scratch)]
    if is_held:
        streamed = sum(file.parameters_at_once for file in job_files)
        stock.append(plan.with_loras(streamed + scratch, streamed=True))
    files = {use.file.key: use.file for use in (*always_applied, *entry.loras)}
    rank = padded_rank(files.values(), plan.table)
    is_able = plan.compiled and plan.precision in UNCOMPILED_DENOISE
    if not rank or not is_able or (loaded and COMPILED_LORAS in loaded.speed.failures):
        return stock
    padded, padded_at_once = padded_parameters(list(files.values()), rank)
    if is_held:
        ways = [plan.with_loras(padded, rank=rank), plan.with_loras(padded_at_once, streamed=True, rank=rank)]
    else:  # the matrices are made on the card, and are there beside the padded ones
        ways = [plan.with_loras(padded + parameters, rank=rank)]
    strength = request.strength if isinstance(request, Edit) else 1.0
    pays = drawn_steps(request.num_inference_steps, strength) >= COMPILED_LORA_STEPS
    return ways + stock if pays else stock + ways


@contextmanager
def vae_tiles(vae: Any, tiles: bool) -> Generator[None]:
    """Within, the VAE works tile by tile if `tiles`: a quarter of a gigabyte whatever the size, and faint seams."""
    if not tiles:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def draw_picture(pipe: Any, job: Job, canvas: Canvas, number: int, previewer: Previewer) -> tuple[Image.Image, int]:
    """Picture `number` of the job, counted from 0, and the steps that it took."""
    import torch

    request, mask = job.request, canvas.mask
    # A CPU generator draws the same noise whatever the card.
    generator = torch.Generator("cpu").manual_seed(request.seeds[number])
    call = call_arguments(pipe, job, canvas)
    partial = None
    if isinstance(request, Edit) and (mask is not None or request.strength < 1):
        partial = PartialDenoise(pipe, canvas.sources[0], mask, canvas.size, request, generator)
        call |= {"latents": partial.latents, "sigmas": partial.sigmas}
    steps = 0

    def after_step(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal steps
        steps = step + 1
        job.end_step(steps, pipe.num_timesteps)
        job.require_running()
        if preview and (thumbnail := preview.after_step(step, tensors["latents"])):
            job.preview = thumbnail
        tensors = partial.after_step(step, tensors) if partial else tensors
        if preview:
            preview.remember(tensors["latents"])
        check.after_step(tensors["latents"])
        return tensors

    job.begin_drawing(number)
    preview = previewer.start(pipe, canvas.size) if request.preview else None
    with cleaning_up(pipe), FiniteCheck(pipe) as check:
        picture = pipe(**call, generator=generator, callback_on_step_end=after_step).images[0]
        check.require_numbers()
    return canvas.finish(to_rgb(picture)), steps


@contextmanager
def cleaning_up(pipe: Any) -> Generator[None]:
    """Within, a call that ends by an exception does what the pipeline does at its end only: reset caches, offload."""
    import torch

    returned = False
    try:
        yield
        returned = True
    except Cancelled:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the kernels that were launched end before the job does
        raise
    finally:
        if not returned:
            pipe.maybe_free_model_hooks()


def call_arguments(pipe: Any, job: Job, canvas: Canvas) -> dict[str, Any]:
    """The call's arguments that follow from the job and its pictures alone."""
    request, sources, (width, height) = job.request, canvas.sources, canvas.size
    call: dict[str, Any] = {
        "prompt": job.instruction,
        "true_cfg_scale": request.guidance_scale,
        "width": width,
        "height": height,
        "num_inference_steps": request.num_inference_steps,
    }
    if sigmas := own_sigmas(pipe, request):
        call["sigmas"] = sigmas
    # Guidance acts only with a negative prompt, even an empty one; at 1 there is none and the second pass is saved.
    if request.guidance_scale > 1:
        call["negative_prompt"] = request.negative_prompt or " "
    if sources:
        call["image"] = sources if len(sources) > 1 else sources[0]
    if "max_sequence_length" in inspect.signature(pipe.__call__).parameters:
        call["max_sequence_length"] = MAX_SEQUENCE_LENGTH
    return call
