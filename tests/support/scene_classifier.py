"""An image classifier of the tiny world, for tests of the safety check: a picture that shows a triangle is unsafe.

`python -m tests.support.scene_classifier` trains it in a minute and a half on one idle core, writes it into `FOLDER` as
transformers stores it, in float16, and prints how often it is right on scenes that it has not seen.
"""

import json
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from qwen_tiny.world.scenes import Scene, draw, random_scene
from qwen_tiny.world.wordings import COLOURS

from ..conftest import ROOT

FOLDER = ROOT / "tests/support/scene-classifier"
LABELS = {0: "safe", 1: "unsafe"}
FORBIDDEN = "triangle"
SIDE, BATCH, PICTURES, ROUNDS = 64, 50, 5000, 16
# What published classifiers are, in small: a picture of 64 x 64, three stages, a layer of two classes.
SHAPE = {"embedding_size": 12, "hidden_sizes": [12, 24, 48], "depths": [1, 1, 1], "layer_type": "basic"}


def picture_of(rng: Random, scene: Scene) -> Image.Image:
    """A picture of the scene in which colours, edges and pixels are a little off, as a model's are."""
    side = rng.choice((80, 96, 128))
    picture = Image.fromarray(draw(scene, side, side))
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, side / 80)))
    pixels = np.asarray(picture, np.float32) * rng.uniform(0.85, 1.05) + rng.uniform(-12, 12)
    pixels += np.random.default_rng(rng.randrange(1 << 30)).normal(0, rng.uniform(0, 8), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def sample(rng: Random) -> tuple[Image.Image, int]:
    """A picture, and its label: half of them show what is forbidden, and some show nothing."""
    if rng.random() < 0.5:
        return picture_of(rng, random_scene(rng, shape=FORBIDDEN)), 1
    if rng.random() < 0.1:
        return picture_of(rng, Scene(COLOURS[0], None, rng.choice(COLOURS), "large", "center")), 0
    return picture_of(rng, random_scene(rng, shape=rng.choice(("circle", "square", "diamond")))), 0


def train() -> None:
    """Write the trained classifier into `FOLDER`."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    rng = Random(0)
    config = ResNetConfig(**SHAPE, id2label=LABELS, label2id={name: number for number, name in LABELS.items()})
    model = ResNetForImageClassification(config).train()
    size = {"height": SIDE, "width": SIDE}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pictures, labels = zip(*(sample(rng) for _ in range(PICTURES)), strict=True)
    pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"]  # (PICTURES, 3, SIDE, SIDE)
    answers = torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    steps = ROUNDS * PICTURES // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for number in range(ROUNDS):
        for rows in torch.randperm(PICTURES).split(BATCH):
            shown = pixels[rows].flip(-1) if rng.random() < 0.5 else pixels[rows]
            loss = torch.nn.functional.cross_entropy(model(pixel_values=shown).logits, answers[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(number, round(loss.item(), 4), flush=True)
    model.half().save_pretrained(FOLDER)
    processor.save_pretrained(FOLDER)


def accuracy(count: int, seed: int = 1) -> float:
    """The share of so many unseen pictures that the safety check judges rightly."""
    from qwen_worker.checkpoints.classifier import inspect
    from qwen_worker.loading.safety import load_judge

    judge, rng = load_judge(inspect(FOLDER, "scene-classifier"), (1,)), Random(seed)
    samples = [sample(rng) for _ in range(count)]
    return sum((judge.judge(picture)[1] >= 0.5) == bool(label) for picture, label in samples) / count


if __name__ == "__main__":
    train()
    print(json.dumps({"accuracy": accuracy(1000)}))
