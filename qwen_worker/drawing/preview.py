"""A small look at the picture while it is drawn: what the present latents are heading for, decoded at a fraction.

Two successive latents give the velocity, v = (x_t - x_s) / (t - s), and that the estimate of the finished picture,
x_0 = x_t - t v. Pooled to a thumbnail before it is decoded, and left out where it would take more than its share of the
job's time. Knows nothing of where it is sent.
"""

import base64
import io
import time
from typing import Any

SHARE = 0.02  # of the drawing's time, at most
LATENT_SIDE = 32  # latents a side, at most, that are decoded
GUESS_STEPS = 0.25  # what the first one is taken to cost, in steps: a thumbnail decodes in far less than a step
JPEG_QUALITY = 70


class Previewer:
    """Remembers what a preview costs on this worker. For the one inference thread."""

    def __init__(self):
        self.cost: float | None = None  # seconds, of the last one

    def of_picture(self, pipe: Any, size: tuple[int, int]) -> "Preview":
        return Preview(self, pipe, size)


class Preview:
    """The previews of one picture."""

    def __init__(self, previewer: Previewer, pipe: Any, size: tuple[int, int]):
        self.previewer, self.pipe, self.size = previewer, pipe, size
        self.before, self.spent, self.started = None, 0.0, time.monotonic()

    def next_from(self, latents: Any) -> None:
        """What the next step starts from."""
        self.before = latents

    def after_step(self, step: int, latents: Any) -> str | None:
        """A JPEG in base64 after step `step` (from 0), or None where there is nothing to show or no time for it."""
        steps = self.pipe.num_timesteps
        if self.before is None or step + 1 >= steps or not self.affordable(step, steps):
            return None
        started = time.monotonic()
        sigmas = self.pipe.scheduler.sigmas
        here, earlier = float(sigmas[step + 1]), float(sigmas[step])
        velocity = (latents.float() - self.before.float()) / (here - earlier)
        shown = self.thumbnail(latents.float() - here * velocity)
        self.previewer.cost = time.monotonic() - started
        self.spent += self.previewer.cost
        return shown

    def affordable(self, step: int, steps: int) -> bool:
        """Whether one more stays within the share of the time that the drawing will take at the present pace."""
        a_step = (time.monotonic() - self.started - self.spent) / (step + 1)
        cost = GUESS_STEPS * a_step if self.previewer.cost is None else self.previewer.cost
        return self.spent + cost <= SHARE * a_step * steps

    def thumbnail(self, packed: Any) -> str:
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
        picture = pipe.image_processor.postprocess(decoded, output_type="pil")[0].convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return base64.b64encode(buffer.getbuffer()).decode("ascii")
