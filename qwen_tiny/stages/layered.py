"""Teaches the layered pipeline's two own parts: a VAE with opacity, and a transformer that takes a scene apart.

A scene's layers are its bare background and its subject alone, whose colour fills its whole layer so that the opacity
alone draws the outline. Layers beyond these two are empty. Knows the layered pipeline's conventions: the picture whole
before the layers, all of them drawn together, and the picture's own latents behind them at depth -1. Knows nothing
about files or evaluation.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..training import auxiliary, forward
from ..training.auxiliary import TOKEN
from ..world import scenes, tasks
from .pools import pack
from .transformer import (
    AUXILIARY_WEIGHT,
    CLEAR_BELOW,
    choose_tokens,
    gather_tokens,
    token_shape,
    token_weights,
)
from .vae import KL_WEIGHT, decode, draw_crops, encode, normalise

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    from .pools import Size
    from .text_encoder import Embedder

MOST_LAYERS = 4  # of a picture of training
FRAMES = MOST_LAYERS + 2  # with the whole picture before them and the given one behind
TOKENS_AT_ONCE = {"cpu": 768, "cuda": 8192}
LAYER_SHARES = {2: 5, 4: 1}  # numbers of layers, by their shares of the steps
PROMPTS = 60  # kept encoded
# Captions are another picture's, no sentence at all, or empty: a picture shows its layers itself. The model then looks
# at the picture alone, guidance finds no difference to multiply, and the pipeline's own useless caption does no harm.
EMPTY_CAPTIONS = 0.3
CLEAR_WEIGHT = 0.1  # of the error of colours that may not be seen
MARGIN = 96  # pixels around a subject that its latents depend on
SHIFT = 3.0  # of the noise levels; the pipeline's own shift is exp(1.25) at 640 pixels


@dataclass(frozen=True)
class Pool:
    """P scenes of one size: latents (P, 3, N, 64) of whole, background and subject; targets of the whole."""

    width: int
    height: int
    latents: torch.Tensor
    scene_targets: torch.Tensor  # (P, N, 17)
    outlines: torch.Tensor  # (P, N) bool
    weights: torch.Tensor  # (P, N, 1)


def draw_layers(scene: scenes.Scene, width: int, height: int) -> torch.Tensor:
    """The scene whole, its background and its subject: (3, 4, height, width) in [-1, 1], opacity the last channel."""
    whole, bare = (scenes.draw(shown, width, height) for shown in (scene, replace(scene, shape=None)))
    opaque = np.full((height, width, 1), 255, np.uint8)
    subject = np.broadcast_to(np.array(scenes.RGB[scene.colour], np.uint8), whole.shape)
    opacity = np.rint(255 * scenes.coverage(scene, width, height)[..., None]).astype(np.uint8)
    pairs = ((whole, opaque), (bare, opaque), (subject, opacity))
    stacked = np.stack([np.concatenate(pair, axis=-1) for pair in pairs])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_batch(step: int, seed: int | str, every: int = 10) -> torch.Tensor:
    """What one step of the VAE learns from, (B, 4, side, side): opaque crops, layers cut out along outlines, both.

    Of so many steps, one in `every` learns from a scene and its layers.
    """
    if step % every == 0:
        rng = Random(f"{seed} {step} layers")
        return draw_layers(tasks.training_scene(rng), 256, 256)
    side, count = (128, 4) if step % 5 == 3 else (64, 12)
    colours = draw_crops(count, side, f"{seed} {step} layers")
    plain = colours[:, :, :1, :1].expand_as(colours)
    outlines = draw_crops(count, side, f"{seed} {step} opacity")
    inside = (outlines - outlines[:, :, :1, :1]).abs().amax(dim=1, keepdim=True)
    opacity = 2 * (inside / inside.amax(dim=(2, 3), keepdim=True).clamp_min(1e-3)) - 1
    flip = torch.rand((count, 1, 1, 1), generator=torch.Generator().manual_seed(step)) < 0.5
    opacity = torch.where(flip, opacity, -opacity)
    opaque = torch.ones_like(opacity)
    kind = torch.arange(count).view(-1, 1, 1, 1) % 8
    colours = torch.where(kind < 4, plain, colours)  # 0-3: a plain layer's outline; 4-6: opaque; 7: both at once
    opacity = torch.where((kind >= 4) & (kind < 7), opaque, opacity)
    empty = (kind == 0) & (torch.arange(count).view(-1, 1, 1, 1) < 8)
    return torch.cat([torch.where(empty, colours.new_full((), -1.0), colours), torch.where(empty, -opaque, opacity)], 1)


def vae_loss(
    vae: "AutoencoderKLQwenImage", pixels: torch.Tensor, noise: torch.Tensor, behind: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, mean absolute error): that of all channels, that of the layer laid over a colour, and a little KL.

    `pixels`: (B, 4, H, W) in [-1, 1]. `noise`: standard normal, of the latents' shape. `behind`: (B, 3, 1, 1).
    """
    with autocast(pixels.device):
        mean, log_variance = (part.float() for part in encode(vae, pixels))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    loss, error = drawing_loss(vae, pixels, mean + (0.5 * log_variance).exp() * noise, behind)
    return loss + KL_WEIGHT * kl, error


