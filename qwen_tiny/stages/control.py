"""Trains a ControlNet that draws a subject where the edges of a control picture say, the transformer frozen.

The class is that of InstantX's union, started from the generate transformer's first blocks. Prompts leave shape, size
and place open most of the time. The residuals are learnt as the pipeline uses them: made with the prompt, and added
both to the prediction with it and to the one without. Knows nothing about files but those of a `Pool`.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from qwen_worker.pictures.control import canny

from ..training import auxiliary, fitting, forward
from ..world import scenes, tasks
from .pools import Size, digest, pack
from .transformer import CLEAR_BELOW, choose_tokens, gather_tokens, noise_levels, token_shape, token_weights
from .vae import draw_pixels, encode, normalise

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage, QwenImageControlNetModel, QwenImageTransformer2DModel

    from .text_encoder import Embedder

BLOCKS = 2
OPEN = 0.7  # share of the prompts that leave shape, size and place open
WITHOUT = 0.35  # share of the pictures whose transformer gets no prompt, as for guidance, while the ControlNet has it
ANYWHERE = 0.25  # share of the scenes whose subject may be anywhere: edges say more than three places
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 8192}
AUXILIARY_WEIGHT = 0.5


@dataclass(frozen=True)
class Pool:
    """P scenes of one size as pictures and as edges, N tokens each, and E prompts about them."""

    size: Size
    latents: torch.Tensor  # (P, N, 64), packed
    control: torch.Tensor  # (P, N, 64), of the edges
    spread: torch.Tensor  # (P, N, 64): standard deviation of `control`, which the pipeline draws a sample of
    scene_targets: torch.Tensor  # (P, N, 17) float16, see `auxiliary`
    outlines: torch.Tensor  # (P, N) bool
    weights: torch.Tensor  # (P, N, 1)
    states: torch.Tensor  # (E, T, 128) float16
    mask: torch.Tensor  # (E, T) bool
    pictures: torch.Tensor  # (E,) the picture that a prompt is of
    empty: tuple[torch.Tensor, torch.Tensor]  # states and mask of " "


def build(transformer: "QwenImageTransformer2DModel", start: Path | None = None) -> "QwenImageControlNetModel":
    """The ControlNet in the folder `start`, if there is one; else an untrained one, which adds nothing yet."""
    from diffusers import QwenImageControlNetModel

    if start and start.exists():
        return QwenImageControlNetModel.from_pretrained(start, dtype=torch.float32).to(transformer.device)
    config = transformer.config
    return QwenImageControlNetModel.from_transformer(
        transformer,
        num_layers=BLOCKS,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
    ).to(transformer.device)


def control_scene(rng: Random) -> scenes.Scene:
    """A scene to learn from: of the world, or with its subject anywhere."""
    scene = tasks.training_scene(rng)
    if rng.random() >= ANYWHERE:
        return scene
    return replace(scene, x=rng.uniform(0.25, 0.75), y=rng.uniform(0.3, 0.7), radius=rng.uniform(0.12, 0.24))


def edges_of(scene: scenes.Scene, width: int, height: int) -> Image.Image:
    """The scene's edges, as the worker's preprocessor finds them."""
    return canny(Image.fromarray(scenes.draw(scene, width, height)))


def make_pool(vae: "AutoencoderKLQwenImage", embedder: "Embedder", size: Size, seed: int, folder: Path) -> Pool:
    """A size's pool: `size.pictures` scenes, `size.wordings` prompts for each. `folder` keeps the latents."""
    rng = Random(f"{seed} {size.width} {size.height} control")
    drawn = [control_scene(rng) for _ in range(size.pictures)]
    numbers = list(range(len(drawn))) * size.wordings
    prompts = [_prompt(rng, drawn[number]) for number in numbers]
    latents, control, spread = _keep_latents(vae, drawn, size, folder)
    states, mask = embedder.embed_prompts(prompts)
    return Pool(
        size=size,
        latents=latents,
        control=control,
        spread=spread,
        scene_targets=torch.stack([auxiliary.scene_targets(s, size.width, size.height) for s in drawn]).half(),
        outlines=torch.stack([auxiliary.outline_tokens(scene, size.width, size.height) for scene in drawn]),
        weights=token_weights(latents),
        states=states,
        mask=mask,
        pictures=torch.tensor(numbers),
        empty=embedder.embed_prompts([" "]),
    )


