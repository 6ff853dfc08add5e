"""The inset of an edit that has its input's own size: the input at one scale, inside a size that the pipeline draws.

A pipeline looks at pictures in sizes of its grid, and stretches any other to the nearest of them. Here the input is
brought to such a size without a stretch: it fills one side, and its edge pixels are repeated up to the other. What is
drawn is cut back to where the input lies in it, to a fraction of a pixel, and resampled once. Knows nothing of jobs.
"""

import functools
import math
from typing import NamedTuple

from PIL import Image

Size = tuple[int, int]  # width and height in pixels
LONGEST = 10  # times its width or height: beyond the 8:1 of the longest input
FILTER_REACH = 3  # pixels that a Lanczos filter looks at on either side, more where it makes a picture smaller


class Inset(NamedTuple):
    """An input picture of the size `source` in the middle of a drawing of the size `drawn`, at one scale."""

    source: Size
    drawn: Size

    @property
    def scale(self) -> float:
        """Pixels of the drawing for each pixel of the input."""
        return min(drawn / side for drawn, side in zip(self.drawn, self.source, strict=True))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Where the input lies in the drawing: left, top, right and bottom, in pixels and fractions of them."""
        margins = [(drawn - side * self.scale) / 2 for drawn, side in zip(self.drawn, self.source, strict=True)]
        left, top = (max(0.0, margin) for margin in margins)  # rounding may leave less than nothing
        return left, top, self.drawn[0] - left, self.drawn[1] - top

    @property
    def content(self) -> Size:
        """The width and the height of the input in the drawing, in whole pixels."""
        left, top, right, bottom = self.box
        return round(right - left), round(bottom - top)

    @property
    def share(self) -> float:
        """How much of the drawing is input picture, from 0 to 1."""
        return self.source[0] * self.source[1] * self.scale**2 / (self.drawn[0] * self.drawn[1])

    def place(self, picture: Image.Image, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """The picture, of the input's size, as the pipeline gets it: of the drawing's size, its edges repeated."""
        left, top, *_ = self.box
        across, down = (offset / self.scale for offset in (left, top))  # pixels of the input
        margins = [math.ceil(margin) + FILTER_REACH * bool(margin) for margin in (across, down)]
        padded = extended(picture, *margins)
        box = (
            margins[0] - across,
            margins[1] - down,
            margins[0] + picture.width + across,
            margins[1] + picture.height + down,
        )
        return padded.resize(self.drawn, resample, box=box)

    def take_out(self, drawn: Image.Image, size: Size) -> Image.Image:
        """The part of a drawing in which the input lies, in the size that is delivered."""
        return drawn.resize(size, Image.Resampling.LANCZOS, box=self.box)


def extended(picture: Image.Image, across: int, down: int) -> Image.Image:
    """The picture with its outermost pixels repeated, `across` of them left and right, `down` above and below."""
    for margin, is_across in ((across, True), (down, False)):
        if not margin:
            continue
        width, height = picture.size
        size = (width + 2 * margin, height) if is_across else (width, height + 2 * margin)
        wider = Image.new(picture.mode, size)
        strip = (margin, height) if is_across else (width, margin)
        ends = (
            ((0, 0, 1, height), (width - 1, 0, width, height))
            if is_across
            else ((0, 0, width, 1), (0, height - 1, width, height))
        )
        far = (margin + width, 0) if is_across else (0, margin + height)
        for end, place in zip(ends, ((0, 0), far), strict=True):
            wider.paste(picture.crop(end).resize(strip, Image.Resampling.NEAREST), place)
        wider.paste(picture, (margin, 0) if is_across else (0, margin))
        picture = wider
    return picture


def inset_of(source: Size, area: int, multiple: int) -> Inset:
    """The inset with the least margin among the sizes at which a pipeline draws a picture without a stretch.

    `area` and `multiple`: the pixels of a drawing, and of which its sides are multiples, as the pipeline rounds them.
    """
    insets = (Inset(source, drawn) for drawn in kept_sizes(area, multiple))
    return max(insets, key=lambda inset: inset.share)


@functools.cache
def kept_sizes(area: int, multiple: int) -> tuple[Size, ...]:
    """The sizes that diffusers' `calculate_dimensions` leaves as they are, from 1:8 to 8:1 and a little beyond."""
    sides = range(multiple, math.isqrt(area * LONGEST) + multiple, multiple)
    near = ((width, round(area / width / multiple + step) * multiple) for width in sides for step in (-1, 0, 1))
    drawable = (size for size in near if 0 < size[1] <= LONGEST * size[0])
    return tuple(size for size in drawable if rounded_size(size[0] / size[1], area, multiple) == size)


def rounded_size(ratio: float, area: int, multiple: int) -> Size:
    """The size in which the edit pipelines look at a picture: `calculate_dimensions` of diffusers, word for number."""
    width = (area * ratio) ** 0.5
    return round(width / multiple) * multiple, round(width / ratio / multiple) * multiple
