"""Scores the checkpoint: `python -m qwen_tiny.evaluate`.

Draws prompts from fresh noise and edits fresh pictures, through the stock pipelines, and lets the judge read what comes
out. Every second prompt is a combination of colour, shape and background held out of training; edits meet them as they
come. `--layers` takes fresh pictures apart. `--break` spoils one thing on purpose, to show what the score notices.
`--proof` measures the rows of the model card and three spoilt pipelines, and fails where a score is out of its bounds.
Knows nothing about training.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from . import CHECKPOINT, LORA, layers
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
PACKAGES = ("torch", "diffusers", "transformers", "pillow")


class Prompt(NamedTuple):
    """A prompt, the attributes that it asks for (None: left open), and the size to draw it at."""

    text: str
    asked: dict[str, str | None]
    size: tuple[int, int]


@dataclass(frozen=True)
class Measurement:
    """What is drawn and how, and between which bounds the per cent of wholly right pictures must lie."""

    name: str
    count: int  # prompts, edits, or pictures to take apart
    steps: int
    edits: bool = False
    layers: bool = False
    guidance: float = 4.0
    size: tuple[int, int] | None = None  # of every picture instead of a mixture; edits are drawn at the pipeline's own
    lora: bool = False
    broken: str | None = None
    least: float = 0.0
    most: float = 100.0


SMALL = (256, 256)
PROOF = (
    Measurement("prompts of all sizes", 300, 20, least=98),
    Measurement("prompts", 96, 20, size=SMALL, least=97),
    Measurement("prompts at guidance 1", 96, 20, guidance=1.0, size=SMALL, most=90),
    Measurement("prompts by the LoRA", 96, 4, guidance=1.0, size=SMALL, lora=True, least=97),
    Measurement("prompts, statistics swapped", 48, 20, size=SMALL, broken="statistics", most=70),
    Measurement("prompts, shuffled", 48, 20, size=SMALL, broken="shuffled", most=70),
    Measurement("edits", 200, 12, edits=True, least=97),
    Measurement("edits without their picture", 8, 12, edits=True, broken="no-image", most=70),
    Measurement("layers", 20, 6, layers=True, guidance=1.0, least=90),
)


def main() -> int:
    """Prints the rows; 1 if one of them is out of its bounds."""
    arguments = parse_arguments()
    rows: list[dict] = []
    for measurement in PROOF if arguments.proof else asked_measurements(arguments):
        measured = measure(measurement, arguments.checkpoint, arguments.seed)
        print(*(json.dumps(row) for row in measured), sep="\n", flush=True)
        rows += measured
        if arguments.output:  # row by row: the whole proof takes hours
            write_report(rows, arguments.output)
    missed = [row for row in rows if not row.get("least", 0) <= row["all"] <= row.get("most", 100)]
    for row in missed:
        bounds = f"{row['least']} to {row['most']}"
        print(f"{row['measure']}: {row['all']} per cent of {row['of']} are right, not {bounds}", file=sys.stderr)
    return 1 if missed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--layers", type=int, default=0, help="pictures to take apart; 6 --steps at --guidance 1 do")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="instead of a mixture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lora", action="store_true", help="the few-step LoRA (give --steps 4 --guidance 1 too)")
    parser.add_argument("--break", dest="broken", choices=BREAKS)
    parser.add_argument("--proof", action="store_true", help="the model card's rows, whatever else is asked for")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows there too, as JSON")
    return parser.parse_args()


def asked_measurements(arguments: argparse.Namespace) -> Iterator[Measurement]:
    how = {"steps": arguments.steps, "guidance": arguments.guidance, "broken": arguments.broken}
    if arguments.prompts:
        size = tuple(arguments.size) if arguments.size else None
        yield Measurement("prompts", arguments.prompts, size=size, lora=arguments.lora, **how)
    if arguments.edits:
        yield Measurement("edits", arguments.edits, edits=True, **how)
    if arguments.layers:
        yield Measurement("layers", arguments.layers, layers=True, **how)


def measure(measurement: Measurement, checkpoint: Path, seed: int) -> list[dict]:
    """A row of what is right, per cent, with the measurement's bounds; behind it rows of parts of the same pictures."""
    started = time.monotonic()
    steps, guidance, shuffled = measurement.steps, measurement.guidance, measurement.broken == "shuffled"
    folder = checkpoint / ("edit" if measurement.edits else "layered" if measurement.layers else "generate")
    pipeline = load_pipeline(folder, measurement.lora, measurement.broken)
    parts: dict[str, list[Right]]
    if measurement.edits:
        edits = sample_edits(measurement.count, seed)
        right = score_edits(pipeline, edits, steps, guidance, shuffled)
        parts = {edit.operation: [] for edit in edits}
        for edit, picture in zip(edits, right, strict=True):
            parts[edit.operation].append(picture)
    elif measurement.layers:
        options = call_options(steps, guidance)
        right, parts = layers.score(pipeline, layers.sample_scenes(measurement.count, seed), options), {}
    else:
        prompts = sample_prompts(measurement.count, seed, measurement.size)
        images = draw_prompts(pipeline, prompts, steps, guidance)
        right = judge_prompts(images[1:] + images[:1] if shuffled else images, prompts)
        parts = {"held out": right[::2]}
    facts = {"steps": steps, "guidance": guidance, "seconds": round(time.monotonic() - started)}
    bounds = {"least": measurement.least, "most": measurement.most}
    whole = {"measure": measurement.name} | facts | per_cent_right(right) | bounds
    return [whole, *({"measure": f"{measurement.name}: {part}"} | per_cent_right(of) for part, of in parts.items())]


def write_report(rows: Sequence[dict], path: Path) -> None:
    report = {
        "benchmark": "tiny",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


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
    sys.exit(main())
