"""A small look at the picture while it is drawn: what the present latents are heading for, decoded at a fraction.

Two successive latents give the velocity, v = (x_t - x_s) / (t - s), and that the estimate of the finished picture,
x_0 = x_t - t v. The estimate is pooled to a thumbnail before it is decoded, and left out where it would take more than
its share of the job's time. A preview that fails is left out, with all that would follow it: the picture is what was
asked for. Knows nothing of where a preview is sent.
"""

import base64
import io
import time
from typing import Any

from ..memory.failures import Failure, attempt
from ..pictures.alpha import to_opaque

SHARE = 0.02  # of the drawing's time, at most
LATENT_SIDE = 32  # latents a side, at most, that are decoded
GUESS_STEPS = 0.25  # what the first preview is taken to cost, in steps: a thumbnail decodes in far less than a step
JPEG_QUALITY = 70


class Previewer:
    """Remembers what a preview costs on this worker. For the one inference thread."""

    def __init__(self):
        self.cost_seconds: float | None = None  # of the last preview

    def start(self, pipe: Any, size: tuple[int, int]) -> "Preview":
        """The previews of one picture; `size`: its pixels."""
        return Preview(self, pipe, size)


class Preview:
    """The previews of one picture. Latents are packed as the pipeline packs them, (1, tokens, channels)."""

    def __init__(self, previewer: Previewer, pipe: Any, size: tuple[int, int]):
        self.previewer, self.pipe, self.size = previewer, pipe, size
        self.earlier: Any = None  # the latents that the present step starts from
        self.has_failed = False
        self.spent_seconds, self.started = 0.0, time.monotonic()

    def remember(self, latents: Any) -> None:
        """The latents that the next step starts from."""
        self.earlier = latents

    def after_step(self, step: int, latents: Any) -> str | None:
        """A JPEG in base64 after step `step` (from 0), or None where there is nothing to show or no time for it."""
        steps = self.pipe.num_timesteps
        if self.has_failed or self.earlier is None or step + 1 >= steps or not self.has_time(step, steps):
            return None
        started = time.monotonic()
        sigmas = self.pipe.scheduler.sigmas
        sigma, earlier_sigma = float(sigmas[step + 1]), float(sigmas[step])
        velocity = (latents.float() - self.earlier.float()) / (sigma - earlier_sigma)
        preview = attempt(lambda: self.thumbnail(latents.float() - sigma * velocity))
        self.previewer.cost_seconds = time.monotonic() - started
        self.spent_seconds += self.previewer.cost_seconds
        if isinstance(preview, Failure):
            self.has_failed = True
            return None
        return preview

    def has_time(self, step: int, steps: int) -> bool:
        """Whether one more preview stays within its share of the time that the drawing takes at the present pace."""
        step_seconds = (time.monotonic() - self.started - self.spent_seconds) / (step + 1)
        cost_seconds = self.previewer.cost_seconds
        if cost_seconds is None:
            cost_seconds = GUESS_STEPS * step_seconds
        return self.spent_seconds + cost_seconds <= SHARE * step_seconds * steps

    def thumbnail(self, packed: Any) -> str:
        """Packed latents as a JPEG in base64, of at most `LATENT_SIDE` latents a side."""
        import torch

        pipe, vae = self.pipe, self.pipe.vae
        width, height = self.size
        latents = pipe._unpack_latents(packed, height, width, pipe.vae_scale_factor)
        rows, columns = latents.shape[-2:]
        factor = max(1, -(-max(rows, columns) // LATENT_SIDE))
        if factor > 1:
            latents = torch.nn.functional.avg_pool3d(latents, (1, factor, factor), ceil_mode=True)
        channels = (1, vae.config.z_dim, 1, 1, 1)
        statistics = (vae.config.latents_mean, vae.config.latents_std)
        mean, std = (torch.tensor(values).view(channels).to(latents) for values in statistics)
        with torch.no_grad():
            decoded = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0][:, :, 0]
        picture = to_opaque(pipe.image_processor.postprocess(decoded, output_type="pil")[0])
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return base64.b64encode(buffer.getbuffer()).decode("ascii")
