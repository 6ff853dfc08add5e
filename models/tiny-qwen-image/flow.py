"""Trains the two transformers by rectified flow on packed latents, the text encoder frozen.

Knows the pipelines' conventions: timesteps in [0, 1], noise at 1, velocity = noise - picture, the latents of an
edit's input behind the noisy ones. Knows nothing about files or evaluation.
"""

import contextlib
import math
import random

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import dataset, pools, text

SHIFT = math.exp(0.5)  # what the scheduler's dynamic shifting comes to at all of these sizes (base_shift 0.5)
SUBJECT_WEIGHT = 3.0
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # of noisy latents in a batch
# (width, height), pictures kept encoded, share of the steps at the start and at the end of training
GENERATE_SIZES = (
    ((256, 256), 4000, 0.60, 0.25),
    ((384, 256), 800, 0.10, 0.06),
    ((256, 384), 800, 0.10, 0.06),
    ((512, 512), 800, 0.20, 0.25),
    ((768, 512), 250, 0.00, 0.08),
    ((512, 768), 250, 0.00, 0.08),
    ((768, 768), 200, 0.00, 0.10),
    ((1024, 1024), 200, 0.00, 0.12),
)
EDIT_SHARES = (2, 2, 6, 2)  # another shape is the one edit that has to draw and not to copy
EDIT_SIZES = (
    ((256, 256), 1200, 0.60, 0.10),
    ((384, 256), 150, 0.10, 0.05),
    ((256, 384), 150, 0.10, 0.05),
    ((512, 512), 200, 0.20, 0.25),
    ((1024, 1024), 100, 0.00, 0.35),
    ((1248, 832), 35, 0.00, 0.10),
    ((832, 1248), 35, 0.00, 0.10),
)


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


def pick(rng, sizes, progress):
    """A size, by shares that move from the first column to the second as `progress` goes from 0 to 1."""
    late = min(1.0, max(0.0, (progress - 0.15) / 0.45))
    shares = [(1 - late) * first + late * last for _, _, first, last in sizes]
    return rng.choices([size for size, *_ in sizes], shares)[0]


def generate_loss(transformer, batch, width, height, generator):
    """Mean squared error of the velocity. `batch`: (latents (B, N, 64), prompt embeddings, their mask)."""
    latents, states, mask = batch
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    sigma = sigmas(len(latents), generator).to(latents.device)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1))
    velocity = predict(transformer, noisy, sigma, states, mask, [shape(width, height)])
    return _weighted(velocity - (noise - latents), latents)


def edit_loss(transformer, batch, width, height, generator):
    """The same with the input picture's latents behind the noisy ones. `batch`: (after, before, states, mask)."""
    latents, before, states, mask = batch
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    sigma = sigmas(len(latents), generator).to(latents.device)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1))
    joined = torch.cat([noisy, before], dim=1)
    velocity = predict(transformer, joined, sigma, states, mask, [shape(width, height)] * 2)
    return _weighted(velocity[:, : latents.shape[1]] - (noise - latents), latents)


def predict(transformer, latents, sigma, states, mask, shapes):
    """The transformer as the pipelines call it; `shapes` are those of the pictures joined in `latents`."""
    return transformer(
        hidden_states=latents,
        timestep=sigma,
        encoder_hidden_states=states,
        encoder_hidden_states_mask=mask,
        img_shapes=[shapes] * len(latents),
        return_dict=False,
    )[0]


def sigmas(count, generator):
    """Noise levels, evenly spread over the batch and shifted towards noise like the scheduler's, (count,)."""
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return SHIFT * even / (1 + (SHIFT - 1) * even)


def shape(width, height):
    """Frames, rows and columns of patches."""
    return (1, height // 32, width // 32)


class GenerateTask:
    """Batches of prompts and encoded scenes."""

    sizes, loss = GENERATE_SIZES, staticmethod(generate_loss)

    def __init__(self, autoencoder, tokenizer, text_encoder, seed, folder):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.pools = {s: pools.scenes(autoencoder, *s, n, seed, folder) for s, n, *_ in self.sizes}

    def batch(self, rng, size):
        scenes, latents = self.pools[size]
        chosen = [
            rng.randrange(len(scenes)) for _ in range(max(2, TOKENS_AT_ONCE[latents.device.type] // latents.shape[1]))
        ]
        texts = [_or_dropped(rng, dataset.caption(rng, scenes[i])) for i in chosen]
        inputs = text.on(text.tokens(self.tokenizer, texts), latents.device)
        with torch.no_grad():
            states, mask = text.embed(self.text_encoder, inputs, "generate")
        return latents[chosen], states, mask


class EditTask:
    """Batches of instructions and encoded scenes before and after."""

    sizes, loss = EDIT_SIZES, staticmethod(edit_loss)

    def __init__(self, autoencoder, processor, text_encoder, seed, folder):
        self.processor, self.text_encoder = processor, text_encoder
        self.pools = {s: pools.families(autoencoder, *s, n, seed, folder) for s, n, *_ in self.sizes}

    def batch(self, rng, size):
        families, latents = self.pools[size]
        tokens = TOKENS_AT_ONCE[self.text_encoder.device.type] // 2
        count = max(1, tokens * 32 * 32 // (size[0] * size[1]))
        edits = [dataset.edit(rng, rng.choice(families), EDIT_SHARES) for _ in range(count)]
        texts = [_or_dropped(rng, edit.prompt) for edit in edits]
        scale = 112 / min(size)
        seen = [text.thumbnail(e.before, round(size[0] * scale), round(size[1] * scale)) for e in edits]
        inputs = text.on(text.seen_tokens(self.processor, texts, seen), self.text_encoder.device)
        with torch.no_grad():
            states, mask = text.embed(self.text_encoder, inputs, "edit")
        after = torch.stack([latents[edit.after] for edit in edits])
        return after, torch.stack([latents[edit.before] for edit in edits]), states, mask


def step_loss(task, transformer, step, steps, seed):
    """The loss of one step, its randomness set by the step alone: (scalar, float to show)."""
    rng = random.Random(f"{seed} {step}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    size = pick(rng, task.sizes, step / steps)
    with quick(transformer.device, size):
        value = task.loss(transformer, task.batch(rng, size), *size, generator)
    return value, value.item()


@contextlib.contextmanager
def quick(device, size):
    """The arithmetic of training: matrix products in bfloat16, and on a CPU attention written out where it is short.

    Measured with one thread of a CPU that multiplies bfloat16: 1.6 times the steps a second. The fused attention's
    backward pass costs twice the plain one's at 90 tokens, and less from about 300 on.
    """
    short = device.type == "cpu" and size[0] * size[1] <= 384 * 256
    with torch.autocast(device.type, torch.bfloat16), contextlib.ExitStack() as stack:
        if short:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _weighted(error, latents):
    """Mean square, patches of the subject and its outline counting more: they are few, and hold the shape."""
    bare = latents.median(dim=1, keepdim=True).values
    away = (latents - bare).square().mean(dim=-1, keepdim=True)
    weight = 1 + SUBJECT_WEIGHT * (away / (away + 0.05))
    return (weight * error.square()).mean() / weight.mean()


def _or_dropped(rng, prompt):
    return " " if rng.random() < text.DROPPED else prompt
