"""Trains the VAE on drawn crops: pictures <-> latents of 1/16 of the side.

Knows the layers of AutoencoderKLQwenImage and how to run them on single frames. Knows nothing about prompts.
One frame is not a video: each causal 3-D convolution is the 2-D convolution with its last temporal slice, which is
several times faster. The mid blocks' attention stays the identity that it starts as, so the VAE sees only its
surroundings and works the same at every size.
"""

import random

import torch
import torch.nn.functional as F

from ..world import scenes as world

KL_WEIGHT = 3e-4  # against the mean absolute error of pixels in [-1, 1]


def encode(vae, pixels):
    """(B, 3, H, W) in [-1, 1] -> means and log variances, each (B, 16, H/16, W/16)."""
    x = _conv(vae.encoder.conv_in, pixels)
    for layer in vae.encoder.down_blocks:
        x = layer.resample(x) if hasattr(layer, "resample") else _residual(layer, x)
    x = _head(vae.encoder, _mid(vae.encoder.mid_block, x))
    mean, log_variance = _conv(vae.quant_conv, x).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(vae, latents):
    """(B, 16, h, w) -> (B, 3, 16h, 16w), not clamped: gradients vanish outside [-1, 1] in `vae.decode`."""
    x = _mid(vae.decoder.mid_block, _conv(vae.decoder.conv_in, _conv(vae.post_quant_conv, latents)))
    for block in vae.decoder.up_blocks:
        for layer in block.resnets:
            x = _residual(layer, x)
        for layer in block.upsamplers or ():
            x = layer.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return _head(vae.decoder, x)


def normalised(vae, latents):
    """Raw latents -> what the transformer sees."""
    mean, std = (torch.tensor(v, device=latents.device).view(1, -1, 1, 1) for v in _statistics(vae))
    return (latents - mean) / std


def denormalised(vae, latents):
    mean, std = (torch.tensor(v, device=latents.device).view(1, -1, 1, 1) for v in _statistics(vae))
    return latents * std + mean


def initialise(vae):
    """Start as a linear autoencoder: residual branches and attention silent, the main path of constant scale.

    From PyTorch's own initialisation the loss stays flat for hundreds of steps.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            continue
        with torch.no_grad():
            module.bias.zero_()
            kernel = module.weight[:, :, -1] if module.weight.ndim == 5 else module.weight
            if name.endswith("conv2") or name.endswith("proj"):
                module.weight.zero_()
                continue
            module.weight.zero_()
            fresh = torch.empty(kernel.shape)
            torch.nn.init.orthogonal_(fresh)
            kernel.copy_(fresh)


def parameters(vae):
    """What training moves: all but attention and the temporal convolutions, which single frames never reach."""
    return [p for name, p in vae.named_parameters() if "attentions" not in name and "time_conv" not in name]


def crops(count, side, seed):
    """`count` drawn crops, (count, 3, side, side) in [-1, 1], most with an outline in view, seeded."""
    rng = random.Random(seed)
    pixel = torch.arange(side) + 0.5
    pictures = []
    for _ in range(count):
        canvas = _colour(rng).view(3, 1, 1).expand(3, side, side)
        for _ in range(1 if rng.random() < 0.85 else 2):
            radius = 25.0 * 10 ** rng.uniform(0, 1.0)
            angle, off = rng.uniform(0, 6.2832), radius * rng.uniform(0.7, 1.2)
            towards = torch.tensor([angle]).cos().item(), torch.tensor([angle]).sin().item()
            dx = pixel[None] - (rng.uniform(0, side) + off * towards[0])
            dy = pixel[:, None] - (rng.uniform(0, side) + off * towards[1])
            outline = world.distance(rng.choice(list(world.SHAPES)), dx, dy, radius, torch)
            canvas = torch.lerp(canvas, _colour(rng).view(3, 1, 1).expand_as(canvas), (0.5 - outline).clamp(0, 1))
        pictures.append(canvas)
    return torch.stack(pictures)


def measure(vae, latents):
    """Write the latents' own mean and deviation into the config, from (N, 16, h, w) raw latents.

    A channel that the VAE hardly uses keeps a small normalised deviation instead of being blown up to one.
    """
    std = latents.std(dim=(0, 2, 3))
    std = std.clamp_min(0.2 * std.max().item())
    mean = latents.mean(dim=(0, 2, 3))
    vae.register_to_config(latents_mean=[round(v, 5) for v in mean.tolist()])
    vae.register_to_config(latents_std=[round(v, 5) for v in std.tolist()])


def measure_on_scenes(vae, seed, count=64):
    """`measure` on whole drawn pictures of 256 x 256."""
    rng = random.Random(f"{seed} statistics")
    pixels = whole([world.scene(rng) for _ in range(count)], 256)
    with torch.no_grad():
        measure(vae, encode(vae, pixels.to(next(vae.parameters()).device))[0])


def pictures(step, steps, seed):
    """What one step learns from, (B, 3, side, side): small crops, which have the most outlines for their pixels.

    The last quarter mixes in larger ones: where all are small, the zeros around them reach every latent, and plain
    surroundings come out stained.
    """
    kind = step % 10 if step >= 0.75 * steps else 0
    if kind in (1, 5):
        rng = random.Random(f"{seed} {step}")
        return whole([world.scene(rng) for _ in range(2)], 256)
    side, count = (128, 8) if kind in (3, 6, 9) else (64, 32)
    return crops(count, side, f"{seed} {step}")


def whole(scenes, side):
    """Scenes as (B, 3, side, side) in [-1, 1]."""
    drawn = torch.stack([torch.from_numpy(world.draw(scene, side, side)) for scene in scenes])
    return drawn.permute(0, 3, 1, 2).float() / 127.5 - 1


def loss(vae, pixels, noise):
    """Mean absolute and squared error plus a little KL; (loss, mean absolute error), scalars.

    `noise`: standard normal, of the latents' shape.
    """
    with torch.autocast(pixels.device.type, torch.bfloat16):
        mean, log_variance = (part.float() for part in encode(vae, pixels))
    latents = mean + (0.5 * log_variance).exp() * noise
    with torch.autocast(pixels.device.type, torch.bfloat16):
        drawn = decode(vae, latents)
    wrong = drawn.float() - pixels
    error = wrong.abs().mean()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return error + wrong.square().mean() + KL_WEIGHT * kl, error


def _conv(conv, x):
    return F.conv2d(x, conv.weight[:, :, -1], conv.bias, padding=conv._padding[0])


def _norm(norm, x):
    return F.normalize(x, dim=1) * (norm.scale * norm.gamma.view(1, -1, 1, 1))


def _residual(block, x):
    shortcut = _conv(block.conv_shortcut, x) if hasattr(block.conv_shortcut, "weight") else x
    x = _conv(block.conv1, F.silu(_norm(block.norm1, x)))
    return shortcut + _conv(block.conv2, F.silu(_norm(block.norm2, x)))


def _mid(block, x):
    return _residual(block.resnets[1], _residual(block.resnets[0], x))


def _head(half, x):
    return _conv(half.conv_out, F.silu(_norm(half.norm_out, x)))


def _statistics(vae):
    return vae.config.latents_mean, vae.config.latents_std


def _colour(rng):
    """A colour of the world, or, for pictures from elsewhere, any colour; in [-1, 1]."""
    if rng.random() < 0.6:
        rgb = world.RGB[rng.choice(list(world.RGB))]
    else:
        rgb = [rng.uniform(0, 255) for _ in range(3)]
    return torch.tensor(rgb) / 127.5 - 1
