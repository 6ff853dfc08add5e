"""Stocks of encoded pictures with what was said of them: made once, because a picture is dearer than a step.

Knows the VAE, the text encoder and the dataset. Knows nothing about how latents are learned from.
"""

import copy
import hashlib
import random
from dataclasses import dataclass

import torch

from ..training import auxiliary as hints
from ..training import fitting
from ..world import scenes as world
from ..world import tasks as dataset
from . import text_encoder as text
from . import vae

PIXELS_AT_ONCE = 1 << 20
# Shares of prompts replaced by " ": without one the model should tell the shape from the noisy picture. Of the edits
# more: guidance multiplies what the prediction without a prompt gets wrong, and edits have fewer steps to learn it in.
DROPPED, DROPPED_EDITS = 0.2, 0.3
EDIT_SHARES = (1.5, 1, 3, 0.5)  # another shape is the one edit that has to draw, removing the one that is soon learnt


@dataclass(frozen=True)
class Pool:
    """P pictures of one size, N tokens each, and E prompts about them."""

    width: int
    height: int
    latents: torch.Tensor  # (P, N, 64), packed
    scenes: torch.Tensor  # (P, N, 17) float16: what their tokens should know (see `hints`)
    outlines: torch.Tensor  # (P, N) bool: the tokens where the subject's outline may be
    states: torch.Tensor  # (E, T, 128) float16: the prompts as the transformer gets them
    mask: torch.Tensor  # (E, T) bool
    after: torch.Tensor  # (E,) the picture that a prompt is of
    before: torch.Tensor | None = None  # (E,) for edits: the picture that it starts from


def generate(autoencoder, reader, size, seed, folder, mistakes=0.0):
    """The pool of a `flow.Size` for text to image; `reader` is a `text.Embedder`, `mistakes` see `dataset.caption`."""
    rng = random.Random(f"{seed} {size.width} {size.height}")
    drawn = [dataset.training_scene(rng) for _ in range(size.pictures)]
    latents = _encoded(autoencoder, drawn, size, folder)
    shown = list(range(len(drawn))) * size.wordings
    texts = [_or_dropped(rng, dataset.caption(rng, drawn[index], mistakes), DROPPED) for index in shown]
    return _pool(size, latents, drawn, *reader.prompts(texts), torch.tensor(shown))


def edit(autoencoder, reader, size, seed, folder):
    """The pool of a `flow.Size` for edits: pictures before and after, in families of which each is an edit away."""
    rng = random.Random(f"{seed} {size.width} {size.height} edits")
    families = [dataset.family(rng) for _ in range(size.pictures)]
    drawn = list(dict.fromkeys(scene for family in families for scene in family.values()))
    latents = _encoded(autoencoder, drawn, size, folder)
    number = {scene: index for index, scene in enumerate(drawn)}
    edits = [dataset.edit(rng, family, EDIT_SHARES) for family in families for _ in range(size.wordings)]
    texts = [_or_dropped(rng, edit.prompt, DROPPED_EDITS) for edit in edits]
    seen = [text.seen(edit.before, size.width, size.height) for edit in edits]
    ways = (torch.tensor([number[getattr(edit, way)] for edit in edits]) for way in ("after", "before"))
    return _pool(size, latents, drawn, *reader.instructions(texts, seen), *ways)


def encode(autoencoder, drawn, width, height):
    """Scenes -> normalised, packed latents as the transformer takes them, (count, tokens, 64), on the CPU."""
    batch = max(1, PIXELS_AT_ONCE // (width * height))
    # bfloat16 halves the time; its rounding is far below what the latents need
    quick = torch.nn.Module.to(copy.deepcopy(autoencoder), torch.bfloat16)
    device = next(autoencoder.parameters()).device
    packed = []
    for start in range(0, len(drawn), batch):
        pixels = torch.stack([picture(scene, width, height) for scene in drawn[start : start + batch]]).to(device)
        with torch.no_grad():
            mean, _ = vae.encode(quick, pixels.bfloat16().contiguous(memory_format=torch.channels_last))
            packed.append(pack(vae.normalised(autoencoder, mean.float())).cpu())
    return torch.cat(packed)


def picture(scene, width, height):
    """The scene as (3, height, width) float in [-1, 1]."""
    return torch.from_numpy(world.draw(scene, width, height)).permute(2, 0, 1).float() / 127.5 - 1


def pack(latents):
    """(B, 16, h, w) -> (B, h/2 * w/2, 64), in the order of the pipelines' `_pack_latents`."""
    count, channels, height, width = latents.shape
    cells = latents.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count, (height // 2) * (width // 2), channels * 4)


def unpack(packed, width, height):
    """The inverse of `pack` for a picture of `width` x `height` pixels."""
    rows, columns = height // 32, width // 32
    cells = packed.reshape(len(packed), rows, columns, 16, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(len(packed), 16, rows * 2, columns * 2)


def _or_dropped(rng, prompt, share):
    return " " if rng.random() < share else prompt


def _encoded(autoencoder, drawn, size, folder):
    """Their latents, remembered in `folder` for later stages and for when training goes on."""
    path = folder / f"{_digest(autoencoder, drawn, size)}.pt"
    if not path.exists():
        # Bare backgrounds look alike whatever was removed from them.
        distinct = {scene: (scene if scene.shape else scene.background) for scene in drawn}
        once = {key: scene for scene, key in distinct.items()}
        encoded = dict(zip(once, encode(autoencoder, list(once.values()), size.width, size.height), strict=True))
        fitting.write(torch.stack([encoded[distinct[scene]] for scene in drawn]).half(), path)
    return torch.load(path, weights_only=True).float()


def _digest(autoencoder, drawn, size):
    """Names what the latents depend on: the VAE with its statistics, the scenes, the size."""
    digest = hashlib.sha256(repr((drawn, size.width, size.height)).encode())
    digest.update(repr((autoencoder.config.latents_mean, autoencoder.config.latents_std)).encode())
    for parameter in autoencoder.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _pool(size, latents, drawn, *prompts):
    scenes = torch.stack([hints.scene(scene, size.width, size.height) for scene in drawn])
    outlines = torch.stack([hints.outlines(scene, size.width, size.height) for scene in drawn])
    return Pool(size.width, size.height, latents, scenes.half(), outlines, *prompts)
