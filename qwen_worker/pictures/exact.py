"""Whether a photo that comes back equal outside its mask has room in a reply: known before anything is drawn.

Only a lossless file keeps every pixel. What lies outside the mask is encoded beforehand, strip by strip, until it is
certain that it is too much, or all of it fits. Knows nothing of what is drawn.
"""

import math
import threading
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import Cancelled, JobError
from ..jobs.values import Warn
from ..stopwatch import timed
from .colour import PROFILE
from .crop import Box
from .deep import write_png
from .encoding import encode_deep, encode_picture
from .encodings import BASE64, encodings_for, is_lossless
from .photo import Photo, to_picture
from .stitch import Stitch

if TYPE_CHECKING:
    from ..jobs.request import Drawing

STRIP_ROWS = 256  # that are encoded at once
# Of the bytes of strips, what all of them in one file have at least.
TOGETHER = 0.9
MOST_BYTES = 1.007  # for each byte of its numbers: no PNG has more but for its head


Encodings = tuple[tuple[str, int | None], ...]  # (format, quality)


def encodings_of_photo(
    request: "Drawing", stitch: Stitch, room: float | None, copies: int, warn: Warn, cancelled: threading.Event
) -> Encodings:
    """The encodings that are to be tried for the photo: exact ones first, and of those what has room.

    `room`: bytes of a reply that has so many `copies` of a file; None where there is a bucket for any size. `warn` is
    told where what is outside the mask will not be exact. Raises `JobError` result_too_large where nothing exact has
    room and the job has not asked for anything else, `InvalidInput` where no file is so large, or `Cancelled`.
    """
    photo, wanted = stitch.photo, encodings_for(request, stitch.photo.size)
    exact = [one for one in wanted if keeps_numbers(photo, *one)]
    lossy = [one for one in wanted if one not in exact]
    if not exact:
        keeps = "16 bits" if is_lossless(*wanted[0]) else "every pixel"
        name = f"output_format {request.output_format}"
        warn(f"{name} does not keep {keeps}: outside the mask the picture is not exact; send png")
        return tuple(wanted)
    (width, height), limit = photo.size, room / BASE64 / copies if room else math.inf
    if width * height * photo.channels * photo.number_bytes * MOST_BYTES <= limit:
        return (*exact, *lossy)
    sizes = [least_bytes(stitch, one, limit, cancelled) for one in exact]
    if fitting := [one for one, size in zip(exact, sizes, strict=True) if size <= limit]:
        return (*fitting, *lossy)
    figures = f"{copies * min(sizes) * BASE64 / 1e6:.3g} MB or more, and at most {(room or 0) / 1e6:g} MB are"
    if lossy and request.output_quality:
        warn(f"outside the mask the picture is not exact: lossless, the reply would have {figures} delivered")
        return tuple(lossy)
    raise JobError(
        "result_too_large",
        f"exact outside the mask, the picture of {width}x{height} would have {figures} delivered; give a bucket, or "
        "ask for a lossy output_format (jpeg, avif, or webp with output_quality), or for mask_crop false",
    )


def keeps_numbers(photo: Photo, output_format: str, quality: int | None) -> bool:
    """Whether a file of this encoding has the photo's own numbers: those of a WebP are RGB of 8 bits."""
    is_for_webp = photo.number_bytes == 1 and photo.colour_mode == "RGB"
    return output_format == "png" or (is_for_webp and is_lossless(output_format, quality))


def least_bytes(stitch: Stitch, encoding: tuple[str, int | None], enough: float, cancelled: threading.Event) -> float:
    """What a file has at least by what is outside the mask; of more than `enough`, only so much that it is more."""
    width, height = stitch.photo.size
    total = 0.0
    for top in range(0, height, STRIP_ROWS):
        if cancelled.is_set():
            raise Cancelled
        total += TOGETHER * len(encode_strip(stitch, (0, top, width, min(height, top + STRIP_ROWS)), encoding))
        if total > enough:
            break
    return total


def encode_strip(stitch: Stitch, box: Box, encoding: tuple[str, int | None]) -> bytes:
    """The file of a strip of the photo, of one colour inside the mask."""
    _, top, _, bottom = box
    numbers = stitch.photo.numbers(box)
    x0, y0, x1, y1 = stitch.region
    start, end = max(top, y0), min(bottom, y1)
    if start < end:
        import numpy as np

        inside = np.asarray(stitch.mask.crop((0, start - y0, x1 - x0, end - y0))) > 0
        numbers[start - top : end - top, x0:x1][inside] = 0
    if stitch.photo.deep is not None:
        return write_png(numbers, [])
    return encode_picture(to_picture(numbers), *encoding)


def encode_whole(
    part: Image.Image, stitch: Stitch, output_format: str, quality: int | None, timings: dict[str, float]
) -> bytes:
    """The file of a photo with the drawn part in it, of 16 bits where the photo has so many and the format is PNG.

    `part`: with the mark and the texts of the file in its `info`. Its timings are `stitch` and `encode`.
    """
    with timed(timings, "stitch"):
        whole = stitch.whole(part)
    with timed(timings, "encode"):
        info = {**part.info, PROFILE: stitch.photo.profile}
        if isinstance(whole, Image.Image):
            whole.info = info
            return encode_picture(whole, output_format, quality)
        if output_format == "png":
            return encode_deep(whole, info)
        whole = to_picture(whole)
        whole.info = info
        return encode_picture(whole, output_format, quality)
