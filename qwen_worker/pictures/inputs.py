"""A request's input pictures and mask, fetched, decoded and in sRGB. Knows nothing of what is drawn from them."""

import base64
import io
import threading
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from ..jobs.named_sizes import Size
from ..jobs.reply import Lineage
from ..jobs.request import Drawing, Edit
from ..jobs.sources import is_url
from ..jobs.values import Warn
from ..network.fetch import fetch
from .colour import PROFILE, space_of
from .data_uris import MAX_BYTES, QUOTES, decode_base64, require_reachable
from .deep import is_deep, read_deep
from .images import MAX_ASPECT, as_rgb, flatten, load_picture, require_shape
from .lineage import lineage_of
from .masks import decode_mask
from .photo import GREY_PROFILE, INKS, UNWRITABLE_PROFILE, open_photo
from .sizes import conditioning_size
from .stitch import Stitch, stitch_of

MAX_PHOTO_ASPECT = 64  # of a photo of which a part is drawn: a panorama, a scanned strip
NEARLY_ALL = 0.95  # of a photo's pixels
CHECKED_SIDE = 1024  # pixels of the longer side of a photo that is judged as a whole
SMALL_SIDE = 768  # pixels of the longer side of pictures that a language model looks at


class Inputs(NamedTuple):
    """RGB sources in sRGB (none for generate); the mask, `L` of the source's size with 255 = repaint.

    `original`: the masked source, RGB or L, in its own colour space and with its profile, where its file has one.
    `stitch`: the photo of which the source is a part, and the mask of that part's size. `lineage`: of an edit.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    original: Image.Image | None = None
    stitch: Stitch | None = None
    lineage: Lineage | None = None

    @property
    def to_check(self) -> list[Image.Image]:
        """The input pictures, each as a whole, for whoever judges what is on them."""
        return [self.stitch.photo.thumbnail(CHECKED_SIDE)] if self.stitch else self.sources


def open_images(request: Drawing, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None = None) -> Inputs:
    """The request's pictures; `warn` gets what is left out of account.

    Raises `JobError` image_unreadable, image_fetch_failed or invalid_input, naming the picture, or `Cancelled`.
    """
    if not isinstance(request, Edit):
        return Inputs([], None)
    several = len(request.images) > 1
    labels = [f"images[{number}]" if several else "image" for number in range(len(request.images))]
    files, sources = list[bytes](), list[Image.Image]()
    for text, label in zip(request.images, labels, strict=True):
        files.append(read_image(text, label, fetch_seconds, cancelled))
        if request.mask_image is None:
            sources.append(open_source(files[-1], label, warn, is_masked=False)[0])
    if request.mask_image is None:
        return Inputs(sources, None, lineage=lineage_of(files))
    return open_masked(request, request.mask_image, files[0], fetch_seconds, warn, cancelled)


def open_masked(
    request: Edit, mask_text: str, data: bytes, fetch_seconds: float, warn: Warn, cancelled: threading.Event | None
) -> Inputs:
    """The picture of an edit with a mask, or the part of it that is drawn. `data`: its file."""
    max_aspect = MAX_PHOTO_ASPECT if request.may_crop else MAX_ASPECT
    picture = load_picture(data, "image", warn, max_aspect)
    mask_data = read_image(mask_text, "mask_image", fetch_seconds, cancelled)
    is_soft = request.mask_blend == "soft"
    mask = decode_mask(mask_data, "mask_image", picture.size, warn, request.mask_from, is_soft, max_aspect)
    del mask_data
    if request.may_crop and (request.mask_crop or is_deep(data) or is_larger(picture.size)):
        if request.mask_crop or not covers_all(mask, picture.size, warn):
            deep = read_deep(data, "image", picture.size, warn) if is_deep(data) else None
            photo = open_photo(picture, deep, "image", warn)
            del picture, deep
            stitch = stitch_of(photo, mask, request.mask_padding, is_soft, warn)
            return Inputs([photo.framed(stitch.frame)], stitch.drawn_mask, None, stitch, lineage_of([data]))
    require_shape(*picture.size, "image")
    source, original = as_source(picture, "image", warn, is_masked=True)
    return Inputs([source], mask, original, lineage=lineage_of([data]))


def is_larger(photo: Size) -> bool:
    """Whether a photo has more pixels than the model draws of it."""
    width, height = conditioning_size(photo) if max(photo) <= MAX_ASPECT * min(photo) else (0, 0)
    return photo[0] * photo[1] > width * height


def covers_all(mask: Image.Image, photo: Size, warn: Warn) -> bool:
    """Whether the mask leaves next to nothing of a photo to be kept, in which case `warn` is told."""
    share = 1 - mask.histogram()[0] / (mask.width * mask.height)
    if share < NEARLY_ALL:
        return False
    width, height = photo
    warn(
        f"mask_image repaints {100 * share:.0f} % of the image: it is drawn as a whole, and the result is as large as "
        f"the model draws; mask_crop true gives {width}x{height}"
    )
    return True


def open_source(data: bytes, label: str, warn: Warn, is_masked: bool) -> tuple[Image.Image, Image.Image | None]:
    """The picture in sRGB as the model sees it, and, where it is masked, in its own space where that is kept."""
    return as_source(load_picture(data, label, warn), label, warn, is_masked)


def as_source(picture: Image.Image, label: str, warn: Warn, is_masked: bool) -> tuple[Image.Image, Image.Image | None]:
    """As `open_source`, of a picture that is loaded already."""
    space = space_of(picture, label, warn)
    original = flatten(picture) if is_masked and space and space.is_kept else None
    source = as_rgb(flatten(space.to_srgb(picture) if space else picture))
    if picture.mode == "CMYK":
        warn(INKS.format(label=label))
    elif is_masked and space and not original:
        warn(UNWRITABLE_PROFILE.format(label=label))
    if not original or not space:
        return source, None
    original = original if original.mode == space.mode else original.convert(space.mode)
    original.info = {PROFILE: space.profile}
    if space.mode == "L":
        warn(GREY_PROFILE.format(label=label))
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
