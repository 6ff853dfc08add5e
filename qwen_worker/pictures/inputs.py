"""A request's input pictures and mask, fetched, decoded and in sRGB. Knows nothing of what is drawn from them."""

import base64
import io
import math
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image

from ..jobs.control import Control
from ..jobs.expansion import Margins, margins_to_ratio, require_canvas
from ..jobs.named_sizes import Size, ratio_of
from ..jobs.reply import Lineage
from ..jobs.request import BackgroundReplacement, Drawing, Generate
from ..jobs.sources import is_url
from ..jobs.values import Warn
from ..network.fetch import fetch
from .colour import PROFILE, space_of
from .data_uris import MAX_BYTES, QUOTES, decode_base64, require_reachable
from .deep import is_deep, read_deep
from .expansion import expanded, expanded_mask, expanded_photo
from .images import MAX_ASPECT, as_rgb, flatten, load_picture, require_shape
from .lineage import lineage_of
from .masks import decode_mask
from .matte import around_subject
from .photo import GREY_PROFILE, INKS, UNWRITABLE_PROFILE, open_photo
from .sizes import is_larger
from .stitch import Stitch, stitch_of

# Of more pictures than this each is held at a size that still is four times what a model looks at: ten photos of 50
# megapixels would take 2 GB of RAM.
FEW, REFERENCE_PIXELS = 3, 16_000_000
MAX_PHOTO_ASPECT = 64  # of a photo of which a part is drawn: a panorama, a scanned strip
NEARLY_ALL = 0.95  # of a photo's pixels
CHECKED_SIDE = 1024  # pixels of the longer side of a photo that is judged as a whole
SMALL_SIDE = 768  # pixels of the longer side of pictures that a language model looks at


