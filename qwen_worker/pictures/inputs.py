"""A request's input pictures and mask, fetched, decoded and in sRGB. Knows nothing of what is drawn from them."""

import base64
import io
import threading
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from ..jobs.control import Control
from ..jobs.request import Drawing, Edit, Generate
from ..jobs.sources import is_url
from ..jobs.values import Warn
from ..network.fetch import fetch
from .colour import PROFILE, space_of
from .data_uris import MAX_BYTES, QUOTES, decode_base64, require_reachable
from .images import as_rgb, flatten, load_picture
from .masks import decode_mask

SMALL_SIDE = 768  # pixels of the longer side of pictures that a language model looks at


class Inputs(NamedTuple):
    """RGB sources in sRGB (none for generate); the mask, `L` of the source's size with 255 = repaint.

    `original`: the masked source, RGB or L, in its own colour space and with its profile, where its file has one.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    original: Image.Image | None = None
    control: list[Image.Image] = []  # RGB in sRGB, as they were sent


def open_images(request: Drawing, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None = None) -> Inputs:
    """The request's pictures; `warn` gets what is left out of account.

    Raises `JobError` image_unreadable, image_fetch_failed or invalid_input, naming the picture, or `Cancelled`.
    """
    if not isinstance(request, Edit):
        texts = request.control_image if isinstance(request, Generate) and request.control_image else ()
        labelled = zip(request.controls, texts, strict=True) if texts else ()
        opened = [open_control(one, text, fetch_seconds, warn, cancelled) for one, text in labelled]
        return Inputs([], None, control=opened)
    several, is_masked = len(request.images) > 1, request.mask_image is not None
    sources: list[Image.Image] = []
    original = None
    for number, text in enumerate(request.images):
        label = f"images[{number}]" if several else "image"
        data = read_image(text, label, fetch_seconds, cancelled)
        source, original = open_source(data, label, warn, is_masked)
        sources.append(source)
    if request.mask_image is None:
        return Inputs(sources, None)
    data = read_image(request.mask_image, "mask_image", fetch_seconds, cancelled)
    return Inputs(sources, decode_mask(data, "mask_image", sources[0].size, warn, request.mask_from), original)


def open_control(
    control: Control, text: str, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None
) -> Image.Image:
    """One of a job's control pictures."""
    return open_source(read_image(text, control.label, fetch_seconds, cancelled), control.label, warn, False)[0]


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
