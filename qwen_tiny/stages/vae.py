"""Trains the VAE on drawn crops: pictures <-> latents of 1/16 of the side.

Knows the layers of AutoencoderKLQwenImage and how to run them on single frames. Knows nothing about prompts.
One frame is not a video: each causal 3-D convolution is the 2-D convolution with its last temporal slice, which is
several times faster. The mid blocks' attention stays the identity that it starts as, so the VAE sees only its
surroundings and works the same at every size.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..world import scenes
from ..world.wordings import SHAPES

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

KL_WEIGHT = 3e-4  # against the mean absolute error of pixels in [-1, 1]
MEASURED = 64  # pictures of which the latents' mean and deviation are taken


def encode(vae: "AutoencoderKLQwenImage", pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) in [-1, 1] -> means and log variances, each (B, 16, H/16, W/16)."""
    x = _conv(vae.encoder.conv_in, pixels)
    for layer in vae.encoder.down_blocks:
        x = layer.resample(x) if hasattr(layer, "resample") else _residual(layer, x)
    x = _head(vae.encoder, _mid(vae.encoder.mid_block, x))
    mean, log_variance = _conv(vae.quant_conv, x).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(vae: "AutoencoderKLQwenImage", latents: torch.Tensor) -> torch.Tensor:
    """(B, 16, h, w) -> (B, 3, 16h, 16w), not clamped: `vae.decode` clamps, and a clamped pixel has no gradient."""
    x = _mid(vae.decoder.mid_block, _conv(vae.decoder.conv_in, _conv(vae.post_quant_conv, latents)))
    for block in vae.decoder.up_blocks:
        for layer in block.resnets:
            x = _residual(layer, x)
        for layer in block.upsamplers or ():
            x = layer.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return _head(vae.decoder, x)


def normalise(vae: "AutoencoderKLQwenImage", latents: torch.Tensor) -> torch.Tensor:
    """Raw latents (B, 16, h, w) -> those that the transformer sees."""
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(values, device=latents.device).view(1, -1, 1, 1) for values in statistics)
    return (latents - mean) / std