def step_loss(
    transformer: "QwenImageTransformer2DModel",
    controlnet: "QwenImageControlNetModel",
    heads: auxiliary.Heads,
    pools: Sequence[Pool],
    step: int,
    seed: int,
) -> tuple[torch.Tensor, float]:
    """The loss of one step, whose randomness the step and the seed set alone: (scalar, the velocity's error)."""
    rng = Random(f"{seed} control {step}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    pool = rng.choices(pools, [pool.size.share for pool in pools])[0]
    dtype = forward.fastest_dtype(transformer.device.type)
    with torch.autocast(transformer.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        value, error = loss(transformer, controlnet, heads, pool, generator)
    return value, error.item()


def loss(
    transformer: "QwenImageTransformer2DModel",
    controlnet: "QwenImageControlNetModel",
    heads: auxiliary.Heads,
    pool: Pool,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The velocity's weighted squared error with that of the heads on the ControlNet on top, and the first alone."""
    device = transformer.device
    count = TOKENS_AT_ONCE[device.type] // pool.size.tokens
    prompts = torch.randint(len(pool.pictures), (count,), generator=generator)
    pictures = pool.pictures[prompts]
    sigma = noise_levels(count, generator)
    outlines = pool.outlines[pictures] & (sigma < CLEAR_BELOW).unsqueeze(-1)
    chosen, log_counts = choose_tokens(outlines, min(pool.size.tokens, outlines.shape[1]), generator)
    shapes = [token_shape(pool.size.width, pool.size.height)]
    places = forward.TokenPlaces.build(transformer, shapes, pool.mask.shape[1], chosen, log_counts).to(device)
    latents = gather_tokens(pool.latents[pictures], chosen)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1)).to(device)
    sample = torch.randn(latents.shape, generator=generator)
    control = gather_tokens(pool.control[pictures], chosen) + sample * gather_tokens(pool.spread[pictures], chosen)
    states, mask = pool.states[prompts].float(), pool.mask[prompts]
    without = torch.rand(count, generator=generator) < WITHOUT
    own_states = torch.where(without.view(-1, 1, 1), pool.empty[0].float(), states)
    own_mask = torch.where(without.view(-1, 1), pool.empty[1], mask)
    level = sigma.to(device)
    residuals, tapped = forward.control_residuals(
        controlnet, noisy, control.to(device), level, states.to(device), mask.to(device), places
    )
    velocity, _ = forward.velocity(
        transformer, noisy, level, own_states.to(device), own_mask.to(device), places, residuals=residuals
    )
    weight = gather_tokens(pool.weights[pictures], chosen).to(device)
    squared = (velocity - (noise - latents).to(device)).square()
    error = (weight * squared).mean() / weight.mean()
    place_targets = auxiliary.place_targets(pool.size.width, pool.size.height)[chosen].to(device)
    scene_targets = gather_tokens(pool.scene_targets[pictures].float(), chosen).to(device)
    return error + AUXILIARY_WEIGHT * heads(tapped, place_targets, scene_targets), error


def _prompt(rng: Random, scene: scenes.Scene) -> str:
    if rng.random() < OPEN:
        return tasks.describe_colours(rng, scene)
    return tasks.describe(rng, scene)[0]


def _keep_latents(
    vae: "AutoencoderKLQwenImage", drawn: Sequence[scenes.Scene], size: Size, folder: Path
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of the scenes and of their edges, and the deviations of these, kept for training that goes on."""
    path = folder / f"{digest(vae, drawn, size)}-control.pt"
    if not path.exists():
        latents, _ = _encode(vae, (draw_pixels([scene], size.width, size.height) for scene in drawn))
        edges = _encode(vae, (_as_pixels(edges_of(scene, size.width, size.height)) for scene in drawn))
        fitting.write_whole((latents, *edges), path)
    latents, control, spread = torch.load(path, weights_only=True)
    return latents, control, spread


def _as_pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def _encode(vae: "AutoencoderKLQwenImage", pictures: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (1, 3, H, W) -> packed, normalised latents and their standard deviations, each (count, tokens, 64)."""
    dtype = forward.fastest_dtype(vae.device.type)
    fast = torch.nn.Module.to(copy.deepcopy(vae), dtype)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)
    means, spreads = [], []
    for pixels in pictures:
        with torch.no_grad():
            pixels = pixels.to(vae.device, dtype).contiguous(memory_format=torch.channels_last)
            mean, log_variance = (part.float() for part in encode(fast, pixels))
        means.append(pack(normalise(vae, mean).cpu()))
        spreads.append(pack((0.5 * log_variance.cpu()).exp() / std))
    return torch.cat(means), torch.cat(spreads)
