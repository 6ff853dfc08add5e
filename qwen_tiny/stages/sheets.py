"""Sheets of samples, for eyes, while training goes on. Knows the pipelines; judges nothing but prints what it saw."""

import random

import torch
from PIL import Image

from ..world import judge
from ..world import scenes as world
from ..world import tasks as dataset
from . import vae

SIDE = 256
PROMPTS = 8


def reconstructions(autoencoder, path):
    """Crops above, what the VAE makes of them below."""
    pixels = vae.crops(12, 128, "sheet").to(autoencoder.device)
    with torch.no_grad():
        again = vae.decode(autoencoder, vae.encode(autoencoder, pixels)[0]).clamp(-1, 1)
    print(f"reconstruction: mean absolute error {(again - pixels).abs().mean():.4f}")
    rows = [torch.cat(list(half.cpu()), dim=2) for half in (pixels, again)]
    array = ((torch.cat(rows, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    _write(Image.fromarray(array), path)


def samples(pipeline, path, steps=12, guidance=4.0):
    """Eight pictures, or two edits below their inputs; prints what the judge finds."""
    rng = random.Random("sheet")
    options = {
        "negative_prompt": [" "], "true_cfg_scale": guidance, "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "processor"):
        return _edits(pipeline, path, rng, options)
    scenes = [world.scene(rng) for _ in range(PROMPTS)]
    texts, asked = zip(*(dataset.describe(rng, scene) for scene in scenes), strict=True)
    options["negative_prompt"] *= PROMPTS
    images = pipeline(list(texts), width=SIDE, height=SIDE, **options).images
    right = [all(judge.matches(judge.read(i), a).values()) for i, a in zip(images, asked, strict=True)]
    print(f"{path.name}: {sum(right)} of {PROMPTS} as asked")
    _write(_row(images), path)


def _edits(pipeline, path, rng, options):
    """Two edits at the pipeline's own megapixel: more would hold training up."""
    pairs = []
    for _ in range(2):
        task = dataset.edit(rng, dataset.family(rng))
        before = Image.fromarray(world.draw(task.before, 512, 512))
        after = pipeline(before, task.prompt, **options).images[0]
        print(f"{path.name}: {task.prompt!r}: {judge.read(after)}")
        pairs.append((before, after))
    sheet = Image.new("RGB", (SIDE * len(pairs), SIDE * 2))
    for column, pair in enumerate(pairs):
        for row, image in enumerate(pair):
            sheet.paste(image.resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
    _write(sheet, path)


def _row(images):
    sheet = Image.new("RGB", (SIDE * len(images), SIDE))
    for column, image in enumerate(images):
        sheet.paste(image.resize((SIDE, SIDE)), (column * SIDE, 0))
    return sheet


def _write(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
