"""Scores the checkpoint: `python -m qwen_tiny.evaluate`.

Draws prompts from fresh noise and edits fresh pictures, through the stock pipelines, and lets the judge read what comes
out. Every second prompt is a combination of colour, shape and background held out of training; edits meet them as they
come. `--break` spoils one thing on purpose, to show what the score notices. Knows nothing about training.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from . import CHECKPOINT, LORA
from .stages import few_step
from .world import judge, scenes
from .world.tasks import Edit, describe, family, random_edit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, QwenImageEditPipeline, QwenImagePipeline

Right = dict[str, bool]  # of one picture: whether each attribute that was asked for is there

BREAKS = ("schedule", "statistics", "shuffled", "no-image")
SIZES = (
    (256, 256), (512, 512), (384, 256), (256, 384), (768, 512), (256, 256), (512, 512), (1024, 1024),
)  # fmt: skip
BATCH = 8
LEAST_KEPT = 0.9  # overlap of the subject before and after an edit that keeps it


class Prompt(NamedTuple):
    """A prompt, the attributes that it asks for (None: left open), and the size to draw it at."""

    text: str
    asked: dict[str, str | None]
    size: tuple[int, int]


def main() -> None:
    arguments = parse_arguments()
    started = time.monotonic()
    how = {"steps": arguments.steps, "guidance": arguments.guidance}
    shuffled = arguments.broken == "shuffled"
    shares: dict[str, Any] = {}
    if arguments.prompts:
        pipeline = load_pipeline(arguments.checkpoint / "generate", arguments.lora, arguments.broken)
        prompts = sample_prompts(arguments.prompts, arguments.seed, tuple(arguments.size) if arguments.size else None)
        images = draw_prompts(pipeline, prompts, **how)
        right = judge_prompts(images[1:] + images[:1] if shuffled else images, prompts)
        shares["generate"] = per_cent_right(right)
        shares["generate: held out"] = per_cent_right(right[::2])
    if arguments.edits:
        pipeline = load_pipeline(arguments.checkpoint / "edit", broken=arguments.broken)
        edits = sample_edits(arguments.edits, arguments.seed)
        right = score_edits(pipeline, edits, **how, shuffled=shuffled)
        shares["edit"] = per_cent_right(right)
        for operation in dict.fromkeys(edit.operation for edit in edits):
            alike = [picture for picture, edit in zip(right, edits, strict=True) if edit.operation == operation]
            shares[f"edit: {operation}"] = per_cent_right(alike)
    shares["seconds"] = round(time.monotonic() - started)
    print(json.dumps(shares, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="instead of a mixture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lora", action="store_true", help="the few-step LoRA (give --steps 4 --guidance 1 too)")
    parser.add_argument("--break", dest="broken", choices=BREAKS)
    return parser.parse_args()


def load_pipeline(folder: Path, lora: bool = False, broken: str | None = None) -> "DiffusionPipeline":
    """The checkpoint's `folder` in float32, with the few-step LoRA and its schedule, and spoilt, if asked."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(folder.parent / LORA.parent, weight_name=LORA.name)
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **few_step.SCHEDULER)
    if broken:
        spoil(pipeline, broken)
    return pipeline


