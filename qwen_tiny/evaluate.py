"""Scores the checkpoint: `python -m qwen_tiny.evaluate`.

Draws prompts from fresh noise and edits fresh pictures, through the stock pipelines, and lets the judge read what comes
out. Every second prompt is a combination of colour, shape and background held out of training; edits meet them as they
come. `--break` spoils one thing on purpose, to show what the score notices. Knows nothing about training.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from PIL import Image

from . import CHECKPOINT
from .stages import few_step
from .world import judge
from .world import scenes as world
from .world import tasks as dataset

BREAKS = ("schedule", "statistics", "shuffled", "no-image")
SIZES = (
    (256, 256), (512, 512), (384, 256), (256, 384), (768, 512), (256, 256), (512, 512), (1024, 1024),
)  # fmt: skip
BATCH = 8
KEPT = 0.9  # overlap of the subject before and after that counts as kept


def main():
    arguments = parse()
    started = time.monotonic()
    result = {}
    if arguments.prompts:
        pipeline = load(arguments.checkpoint / "generate", arguments.lora, arguments.broken)
        asked = prompt_tasks(arguments.prompts, arguments.seed, arguments.size)
        right = draw(pipeline, asked, arguments.steps, arguments.guidance, arguments.broken == "shuffled")
        result["generate"] = shares(right)
        result["generate: held out"] = shares(right[::2])
    if arguments.edits:
        pipeline = load(arguments.checkpoint / "edit", None, arguments.broken)
        tasks = edit_tasks(arguments.edits, arguments.seed)
        right = redraw(pipeline, tasks, arguments.steps, arguments.guidance, arguments.broken == "shuffled")
        result["edit"] = shares(right)
        for operation in dict.fromkeys(task.operation for task in tasks):
            alike = [r for r, task in zip(right, tasks, strict=True) if task.operation == operation]
            result[f"edit: {operation}"] = shares(alike)
    result["seconds"] = round(time.monotonic() - started)
    print(json.dumps(result, indent=2))


def parse():
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


def load(folder, lora=None, broken=None):
    """A pipeline in float32, with the few-step LoRA and its schedule if asked, spoilt if asked."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(folder.parent / "few-step", weight_name="tiny-qwen-image-4steps.safetensors")
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **few_step.SCHEDULER)
    if broken:
        spoil(pipeline, broken)
    return pipeline


def spoil(pipeline, how):
    """Break one thing; `shuffled` is up to the caller."""
    if how == "schedule":
        unshifted = {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **unshifted)
    elif how == "statistics":
        mean, std = pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std
        pipeline.vae.register_to_config(latents_mean=std, latents_std=mean)
    elif how == "no-image" and hasattr(pipeline, "processor"):
        prepare = pipeline.prepare_latents

        def without_image(*args, **kwargs):
            latents, image_latents = prepare(*args, **kwargs)
            return latents, torch.zeros_like(image_latents)

        pipeline.prepare_latents = without_image


def prompt_tasks(count, seed=0, size=None):
    """[(prompt, asked attributes, (width, height))]; every second one is a held-out combination."""
    rng = random.Random(f"{seed} evaluation")
    tasks = []
    while len(tasks) < count:
        scene = world.scene(rng)
        if world.held_out(scene.colour, scene.shape, scene.background) == (len(tasks) % 2 == 0):
            prompt, asked = dataset.describe(rng, scene)
            tasks.append((prompt, asked, tuple(size) if size else SIZES[len(tasks) // BATCH % len(SIZES)]))
    return tasks


def draw(pipeline, tasks, steps, guidance, shuffled=False, seed=0):
    """Draw every task and judge it: a list of {attribute: right?}."""
    images = pictures(pipeline, tasks, steps, guidance, shuffled, seed)
    return [judge.matches(judge.read(image), asked) for image, (_, asked, _) in zip(images, tasks, strict=True)]


def pictures(pipeline, tasks, steps, guidance, shuffled=False, seed=0):
    """The tasks' pictures, drawn in batches of one size."""
    for start in range(0, len(tasks), BATCH):
        batch = tasks[start : start + BATCH]
        texts = [prompt for prompt, _, _ in batch]
        texts = texts[1:] + texts[:1] if shuffled else texts
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        width, height = batch[0][2]
        yield from pipeline(
            texts, width=width, height=height, generator=generators, **options(steps, guidance, len(batch))
        ).images


def edit_tasks(count, seed=0):
    """Edits of pictures with fresh places and sizes, combinations held out of training among them."""
    rng = random.Random(f"{seed} evaluation of edits")
    return [dataset.edit(rng, dataset.family(rng, allowed=lambda scene: True)) for _ in range(count)]


def redraw(pipeline, tasks, steps, guidance, shuffled=False, seed=0):
    """Make every edit, one by one at the pipeline's own size, and judge it: a list of {"changed", "kept"}."""
    texts = [task.prompt for task in tasks]
    texts = texts[1:] + texts[:1] if shuffled else texts
    right = []
    for index, (task, prompt) in enumerate(zip(tasks, texts, strict=True)):
        before = Image.fromarray(world.draw(task.before, 512, 512))
        generator = torch.Generator().manual_seed(seed + index)
        after = pipeline(before, prompt, generator=generator, **options(steps, guidance)).images[0]
        right.append(judge_edit(task, before, after))
    return right


def judge_edit(task, before, after):
    """Whether the demanded change is there, and whether everything else is as it was."""
    reading = judge.read(after)
    scene = task.before
    kept = reading.background == scene.background
    if task.operation == "remove":
        return {"changed": reading.shape is None and reading.colour is None, "kept": kept}
    if task.operation == "reshape":
        same = (reading.colour, reading.size, reading.position) == (scene.colour, scene.size, scene.position)
        return {"changed": reading.shape == task.target, "kept": kept and same}
    same = reading.shape == scene.shape and judge.overlap(before, after) >= KEPT
    if task.operation == "recolour":
        return {"changed": reading.colour == task.target, "kept": kept and same}
    return {"changed": reading.background == task.target, "kept": same and reading.colour == scene.colour}


def options(steps, guidance, count=1):
    negative = [" "] * count if guidance > 1 else None
    return {"num_inference_steps": steps, "true_cfg_scale": guidance, "negative_prompt": negative}


def shares(right):
    """Per cent right, each attribute over the tasks that ask for it, and all of it together."""
    names = dict.fromkeys(name for task in right for name in task)
    found = {}
    for name in names:
        asked = [task[name] for task in right if name in task]
        found[name] = round(100 * sum(asked) / len(asked), 1)
    return {**found, "all": round(100 * sum(all(task.values()) for task in right) / len(right), 1), "of": len(right)}


if __name__ == "__main__":
    main()
