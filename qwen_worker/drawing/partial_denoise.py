"""A picture as a drawing's start, by `strength` and `mask_image`, for pipelines that have neither.

Through latents, sigmas and the step callback, of edits and of pictures from a prompt alike.

Strength below 1 starts from the source noised to where the tail of the schedule begins (SDEdit,
https://arxiv.org/abs/2108.01073); a mask sets everything outside it back to the noised source after each step (RePaint
without resampling, https://arxiv.org/abs/2201.09865, equation 8 for rectified flow: x_s = (1 - s) x_0 + s noise). The
checkpoint's own pipeline class does the rest, so its prompt template and conditioning hold. Knows nothing of jobs.
"""

from typing import TYPE_CHECKING, Any

from PIL import Image

from ..jobs.defaults import stretched
from ..jobs.request import Drawing

if TYPE_CHECKING:
    import torch


class PartialDenoise:
    """The start latents, the sigmas and the per-step blend of one picture of `size` pixels.

    latents: (1, tokens, channels), packed as the pipeline packs them. sigmas: before the scheduler's shift.
    """

    def __init__(
        self,
        pipe: Any,
        source: Image.Image,
        mask: Image.Image | None,
        size: tuple[int, int],
        request: Drawing,
        generator: "torch.Generator",
    ):
        import torch
        from diffusers.utils.torch_utils import randn_tensor

        self.pipe, self.width, self.height = pipe, *size
        device, dtype = pipe._execution_device, pipe.text_encoder.dtype
        self.channels = pipe.vae.config.z_dim
        rows, columns = self.height // pipe.vae_scale_factor, self.width // pipe.vae_scale_factor
        # The pipeline's own shape and draw, so that strength 1 starts from the very noise it would have made.
        noise = randn_tensor((1, 1, self.channels, rows, columns), generator=generator, device=device, dtype=dtype)
        self.noise = pipe._pack_latents(noise, 1, self.channels, rows, columns)
        self.clean = self.encode(source.resize(size, Image.Resampling.LANCZOS) if source.size != size else source)
        self.repaint = None if mask is None else self.pack_mask(mask, rows, columns).to(device)
        self.sigmas = tail(pipe, request)
        self.shifted = self.shift(self.sigmas)
        with torch.no_grad():
            self.latents = self.noised(self.shifted[0])

    def encode(self, source: Image.Image) -> "torch.Tensor":
        """The source as packed latents: the mode of its distribution, normalized as the edit pipelines do it."""
        import torch

        # The VAE of 2.1 takes four channels: it keeps alpha.
        vae = self.pipe.vae
        source = source.convert("RGBA" if vae.config.get("in_channels") == 4 else "RGB")
        pixels = self.pipe.image_processor.preprocess(source, self.height, self.width).unsqueeze(2)
        with torch.no_grad():
            latents = vae.encode(pixels.to(self.noise.device, vae.dtype)).latent_dist.mode()  # (1, z, 1, rows, columns)
        mean, std = (
            torch.tensor(values).view(1, self.channels, 1, 1, 1).to(latents.device, latents.dtype)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        latents = ((latents - mean) / std).to(self.noise.dtype)
        return self.pipe._pack_latents(latents, 1, self.channels, *latents.shape[3:])

    def pack_mask(self, mask: Image.Image, rows: int, columns: int) -> "torch.Tensor":
        """1 for every latent that the mask touches, in the layout of the packed latents."""
        import torch

        scale = self.pipe.vae_scale_factor
        pixels = torch.tensor(list(mask.resize((self.width, self.height), Image.Resampling.NEAREST).tobytes()))
        touched = torch.nn.functional.max_pool2d(pixels.view(1, 1, self.height, self.width).float(), scale) > 0
        full = touched.expand(1, self.channels, rows, columns).contiguous()
        return self.pipe._pack_latents(full, 1, self.channels, rows, columns)

    def shift(self, sigmas: list[float]) -> "torch.Tensor":
        """The sigmas as the scheduler will shift them for this size, with the final 0: (steps + 1,)."""
        from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        config = scheduler.config
        mu = calculate_shift(
            self.noise.shape[1],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self.noise.device)
        return scheduler.sigmas

    def noised(self, sigma: "torch.Tensor") -> "torch.Tensor":
        """The source's latents at a level of noise."""
        return ((1 - sigma) * self.clean.float() + sigma * self.noise.float()).to(self.noise.dtype)

    def after_step(self, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """The step callback's tensors, outside the mask those of the source, noised to the level of step `step`."""
        if self.repaint is not None:
            tensors["latents"] = tensors["latents"].where(self.repaint, self.noised(self.shifted[step + 1]))
        return tensors


def tail(pipe: Any, request: Drawing) -> list[float]:
    """The last ceil(steps x strength) sigmas of the pipeline's own unshifted schedule."""
    steps = request.num_inference_steps
    schedule = own_sigmas(pipe, request) or linear_sigmas(steps)
    return schedule[steps - request.drawn_steps :]


def own_sigmas(pipe: Any, request: Drawing) -> list[float] | None:
    """The unshifted schedule that the checkpoint brings, in the request's steps; None where it brings none.

    It must be passed to the pipeline, which else takes the checkpoint's in its own number of steps, whatever is asked.
    """
    schedule = pipe.config.get("sample_sigmas")
    return stretched(tuple(schedule), request.num_inference_steps) if schedule else None


def linear_sigmas(steps: int) -> list[float]:
    """The unshifted schedule of the pipelines."""
    return [1 - k * (1 - 1 / steps) / max(1, steps - 1) for k in range(steps)]