def decoder_loss(
    vae: "AutoencoderKLQwenImage", pixels: torch.Tensor, behind: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `vae_loss`, for a decoder whose encoder stays as it is."""
    with torch.no_grad(), autocast(pixels.device):
        mean, _ = encode(vae, pixels)
    return drawing_loss(vae, pixels, mean.float(), behind)


def drawing_loss(
    vae: "AutoencoderKLQwenImage", pixels: torch.Tensor, latents: torch.Tensor, behind: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder makes of the latents of `pixels`: (loss, mean absolute error of what is seen)."""
    with autocast(pixels.device):
        drawn = decode(vae, latents).float()
    seen = lay_over(drawn, behind) - lay_over(pixels, behind)
    difference = drawn - pixels
    opacity = difference[:, 3]
    # The colour where a layer is clear is nobody's concern, but a plain one is easier to draw over.
    error = CLEAR_WEIGHT * difference[:, :3].abs().mean() + 0.5 * opacity.abs().mean() + seen.abs().mean()
    squared = 0.5 * opacity.square().mean() + seen.square().mean()
    return error + squared, seen.abs().mean()


def lay_over(layer: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
    """A layer (B, 4, H, W) over a picture or colour (B, 3, ...), both in [-1, 1]."""
    return torch.lerp(behind.expand_as(layer[:, :3]), layer[:, :3], (layer[:, 3:] + 1) / 2)


def measure_latents(vae: "AutoencoderKLQwenImage", seed: int) -> None:
    """Write mean and deviation of the raw latents of drawn layers of 256 x 256 into the VAE's config."""
    rng = Random(f"{seed} statistics of layers")
    pixels = torch.cat([draw_layers(scenes.random_scene(rng), 256, 256) for _ in range(24)])
    with torch.no_grad():
        latents = encode(vae, pixels.to(next(vae.parameters()).device))[0]
    std = latents.std(dim=(0, 2, 3))
    std = std.clamp_min(0.2 * std.max().item())
    vae.register_to_config(latents_mean=[round(value, 5) for value in latents.mean(dim=(0, 2, 3)).tolist()])
    vae.register_to_config(latents_std=[round(value, 5) for value in std.tolist()])


def make_pool(vae: "AutoencoderKLQwenImage", size: "Size", seed: int) -> Pool:
    """A size's scenes, taken apart and encoded."""
    rng = Random(f"{seed} {size.width} {size.height} layers")
    drawn = [tasks.training_scene(rng) for _ in range(size.pictures)]
    bare = {colour: bare_latents(vae, colour, size) for colour in scenes.RGB}
    latents = torch.stack([encode_layers(vae, scene, size, bare) for scene in drawn])
    targets = torch.stack([auxiliary.scene_targets(scene, size.width, size.height) for scene in drawn])
    outlines = torch.stack([auxiliary.outline_tokens(scene, size.width, size.height) for scene in drawn])
    return Pool(size.width, size.height, latents, targets, outlines, token_weights(latents[:, 0]))


def bare_latents(vae: "AutoencoderKLQwenImage", colour: str, size: "Size") -> torch.Tensor:
    """The latents of a picture of one colour, opaque and clear: (2, 16, h, w)."""
    pixels = torch.tensor(scenes.RGB[colour]).view(1, 3, 1, 1).expand(2, -1, size.height, size.width) / 127.5 - 1
    opacity = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(-1, -1, size.height, size.width)
    return encode_pixels(vae, torch.cat([pixels, opacity], dim=1))


def encode_layers(
    vae: "AutoencoderKLQwenImage", scene: scenes.Scene, size: "Size", bare: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The packed latents of the scene whole, its background and its subject, (3, tokens, 64).

    Only what the VAE sees of the subject is encoded, the rest is `bare`: half the time.
    """
    reach = scene.radius * min(size.width, size.height) * 1.2 + MARGIN
    box: list[tuple[int, int]] = []
    for middle, side in ((scene.y * size.height, size.height), (scene.x * size.width, size.width)):
        first, last = max(0.0, middle - reach) // TOKEN, -(-min(side, middle + reach) // TOKEN)
        box.append((int(first) * TOKEN, int(last) * TOKEN))
    (top, bottom), (left, right) = box
    whole, _, subject = draw_layers(scene, size.width, size.height)[:, :, top:bottom, left:right]
    latents = torch.stack([bare[scene.background][0], bare[scene.background][0], bare[scene.colour][1]])
    # The crop's outermost latents see its border, which the picture does not have there.
    inner = [(first // 16 + 2 * (first > 0), last // 16 - 2 * (last < side))
             for (first, last), side in zip(box, (size.height, size.width), strict=True)]  # fmt: skip
    (row, last_row), (column, last_column) = inner
    crop = encode_pixels(vae, torch.stack([whole, subject]))
    inside = crop[:, :, row - top // 16 : last_row - top // 16, column - left // 16 : last_column - left // 16]
    latents[::2, :, row:last_row, column:last_column] = inside
    return pack(latents)


def encode_pixels(vae: "AutoencoderKLQwenImage", pixels: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W) in [-1, 1] -> normalised latents (B, 16, H/16, W/16) on the CPU."""
    device = next(vae.parameters()).device
    with torch.no_grad(), autocast(device):
        mean, _ = encode(vae, pixels.to(device).contiguous(memory_format=torch.channels_last))
    return normalise(vae, mean.float()).cpu()


def empty_latents(vae: "AutoencoderKLQwenImage") -> torch.Tensor:
    """The packed latents of one token of an empty layer, (64,)."""
    latents = encode_pixels(vae, torch.full((1, 4, 256, 256), -1.0))
    return pack(latents)[0, 36]  # from the middle: the border is padded


class BatchSampler:
    """Batches of joined pictures: the whole, its layers, and the given picture behind them."""

    def __init__(
        self,
        transformer: "QwenImageTransformer2DModel",
        vae: "AutoencoderKLQwenImage",
        embedder: "Embedder",
        sizes: "Sequence[Size]",
        seed: int,
    ):
        self.transformer, self.sizes = transformer, sizes
        self.pools = [make_pool(vae, size, seed) for size in sizes]
        self.empty = empty_latents(vae)
        rng = Random(f"{seed} captions of layers")
        captions = [tasks.describe(rng, tasks.training_scene(rng))[0] for _ in range(PROMPTS)]
        captions += ["".join(rng.choices(string.ascii_letters, k=rng.randint(1, 16))) for _ in range(PROMPTS)]
        states, mask = embedder.embed_prompts([*captions, " "])
        self.states, self.mask = states.float(), mask

    def loss(self, heads: auxiliary.Heads, step: int, seed: int) -> tuple[torch.Tensor, float]:
        """The loss of one step, whose randomness the step and the seed set alone: (scalar, the velocity's error)."""
        rng = Random(f"{seed} {step} layers")
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        pool, size = rng.choices(list(zip(self.pools, self.sizes, strict=True)), [size.share for size in self.sizes])[0]
        layers = rng.choices(list(LAYER_SHARES), list(LAYER_SHARES.values()))[0]
        count = max(2, TOKENS_AT_ONCE[self.transformer.device.type] // (size.tokens * (layers + 2)))
        chosen_scenes = torch.randint(len(pool.latents), (count,), generator=generator)
        sigma = noise_levels(count, generator)
        outlines = pool.outlines[chosen_scenes] & (sigma < CLEAR_BELOW).unsqueeze(-1)
        chosen, log_counts = choose_tokens(outlines, size.tokens, generator)
        clean = pool.latents[chosen_scenes].gather(2, chosen[:, None, :, None].expand(-1, 3, -1, 64))  # (B, 3, S, 64)
        empty = self.empty.expand(count, layers - 2, size.tokens, 64)
        target = torch.cat([clean, empty], dim=1)  # (B, 1 + layers, S, 64)
        joined = layers + 2
        total = pool.latents.shape[2]
        places = forward.TokenPlaces.build(
            self.transformer, [token_shape(pool.width, pool.height)] * joined, self.mask.shape[1],
            torch.cat([chosen + number * total for number in range(joined)], dim=1), log_counts.repeat(1, joined),
        )  # fmt: skip
        prompts = torch.randint(len(self.states), (count,), generator=generator)
        prompts[torch.rand(count, generator=generator) < EMPTY_CAPTIONS] = len(self.states) - 1
        noise = torch.randn(target.shape, generator=generator)
        noisy = torch.lerp(target, noise, sigma.view(-1, 1, 1, 1))
        latents = torch.cat([noisy, clean[:, :1]], dim=1).flatten(1, 2)
        with autocast(self.transformer.device):
            velocity, tapped = forward.velocity(
                self.transformer, latents, sigma, self.states[prompts], self.mask[prompts], places, auxiliary.TAPS
            )
        squared = (velocity[:, : -size.tokens].unflatten(1, target.shape[1:3]) - (noise - target)).square()
        weight = gather_tokens(pool.weights[chosen_scenes], chosen).unsqueeze(1)
        error = (weight * squared).mean() / weight.mean()
        place = auxiliary.place_targets(pool.width, pool.height)[chosen].repeat(1, joined, 1)
        numbers = [*range(joined - 1), FRAMES - 1]
        frame = torch.eye(FRAMES)[numbers].repeat_interleave(size.tokens, dim=0).expand(count, -1, -1)
        scene = gather_tokens(pool.scene_targets[chosen_scenes], chosen).repeat(1, joined, 1)
        extra = heads([state.float() for state in tapped], torch.cat([place, frame], dim=-1), scene)
        return error + AUXILIARY_WEIGHT * extra, error.item()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU alone: a processor without instructions for it takes 26 times as long for a product."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def noise_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels, evenly spread over the batch and shifted towards noise, (count,)."""
    even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return SHIFT * even / (1 + (SHIFT - 1) * even)
