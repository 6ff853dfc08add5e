"""One ControlNet for one or several control pictures, that is not computed in steps in which it adds nothing.

diffusers computes it in every step, also before `control_guidance_start` and after `control_guidance_end`, and then
multiplies what it gives by 0. The transformer then adds zeros, which changes nothing: bit-equal to that. A pass of
the published union is a twelfth of one of the 20B transformer. Imports torch and diffusers: import it inside functions.
Knows nothing of pictures.
"""

from typing import Any

import torch
from diffusers.models.controlnets.controlnet_qwenimage import QwenImageMultiControlNetModel


class SparingControlNet(QwenImageMultiControlNetModel):
    """diffusers' own for several pictures but for the steps that it leaves out."""

    # The base class also takes arguments by their places, which the pipeline does not use.
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, controlnet_cond: list[torch.Tensor], conditioning_scale: list[float], **inputs: Any
    ) -> list[torch.Tensor] | None:
        """What is added after the transformer's blocks, each (B, tokens, dim); None where all scales are 0.

        `controlnet_cond`: of each control picture the latents (B, tokens, channels).
        """
        used = [pair for pair in zip(controlnet_cond, conditioning_scale, strict=True) if pair[1]]
        if not used:
            return None
        latents, scales = map(list, zip(*used, strict=True))
        added: Any = super().forward(controlnet_cond=latents, conditioning_scale=scales, **inputs)
        return added
