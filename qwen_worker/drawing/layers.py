"""What task layers has of its own: the caption, the call's arguments, and how well the layers give the picture again.

The layered pipeline draws the picture whole and all of its layers in one call, and takes the size from `resolution` and
the picture's aspect. Its text encoder describes the picture where the job has no prompt. Knows nothing of how layers
are delivered.
"""

import math
from typing import TYPE_CHECKING, Any

from ..errors import JobError
from ..jobs.job import Job
from ..jobs.tasks import Layers
from ..memory.footprint import GB, Plan
from ..pictures.canvas import Canvas
from ..pictures.layers import recomposed

if TYPE_CHECKING:
    from PIL import Image

WHOLE_PICTURES = 2  # that a call has beside the layers: the one that is drawn anew, and the given one


def planned_size(request: Layers, size: tuple[int, int]) -> tuple[int, int, int]:
    """(width, height, input pictures) of the one picture that takes as much memory as all layers of this size.

    The VAE decodes the layers in one call, as it would decode a picture that is as many times as high.
    """
    return size[0], size[1] * request.num_layers, WHOLE_PICTURES


def require_layers_fit(plan: Plan, model: str, request: Layers, size: tuple[int, int]) -> None:
    """Refuse layers that the plan has no room for. Raises `JobError` out_of_memory."""
    planned = planned_size(request, size)
    if plan.fits(*planned):
        return
    needed_bytes = plan.peak_bytes(*planned, tiled=True)
    ways = ["resolution 640"] * (request.resolution > 640) + ["fewer num_layers"] * (request.num_layers > 2)
    advice = f"; ask for {' or '.join(ways)}" if ways else ""
    raise JobError(
        "out_of_memory",
        f"{request.num_layers} layers of {size[0]}x{size[1]} need {needed_bytes / GB:.1f} GB with {model} and "
        f"{plan.limit_bytes / GB:.1f} GB may be used{advice}",
    )


def call_arguments(request: Layers, canvas: Canvas) -> dict[str, Any]:
    """The arguments that the layered pipeline takes in place of a size and of other pipelines' pictures."""
    return {
        "image": canvas.sources[0].convert("RGBA"),
        "layers": request.num_layers,
        "resolution": request.resolution,
        "use_en_prompt": True,
    }


def describe_picture(pipe: Any, job: Job, canvas: Canvas) -> None:
    """Have the model's own description of the picture stand for the prompt that the job does not have.

    It is the text that the pipeline would make itself; made here, it can be told, and a stop is heard between words. A
    generation that draws its words at random draws them from the job's seed. Raises `Cancelled`.
    """
    import torch

    if job.instruction.strip():
        return
    width, height = canvas.size
    picture = pipe.image_processor.resize(canvas.sources[0].convert("RGBA"), height, width)
    watch = pipe.text_encoder.register_forward_pre_hook(lambda *_: job.require_running())
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(job.request.seed % 2**63)
            job.instruction = pipe.get_image_caption(picture, use_en_prompt=True, device=pipe._execution_device)
    finally:
        watch.remove()


def recomposition_db(source: "Image.Image", layers: "list[Image.Image]") -> float:
    """How near the layers, laid over each other, come to the picture in their size: the PSNR in dB, at most 99."""
    import numpy as np

    whole = recomposed(layers)
    picture = source.convert("RGB").resize(whole.size, resample=1)  # Lanczos, as the pipeline brings it to that size
    difference = np.asarray(whole, np.float32) - np.asarray(picture, np.float32)
    error = float(np.square(difference).mean())
    return round(min(99.0, 20 * math.log10(255) - 10 * math.log10(max(error, 1e-9))), 2)
