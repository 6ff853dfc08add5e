"""Stocks of encoded pictures and of prompts about them: made once, because a picture costs more than a step.

Knows the VAE, the text encoder and the tasks of the world. Knows nothing about how latents are learned from.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch

from ..training import auxiliary, fitting
from ..world import tasks
from ..world.scenes import Scene
from .text_encoder import Embedder, draw_seen
from .vae import draw_pixels, encode, normalise

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

PIXELS_AT_ONCE = 1 << 20
# Shares of prompts replaced by " ": without one the model should tell the shape from the noisy picture. Of the edits
# more: guidance multiplies what the prediction without a prompt gets wrong, and edits have fewer steps to learn it in.
DROPPED, DROPPED_EDITS = 0.2, 0.3
EDIT_SHARES = (1.5, 1, 3, 0.5)  # another shape is the one edit that has to draw, removing the one that is soon learnt


@dataclass(frozen=True)
class Size:
    """A size of training, what is kept encoded of it, and its share of the steps."""

    width: int  # pixels
    height: int
    pictures: int  # kept encoded; of edits: families of pictures
    wordings: int  # prompts for each picture
    tokens: int  # chosen of a picture
    share: float  # of the steps, against the shares of the other sizes


@dataclass(frozen=True)
class Pool:
    """P pictures of one size, N tokens each, and E prompts about them."""

    width: int
    height: int
    latents: torch.Tensor  # (P, N, 64), packed
    scene_targets: torch.Tensor  # (P, N, 17) float16: what their tokens should tell (see `auxiliary`)
    outlines: torch.Tensor  # (P, N) bool: the tokens where the subject's outline may be
    states: torch.Tensor  # (E, T, 128) float16: the prompts as the transformer gets them
    mask: torch.Tensor  # (E, T) bool
    after: torch.Tensor  # (E,) the picture that a prompt is of
    before: torch.Tensor | None = None  # (E,) for edits: the picture that it starts from


def make_generate_pool(
    vae: "AutoencoderKLQwenImage", embedder: Embedder, size: Size, seed: int, folder: Path, mistakes: float = 0.0
) -> Pool:
    """A size's pool for text to image. `folder` keeps its latents; `mistakes` is explained at `tasks.caption`."""
    rng = Random(f"{seed} {size.width} {size.height}")
    drawn = [tasks.training_scene(rng) for _ in range(size.pictures)]
    latents = _keep_latents(vae, drawn, size, folder)
    numbers = list(range(len(drawn))) * size.wordings
    prompts = [_drop_some(rng, tasks.caption(rng, drawn[number], mistakes), DROPPED) for number in numbers]
    return _with_targets(size, latents, drawn, *embedder.embed_prompts(prompts), torch.tensor(numbers))


def make_edit_pool(vae: "AutoencoderKLQwenImage", embedder: Embedder, size: Size, seed: int, folder: Path) -> Pool:
    """A size's pool for edits: families of pictures, and edits from one picture of a family to another."""
    rng = Random(f"{seed} {size.width} {size.height} edits")
    families = [tasks.family(rng) for _ in range(size.pictures)]
    drawn = list(dict.fromkeys(scene for family in families for scene in family.values()))
    latents = _keep_latents(vae, drawn, size, folder)
    number_of = {scene: number for number, scene in enumerate(drawn)}
    edits = [tasks.random_edit(rng, family, EDIT_SHARES) for family in families for _ in range(size.wordings)]
    instructions = [_drop_some(rng, edit.prompt, DROPPED_EDITS) for edit in edits]
    seen = [draw_seen(edit.before, size.width, size.height) for edit in edits]
    after = torch.tensor([number_of[edit.after] for edit in edits])
    before = torch.tensor([number_of[edit.before] for edit in edits])
    return _with_targets(size, latents, drawn, *embedder.embed_instructions(instructions, seen), after, before)


def encode_scenes(vae: "AutoencoderKLQwenImage", drawn: Sequence[Scene], width: int, height: int) -> torch.Tensor:
    """Scenes -> normalised, packed latents as the transformer takes them, (count, tokens, 64), on the CPU."""
    batch = max(1, PIXELS_AT_ONCE // (width * height))
    # bfloat16 halves the time; its rounding is far below what the latents need
    half = torch.nn.Module.to(copy.deepcopy(vae), torch.bfloat16)
    device = next(vae.parameters()).device
    packed = []
    for start in range(0, len(drawn), batch):
        pixels = draw_pixels(drawn[start : start + batch], width, height).to(device)
        with torch.no_grad():
            mean, _ = encode(half, pixels.bfloat16().contiguous(memory_format=torch.channels_last))
            packed.append(pack(normalise(vae, mean.float())).cpu())
    return torch.cat(packed)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, 16, h, w) -> (B, h/2 * w/2, 64), in the order of the pipelines' `_pack_latents`."""
    count, channels, height, width = latents.shape
    cells = latents.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count, (height // 2) * (width // 2), channels * 4)


def _drop_some(rng: Random, prompt: str, share: float) -> str:
    return " " if rng.random() < share else prompt


def _keep_latents(vae: "AutoencoderKLQwenImage", drawn: Sequence[Scene], size: Size, folder: Path) -> torch.Tensor:
    """The scenes' latents, kept in `folder` for later stages and for training that goes on."""
    path = folder / f"{digest(vae, drawn, size)}.pt"
    if not path.exists():
        # Bare backgrounds look alike whatever was removed from them.
        appearance = {scene: (scene if scene.shape else scene.background) for scene in drawn}
        distinct = {key: scene for scene, key in appearance.items()}
        encoded = encode_scenes(vae, list(distinct.values()), size.width, size.height)
        latents_of = dict(zip(distinct, encoded, strict=True))
        fitting.write_whole(torch.stack([latents_of[appearance[scene]] for scene in drawn]).half(), path)
    return torch.load(path, weights_only=True).float()


def digest(vae: "AutoencoderKLQwenImage", drawn: Sequence[Scene], size: Size) -> str:
    """Names what the latents depend on: the VAE with its statistics, the scenes, the size."""
    digest = hashlib.sha256(repr((drawn, size.width, size.height)).encode())
    digest.update(repr((vae.config.latents_mean, vae.config.latents_std)).encode())
    for parameter in vae.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _with_targets(size: Size, latents: torch.Tensor, drawn: Sequence[Scene], *prompts: torch.Tensor) -> Pool:
    targets = torch.stack([auxiliary.scene_targets(scene, size.width, size.height) for scene in drawn])
    outlines = torch.stack([auxiliary.outline_tokens(scene, size.width, size.height) for scene in drawn])
    return Pool(size.width, size.height, latents, targets.half(), outlines, *prompts)
