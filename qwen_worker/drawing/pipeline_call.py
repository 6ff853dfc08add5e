"""One call of a pipeline: one picture of a job, from the call's arguments to the finished canvas.

Knows nothing of other attempts when memory runs out, and of other jobs (`inference.py`).
"""

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from ..errors import Cancelled
from ..jobs.job import Job
from ..jobs.request import Generate
from ..jobs.tasks import Layers
from ..pictures.canvas import Canvas, finish_drawing
from . import layers
from .control import control_arguments
from .finite import FiniteCheck
from .partial_denoise import PartialDenoise, own_sigmas
from .prefix_cache import watching_prefixes
from .preview import Previewer

MAX_SEQUENCE_LENGTH = 1024  # always passed: diffusers cuts at 512 tokens in silence


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


def draw_pictures(
    pipe: Any, job: Job, canvas: Canvas, numbers: range, previewer: Previewer, keeps_prefix: bool = True
) -> tuple[list[Image.Image], int]:
    """Pictures `numbers` of the job, counted from 0, or all layers of one, and the steps that they took.

    `numbers`: one, or several of a job that begins with no picture and shows none before its end. `keeps_prefix`:
    whether there is room for a prefix cache.
    """
    import torch

    request = job.request
    # A CPU generator draws the same noise whatever the card.
    generators = [torch.Generator("cpu").manual_seed(request.seeds[number]) for number in numbers]
    generator = generators[0]
    if isinstance(request, Layers):
        layers.describe_picture(pipe, job, canvas)
    call = call_arguments(pipe, job, canvas, keeps_prefix)
    if isinstance(request, Generate) and canvas.control:
        call |= control_arguments(pipe, request, canvas.control, canvas.size, generator)
    partial = None
    if canvas.start:
        partial = PartialDenoise(pipe, canvas.start, canvas.mask, canvas.size, request, generator)
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
        if steps == pipe.num_timesteps:
            empty_prefixes()
        return tensors

    if len(numbers) > 1:
        call["num_images_per_prompt"] = len(numbers)
    job.begin_drawing(numbers.start, len(numbers))
    preview = previewer.start(pipe, canvas.size) if request.preview else None
    with cleaning_up(pipe), FiniteCheck(pipe) as check, watching_prefixes(pipe) as empty_prefixes:
        given = generators if len(generators) > 1 else generator
        drawn = pipe(**call, generator=given, callback_on_step_end=after_step).images
        check.require_numbers()
    if isinstance(request, Layers):  # the layered pipeline gives a list of RGBA pictures where the others give one
        return drawn[0], steps
    return [finish_drawing(picture, request, canvas, job.warn) for picture in drawn], steps


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


def call_arguments(pipe: Any, job: Job, canvas: Canvas, keeps_prefix: bool = True) -> dict[str, Any]:
    """The call's arguments that follow from the job and its pictures, and from the room for a prefix cache."""
    request, sources, (width, height) = job.request, canvas.sources, canvas.size
    call: dict[str, Any] = {
        "prompt": job.instruction,
        "true_cfg_scale": request.guidance_scale,
        "num_inference_steps": request.num_inference_steps,
    }
    # Guidance acts only with a negative prompt, even an empty one; at 1 there is none and the second pass is saved.
    if request.guidance_scale > 1:
        call["negative_prompt"] = request.negative_prompt or " "
    if isinstance(request, Layers):
        return call | layers.call_arguments(request, canvas) | {"max_sequence_length": MAX_SEQUENCE_LENGTH}
    call |= {"width": width, "height": height}
    if sigmas := own_sigmas(pipe, request):
        call["sigmas"] = sigmas
    if sources:
        call["image"] = sources if len(sources) > 1 else sources[0]
    taken = inspect.signature(pipe.__call__).parameters
    more = {"max_sequence_length": MAX_SEQUENCE_LENGTH, "output_resolution": canvas.seen, "use_kv_cache": keeps_prefix}
    call |= {name: value for name, value in more.items() if name in taken}
    return call
