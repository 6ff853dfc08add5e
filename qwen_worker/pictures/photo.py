"""A photo in its own size, numbers and colours, of which an edit with a mask alters a part alone.

It is held once, as its file has it: of 8 or 16 bits, with its profile, upright. What the model sees of it is made from
it bit by bit, small and in sRGB. Knows nothing of which part that is (`crop.py`) or of what is drawn (`stitch.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ..jobs.named_sizes import Size
from ..jobs.values import Warn
from .colour import COLOURS, PROFILE, Space, space_of
from .crop import Box, Frame
from .images import as_rgb, flatten

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INKS = "{label} is CMYK, and the result is sRGB"
UNWRITABLE_PROFILE = "{label} has a colour profile that pictures cannot be written with, and the result is sRGB"
GREY_PROFILE = "{label} is grey by its colour profile, and so is the result; send it as RGB for colours"
STITCH_KEY = "worker_stitch"  # in the `info` of a drawn part: how it is brought back into its photo (`stitch.py`)
WHITE = {1: 255, 2: 65535}  # by the bytes of a number


@dataclass(frozen=True)
class Photo:
    """Upright pixels. `space`: what their numbers mean, None for sRGB.

    `picture`: of 8 bits, mode L, LA, RGB or RGBA; or `deep`: of 16 bits, (height, width, 1 to 4), and then no picture.
    """

    picture: Image.Image | None
    deep: "NDArray[np.uint16] | None" = None
    space: Space | None = None

    @property
    def size(self) -> Size:
        if self.picture:
            return self.picture.size
        assert self.deep is not None
        return self.deep.shape[1], self.deep.shape[0]

    @property
    def number_bytes(self) -> int:
        return 1 if self.picture else 2

    @property
    def profile(self) -> bytes | None:
        return self.space.profile if self.space else None

    @property
    def channels(self) -> int:
        """1 to 4, with alpha."""
        if self.picture:
            return len(self.picture.getbands())
        assert self.deep is not None
        return self.deep.shape[2]

    @property
    def has_transparency(self) -> bool:
        """Whether a pixel of it is not opaque; takes a tenth of a second for a large photo."""
        if self.channels not in (2, 4):
            return False
        if self.picture:
            return self.picture.getchannel("A").getextrema()[0] != WHITE[1]
        assert self.deep is not None
        return int(self.deep[:, :, -1].min()) != WHITE[2]

    @property
    def colour_mode(self) -> str:
        """L or RGB, without alpha."""
        if self.picture:
            return self.picture.mode.removesuffix("A")
        assert self.deep is not None
        return "L" if self.deep.shape[2] < 3 else "RGB"

    def numbers(self, box: Box) -> "NDArray[np.uint8 | np.uint16]":
        """A copy of a part's numbers, with alpha where it has one: (height, width, 1 to 4)."""
        import numpy as np

        if self.picture:
            part = np.array(self.picture.crop(box))
            return part if part.ndim == 3 else part[:, :, None]
        assert self.deep is not None
        return self.deep[box[1] : box[3], box[0] : box[2]].copy()

    def seen(self, size: Size, box: tuple[float, float, float, float]) -> Image.Image:
        """A part of the photo as the model sees it: RGB of 8 bits in sRGB, without alpha, of the size."""
        edges = (int(box[0]), int(box[1]), min(self.size[0], -int(-box[2] // 1)), min(self.size[1], -int(-box[3] // 1)))
        within = box[0] - edges[0], box[1] - edges[1], box[2] - edges[0], box[3] - edges[1]
        # Of LA and RGBA Pillow resamples the colours by their alpha.
        part = self.part(edges).resize(size, Image.Resampling.LANCZOS, within, reducing_gap=3.0)
        part.info = {}
        return as_rgb(flatten(self.space.to_srgb(part) if self.space else part))

    def part(self, box: Box) -> Image.Image:
        """A part of the photo as a picture of 8 bits, in its own colours; the photo's own picture where it is all."""
        if self.picture:
            return self.picture if box == (0, 0, *self.size) else self.picture.crop(box)
        assert self.deep is not None
        return to_picture(self.deep[box[1] : box[3], box[0] : box[2]])

    def framed(self, frame: Frame) -> Image.Image:
        """What the model sees of the part in the frame, as large as it draws; beyond the photo's edge as at it."""
        scale, (width, height) = frame.scale, self.size
        left, top, right, bottom = frame.on_photo(self.size)
        box = (
            max(0.0, frame.left + left * scale), max(0.0, frame.top + top * scale),
            min(float(width), frame.left + right * scale), min(float(height), frame.top + bottom * scale),
        )  # fmt: skip
        seen = self.seen((right - left, bottom - top), box)
        if seen.size == frame.drawn:
            return seen
        import numpy as np

        beyond = ((top, frame.drawn[1] - bottom), (left, frame.drawn[0] - right), (0, 0))
        return Image.fromarray(np.pad(np.asarray(seen), beyond, mode="edge"))

    def thumbnail(self, side: int) -> Image.Image:
        """The whole photo, small, in sRGB: RGB, or RGBA with the colours beneath what is transparent."""
        width, height = self.size
        shrink = min(1.0, side / max(width, height))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        if self.channels in (1, 3):
            return self.seen(size, (0, 0, width, height))
        whole = self.part((0, 0, width, height))
        # Resampled together, colours would count by their alpha, and those that it hides not at all.
        alpha, colours = whole.getchannel("A"), whole.convert(self.colour_mode)
        small = colours.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        small.info = {}
        small = (self.space.to_srgb(small) if self.space else small).convert("RGB")
        small.putalpha(alpha.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
        return small


def open_photo(picture: Image.Image, deep: "NDArray[np.uint16] | None", label: str, warn: Warn) -> Photo:
    """The photo of a picture as `images.load_picture` gives it, perhaps with its 16 bits as `deep.read_deep` does.

    `warn` is told where its numbers are not kept: those of inks, and those of a profile that nothing can be written in.
    """
    space, opaque = space_of(picture, label, warn), COLOURS[picture.mode]
    if opaque == "CMYK":
        warn(INKS.format(label=label))
    elif space and not space.is_kept:
        warn(UNWRITABLE_PROFILE.format(label=label))
    if opaque == "CMYK" or (space and not space.is_kept):
        return Photo(space.to_srgb(picture) if space else picture.convert("RGB"))
    mode = space.mode if space else "RGB"  # grey may get colours, unless its profile is for grey alone
    if space and mode == "L":
        warn(GREY_PROFILE.format(label=label))
    if deep is not None:
        # Pillow has a grey PNG of 16 bits with alpha as RGBA.
        return Photo(None, deep if mode == "L" else in_colours(deep), space)
    whole = picture if mode == opaque else picture.convert(mode + picture.mode[len(opaque) :])
    whole.info = {}
    return Photo(whole, None, space)


def in_colours(grey: "NDArray[np.uint16]") -> "NDArray[np.uint16]":
    """Grey numbers, (height, width, 1 or 2), as red, green and blue; as they are where they are that already."""
    import numpy as np

    return grey if grey.shape[2] > 2 else np.concatenate([grey[:, :, :1]] * 3 + [grey[:, :, 1:]], axis=2)


def to_picture(numbers: "NDArray[np.uint8 | np.uint16]") -> Image.Image:
    """A picture of 8 bits of numbers of 8 or 16 bits, (height, width, 1 to 4)."""
    import numpy as np

    height, width, channels = numbers.shape
    shallow = np.empty((height, width, channels), np.uint8)
    for row, values in enumerate(numbers):  # row by row, for the memory's sake: 32 bits are needed between
        shallow[row] = values if numbers.dtype == np.uint8 else (values.astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(shallow[:, :, 0] if channels == 1 else shallow)


def profiled(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture itself, whose `info` holds the profile alone."""
    picture.info = {PROFILE: profile} if profile else {}
    return picture
