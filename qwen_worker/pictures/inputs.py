"""A request's input pictures and mask, fetched and decoded. Knows nothing of what is drawn from them."""

import threading
from dataclasses import dataclass

from PIL import Image

from ..jobs.request import Drawing, Edit
from ..jobs.sources import is_url
from ..network.fetch import fetch
from .images import MAX_BYTES, decode_base64, decode_picture
from .masks import decode_mask, restore_outside


@dataclass(frozen=True)
class Canvas:
    """What a job draws on: RGB sources (none for generate), the mask (`L`, 255 = repaint), and sizes in pixels.

    `size`: width and height that the pipeline draws. `delivered_size`: those of the result, where they are others.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    size: tuple[int, int]
    delivered_size: tuple[int, int] | None = None

    @property
    def result_size(self) -> tuple[int, int]:
        return self.delivered_size or self.size

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The result of a drawing (RGB): in the result's size, and outside the mask the source's own pixels."""
        if drawn.size != self.result_size:
            drawn = drawn.resize(self.result_size, Image.Resampling.LANCZOS)
        return restore_outside(drawn, self.sources[0], self.mask) if self.mask is not None else drawn


def open_images(
    request: Drawing, fetch_seconds: float, cancelled: threading.Event | None = None
) -> tuple[list[Image.Image], Image.Image | None]:
    """The RGB sources (none for generate) and the mask, `L` of the source's size with 255 = repaint.

    Raises `JobError` image_unreadable, image_fetch_failed or invalid_input, naming the picture, or `Cancelled`.
    """
    if not isinstance(request, Edit):
        return [], None
    several = len(request.images) > 1
    sources: list[Image.Image] = []
    for number, text in enumerate(request.images):
        label = f"images[{number}]" if several else "image"
        sources.append(decode_picture(read_image(text, label, fetch_seconds, cancelled), label))
    if request.mask_image is None:
        return sources, None
    data = read_image(request.mask_image, "mask_image", fetch_seconds, cancelled)
    return sources, decode_mask(data, "mask_image", sources[0].size)


def read_image(text: str, label: str, fetch_seconds: float, cancelled: threading.Event | None) -> bytes:
    """The file of an image that a job gives as URL, base64 or data URI."""
    return fetch(text, label, MAX_BYTES, fetch_seconds, cancelled) if is_url(text) else decode_base64(text, label)
