"""A request's input pictures and mask, from wherever they come, decoded. Knows nothing of what is done with them."""

import threading
from dataclasses import dataclass

from PIL import Image

from ..jobs.request import MAX_SIDE, MIN_SIDE, Drawing, Edit
from ..jobs.sources import is_url
from ..network.fetch import fetch
from .images import MAX_BYTES, decode, edit_size, from_text
from .masks import decode_mask


@dataclass(frozen=True)
class Canvas:
    """What a job draws on: RGB sources (none for generate), the mask (`L`, 255 = repaint), the size in pixels."""

    sources: list[Image.Image]
    mask: Image.Image | None
    size: tuple[int, int]

    @property
    def parts(self) -> tuple[list[Image.Image], Image.Image | None, tuple[int, int]]:
        return self.sources, self.mask, self.size


def open_images(
    request: Drawing, fetch_seconds: float, cancelled: threading.Event | None = None
) -> tuple[list[Image.Image], Image.Image | None]:
    """The RGB sources (none for generate) and the mask, `L` of the source's size with 255 = repaint.

    Raises `image_unreadable`, `image_fetch_failed` or `invalid_input`, naming the picture, or `Cancelled`.
    """
    if not isinstance(request, Edit):
        return [], None
    several = len(request.images) > 1
    sources = []
    for k, text in enumerate(request.images):
        label = f"images[{k}]" if several else "image"
        sources.append(decode(image_bytes(text, label, fetch_seconds, cancelled), label))
    if request.mask_image is None:
        return sources, None
    data = image_bytes(request.mask_image, "mask_image", fetch_seconds, cancelled)
    return sources, decode_mask(data, "mask_image", sources[0].size)


def image_bytes(text: str, label: str, fetch_seconds: float, cancelled: threading.Event | None) -> bytes:
    return fetch(text, label, MAX_BYTES, fetch_seconds, cancelled) if is_url(text) else from_text(text, label)


def output_size(request: Drawing, sources: list[Image.Image], mask, multiple: int) -> tuple[int, int]:
    """The size asked for, else the source's aspect at about a megapixel; of several sources the last one's."""
    if request.width:
        return request.width, request.height
    return edit_size(sources[-1].size, mask is not None, multiple, MIN_SIDE, MAX_SIDE)
