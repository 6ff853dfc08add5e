"""What each precision and each preset does to the pictures: the tiny checkpoint's judge, and the distance to others.

The same prompts and seeds everywhere, drawn by the worker's own pipelines: in every precision with as many steps, then
by every preset as it comes, in float32. PSNR in dB over 8-bit RGB, to the pictures of the first precision or preset.
The tiny checkpoint's matrices are 128 wide, where a scale for each row has less to even out than in the released
models, and its shapes need few steps: the figures are for comparing, not a measure of the 20B model.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TINY = Path(__file__).parents[1] / "models/tiny-qwen-image"
FEW_STEP = TINY / "few-step/tiny-qwen-image-4steps.safetensors"
PRECISIONS = ("bf16", "fp8", "int8", "nf4")
PRESETS = ("quality", "balanced", "fast")
GUIDANCE = 4.0


def add_options(parser) -> None:
    parser.add_argument("--prompts", type=int, default=48, help="prompts of each row (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=0, help="edits of each preset but fast (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of precisions (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default: %(default)s)")
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))


def run(options) -> tuple[list[dict], dict]:
    rows = [*precisions(options), *presets(options), *edits(options)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "-") for name in columns} for row in rows], {"size": options.size}


def precisions(options) -> Iterator[dict]:
    reference = None
    for precision in options.precisions:
        pipe = load("generate", QWEN_PRECISION=precision).pipe
        shares, images = scored(pipe, options, options.steps, GUIDANCE)
        reference = reference or images
        facts = {"task": "generate", "precision": precision, "preset": "-", "steps": options.steps}
        yield facts | {"guidance": GUIDANCE} | shares | distance(images, reference, options.precisions[0])


def presets(options) -> Iterator[dict]:
    reference = None
    for preset, request, loaded in served("generate", options.presets):
        shares, images = scored(loaded.pipe, options, request.num_inference_steps, request.guidance_scale)
        reference = reference or images
        yield facts_of("generate", preset, request) | shares | distance(images, reference, options.presets[0])


def edits(options) -> Iterator[dict]:
    from qwen_tiny import evaluate

    tasks = evaluate.sample_edits(options.edits, seed=23)
    if not tasks:
        return
    for preset, request, loaded in served("edit", [one for one in options.presets if one != "fast"]):
        right = evaluate.score_edits(loaded.pipe, tasks, request.num_inference_steps, request.guidance_scale)
        yield facts_of("edit", preset, request) | evaluate.per_cent_right(right)


def served(task: str, wanted: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """By preset: what its jobs ask for and the loaded pipeline, which draws by it until the next one's turn."""
    from qwen_worker.job import Job
    from qwen_worker.loras import Loras
    from qwen_worker.parsing import parse
    from qwen_worker.presets import Presets
    from qwen_worker.regime import regime

    loaded = load(task)
    settings = settings_for(QWEN_IMAGE_FAST_LORA=str(FEW_STEP))
    for preset in wanted:
        fields = {"task": task, "prompt": "-", "preset": preset} | ({"image": "-"} if task == "edit" else {})
        job = Job("benchmark", parse(fields, "benchmark", Presets(settings)))
        job.loras = Loras(settings).of_job(job, loaded.checkpoint)
        with regime(loaded, job):
            yield preset, job.request, loaded


def load(task: str, **settings):
    from qwen_worker.pipelines import Pipelines

    return Pipelines(settings_for(**settings)).load(task)


def settings_for(**more):
    from qwen_worker.settings import Settings

    return Settings(**{"QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit")} | more)


def facts_of(task: str, preset: str, request) -> dict:
    steps, guidance = request.num_inference_steps, request.guidance_scale
    return {"task": task, "precision": "fp32", "preset": preset, "steps": steps, "guidance": guidance}


def scored(pipe, options, steps: int, guidance: float) -> tuple[dict, list]:
    """What the judge finds right of the prompts, per cent, and their pictures."""
    from qwen_tiny import evaluate

    prompts = evaluate.sample_prompts(options.prompts, seed=23, size=(options.size, options.size))
    images = evaluate.draw_prompts(pipe, prompts, steps, guidance)
    return evaluate.per_cent_right(evaluate.judge_prompts(images, prompts)), images


def distance(images: list, reference: list, name: str) -> dict:
    """The median PSNR and the least."""
    if images is reference:
        return {"PSNR": "-", "least PSNR": "-", "to": "-"}
    found = [psnr(image, other) for image, other in zip(images, reference, strict=True)]
    return {"PSNR": round(float(np.median(found)), 1), "least PSNR": round(min(found), 1), "to": name}


def psnr(image, other) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal pictures."""
    error = np.square(np.asarray(image, np.float64) - np.asarray(other, np.float64)).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf
