"""Trains the two transformers by rectified flow on packed latents, the text encoder frozen.

Knows the pipelines' conventions: timesteps in [0, 1], noise at 1, velocity = noise - picture, the latents of an edit's
input behind the noisy ones. Large pictures are learnt from a choice of their tokens: those where the subject's outline
may be, some of the plain rest; in much noise any. Knows nothing about files or evaluation.
"""

import math
import random
from dataclasses import dataclass

import torch

from ..training import auxiliary as hints
from ..training import forward

SHIFT = math.exp(0.5)  # what the scheduler's dynamic shifting comes to at all of these sizes (base_shift 0.5)
SUBJECT_WEIGHT = 3.0
HINT_WEIGHT = 0.5
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}  # chosen noisy latents of a batch; edits: with their inputs
REST = 16  # tokens of a choice that are not of the outline, at least
# Noise below which the outline's tokens are chosen first: there the noisy picture itself tells where the subject is. In
# more noise the choice would tell it, and the model would look for it there instead of in the prompt.
CLEAR = 0.8


@dataclass(frozen=True)
class Size:
    """A size of training: how many pictures (families, for edits) are kept encoded, how many prompts each gets, how
    many of a picture's tokens are chosen, and the share of the steps."""

    width: int
    height: int
    pictures: int
    wordings: int
    tokens: int
    share: float


GENERATE_SIZES = (
    Size(256, 256, 2000, 4, 64, 2),
    Size(384, 256, 600, 8, 96, 1),
    Size(256, 384, 600, 8, 96, 1),
    Size(512, 512, 500, 8, 128, 3),
    Size(768, 512, 300, 12, 160, 2),
    Size(512, 768, 300, 12, 160, 1.5),
    Size(768, 768, 200, 12, 160, 1.5),
    Size(1024, 1024, 300, 12, 192, 5),
)
EDIT_SIZES = (
    Size(1024, 1024, 200, 16, 192, 7),
    Size(1248, 832, 30, 12, 192, 1),
    Size(832, 1248, 30, 12, 192, 1),
)


@dataclass(frozen=True)
class Batch:
    """Chosen tokens of pictures: B of them, S tokens each, T tokens of text."""

    latents: list  # of the pictures to draw, and for edits of those drawn from: each (B, S, 64)
    states: torch.Tensor  # (B, T, 128)
    mask: torch.Tensor  # (B, T) bool
    known_places: torch.Tensor  # (B, S, 4); see `hints`
    known_scenes: torch.Tensor  # (B, S, 17)
    weight: torch.Tensor  # (B, S, 1): how much a token's error counts
    sigma: torch.Tensor  # (B,)
    places: forward.Places

    def to(self, device):
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "latents"}
        return Batch(latents=[one.to(device) for one in self.latents], **moved)


