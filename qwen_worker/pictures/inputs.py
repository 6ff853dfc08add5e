"""A request's input pictures and mask, fetched, decoded and in sRGB. Knows nothing of what is drawn from them."""

import base64
import io
import threading
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from ..jobs.expansion import Margins, margins_to_ratio, require_canvas
from ..jobs.named_sizes import ratio_of
from ..jobs.request import BackgroundReplacement, Drawing
from ..jobs.sources import is_url
from ..jobs.values import Warn
from ..network.fetch import fetch
from .colour import PROFILE, space_of
from .data_uris import MAX_BYTES, QUOTES, decode_base64, require_reachable
from .expansion import expanded, expanded_mask
from .images import as_rgb, flatten, load_picture
from .masks import decode_mask
from .matte import around_subject

SMALL_SIDE = 768  # pixels of the longer side of pictures that a language model looks at


class Inputs(NamedTuple):
    """RGB sources in sRGB (none for generate); the mask, `L` of the source's size with 255 = repaint.

    `original`: the masked source, RGB or L, in its own colour space and with its profile, where its file has one.
    `sent`: the sources as they were before their canvas grew, where it did, by `margins`.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    original: Image.Image | None = None
    sent: list[Image.Image] | None = None
    margins: Margins | None = None


def open_images(request: Drawing, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None = None) -> Inputs:
    """The request's pictures; `warn` gets what is left out of account.

    Raises `JobError` image_unreadable, image_fetch_failed or invalid_input, naming the picture, or `Cancelled`.
    """
    if not isinstance(request, Drawing) or not request.images:
        return Inputs([], None)
    several, is_masked = len(request.images) > 1, request.is_masked
    sources: list[Image.Image] = []
    original = None
    for number, text in enumerate(request.images):
        label = f"images[{number}]" if several else "image"
        data = read_image(text, label, fetch_seconds, cancelled)
        source, original = open_source(data, label, warn, is_masked)
        sources.append(source)
    mask = None
    if request.mask_image is not None:
        data = read_image(request.mask_image, "mask_image", fetch_seconds, cancelled)
        mask = decode_mask(data, "mask_image", sources[0].size, warn, request.mask_from)
    if isinstance(request, BackgroundReplacement) and request.subject_mask:
        data = read_image(request.subject_mask, "subject_mask", fetch_seconds, cancelled)
        mask = around_subject(data, "subject_mask", sources[0].size, warn)
    inputs = Inputs(sources, mask, original)
    return on_grown_canvas(request, inputs) if request.grows else inputs


def on_grown_canvas(request: Drawing, inputs: Inputs) -> Inputs:
    """The inputs of a job whose picture gets a larger canvas: what is new is repainted, beside what its mask repaints.

    Raises `InvalidInput` for a canvas that is too large or too long.
    """
    source, ratio = inputs.sources[0], ratio_of(request.aspect_ratio)
    margins = request.expand or margins_to_ratio(source.size, ratio or 1.0)
    require_canvas(source.size, margins)
    original = expanded(inputs.original, margins) if inputs.original else None
    mask = expanded_mask(inputs.mask, source.size, margins)
    return Inputs([expanded(source, margins)], mask, original, inputs.sources, margins)


def open_source(data: bytes, label: str, warn: Warn, is_masked: bool) -> tuple[Image.Image, Image.Image | None]:
    """The picture in sRGB as the model sees it, and, where it is masked, in its own space where that is kept."""
    picture = load_picture(data, label, warn)
    space = space_of(picture, label, warn)
    original = flatten(picture) if is_masked and space and space.is_kept else None
    source = as_rgb(flatten(space.to_srgb(picture) if space else picture))
    if picture.mode == "CMYK":
        warn(f"{label} is CMYK, and the result is sRGB")
    elif is_masked and space and not original:
        warn(f"{label} has a colour profile that pictures cannot be written with, and the result is sRGB")
    if not original or not space:
        return source, None
    original = original if original.mode == space.mode else original.convert(space.mode)
    original.info = {PROFILE: space.profile}
    if space.mode == "L":
        warn(f"{label} is grey by its colour profile, and so is the result; send it as RGB for colours")
    return source, original


def read_image(text: str, label: str, fetch_seconds: float, cancelled: threading.Event | None) -> bytes:
    """The file of an image that a job gives as URL, base64 or data URI, perhaps in quotes or with space around it."""
    text = text.strip(QUOTES)
    require_reachable(text, label)
    return fetch(text, label, MAX_BYTES, fetch_seconds, cancelled) if is_url(text) else decode_base64(text, label)


def small_data_urls(sources: Iterable[Image.Image]) -> list[str]:
    """The pictures as data URLs of JPEG files, of at most `SMALL_SIDE` pixels a side."""
    urls: list[str] = []
    for source in sources:
        small = source.copy()
        small.thumbnail((SMALL_SIDE, SMALL_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=85)
        urls.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getbuffer()).decode('ascii')}")
    return urls
