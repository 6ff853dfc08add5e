"""What each precision and each preset does to the pictures: the tiny checkpoint's judge, and the distance to others.

The worker's own pipelines draw the same prompts and seeds everywhere: in every precision with as many steps, then by
every preset as it comes, in float32, and in bfloat16 without the speed-ups and with those that a CPU has. PSNR is in
dB over 8-bit RGB, to the pictures of the first precision, preset or set of speed-ups.
The tiny checkpoint's matrices are 128 wide, where a scale for each row has less to even out than in the released
models, and its shapes need few steps: the figures are for comparing, not a measure of the 20B model.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .measure.full_size import TINY, lora_for

PRECISIONS = ("bf16", "fp8", "int8", "nf4")
PRESETS = ("quality", "balanced", "fast")
SPEEDUPS = ("none", "rotary,guidance", "compile,rotary,guidance")  # as QWEN_SPEEDUPS has them: a CPU has no others
GUIDANCE = 4.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=48, help="prompts of each row (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=0, help="edits of each preset but fast (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of precisions (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default: %(default)s)")
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--speedups", nargs="*", choices=SPEEDUPS, default=list(SPEEDUPS))


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    rows = [*precisions(options), *presets(options), *edits(options), *speedups(options)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "-") for name in columns} for row in rows], {"size": options.size}


def precisions(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each precision."""
    reference = None
    for precision in options.precisions:
        pipe = load("generate", QWEN_PRECISION=precision).pipe
        shares, images = scored(pipe, options, options.steps, GUIDANCE)
        reference = reference or images
        facts = {"task": "generate", "precision": precision, "preset": "-", "steps": options.steps}
        yield facts | {"guidance": GUIDANCE} | shares | distance(images, reference, options.precisions[0])


def presets(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each preset, of generated pictures."""
    reference = None
    for preset, request, loaded in configured_pipelines("generate", options.presets):
        shares, images = scored(loaded.pipe, options, request.num_inference_steps, request.guidance_scale)
        reference = reference or images
        yield facts_of("generate", preset, request) | shares | distance(images, reference, options.presets[0])


def edits(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each preset but `fast`, of edits; none where no edits are asked for."""
    from qwen_tiny import evaluate

    tasks = evaluate.sample_edits(options.edits, seed=23)
    if not tasks:
        return
    slow = [preset for preset in options.presets if preset != "fast"]
    for preset, request, loaded in configured_pipelines("edit", slow):
        right = evaluate.score_edits(loaded.pipe, tasks, request.num_inference_steps, request.guidance_scale)
        yield facts_of("edit", preset, request) | evaluate.per_cent_right(right)


def speedups(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each set of speed-ups, in bfloat16, of small pictures, whose two passes of guidance are one call."""
    reference = None
    for names in options.speedups:
        settings = {"QWEN_PRECISION": "bf16", "QWEN_SPEEDUPS": names}
        for _, request, loaded in configured_pipelines("generate", ["quality"], **settings):
            shares, images = scored(loaded.pipe, options, options.steps, GUIDANCE)
            reference = reference or images
            facts = facts_of("generate", "-", request) | {
                "precision": "bf16",
                "speedups": names,
                "steps": options.steps,
            }
            yield facts | {"guidance": GUIDANCE} | shares | distance(images, reference, options.speedups[0])


def configured_pipelines(task: str, wanted: list[str], **more: str) -> Iterator[tuple[str, Any, Any]]:
    """(preset, a request of it, the loaded pipeline): the pipeline draws by the preset until the next is asked for."""
    from qwen_worker.drawing.configured import configured
    from qwen_worker.jobs.job import Job
    from qwen_worker.jobs.parsing import parse
    from qwen_worker.jobs.presets import Presets
    from qwen_worker.lora.loras import Loras

    loaded = load(task, **more)
    settings = settings_for(QWEN_IMAGE_FAST_LORA=str(lora_for(TINY)))
    for preset in wanted:
        fields = {"task": task, "prompt": "-", "preset": preset} | ({"image": "-"} if task == "edit" else {})
        job = Job("benchmark", parse(fields, "benchmark", Presets(settings)))
        with configured(loaded, job.request, Loras(settings).open_for_job(job, loaded.checkpoint), loaded.plan):
            yield preset, job.request, loaded


def load(task: str, **settings: str) -> Any:
    """The task's loaded pipeline of the tiny checkpoint."""
    from qwen_worker.loading.catalogue import Catalogue
    from qwen_worker.loading.pipelines import Pipelines

    chosen = settings_for(**settings)
    return Pipelines(chosen, Catalogue(chosen)).load(task)


def settings_for(**more: str) -> Any:
    from qwen_worker.settings import Settings

    return Settings(**{"QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit")} | more)


def facts_of(task: str, preset: str, request: Any) -> dict:
    steps, guidance = request.num_inference_steps, request.guidance_scale
    return {"task": task, "precision": "fp32", "preset": preset, "steps": steps, "guidance": guidance}


def scored(pipe: Any, options: argparse.Namespace, steps: int, guidance: float) -> tuple[dict, list]:
    """What the judge reads right of the prompts, per cent, and their pictures."""
    from qwen_tiny import evaluate

    prompts = evaluate.sample_prompts(options.prompts, seed=23, size=(options.size, options.size))
    images = evaluate.draw_prompts(pipe, prompts, steps, guidance)
    return evaluate.per_cent_right(evaluate.judge_prompts(images, prompts)), images


def distance(images: list, reference: list, name: str) -> dict:
    """The median PSNR to the reference's pictures and the least, for a row. `name`: the reference's."""
    if images is reference:
        return {"PSNR": "-", "least PSNR": "-", "to": "-"}
    ratios = [psnr(image, other) for image, other in zip(images, reference, strict=True)]
    return {"PSNR": round(float(np.median(ratios)), 1), "least PSNR": round(min(ratios), 1), "to": name}


def psnr(image: Any, other: Any) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal pictures."""
    error = np.square(np.asarray(image, np.float64) - np.asarray(other, np.float64)).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf
