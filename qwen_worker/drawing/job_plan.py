"""A job's own plan: the loaded one with the room that the job's LoRAs take, by the best way that fits.

Knows nothing of how LoRAs are applied and of how a picture is drawn.
"""

from dataclasses import replace

from ..jobs.request import Edit
from ..jobs.tasks import Layers
from ..loading.loaded import LoadedPipeline
from ..lora.ranks import padded_parameters, padded_rank
from ..memory.footprint import MEGAPIXEL, UNCOMPILED_DENOISE, Plan
from ..model_settings import Speedup
from ..speed.speedups import COMPILED_LORAS
from . import layers
from .partial_denoise import drawn_steps
from .queue import DrawingJob

# From so many steps on, a job with its own LoRAs may be the first to compile a graph for them. It depends on the job
# alone, and not on what is compiled already: the same job gives the same picture.
COMPILED_LORA_STEPS = 20


def planned_size(entry: DrawingJob) -> tuple[int, int, int]:
    """(width, height, input pictures) that the job's memory is planned by."""
    request, canvas = entry.job.request, entry.canvas
    if isinstance(request, Layers):
        return layers.planned_size(request, canvas.size)
    return *canvas.size, len(canvas.sources)


def require_room(entry: DrawingJob, plan: Plan, loaded: LoadedPipeline | None, model: str, multiple: int) -> None:
    """Refuse a job that there is no room for. `model`: the checkpoint's name; `multiple`: of its sides.

    Raises `JobError` out_of_memory.
    """
    request, job_plan = entry.job.request, plan_for(entry, plan, loaded)
    if isinstance(request, Layers):
        layers.require_layers_fit(job_plan, model, request, entry.canvas.size)
    else:
        job_plan.require_fits(model, multiple, *planned_size(entry))


def plan_for(entry: DrawingJob, plan: Plan, loaded: LoadedPipeline | None) -> Plan:
    """The plan with the room that the job's own LoRAs and its ControlNet take beside the models that may draw it, and
    blocks that are not compiled where the loaded pipeline compiles none.

    Of the ways to apply the LoRAs, the first is taken that has room for a picture which is decoded without tiles.
    """
    request = entry.job.request
    plan = replace(plan, draws_layers=isinstance(request, Layers))
    if isinstance(request, Edit) and request.reference_pixels:
        plan = replace(plan, reference_pixels=request.reference_pixels / MEGAPIXEL)
    if loaded and not loaded.speed.has(Speedup.COMPILE):
        plan = replace(plan, compiled=False)
    if entry.controlnets:
        plan = entry.controlnets.planned(plan)
    size = planned_size(entry)
    is_guided = request.guidance_scale > 1
    if all(use.from_settings for use in entry.loras):
        return plan.for_guidance(is_guided, *size)
    ways = [way.for_guidance(is_guided, *size) for way in plans_with_loras(entry, plan, loaded)]
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
    pays = drawn_steps(request.num_inference_steps, request.strength) >= COMPILED_LORA_STEPS
    return ways + stock if pays else stock + ways
