"""A job's own plan: the loaded one with the room that the job's LoRAs take, by the best way that fits.

Knows nothing of how LoRAs are applied and of how a picture is drawn.
"""

from dataclasses import replace

from ..jobs.request import Edit
from ..jobs.tasks import Layers
from ..loading.loaded import LoadedPipeline
from ..lora.file import LoraFile
from ..lora.ranks import padded_parameters, padded_rank
from ..memory.footprint import BYTES, MEGAPIXEL, UNCOMPILED_DENOISE, Plan
from ..model_settings import Speedup
from ..speed.compile_ahead import CompiledLoras
from ..speed.speedups import COMPILED_LORAS
from . import layers
from .queue import DrawingJob


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
    is_own = all(use.from_settings for use in entry.loras)
    possible = plans_with_own_loras(entry, plan, loaded) if is_own else plans_with_loras(entry, plan, loaded)
    ways = [way.for_guidance(is_guided, *size) for way in possible]
    fitting = [way for way in ways if way.fits(*size)] or ways
    return next((way for way in fitting if not way.needs_tiles(*size)), fitting[0])


def plans_with_own_loras(entry: DrawingJob, plan: Plan, loaded: LoadedPipeline | None) -> list[Plan]:
    """The plan for each way to apply the endpoint's own LoRAs, those of every picture and its preset's; the best first.

    The plan sets room aside for them. Padded together they may take more: by far where their layers' ranks differ.
    """
    files = lora_files(entry, loaded)
    rank = padded_rank(files, plan.table) if loaded and plan.compiled else 0
    if not loaded or not rank:
        return [plan]
    stock = replace(plan, compiled=False)
    if COMPILED_LORAS in loaded.speed.failures:
        return [stock]
    padded, _ = padded_parameters(files, rank)
    held = int(plan.lora_bytes / BYTES[plan.base_precision])  # parameters
    return [plan.with_loras(max(0, padded - held), rank=rank), stock]


def lora_files(entry: DrawingJob, loaded: LoadedPipeline | None) -> list[LoraFile]:
    """The files of all LoRAs that the job is drawn with, once each."""
    always_applied = loaded.adapters.always_applied if loaded else ()
    return list({use.file.key: use.file for use in (*always_applied, *entry.loras)}.values())


def plans_with_loras(entry: DrawingJob, plan: Plan, loaded: LoadedPipeline | None) -> list[Plan]:
    """The plan for each way in which the job's LoRAs could be applied, the best first.

    By blocks that are compiled for them before others; on the card before in host memory, where there is so much of it.
    Which way it is does not depend on earlier jobs: the same job gives the same picture.
    """
    job_files = [use.file for use in entry.loras if not use.from_settings]
    parameters, scratch = sum(file.parameters for file in job_files), max(file.scratch_parameters for file in job_files)
    is_held = plan.with_loras(parameters).lora_bytes <= plan.kept_lora_bytes
    stock = [plan.with_loras(parameters + scratch)]
    if is_held:
        streamed = sum(file.parameters_at_once for file in job_files)
        stock.append(plan.with_loras(streamed + scratch, streamed=True))
    files = lora_files(entry, loaded)
    rank = padded_rank(files, plan.table)
    compiles = loaded.speed.loras is CompiledLoras.JOBS if loaded else plan.precision in UNCOMPILED_DENOISE
    if not rank or not plan.compiled or not compiles or (loaded and COMPILED_LORAS in loaded.speed.failures):
        return stock
    padded, padded_at_once = padded_parameters(files, rank)
    if is_held:
        ways = [plan.with_loras(padded, rank=rank), plan.with_loras(padded_at_once, streamed=True, rank=rank)]
    else:  # the matrices are made on the card, and are there beside the padded ones
        ways = [plan.with_loras(padded + parameters, rank=rank)]
    return ways + stock