def spoil(pipeline: "DiffusionPipeline", broken: str) -> None:
    """Break one thing of `BREAKS` in place; `shuffled` is no fault of a pipeline and left to the caller."""
    if broken == "schedule":
        unshifted = {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **unshifted)
    elif broken == "statistics":
        mean, std = pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std
        pipeline.vae.register_to_config(latents_mean=std, latents_std=mean)
    elif broken == "no-image" and hasattr(pipeline, "processor"):
        prepare = pipeline.prepare_latents

        def prepare_without_image(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            latents, image_latents = prepare(*args, **kwargs)
            return latents, torch.zeros_like(image_latents)

        pipeline.prepare_latents = prepare_without_image


def sample_prompts(count: int, seed: int = 0, size: tuple[int, int] | None = None) -> list[Prompt]:
    """Prompts of fresh scenes, every second one of a held-out combination; of `size`, or of `SIZES` by batches."""
    rng = Random(f"{seed} evaluation")
    prompts: list[Prompt] = []
    while len(prompts) < count:
        scene = scenes.random_scene(rng)
        if scene.held_out == (len(prompts) % 2 == 0):
            text, asked = describe(rng, scene)
            prompts.append(Prompt(text, asked, size or SIZES[len(prompts) // BATCH % len(SIZES)]))
    return prompts


def draw_prompts(
    pipeline: "QwenImagePipeline", prompts: Sequence[Prompt], steps: int, guidance: float, seed: int = 0
) -> list[Image.Image]:
    """The prompts' pictures, drawn in batches of one size."""
    images = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(batch))]
        width, height = batch[0].size
        options = call_options(steps, guidance, len(batch))
        texts = [prompt.text for prompt in batch]
        images += pipeline(texts, width=width, height=height, generator=generators, **options).images
    return images


def judge_prompts(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Right]:
    """What each picture, which may be of any size, shows of what its prompt asks for."""
    return [judge.matches(judge.read(image), prompt.asked) for image, prompt in zip(images, prompts, strict=True)]


def sample_edits(count: int, seed: int = 0) -> list[Edit]:
    """Edits of pictures with fresh places and sizes, combinations held out of training among them."""
    rng = Random(f"{seed} evaluation of edits")
    return [random_edit(rng, family(rng, allowed=lambda scene: True)) for _ in range(count)]


def score_edits(
    pipeline: "QwenImageEditPipeline",
    edits: Sequence[Edit],
    steps: int,
    guidance: float,
    shuffled: bool = False,
    seed: int = 0,
) -> list[Right]:
    """Make every edit, one by one at the pipeline's own size, and judge it: {"changed", "kept"} of each.

    `shuffled`: every picture gets the next edit's instruction.
    """
    texts = [edit.prompt for edit in edits]
    texts = texts[1:] + texts[:1] if shuffled else texts
    right = []
    for index, (edit, text) in enumerate(zip(edits, texts, strict=True)):
        before = Image.fromarray(scenes.draw(edit.before, 512, 512))
        generator = torch.Generator().manual_seed(seed + index)
        after = pipeline(before, text, generator=generator, **call_options(steps, guidance)).images[0]
        right.append(judge_edit(edit, before, after))
    return right


def judge_edit(edit: Edit, before: Image.Image, after: Image.Image) -> Right:
    """Whether the demanded change is there, and whether everything else is as it was."""
    reading, scene = judge.read(after), edit.before
    same_background = reading.background == scene.background
    if edit.operation == "remove":
        return {"changed": reading.shape is None and reading.colour is None, "kept": same_background}
    if edit.operation == "reshape":
        same = (reading.colour, reading.size, reading.position) == (scene.colour, scene.size, scene.position)
        return {"changed": reading.shape == edit.target, "kept": same_background and same}
    same = reading.shape == scene.shape and judge.overlap(before, after) >= LEAST_KEPT
    if edit.operation == "recolour":
        return {"changed": reading.colour == edit.target, "kept": same_background and same}
    return {"changed": reading.background == edit.target, "kept": same and reading.colour == scene.colour}


def call_options(steps: int, guidance: float, count: int = 1) -> dict[str, Any]:
    """What a pipeline's call takes for `count` prompts."""
    negative = [" "] * count if guidance > 1 else None
    return {"num_inference_steps": steps, "true_cfg_scale": guidance, "negative_prompt": negative}


def per_cent_right(right: Sequence[Right]) -> dict[str, float]:
    """Each attribute over the pictures that it was asked of, `all` of it together, and `of` how many pictures."""
    shares: dict[str, float] = {}
    for name in dict.fromkeys(name for picture in right for name in picture):
        asked = [picture[name] for picture in right if name in picture]
        shares[name] = round(100 * sum(asked) / len(asked), 1)
    return {
        **shares,
        "all": round(100 * sum(all(picture.values()) for picture in right) / len(right), 1),
        "of": len(right),
    }


if __name__ == "__main__":
    main()
