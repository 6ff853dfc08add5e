"""A drawing that follows control pictures: by diffusers' own ControlNet pipeline over the loaded components.

The ControlNet runs once a step, with the prompt, and what it gives is added to both of guidance's passes. Its noise is
that of a job without control pictures: with `control_scale` 0 the picture is the same. Imports diffusers inside
functions. Knows nothing of how the ControlNet came to be loaded.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..jobs.request import Generate
from ..loading.loaded import LoadedPipeline
from .queue import DrawingJob

if TYPE_CHECKING:
    import torch


@contextmanager
def controlled(loaded: LoadedPipeline, entry: DrawingJob) -> Generator[Any]:
    """The pipeline that the job is drawn by: the loaded one, or one of its components and the ControlNet."""
    if entry.controlnets is None:
        yield loaded.pipe
        return
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_controlnet import QwenImageControlNetPipeline

    from ..model.control import SparingControlNet

    with entry.controlnets.on_device(loaded.plan) as module:
        pipe = QwenImageControlNetPipeline(**loaded.pipe.components, controlnet=SparingControlNet([module]))
        pipe.set_progress_bar_config(disable=True)
        pipe.encode_prompt = loaded.pipe.encode_prompt  # equal to its own, and with the cache of prompts
        yield pipe


def control_arguments(
    pipe: Any, request: Generate, pictures: Sequence[Image.Image], size: tuple[int, int], generator: "torch.Generator"
) -> dict[str, Any]:
    """The call's arguments for the control pictures, which have `size`.

    The noise is drawn here, as the pipeline would draw it: that draws a sample of each control picture's latents first,
    from the same generator.
    """
    width, height = size
    channels = pipe.transformer.config.in_channels // 4
    dtype, device = pipe.text_encoder.dtype, pipe._execution_device
    return {
        "latents": pipe.prepare_latents(1, channels, height, width, dtype, device, generator),
        "control_image": list(pictures),
        "controlnet_conditioning_scale": [control.scale for control in request.controls],
        "control_guidance_start": [request.control_start] * len(pictures),
        "control_guidance_end": [request.control_end] * len(pictures),
    }