class Inputs(NamedTuple):
    """RGB sources in sRGB (none for generate); the mask, `L` of the source's size with 255 = repaint.

    `layers`: the sources with the transparency of their files, RGBA where they have some. `original`: the masked
    source with its transparency, RGB, RGBA or L, in its own colour space and with its profile where its file has one.
    `stitch`: the photo of which the source is a part, and the mask of that part's size. `lineage`: of an edit.
    `sent`: where the canvas grew, by `margins`, the picture as it was before.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    original: Image.Image | None = None
    layers: Sequence[Image.Image] = ()
    stitch: Stitch | None = None
    lineage: Lineage | None = None
    sent: Image.Image | None = None
    margins: Margins | None = None
    control: Sequence[Image.Image] = ()  # RGB in sRGB, as they were sent

    def for_model(self, draws_alpha: bool) -> "Inputs":
        """As a model sees them that takes transparency, or one that sees it on white."""
        if not draws_alpha or not self.layers:
            return self
        return self._replace(sources=list(self.layers))

    @property
    def to_check(self) -> Sequence[Image.Image]:
        """The input pictures, each as a whole, for whoever judges what is on them."""
        if self.sent:  # what is around it would hide it
            return [self.sent]
        if self.stitch:
            return [self.stitch.photo.thumbnail(CHECKED_SIDE)]
        return [*(self.layers or self.sources), *self.control]


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

    def expanded(self, margins: Margins) -> "Source":
        """The same on a canvas that grows by the margins."""
        seen = expanded(self.seen, margins)
        return Source(
            seen,
            seen if self.layer is self.seen else expanded(self.layer, margins),
            self.original and expanded(self.original, margins),
            self.original_layer and expanded(self.original_layer, margins),
        )


def open_images(request: Drawing, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None = None) -> Inputs:
    """The request's pictures; `warn` gets what is left out of account.

    Raises `JobError` image_unreadable, image_fetch_failed or invalid_input, naming the picture, or `Cancelled`.
    """
    if isinstance(request, Generate) and request.control_image:
        labelled = zip(request.controls, request.control_image, strict=True)
        return Inputs([], None, control=[open_control(*one, fetch_seconds, warn, cancelled) for one in labelled])
    if not request.images:
        return Inputs([], None)
    several = len(request.images) > 1
    labels = [f"images[{number}]" if several else "image" for number in range(len(request.images))]
    files, sources = list[bytes](), list[Source]()
    for text, label in zip(request.images, labels, strict=True):
        files.append(read_image(text, label, fetch_seconds, cancelled))
        if not request.is_masked:
            source = open_source(files[-1], label, warn, is_masked=False)
            sources.append(source if len(request.images) <= FEW else source.within(REFERENCE_PIXELS))
    if request.is_masked:
        inputs = open_masked(request, files[0], fetch_seconds, warn, cancelled)
    else:
        inputs = Inputs([source.seen for source in sources], None, layers=[source.layer for source in sources])
    return inputs._replace(lineage=lineage_of(files) if request.uses_pictures else None)


def open_masked(
    request: Drawing, data: bytes, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None
) -> Inputs:
    """The picture of a job that keeps a part of it, or the part of it that is drawn. `data`: its file.

    Raises `InvalidInput` for a canvas that would grow too large or too long.
    """
    max_aspect = MAX_PHOTO_ASPECT if request.may_crop and not request.grows else MAX_ASPECT
    picture = load_picture(data, "image", warn, max_aspect)
    margins = margins_of(request, picture.size)
    mask = read_mask(request, picture.size, max_aspect, fetch_seconds, warn, cancelled)
    if margins:
        mask = expanded_mask(mask, picture.size, margins)
    assert mask, "a job that keeps a part of its picture has a mask, or its canvas grows"
    if request.may_crop and (request.mask_crop or is_deep(data) or is_larger(mask.size)):
        if request.mask_crop or request.keeps_size or not covers_all(mask, mask.size, warn):
            deep = read_deep(data, "image", picture.size, warn) if is_deep(data) else None
            photo = open_photo(picture, deep, "image", warn)
            del picture, deep
            sent = photo.thumbnail(CHECKED_SIDE) if margins else None
            photo = expanded_photo(photo, margins) if margins else photo
            label = request.fields_of_part[0]
            stitch = stitch_of(photo, mask, request.mask_padding, request.has_soft_mask, warn, label)
            return Inputs([photo.framed(stitch.frame)], stitch.drawn_mask, stitch=stitch, sent=sent, margins=margins)
    require_shape(*picture.size, "image")
    source = as_source(picture, "image", warn, is_masked=True)
    sent = source.layer if margins else None
    if margins:
        source = source.expanded(margins)
    # What is kept is kept with its transparency, whether or not the model sees it.
    original = source.original_layer or source.layer
    return Inputs([source.seen], mask, original, [source.layer], sent=sent, margins=margins)


def margins_of(request: Drawing, size: Size) -> Margins | None:
    """By how much the canvas of a picture of this size grows. Raises `InvalidInput` for a canvas that cannot be."""
    if not request.grows:
        return None
    margins = request.expand or margins_to_ratio(size, ratio_of(request.aspect_ratio) or 1.0)
    require_canvas(size, margins)
    return margins


def read_mask(
    request: Drawing,
    size: Size,
    max_aspect: float,
    fetch_seconds: float,
    warn: Warn,
    cancelled: threading.Event | None,
) -> Image.Image | None:
    """The mask of what is repainted in a picture of this size; None where the job has none."""
    if isinstance(request, BackgroundReplacement) and request.subject_mask:
        data = read_image(request.subject_mask, "subject_mask", fetch_seconds, cancelled)
        return around_subject(data, "subject_mask", size, warn, max_aspect)
    if request.mask_image is None:
        return None
    data = read_image(request.mask_image, "mask_image", fetch_seconds, cancelled)
    return decode_mask(data, "mask_image", size, warn, request.mask_from, request.has_soft_mask, max_aspect)


def covers_all(mask: Image.Image, photo: Size, warn: Warn) -> bool:
    """Whether the mask leaves next to nothing of a photo to be kept, in which case `warn` is told."""
    share = 1 - mask.histogram()[0] / (mask.width * mask.height)
    if share < NEARLY_ALL:
        return False
    width, height = photo
    warn(
        f"mask_image repaints {100 * share:.0f} % of the image: it is drawn as a whole, and the result may be smaller "
        f"than the image; mask_crop true gives {width}x{height}"
    )
    return True


def open_control(
    control: Control, text: str, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None
) -> Image.Image:
    """One of a job's control pictures."""
    return open_source(read_image(text, control.label, fetch_seconds, cancelled), control.label, warn, False).seen


def open_source(data: bytes, label: str, warn: Warn, is_masked: bool) -> Source:
    """The picture in sRGB as the model sees it, and, where it is masked, in its own space where that is kept."""
    return as_source(load_picture(data, label, warn), label, warn, is_masked)


def as_source(picture: Image.Image, label: str, warn: Warn, is_masked: bool) -> Source:
    """As `open_source`, of a picture that is loaded already."""
    space = space_of(picture, label, warn)
    in_srgb = space.to_srgb(picture) if space else picture
    source = as_rgb(flatten(in_srgb))
    layer = layer_of(in_srgb) or source
    original = flatten(picture) if is_masked and space and space.is_kept else None
    if picture.mode == "CMYK":
        warn(INKS.format(label=label))
    elif is_masked and space and not original:
        warn(UNWRITABLE_PROFILE.format(label=label))
    if not original or not space:
        return Source(source, layer)
    original = original if original.mode == space.mode else original.convert(space.mode)
    original.info = {PROFILE: space.profile}
    own_layer = layer_of(picture) if space.mode == "RGB" else None
    if own_layer:
        own_layer.info = {PROFILE: space.profile}
    # A grey file has no place for both its profile and transparency that every reader knows: it comes back in sRGB.
    is_grey_layer = space.mode == "L" and layer is not source
    if space.mode == "L":
        warn((UNWRITABLE_PROFILE if is_grey_layer else GREY_PROFILE).format(label=label))
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
        small = flatten(source).copy()
        small.thumbnail((SMALL_SIDE, SMALL_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=85)
        urls.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getbuffer()).decode('ascii')}")
    return urls
