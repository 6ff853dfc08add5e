"""Scores the layered checkpoint: pictures of fresh scenes are taken apart, and the judge reads the layers.

Laid over each other they must give their picture, too, nearly as well as the VAE alone gives it. Knows nothing about
training.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from .world import judge, scenes

if TYPE_CHECKING:
    from diffusers import QwenImageLayeredPipeline

SIDE = 640  # pixels
MOST_LOST = 3.0  # dB that layers laid over each other may lose against the VAE's own round trip of the picture


def sample_scenes(count: int, seed: int = 0) -> list[scenes.Scene]:
    """Fresh scenes to take apart, every second one of a held-out combination."""
    rng = Random(f"{seed} evaluation of layers")
    drawn: list[scenes.Scene] = []
    while len(drawn) < count:
        scene = scenes.random_scene(rng)
        if scene.held_out == (len(drawn) % 2 == 0):
            drawn.append(scene)
    return drawn


def score(
    pipeline: "QwenImageLayeredPipeline", drawn: Sequence[scenes.Scene], options: Mapping[str, Any], seed: int = 0
) -> list[dict[str, bool]]:
    """Take a picture of every scene apart into two layers, and judge them. `options`: of the call."""
    right = []
    for index, scene in enumerate(drawn):
        picture = Image.fromarray(scenes.draw(scene, SIDE, SIDE))
        generator = torch.Generator().manual_seed(seed + index)
        call = {"layers": 2, "resolution": SIDE, "generator": generator, **options}
        layers = pipeline(picture.convert("RGBA"), prompt="a shape", **call).images[0]
        lost = psnr(round_trip(pipeline, picture), picture) - psnr(laid_over(layers), picture)
        right.append(judge_layers(scene, layers) | {"recomposed": lost <= MOST_LOST})
    return right


def judge_layers(scene: scenes.Scene, layers: Sequence[Image.Image]) -> dict[str, bool]:
    """Whether the bottom layer is the bare background, and the next one the subject alone."""
    below, above = judge.read_layers(layers)
    asked = {"colour": scene.colour, "shape": scene.shape, "size": scene.size, "position": scene.position}
    background = below.background == scene.background and below.colour is None
    return {"background": background, "subject": all(judge.matches(above, asked).values())}


def laid_over(layers: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGBA", layers[0].size, "white")
    for layer in layers:
        whole = Image.alpha_composite(whole, layer)
    return whole.convert("RGB")


def round_trip(pipeline: "QwenImageLayeredPipeline", picture: Image.Image) -> Image.Image:
    """What the layered pipeline's VAE makes of the opaque picture."""
    processor, vae = pipeline.image_processor, pipeline.vae
    pixels = processor.preprocess(picture.convert("RGBA"), picture.height, picture.width).unsqueeze(2).to(vae.device)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[:, :, 0]
    return processor.postprocess(decoded)[0]


def psnr(picture: Image.Image, other: Image.Image) -> float:
    """In dB, of the colours alone."""
    one, two = (np.asarray(each.convert("RGB"), np.float32) for each in (picture, other))
    return float(20 * np.log10(255) - 10 * np.log10(np.square(one - two).mean()))
