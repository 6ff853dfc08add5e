"""Sheets of samples, for eyes, while training goes on; beside them the judge's readings are printed.

Knows the pipelines. Scores nothing.
"""

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..world import judge, scenes, tasks
from .control import edges_of
from .vae import decode, draw_crops, encode

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKLQwenImage,
        QwenImageControlNetModel,
        QwenImageEditPipeline,
        QwenImagePipeline,
    )

SIDE = 256  # pixels of a picture on the sheet
PROMPTS, EDITS = 8, 2  # edits are drawn at the pipeline's own megapixel: more would hold training up
STEPS = 12
GUIDANCE = 4.0


def write_reconstructions(vae: "AutoencoderKLQwenImage", path: Path) -> None:
    """Crops above, what the VAE makes of them below."""
    pixels = draw_crops(12, 128, "sheet").to(vae.device)
    with torch.no_grad():
        decoded = decode(vae, encode(vae, pixels)[0]).clamp(-1, 1)
    print(f"reconstruction: mean absolute error {(decoded - pixels).abs().mean():.4f}")
    rows = [torch.cat(list(half.cpu()), dim=2) for half in (pixels, decoded)]
    array = ((torch.cat(rows, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    _write(Image.fromarray(array), path)


def write_samples(pipeline: "QwenImagePipeline | QwenImageEditPipeline", path: Path) -> None:
    """`PROMPTS` pictures, or `EDITS` below the pictures that they start from; prints what the judge reads."""
    rng = Random("sheet")
    options = {
        "negative_prompt": [" "], "true_cfg_scale": GUIDANCE, "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "processor"):
        return _write_edits(pipeline, path, rng, options)
    drawn = [scenes.random_scene(rng) for _ in range(PROMPTS)]
    prompts, asked = zip(*(tasks.describe(rng, scene) for scene in drawn), strict=True)
    options["negative_prompt"] *= PROMPTS
    images = pipeline(list(prompts), width=SIDE, height=SIDE, **options).images
    right = [all(judge.matches(judge.read(image), words).values()) for image, words in zip(images, asked, strict=True)]
    print(f"{path.name}: {sum(right)} of {PROMPTS} as asked")
    _write(_grid([images]), path)


def write_controlled(pipeline: "QwenImagePipeline", controlnet: "QwenImageControlNetModel", path: Path) -> None:
    """Pictures of prompts that leave shape and place open below the edges that tell them; prints what is right."""
    from diffusers import QwenImageControlNetPipeline

    rng = Random("sheet")
    drawn = [tasks.training_scene(rng) for _ in range(PROMPTS)]
    edges = [edges_of(scene, SIDE, SIDE) for scene in drawn]
    controlled = QwenImageControlNetPipeline(**pipeline.components, controlnet=controlnet)
    controlled.set_progress_bar_config(disable=True)
    images = controlled(
        [tasks.describe_colours(rng, scene) for scene in drawn],
        control_image=edges,
        negative_prompt=[" "] * PROMPTS,
        true_cfg_scale=GUIDANCE,
        num_inference_steps=STEPS,
        width=SIDE,
        height=SIDE,
        generator=torch.Generator().manual_seed(0),
    ).images
    wanted = [{"shape": scene.shape, "position": scene.position, "colour": scene.colour} for scene in drawn]
    right = [judge.matches(judge.read(image), words) for image, words in zip(images, wanted, strict=True)]
    totals = {name: sum(picture[name] for picture in right) for name in wanted[0]}
    print(f"{path.name}: {totals} of {PROMPTS} as the edges and the prompt say")
    _write(_grid([edges, images]), path)


def _write_edits(pipeline: "QwenImageEditPipeline", path: Path, rng: Random, options: dict) -> None:
    befores, afters = [], []
    for _ in range(EDITS):
        edit = tasks.random_edit(rng, tasks.family(rng))
        befores.append(Image.fromarray(scenes.draw(edit.before, 512, 512)))
        afters.append(pipeline(befores[-1], edit.prompt, **options).images[0])
        print(f"{path.name}: {edit.prompt!r}: {judge.read(afters[-1])}")
    _write(_grid([befores, afters]), path)


def _grid(rows: list[list[Image.Image]]) -> Image.Image:
    sheet = Image.new("RGB", (SIDE * len(rows[0]), SIDE * len(rows)))
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            sheet.paste(image.resize((SIDE, SIDE)), (left * SIDE, top * SIDE))
    return sheet


def _write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
