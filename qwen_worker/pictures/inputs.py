"""A request's input pictures and mask, fetched, decoded and in sRGB. Knows nothing of what is drawn from them."""

import base64
import io
import math
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image

from ..jobs.request import Drawing, Edit
from ..jobs.sources import is_url
from ..jobs.values import Warn
from ..network.fetch import fetch
from .colour import PROFILE, space_of
from .data_uris import MAX_BYTES, QUOTES, decode_base64, require_reachable
from .images import as_rgb, flatten, load_picture
from .masks import decode_mask

# Of more pictures than this each is held at a size that still is four times what a model looks at: ten photos of 50
# megapixels would take 2 GB of RAM.
FEW, REFERENCE_PIXELS = 3, 16_000_000
SMALL_SIDE = 768  # pixels of the longer side of pictures that a language model looks at


class Inputs(NamedTuple):
    """RGB sources in sRGB (none for generate); the mask, `L` of the source's size with 255 = repaint.

    `original`: the masked source, RGB or L, in its own colour space and with its profile, where its file has one.
    `layers`, `original_layer`: the same two with the transparency of their files, RGBA where they have some.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    original: Image.Image | None = None
    layers: Sequence[Image.Image] = ()
    original_layer: Image.Image | None = None

    def for_model(self, draws_alpha: bool) -> "Inputs":
        """As a model sees them that takes transparency, or one that sees it on white."""
        if not draws_alpha:
            return self
        return self._replace(sources=list(self.layers), original=self.original_layer)


class Source(NamedTuple):
    """One input picture, as `Inputs` has it."""

    seen: Image.Image
    layer: Image.Image
    original: Image.Image | None = None
    original_layer: Image.Image | None = None

    def within(self, pixels: int) -> "Source":
        """The same with at most so many pixels. For one that is not masked."""
        scale = math.sqrt(pixels / (self.seen.width * self.seen.height))
        if scale >= 1:
            return self
        size = round(self.seen.width * scale), round(self.seen.height * scale)
        seen = self.seen.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        is_opaque = self.layer is self.seen
        return Source(seen, seen if is_opaque else self.layer.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def open_images(request: Drawing, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None = None) -> Inputs:
    """The request's pictures; `warn` gets what is left out of account.

    Raises `JobError` image_unreadable, image_fetch_failed or invalid_input, naming the picture, or `Cancelled`.
    """
    if not isinstance(request, Edit):
        return Inputs([], None)
    several, is_masked = len(request.images) > 1, request.mask_image is not None
    sources: list[Source] = []
    for number, text in enumerate(request.images):
        label = f"images[{number}]" if several else "image"
        data = read_image(text, label, fetch_seconds, cancelled)
        source = open_source(data, label, warn, is_masked)
        sources.append(source if len(request.images) <= FEW else source.within(REFERENCE_PIXELS))
    seen, layers = [source.seen for source in sources], [source.layer for source in sources]
    if request.mask_image is None:
        return Inputs(seen, None, layers=layers)
    data = read_image(request.mask_image, "mask_image", fetch_seconds, cancelled)
    mask = decode_mask(data, "mask_image", seen[0].size, warn, request.mask_from)
    return Inputs(seen, mask, sources[0].original, layers, sources[0].original_layer)


def open_source(data: bytes, label: str, warn: Warn, is_masked: bool) -> Source:
    """The picture in sRGB as the model sees it, and, where it is masked, in its own space where that is kept."""
    picture = load_picture(data, label, warn)
    space = space_of(picture, label, warn)
    in_srgb = space.to_srgb(picture) if space else picture
    source = as_rgb(flatten(in_srgb))
    layer = layer_of(in_srgb) or source
    original = flatten(picture) if is_masked and space and space.is_kept else None
    if picture.mode == "CMYK":
        warn(f"{label} is CMYK, and the result is sRGB")
    elif is_masked and space and not original:
        warn(f"{label} has a colour profile that pictures cannot be written with, and the result is sRGB")
    if not original or not space:
        return Source(source, layer)
    original = original if original.mode == space.mode else original.convert(space.mode)
    original.info = {PROFILE: space.profile}
    if space.mode == "L":
        warn(f"{label} is grey by its colour profile, and so is the result; send it as RGB for colours")
    own_layer = layer_of(picture) if space.mode == "RGB" else None
    if own_layer:
        own_layer.info = {PROFILE: space.profile}
    # A grey file has no place for both its profile and transparency that every reader knows: it comes back in sRGB.
    is_grey_layer = space.mode == "L" and layer is not source
    return Source(source, layer, original, None if is_grey_layer else own_layer or original)


def layer_of(picture: Image.Image) -> Image.Image | None:
    """RGBA of a picture with transparency; None for one that is opaque all over."""
    if picture.mode not in ("LA", "RGBA") or picture.getchannel("A").getextrema()[0] == 255:
        return None
    layer = picture.convert("RGBA")  # a copy: the picture keeps its `info`
    layer.info = {}
    return layer


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
