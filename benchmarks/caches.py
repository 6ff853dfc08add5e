"""What step caches do to the tiny checkpoint's pictures for as many passes: that of preset `balanced`, and another.

The pictures of a prompt with a cache and without one, in as many steps and from the same seed: the judge's score, and
the PSNR in dB over 8-bit RGB. First-block caching takes a threshold in place of a number of passes: the one is searched
for that leaves about as many as TaylorSeer computes. The tiny checkpoint's shapes need few steps: the figures compare
caches with each other, and are no measure of the 20B model.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from qwen_worker.jobs.presets import USUAL
from qwen_worker.speed.step_cache import CachedSteps, predict_steps

from .quality import GUIDANCE, load, psnr

TUNED_BY, HALVINGS = 3, 7  # prompts that a threshold is searched with, and tries
THRESHOLDS = 0.005, 1.0  # within which it lies
SKIPPED_BLOCK = 2  # of which no cache computes all passes


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=16, help="prompts of each row (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=USUAL.balanced_steps, help="denoising steps (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default: %(default)s)")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    from qwen_tiny import evaluate

    pipe = load("generate").pipe
    prompts = evaluate.sample_prompts(options.prompts, seed=23, size=(options.size, options.size))
    reference, _ = draw(pipe, prompts, options.steps, None)

    def row(name: str, images: list, share: float, **more: object) -> dict:
        ratios = [psnr(*pair) for pair in zip(images, reference, strict=True)]
        right = evaluate.per_cent_right(evaluate.judge_prompts(images, prompts))["all"]
        facts = {"cache": name, "passes": round(share * 2 * options.steps, 1), "of": 2 * options.steps, "all": right}
        least = {"PSNR": median(ratios), "worst tenth": tenth(ratios), "least": rounded(min(ratios))}
        return facts | least | {"threshold": "-"} | more

    rows = [row("none", reference, 1.0)]
    steps = CachedSteps(options.steps)
    ours = draw(pipe, prompts, options.steps, lambda transformer: predict_steps(transformer, steps))
    rows.append(row("TaylorSeer, as preset balanced has it", *ours))
    threshold = threshold_for(pipe, prompts[:TUNED_BY], options.steps, ours[1])
    theirs = draw(pipe, prompts, options.steps, lambda transformer: first_block(transformer, threshold))
    rows.append(row("first-block caching", *theirs, threshold=round(threshold, 3)))
    return rows, {"size": options.size, "steps": options.steps}


def draw(pipe: Any, prompts: list, steps: int, cache: Callable[[Any], Any] | None) -> tuple[list, float]:
    """The pictures, and the share of the passes that was computed."""
    from qwen_tiny import evaluate

    with counting(pipe.transformer) as counts, cache(pipe.transformer) if cache else nullcontext():
        images = evaluate.draw_prompts(pipe, prompts, steps, GUIDANCE)
    return images, counts["computed"] / counts["passes"]


@contextmanager
def counting(transformer: Any) -> Iterator[dict[str, int]]:
    """Counts the passes within, and those that are computed."""
    counts = {"passes": 0, "computed": 0}

    def counted(name: str) -> Callable[..., None]:
        def count(*_: object) -> None:
            counts[name] += 1

        return count

    block = transformer.transformer_blocks[SKIPPED_BLOCK].attn
    hooks = [
        transformer.img_in.register_forward_pre_hook(counted("passes")),
        block.register_forward_pre_hook(counted("computed")),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def first_block(transformer: Any, threshold: float) -> Iterator[None]:
    """Within, a pass ends after its first block where that has changed by less than the threshold."""
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        yield
    finally:
        transformer.disable_cache()


def threshold_for(pipe: Any, prompts: list, steps: int, share: float) -> float:
    """A threshold by which first-block caching computes about this share of the prompts' passes, and no less."""
    low, high = THRESHOLDS
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        _, computed = draw(pipe, prompts, steps, lambda transformer, middle=middle: first_block(transformer, middle))
        low, high = (middle, high) if computed >= share else (low, middle)
    return low


def median(ratios: list[float]) -> float | str:
    return rounded(float(np.median(ratios)))


def tenth(ratios: list[float]) -> float | str:
    """The ratio that a tenth of the pictures do not come to."""
    return rounded(sorted(ratios)[len(ratios) // 10])


def rounded(ratio: float) -> float | str:
    return round(ratio, 1) if np.isfinite(ratio) else "-"
