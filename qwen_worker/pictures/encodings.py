"""In which formats and qualities a job's pictures may be written, in turn, and about how large they are then. Pure.

Knows nothing of pixels (`encoding.py`), nor of what has room (`delivery.py`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..delivery_settings import ResponseShape
from ..errors import InvalidInput

if TYPE_CHECKING:
    from ..jobs.request import Drawing

CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "avif": "image/avif"}
DEFAULT_QUALITIES = {"jpeg": 92, "webp": 90, "avif": 85}  # of lossy files; WebP is lossless where the job says nothing
# The qualities of lossy WebP that output_format auto tries in turn, down to the job's output_quality.
QUALITIES = (95, 85)
LOWEST_QUALITY = 75  # where the job sets none
# Bytes for each pixel: the mean of eleven photographs, of which single ones have a fifth of it or nearly twice as much.
# Noise has twice as much in lossless files, and up to six times in others. It is no limit: what a picture really has is
# known when it is drawn.
LOSSLESS_RATES = {"png": 1.7, "webp": 1.3}
LOSSY_RATES = {  # by quality
    "avif": {1: 0.01, 50: 0.05, 75: 0.12, 90: 0.23, 95: 0.32, 100: 0.70},
    "jpeg": {1: 0.03, 50: 0.11, 75: 0.16, 90: 0.27, 95: 0.39, 100: 0.74},
    "webp": {1: 0.03, 50: 0.08, 75: 0.11, 90: 0.23, 95: 0.32, 100: 0.43},
}
LEAST_RATES = {
    "png": 0.014,
    "jpeg": 0.0158,
    "webp": 0.0001,
    "avif": 0.0001,
}  # of a picture of one colour: no file has less
WEBP_SIDE = 16_383  # pixels: WebP has no longer side
BASE64 = 4 / 3  # characters for each byte


def is_lossless(output_format: str, quality: int | None) -> bool:
    """Whether a file of this encoding has every pixel of its picture."""
    return output_format == "png" or (output_format == "webp" and quality is None)


def copies_in_reply(request: "Drawing", shape: ResponseShape) -> int:
    """How many files a reply has: RunPod's shape has the first under two names, and so has our own of several."""
    several = request.picture_count > 1
    return request.picture_count + (shape is ResponseShape.RUNPOD_PUBLIC or (shape is ResponseShape.WORKER and several))


def photo_rate(output_format: str, quality: int | None) -> float:
    """The bytes that a photograph has for each pixel, about."""
    if is_lossless(output_format, quality):
        return LOSSLESS_RATES[output_format]
    import numpy as np

    rates = LOSSY_RATES[output_format]
    return float(np.interp(quality or DEFAULT_QUALITIES[output_format], list(rates), list(rates.values())))


def encodings_for(request: "Drawing", size: tuple[int, int]) -> list[tuple[str, int | None]]:
    """Those of `encodings` that pictures of this size, in pixels, have room in. Raises `InvalidInput` for none."""
    if found := [one for one in encodings(request) if one[0] != "webp" or max(size) <= WEBP_SIDE]:
        return found
    raise InvalidInput(
        f"output_format {request.output_format} would be WebP, which has at most {WEBP_SIDE} pixels on a side, and the "
        f"picture has {size[0]}x{size[1]}: send output_format png, jpeg or avif"
    )


def encodings(request: "Drawing") -> Iterator[tuple[str, int | None]]:
    """(format, quality) as asked for, or, for `auto`, from the largest to the smallest that the job allows."""
    if request.output_format != "auto":
        is_lossy_webp = request.output_format == "webp" and request.lossless is False
        yield request.output_format, request.output_quality or (DEFAULT_QUALITIES["webp"] if is_lossy_webp else None)
        return
    lowest = request.output_quality or LOWEST_QUALITY
    if request.lossless is not False:
        yield "png", None
        yield "webp", None  # lossless
    if request.lossless:
        return
    for quality in (*(quality for quality in QUALITIES if quality > lowest), lowest):
        yield "webp", quality