def initialise(vae: "AutoencoderKLQwenImage") -> None:
    """Start as a linear autoencoder: residual branches and attention silent, the main path of constant scale.

    From PyTorch's own initialisation the loss stays flat for hundreds of steps.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            continue
        with torch.no_grad():
            module.bias.zero_()
            module.weight.zero_()
            if name.endswith(("conv2", "proj")):
                continue
            kernel = module.weight[:, :, -1] if module.weight.ndim == 5 else module.weight
            orthogonal = torch.empty(kernel.shape)
            torch.nn.init.orthogonal_(orthogonal)
            kernel.copy_(orthogonal)


def trained_parameters(vae: "AutoencoderKLQwenImage") -> list[torch.nn.Parameter]:
    """All parameters but those of attention and of the temporal convolutions, which single frames never reach."""
    return [p for name, p in vae.named_parameters() if "attentions" not in name and "time_conv" not in name]


def measure_latents(vae: "AutoencoderKLQwenImage", seed: int) -> None:
    """Write mean and deviation of the raw latents of `MEASURED` drawn pictures of 256 x 256 into the VAE's config.

    A channel that the VAE hardly uses keeps a small normalised deviation instead of being blown up to one.
    """
    rng = Random(f"{seed} statistics")
    pixels = draw_pixels([scenes.random_scene(rng) for _ in range(MEASURED)], 256, 256)
    with torch.no_grad():
        latents = encode(vae, pixels.to(next(vae.parameters()).device))[0]
    std = latents.std(dim=(0, 2, 3))
    std = std.clamp_min(0.2 * std.max().item())
    mean = latents.mean(dim=(0, 2, 3))
    vae.register_to_config(latents_mean=[round(value, 5) for value in mean.tolist()])
    vae.register_to_config(latents_std=[round(value, 5) for value in std.tolist()])


def draw_batch(step: int, steps: int, seed: int) -> torch.Tensor:
    """The pictures that one step learns from, (B, 3, side, side): small crops, with the most outlines for their pixels.

    The last quarter of the steps mixes in larger pictures: where all are small, the zeros around them reach every
    latent, and plain surroundings come out stained.
    """
    kind = step % 10 if step >= 0.75 * steps else 0
    if kind in (1, 5):
        rng = Random(f"{seed} {step}")
        return draw_pixels([scenes.random_scene(rng) for _ in range(2)], 256, 256)
    side, count = (128, 8) if kind in (3, 6, 9) else (64, 32)
    return draw_crops(count, side, f"{seed} {step}")


def draw_crops(count: int, side: int, seed: int | str) -> torch.Tensor:
    """`count` crops of drawn pictures, (count, 3, side, side) in [-1, 1], most with an outline in view."""
    rng = Random(seed)
    pixel = torch.arange(side) + 0.5
    crops = []
    for _ in range(count):
        canvas = _random_colour(rng).view(3, 1, 1).expand(3, side, side)
        for _ in range(1 if rng.random() < 0.85 else 2):
            radius = 25.0 * 10 ** rng.uniform(0, 1.0)
            angle, off = rng.uniform(0, 6.2832), radius * rng.uniform(0.7, 1.2)
            towards = torch.tensor([angle]).cos().item(), torch.tensor([angle]).sin().item()
            dx = pixel[None] - (rng.uniform(0, side) + off * towards[0])
            dy = pixel[:, None] - (rng.uniform(0, side) + off * towards[1])
            outline = scenes.outline_distance(rng.choice(SHAPES), dx, dy, radius, torch)
            colour = _random_colour(rng).view(3, 1, 1).expand_as(canvas)
            canvas = torch.lerp(canvas, colour, (0.5 - outline).clamp(0, 1))
        crops.append(canvas)
    return torch.stack(crops)


def draw_pixels(drawn: Sequence[scenes.Scene], width: int, height: int) -> torch.Tensor:
    """Whole pictures of the scenes, (B, 3, height, width) in [-1, 1]."""
    pictures = torch.stack([torch.from_numpy(scenes.draw(scene, width, height)) for scene in drawn])
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def loss(vae: "AutoencoderKLQwenImage", pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean absolute and squared error plus a little KL; (loss, mean absolute error), scalars.

    `pixels`: (B, 3, H, W) in [-1, 1]. `noise`: standard normal, of the latents' shape.
    """
    with torch.autocast(pixels.device.type, torch.bfloat16):
        mean, log_variance = (part.float() for part in encode(vae, pixels))
    latents = mean + (0.5 * log_variance).exp() * noise
    with torch.autocast(pixels.device.type, torch.bfloat16):
        drawn = decode(vae, latents)
    difference = drawn.float() - pixels
    error = difference.abs().mean()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return error + difference.square().mean() + KL_WEIGHT * kl, error


def _conv(conv: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, conv.weight[:, :, -1], conv.bias, padding=conv._padding[0])


def _norm(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=1) * (norm.scale * norm.gamma.view(1, -1, 1, 1))


def _residual(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    shortcut = _conv(block.conv_shortcut, x) if hasattr(block.conv_shortcut, "weight") else x
    x = _conv(block.conv1, F.silu(_norm(block.norm1, x)))
    return shortcut + _conv(block.conv2, F.silu(_norm(block.norm2, x)))


def _mid(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return _residual(block.resnets[1], _residual(block.resnets[0], x))


def _head(half: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return _conv(half.conv_out, F.silu(_norm(half.norm_out, x)))


def _random_colour(rng: Random) -> torch.Tensor:
    """A colour of the world, or, for pictures from elsewhere, any colour; (3,) in [-1, 1]."""
    if rng.random() < 0.6:
        rgb: Sequence[float] = scenes.RGB[rng.choice(list(scenes.RGB))]
    else:
        rgb = [rng.uniform(0, 255) for _ in range(3)]
    return torch.tensor(rgb) / 127.5 - 1