class Task:
    """Batches of one of the tasks, from its pools, one for each of the sizes."""

    def __init__(self, transformer, pools, sizes):
        self.transformer = transformer
        counted = (weights(pool.latents) for pool in pools)
        self.choices = list(zip(pools, counted, (size.tokens for size in sizes), strict=True))
        self.shares = [size.share for size in sizes]

    def batch(self, rng, generator):
        """A batch of one size. `rng` (`random.Random`) and `generator` (of torch) set all of its randomness."""
        pool, counted, tokens = rng.choices(self.choices, self.shares)[0]
        joined = 1 if pool.before is None else 2
        count = max(2, TOKENS_AT_ONCE[self.transformer.device.type] // (tokens * joined))
        asked = torch.randint(len(pool.after), (count,), generator=generator)
        shown = [way[asked] for way in (pool.after, pool.before) if way is not None]
        sigma = sigmas(count, generator)
        near = torch.stack([pool.outlines[way] for way in shown]).any(dim=0) & (sigma < CLEAR).unsqueeze(-1)
        chosen, counts = choose(near, tokens, generator)
        total = pool.latents.shape[1]
        places = forward.Places.of(
            self.transformer,
            [shape(pool.width, pool.height)] * joined,
            pool.mask.shape[1],
            torch.cat([chosen + number * total for number in range(joined)], dim=1),
            counts.repeat(1, joined),
        )
        return Batch(
            latents=[take(pool.latents[way], chosen) for way in shown],
            states=pool.states[asked].float(),
            mask=pool.mask[asked],
            known_places=hints.places(pool.width, pool.height)[chosen],
            known_scenes=take(pool.scenes[shown[0]].float(), chosen),
            weight=take(torch.stack([counted[way] for way in shown]).amax(dim=0), chosen),
            sigma=sigma,
            places=places,
        ).to(self.transformer.device)


def choose(near, count, generator):
    """`count` tokens of each picture: those at the outline first, `REST` of the others at least.

    `near` (B, N) bool. Indices (B, count), and logs of how many tokens each stands for (B, count).
    """
    total = near.shape[1]
    if count >= total:
        return torch.arange(total).expand(len(near), -1), torch.zeros(near.shape)
    chance = torch.rand((2, *near.shape), generator=generator)
    first = (near + 0.999 * chance[0]).topk(count - REST, dim=1).indices
    rest = (chance[1] - near.float()).scatter(1, first, -2.0).topk(REST, dim=1).indices
    chosen = torch.cat([first, rest], dim=1)
    outline = near.gather(1, chosen)
    stand_for = [
        whole.sum(dim=1, keepdim=True) / taken.sum(dim=1, keepdim=True).clamp(min=1)
        for whole, taken in ((near, outline), (~near, ~outline))
    ]
    return chosen, torch.where(outline, *stand_for).log()


def take(tokens, chosen):
    """(B, N, width) and indices (B, S) -> (B, S, width)."""
    return tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def weights(latents):
    """How much each token's error counts, (B, N, 1): the subject's more, they are few and hold the shape."""
    bare = latents.median(dim=1, keepdim=True).values
    away = (latents - bare).square().mean(dim=-1, keepdim=True)
    return 1 + SUBJECT_WEIGHT * (away / (away + 0.05))


def loss(transformer, heads, batch, generator):
    """Mean squared error of the velocity, and that of the hints on top; (loss, error of the velocity)."""
    latents = batch.latents[0]
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    noisy = torch.lerp(latents, noise, batch.sigma.view(-1, 1, 1))
    joined = torch.cat([noisy, *batch.latents[1:]], dim=1)
    velocity, tapped = forward.velocity(
        transformer, joined, batch.sigma, batch.states, batch.mask, batch.places, hints.TAPS
    )
    count = latents.shape[1]
    wrong = (velocity[:, :count] - (noise - latents)).square()
    error = (batch.weight * wrong).mean() / batch.weight.mean()
    known = heads([state[:, :count] for state in tapped], batch.known_places, batch.known_scenes)
    return error + HINT_WEIGHT * known, error


def step_loss(task, heads, step, seed):
    """The loss of one step, its randomness set by the step alone: (scalar, float to show)."""
    rng = random.Random(f"{seed} {step}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    batch = task.batch(rng, generator)
    with torch.autocast(task.transformer.device.type, torch.bfloat16):
        value, error = loss(task.transformer, heads, batch, generator)
    return value, error.item()


def initialise(transformer):
    """adaLN-zero: every block starts as the identity and the output as zero."""
    for name, module in transformer.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        silent = name == "proj_out" or name == "norm_out.linear" or name.endswith(("img_mod.1", "txt_mod.1"))
        torch.nn.init.zeros_(module.weight) if silent else torch.nn.init.xavier_uniform_(module.weight)
        torch.nn.init.zeros_(module.bias)


def matrices(transformer):
    """The weights for Muon: those of attention and MLPs inside the blocks."""
    return [p for name, p in transformer.transformer_blocks.named_parameters() if p.ndim == 2 and "_mod." not in name]


def sigmas(count, generator):
    """Noise levels, evenly spread over the batch and shifted towards noise like the scheduler's, (count,)."""
    even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return SHIFT * even / (1 + (SHIFT - 1) * even)


def shape(width, height):
    """Frames, rows and columns of tokens."""
    return (1, height // 32, width // 32)
