"""Stocks of encoded pictures that the transformers learn from, encoded once because scenes are dearer than steps.

Knows the VAE and the dataset. Knows nothing about how latents are used.
"""

import copy
import random
from collections import defaultdict

import torch

from . import dataset, vae, world

PIXELS_AT_ONCE = 1 << 20


def scenes(autoencoder, width, height, count, seed, folder):
    """`count` training scenes and their packed latents: (list of Scene, (count, tokens, 64)), kept in `folder`."""
    rng = random.Random(f"{seed} {width} {height}")
    drawn = [dataset.training_scene(rng) for _ in range(count)]
    kept = folder / f"scenes-{width}x{height}.pt"
    return drawn, _kept(kept, lambda: encode(autoencoder, drawn, width, height))


def families(autoencoder, width, height, count, seed, folder):
    """`count` families (see `dataset.family`), and a dict Scene -> its packed latents, (tokens, 64)."""
    rng = random.Random(f"{seed} {width} {height} edits")
    drawn = [dataset.family(rng) for _ in range(count)]
    members = list(dict.fromkeys(scene for versions in drawn for scene in versions.values() if scene.shape))
    kept = folder / f"families-{width}x{height}.pt"
    encoded = _kept(kept, lambda: encode(autoencoder, members, width, height))
    latents = dict(zip(members, encoded, strict=True))
    return drawn, _with_bare(autoencoder, latents, drawn, width, height)


def encode(autoencoder, drawn, width, height):
    """Scenes -> normalised, packed latents as the transformer takes them, (count, tokens, 64)."""
    batch = max(1, PIXELS_AT_ONCE // (width * height))
    # bfloat16 halves the time; its rounding is far below what the latents need
    quick = torch.nn.Module.to(copy.deepcopy(autoencoder), torch.bfloat16)
    device = next(autoencoder.parameters()).device
    packed = []
    for start in range(0, len(drawn), batch):
        pixels = torch.stack([picture(scene, width, height) for scene in drawn[start : start + batch]]).to(device)
        with torch.no_grad():
            mean, _ = vae.encode(quick, pixels.bfloat16().contiguous(memory_format=torch.channels_last))
            packed.append(pack(vae.normalised(autoencoder, mean.float())))
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


def _kept(path, make):
    """What `make` gives, remembered at `path` for when training goes on. The VAE must stay the one it was."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make(), path)
    return torch.load(path, weights_only=True)


def _with_bare(autoencoder, latents, drawn, width, height):
    """Bare backgrounds look alike whatever was removed from them: encode each colour once."""
    bare = defaultdict(list)
    for versions in drawn:
        for scene in versions.values():
            if not scene.shape:
                bare[scene.background].append(scene)
    for alike in bare.values():
        encoded = encode(autoencoder, alike[:1], width, height)[0]
        latents |= dict.fromkeys(alike, encoded)
    return latents
