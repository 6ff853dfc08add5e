"""What each precision does to the pictures: the tiny checkpoint's judge, and the distance to bfloat16's pictures.

The same prompts and seeds in every precision, drawn by the worker's own pipelines. PSNR in dB over 8-bit RGB. The tiny
checkpoint's matrices are 128 wide, where a scale for each row has less to even out than in the released models: the
figures are for comparing precisions, not a measure of the 20B model's quality.
"""

import importlib
import math
from pathlib import Path

import numpy as np

TINY = Path(__file__).parents[1] / "models/tiny-qwen-image"
PRECISIONS = ("bf16", "fp8", "int8", "nf4")


def add_options(parser) -> None:
    parser.add_argument("--prompts", type=int, default=48, help="prompts in each precision (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default: %(default)s)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))


def run(options) -> tuple[list[dict], dict]:
    evaluate = importlib.import_module("models.tiny-qwen-image.evaluate")
    judge = importlib.import_module("models.tiny-qwen-image.judge")
    tasks = evaluate.prompt_tasks(options.prompts, seed=23, size=(options.size, options.size))
    rows, reference = [], None
    for precision in options.precisions:
        images = list(evaluate.pictures(pipeline(precision), tasks, options.steps, 4.0))
        reference = reference or images
        right = [judge.matches(judge.read(i), asked) for i, (_, asked, _) in zip(images, tasks, strict=True)]
        distances = [psnr(image, other) for image, other in zip(images, reference, strict=True)]
        distance = round(float(np.median(distances)), 1) if images is not reference else "-"
        rows.append({"precision": precision} | evaluate.shares(right) | {f"PSNR to {options.precisions[0]}": distance})
    return rows, {"steps": options.steps, "size": options.size, "guidance": 4.0}


def pipeline(precision: str):
    from qwen_worker.pipelines import Pipelines
    from qwen_worker.settings import Settings

    settings = Settings(QWEN_IMAGE_MODEL=str(TINY / "generate"), QWEN_EDIT_MODEL="/none", QWEN_PRECISION=precision)
    return Pipelines(settings).load("generate").pipe


def psnr(image, other) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal pictures."""
    error = np.square(np.asarray(image, np.float64) - np.asarray(other, np.float64)).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf
