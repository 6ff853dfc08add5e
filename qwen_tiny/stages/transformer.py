"""Trains the two transformers by rectified flow on packed latents, the text encoder frozen.

Knows the pipelines' conventions: timesteps in [0, 1], noise at 1, velocity = noise - picture, the latents of an edit's
input behind the noisy ones. Of a large picture a choice of its tokens is learnt: in little noise those where the
subject's outline may be and some of the plain rest, in much noise any. Knows nothing about files or evaluation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch

from ..training import auxiliary, forward
from .pools import Pool, Size

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel


SHIFT = math.exp(0.5)  # what the scheduler's dynamic shifting comes to at all of these sizes (base_shift 0.5)
SUBJECT_WEIGHT = 3.0
AUXILIARY_WEIGHT = 0.5
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}  # chosen noisy latents of a batch; edits: with their inputs
LEAST_REST = 16  # tokens of a choice that are not of the outline
# Below this noise level the outline's tokens are chosen first: there the noisy picture itself tells where the subject
# is. In more noise the choice would tell it, and the model would look for it there instead of in the prompt.
CLEAR_BELOW = 0.8


@dataclass(frozen=True)
class Batch:
    """Chosen tokens of pictures: B of them, S tokens each, T tokens of text."""

    latents: list[torch.Tensor]  # of the pictures to draw, and of those that edits start from: each (B, S, 64)
    states: torch.Tensor  # (B, T, 128)
    mask: torch.Tensor  # (B, T) bool
    place_targets: torch.Tensor  # (B, S, 4); see `auxiliary`
    scene_targets: torch.Tensor  # (B, S, 17)
    weight: torch.Tensor  # (B, S, 1): how much a token's error counts
    sigma: torch.Tensor  # (B,)
    places: forward.TokenPlaces

    def to(self, device: torch.device) -> "Batch":
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "latents"}
        return Batch(latents=[latents.to(device) for latents in self.latents], **moved)


class BatchSampler:
    """Batches of one stage, each of one of its sizes. `pools`: one for each of `sizes`."""

    def __init__(self, transformer: "QwenImageTransformer2DModel", pools: Sequence[Pool], sizes: Sequence[Size]):
        self.transformer = transformer
        weights = (token_weights(pool.latents) for pool in pools)
        self.choices = list(zip(pools, weights, (size.tokens for size in sizes), strict=True))
        self.shares = [size.share for size in sizes]

    def sample(self, rng: Random, generator: torch.Generator) -> Batch:
        """A batch of a random size. `rng` and `generator` set all of its randomness."""
        pool, weights, tokens = rng.choices(self.choices, self.shares)[0]
        joined = 1 if pool.before is None else 2
        count = max(2, TOKENS_AT_ONCE[self.transformer.device.type] // (tokens * joined))
        prompts = torch.randint(len(pool.after), (count,), generator=generator)
        pictures = [numbers[prompts] for numbers in (pool.after, pool.before) if numbers is not None]
        sigma = noise_levels(count, generator)
        outlines = torch.stack([pool.outlines[numbers] for numbers in pictures]).any(dim=0)
        chosen, log_counts = choose_tokens(outlines & (sigma < CLEAR_BELOW).unsqueeze(-1), tokens, generator)
        total = pool.latents.shape[1]
        places = forward.TokenPlaces.build(
            self.transformer,
            [token_shape(pool.width, pool.height)] * joined,
            pool.mask.shape[1],
            torch.cat([chosen + number * total for number in range(joined)], dim=1),
            log_counts.repeat(1, joined),
        )
        return Batch(
            latents=[gather_tokens(pool.latents[numbers], chosen) for numbers in pictures],
            states=pool.states[prompts].float(),
            mask=pool.mask[prompts],
            place_targets=auxiliary.place_targets(pool.width, pool.height)[chosen],
            scene_targets=gather_tokens(pool.scene_targets[pictures[0]].float(), chosen),
            weight=gather_tokens(torch.stack([weights[numbers] for numbers in pictures]).amax(dim=0), chosen),
            sigma=sigma,
            places=places,
        ).to(self.transformer.device)


def choose_tokens(
    outlines: torch.Tensor, count: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` tokens of each picture: those at the outline first, `LEAST_REST` of the others at least.

    `outlines` (B, N) bool. Returns indices (B, count), and logs of how many tokens each stands for (B, count).
    """
    total = outlines.shape[1]
    if count >= total:
        return torch.arange(total).expand(len(outlines), -1), torch.zeros(outlines.shape)
    chance = torch.rand((2, *outlines.shape), generator=generator)
    first = (outlines + 0.999 * chance[0]).topk(count - LEAST_REST, dim=1).indices
    rest = (chance[1] - outlines.float()).scatter(1, first, -2.0).topk(LEAST_REST, dim=1).indices
    chosen = torch.cat([first, rest], dim=1)
    outline = outlines.gather(1, chosen)
    stand_for = [
        whole.sum(dim=1, keepdim=True) / taken.sum(dim=1, keepdim=True).clamp(min=1)
        for whole, taken in ((outlines, outline), (~outlines, ~outline))
    ]
    return chosen, torch.where(outline, *stand_for).log()


def gather_tokens(tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(B, N, width) and indices (B, S) -> (B, S, width)."""
    return tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def token_weights(latents: torch.Tensor) -> torch.Tensor:
    """How much each token's error counts, (B, N, 1): the subject's more, they are few and hold the shape."""
    background = latents.median(dim=1, keepdim=True).values
    away = (latents - background).square().mean(dim=-1, keepdim=True)
    return 1 + SUBJECT_WEIGHT * (away / (away + 0.05))


def loss(
    transformer: "QwenImageTransformer2DModel", heads: auxiliary.Heads, batch: Batch, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The velocity's weighted squared error with that of the heads on top, and the first alone; two scalars."""
    latents = batch.latents[0]
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    noisy = torch.lerp(latents, noise, batch.sigma.view(-1, 1, 1))
    joined = torch.cat([noisy, *batch.latents[1:]], dim=1)
    velocity, tapped = forward.velocity(
        transformer, joined, batch.sigma, batch.states, batch.mask, batch.places, auxiliary.TAPS
    )
    count = latents.shape[1]
    squared = (velocity[:, :count] - (noise - latents)).square()
    error = (batch.weight * squared).mean() / batch.weight.mean()
    auxiliary_error = heads([state[:, :count] for state in tapped], batch.place_targets, batch.scene_targets)
    return error + AUXILIARY_WEIGHT * auxiliary_error, error


def step_loss(sampler: BatchSampler, heads: auxiliary.Heads, step: int, seed: int) -> tuple[torch.Tensor, float]:
    """The loss of one step, whose randomness the step and the seed set alone: (scalar, the velocity's error)."""
    rng = Random(f"{seed} {step}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    batch = sampler.sample(rng, generator)
    with torch.autocast(sampler.transformer.device.type, torch.bfloat16):
        value, error = loss(sampler.transformer, heads, batch, generator)
    return value, error.item()


def initialise(transformer: "QwenImageTransformer2DModel") -> None:
    """adaLN-zero: every block starts as the identity and the output as zero."""
    for name, module in transformer.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        silent = name in ("proj_out", "norm_out.linear") or name.endswith(("img_mod.1", "txt_mod.1"))
        torch.nn.init.zeros_(module.weight) if silent else torch.nn.init.xavier_uniform_(module.weight)
        torch.nn.init.zeros_(module.bias)


def block_matrices(transformer: "QwenImageTransformer2DModel") -> list[torch.nn.Parameter]:
    """The weights for Muon: those of attention and MLPs inside the blocks."""
    return [p for name, p in transformer.transformer_blocks.named_parameters() if p.ndim == 2 and "_mod." not in name]


def noise_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels, evenly spread over the batch and shifted towards noise like the scheduler's, (count,)."""
    even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return SHIFT * even / (1 + (SHIFT - 1) * even)


def token_shape(width: int, height: int) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens of a picture of width x height pixels."""
    return (1, height // 32, width // 32)
