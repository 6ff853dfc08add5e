"""A drawn part brought back into its photo, of whose pixels none outside the mask is touched.

The photo is gone through tile by tile, so that no more than the photo and its result are ever in memory. A tile without
a pixel of the mask is the photo's own. Knows nothing of torch or of the models, nor of files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from ..jobs.named_sizes import Size
from ..jobs.values import Warn
from .colour import convert, srgb_profile
from .crop import LARGE_SCALE, Box, Frame, frame_of
from .masks import FEATHER, feather
from .photo import WHITE, Photo, profiled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TILE = 512  # pixels a side
SUPPORT = 3  # pixels on each side that a Lanczos filter looks at, of the coarser picture
MAX_FEATHER = 16  # pixels of the photo


@dataclass(frozen=True)
class Stitch:
    """A photo, where a part of it is drawn, and how the two are blended.

    mask: `L` of the region's size alone, which is all of the photo that is not 0 in it. blend: `feather` for an edge
    inside the mask's own, `soft` for the mask's own greys.
    """

    photo: Photo
    frame: Frame
    region: Box
    mask: Image.Image
    blend: Literal["feather", "soft"] = "feather"

    @property
    def drawn_mask(self) -> Image.Image:
        """The mask at the size drawn, above 0 for each pixel that any of the mask's lies in: a thin line is kept.

        Beyond the photo it goes on as at its edge: what is repainted does not have to fit what was made up there.
        """
        left, top, scale = self.frame.left, self.frame.top, self.frame.scale
        edges = [
            (self.region[0] - left) / scale, (self.region[1] - top) / scale,
            (self.region[2] - left) / scale, (self.region[3] - top) / scale,
        ]  # fmt: skip
        width, height = self.frame.drawn
        box = (
            max(0, int(edges[0])), max(0, int(edges[1])),
            min(width, -int(-edges[2] // 1)), min(height, -int(-edges[3] // 1)),
        )  # fmt: skip
        size = max(1, box[2] - box[0]), max(1, box[3] - box[1])
        mask = Image.new("L", self.frame.drawn)
        mask.paste(shrink_mask(self.mask, size), box[:2])
        x0, y0, x1, y1 = inside = self.frame.on_photo(self.photo.size)
        if inside == (0, 0, width, height):
            return mask
        import numpy as np

        beyond = np.pad(np.asarray(mask.crop(inside)), ((y0, height - y1), (x0, width - x1)), mode="edge")
        # A line at the photo's very edge may be in none of the pixels that are wholly on it.
        return Image.fromarray(np.maximum(beyond, np.asarray(mask)))

    def whole(self, drawn: Image.Image) -> "Image.Image | NDArray[np.uint16]":
        """The photo with the drawn part in it: a picture with the photo's profile, or an array of 16 bits.

        It has transparency where the photo or the drawing has.
        """
        import numpy as np

        has_alpha = drawn.mode == "RGBA"
        if self.photo.picture:
            result = self.photo.picture.copy()
            result = result.convert(self.photo.colour_mode + "A") if has_alpha else result
            for box, numbers in self.altered_tiles(drawn):
                result.paste(Image.fromarray(numbers[:, :, 0] if numbers.shape[2] == 1 else numbers), box[:2])
            return profiled(result, self.photo.profile)
        assert self.photo.deep is not None
        deep = (with_alpha(self.photo.deep) if has_alpha else self.photo.deep).astype(np.uint16)  # a copy
        for (left, top, right, bottom), numbers in self.altered_tiles(drawn):
            deep[top:bottom, left:right] = numbers
        return deep

    def altered_tiles(self, drawn: Image.Image) -> "Iterator[tuple[Box, NDArray[np.uint8 | np.uint16]]]":
        """Each tile that the mask touches, and the numbers in it: (height, width, 1 to 4)."""
        import numpy as np

        left, top, right, bottom = self.region
        for y in range(top, bottom, TILE):
            for x in range(left, right, TILE):
                box = x, y, min(right, x + TILE), min(bottom, y + TILE)
                weights = self.weights(box)
                if weights.any():
                    drawn_part = enlarge(drawn, self.frame, box)
                    own, colours = self.photo.numbers(box), drawn_part.convert("RGB")
                    if self.photo.space:
                        colours = convert(colours, srgb_profile(), self.photo.space.profile, self.photo.colour_mode)
                    if drawn_part.mode == "RGBA":
                        own, colours = with_alpha(own), colours.convert(colours.mode + "A")
                        colours.putalpha(drawn_part.getchannel("A"))
                    yield box, blend(own, np.asarray(colours), weights)

    def weights(self, box: Box) -> "NDArray[np.floating[Any]]":
        """How much of the drawing is in each pixel of a tile, 0 to 1: (height, width)."""
        import numpy as np

        x, y = box[0] - self.region[0], box[1] - self.region[1]
        width, height = box[2] - box[0], box[3] - box[1]
        if self.blend == "soft":
            return np.asarray(self.mask.crop((x, y, x + width, y + height)), np.float32) / 255
        reach = min(MAX_FEATHER, round(FEATHER * max(1.0, self.frame.scale)))
        # A pixel's value depends on the distances nearby, and those on what is as far again. Beyond the photo the mask
        # goes on as at its edge, and beyond the region it has ended.
        around = 2 * reach
        outer = Image.new("L", (width + 2 * around, height + 2 * around))
        outer.paste(self.mask.crop((x - around, y - around, x + width + around, y + height + around)))
        low, high = outer.crop((around, around, around + width, around + height)).getextrema()
        if high == 0:
            return np.zeros((height, width), np.float32)
        if low == 255 and outer.getextrema()[0] == 255:
            return np.ones((height, width), np.float32)
        left, top, right, bottom = self.beyond(box, around)
        edge = feather(outer.crop((left, top, outer.width - right, outer.height - bottom)), reach)
        return np.asarray(edge, np.float32)[around - top :, around - left :][:height, :width] / 255

    def beyond(self, box: Box, around: int) -> Box:
        """By how much a tile with so much around it stands over the photo on each side."""
        width, height = self.photo.size
        return (
            max(0, around - box[0]), max(0, around - box[1]),
            max(0, box[2] + around - width), max(0, box[3] + around - height),
        )  # fmt: skip


def stitch_of(
    photo: Photo, mask: Image.Image, padding: int | None, is_soft: bool, warn: Warn, label: str = "mask_image"
) -> Stitch:
    """The part of a photo that is drawn for a mask of its size. `warn` is told where it is drawn much smaller.

    `padding`, `label`: as in `crop.frame_of`, whose `InvalidInput` is raised too.
    """
    region = mask.getbbox()
    assert region, "a mask without a pixel is refused when it is decoded"
    frame = frame_of(photo.size, region, padding, label)
    if frame.scale >= LARGE_SCALE:
        left, top, right, bottom = frame.box_in(photo.size)
        drawn = "{}x{}".format(*frame.drawn)
        warn(
            f"the region around what is repainted, {right - left}x{bottom - top}, is drawn at {drawn} and enlarged "
            f"{frame.scale:.1f} times: it has less detail than the rest; repaint smaller regions in several jobs, or "
            "with less mask_padding"
        )
    return Stitch(photo, frame, region, mask.crop(region), "soft" if is_soft else "feather")


def blend(
    own: "NDArray[np.uint8 | np.uint16]", drawn: "NDArray[np.uint8]", weights: "NDArray[np.floating[Any]]"
) -> "NDArray[np.uint8 | np.uint16]":
    """The photo's own numbers where the weight is 0, those of the drawing where it is 1, and between them a mixture.

    own: (height, width, 1 to 4) with its alpha; drawn: (height, width) or (..., 2 to 4), with alpha where own has some.
    """
    import numpy as np

    white = WHITE[own.dtype.itemsize]
    drawn = drawn if drawn.ndim == 3 else drawn[:, :, None]
    if drawn.shape[2] == own.shape[2] and weights.min() == 1:
        return drawn.astype(own.dtype) * own.dtype.type(white // 255)
    colours = own.shape[2] - (own.shape[2] in (2, 4))
    weight = weights[:, :, None]
    opacity = own[:, :, colours:].astype(np.float32) / white if colours < own.shape[2] else np.float32(1)
    drawn_opacity = drawn[:, :, colours:].astype(np.float32) / 255 if colours < drawn.shape[2] else np.float32(1)
    whole_opacity = weight * drawn_opacity + (1 - weight) * opacity
    # A colour counts by its opacity: what is transparent has none to mix, unless all of it is.
    share = np.where(whole_opacity > 0, weight * drawn_opacity / np.maximum(whole_opacity, 1e-6), weight)
    mixed = own.copy()
    mixed[:, :, :colours] = np.rint(
        own[:, :, :colours] * (1 - share) + drawn[:, :, :colours].astype(np.float32) * (white / 255) * share
    ).astype(own.dtype)
    if colours < own.shape[2]:
        mixed[:, :, colours:] = np.rint(whole_opacity * white).astype(own.dtype)
    return np.where(weight > 0, mixed, own)


def with_alpha(numbers: "NDArray[np.uint8 | np.uint16]") -> "NDArray[np.uint8 | np.uint16]":
    """A copy of the numbers, (height, width, 1 to 4), with alpha: opaque where they have none."""
    import numpy as np

    if numbers.shape[2] in (2, 4):
        return numbers.copy()
    opaque = np.full((*numbers.shape[:2], 1), WHITE[numbers.dtype.itemsize], numbers.dtype)
    return np.concatenate((numbers, opaque), axis=2)


def enlarge(drawn: Image.Image, frame: Frame, box: Box) -> Image.Image:
    """A tile of the drawing in the photo's pixels, equal to that tile of all of the drawing enlarged at once."""
    around = -int(-SUPPORT * max(1.0, frame.scale) // 1) + 1

    def span(start: int, end: int, origin: float, count: int) -> tuple[int, int]:
        """The photo's pixels that are looked at, as far as the drawing goes."""
        low, high = -int(-origin // 1), int(origin + count * frame.scale + 1e-6)
        return max(low, start - around), min(high, end + around)

    left, right = span(box[0], box[2], frame.left, frame.drawn[0])
    top, bottom = span(box[1], box[3], frame.top, frame.drawn[1])
    looked_at = (
        max(0.0, (left - frame.left) / frame.scale), max(0.0, (top - frame.top) / frame.scale),
        min(float(frame.drawn[0]), (right - frame.left) / frame.scale),
        min(float(frame.drawn[1]), (bottom - frame.top) / frame.scale),
    )  # fmt: skip
    tile = drawn.resize((right - left, bottom - top), Image.Resampling.LANCZOS, looked_at)
    return tile.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))


def shrink_mask(mask: Image.Image, size: Size) -> Image.Image:
    """The mask in another size: 255 in each pixel that any pixel above 0 lies in."""
    import numpy as np

    touched = np.asarray(mask) > 0
    for axis, (count, length) in enumerate(zip(reversed(size), touched.shape, strict=True)):
        # Of starts that are equal, as where the mask grows, each pixel has the one behind it.
        touched = np.logical_or.reduceat(touched, np.arange(count) * length // count, axis=axis)
    return Image.fromarray(touched.astype(np.uint8) * 255)
