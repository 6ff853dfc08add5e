"""The part of a large photo that an edit with a mask draws: which one, and at what size. Pure.

A photo has ten or fifty megapixels, and the edit pipelines draw one. What lies around the mask is therefore cut out and
drawn alone, at most as small as the model's own size, so that the model sees its surroundings in as many pixels as it
can. The part has exactly the proportions of the size at which it is drawn, and so nothing in it is zoomed or shifted.
Knows nothing of pixels (`stitch.py`).
"""

import math
from dataclasses import dataclass

from ..errors import InvalidInput
from ..jobs.named_sizes import CONDITIONING_MULTIPLE, Size
from .images import MAX_ASPECT
from .inset import kept_sizes
from .sizes import CONDITIONING_AREA

CONTEXT = (
    0.25  # of the longer side of the masked region: what is shown around it on each side where the job says nothing
)
MIN_CONTEXT = 64  # pixels
# The proportions that a part is given where its masked region does not ask for longer ones: models draw few pictures
# that are longer.
USUAL_ASPECT = 2.0
USUAL_LONGEST = 1.05 * USUAL_ASPECT  # of the sizes drawn then: their sides are rounded to multiples
LONGEST = 8.5  # the proportions of the longest size drawn: the next one beyond 8:1 has 8.45:1
# Of a side, by which a part may stand over the photo's edge, where it repeats the edge's pixels. The proportions of two
# neighbours among the sizes are up to 18 % apart: what lies between them needs half of that.
OVERHANG = 0.09
LARGE_SCALE = 2.0  # pixels of the photo for each drawn one, from which on the reply says that they are fewer

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Frame:
    """Where a drawing lies on its photo: `scale` pixels of the photo for each drawn one, from (left, top) on."""

    left: float
    top: float
    scale: float
    drawn: Size

    @property
    def size(self) -> tuple[float, float]:
        """The part's width and height in pixels of the photo."""
        return self.drawn[0] * self.scale, self.drawn[1] * self.scale

    def box_in(self, photo: Size) -> Box:
        """The part as far as it is on a photo of this size, in whole pixels."""
        width, height = self.size
        right, bottom = self.left + width, self.top + height
        return (
            max(0, round(self.left)), max(0, round(self.top)), min(photo[0], round(right)), min(photo[1], round(bottom))
        )  # fmt: skip

    def on_photo(self, photo: Size) -> Box:
        """The drawn pixels that are wholly on a photo of this size."""
        (left, right), (top, bottom) = (
            (max(0, -int(start // self.scale)), min(count, int((side - start) / self.scale + 1e-6)))
            for start, count, side in zip((self.left, self.top), self.drawn, photo, strict=True)
        )
        return left, top, right, bottom


def frame_of(photo: Size, region: Box, padding: int | None, label: str = "mask_image") -> Frame:
    """The part of a photo that is drawn for a masked region.

    `padding`: pixels of the photo that are to be shown around the region on each side, as far as there are any; None
    for a share of the region. `label`: the field that says what is repainted. Raises `InvalidInput` for a region of a
    shape that no model draws: one that is longer than 8:1, of a photo that is so too.
    """
    left, top, right, bottom = region
    if padding is None:
        padding = max(MIN_CONTEXT, round(CONTEXT * max(right - left, bottom - top)))
    padded = (
        max(0, left - padding),
        max(0, top - padding),
        min(photo[0], right + padding),
        min(photo[1], bottom + padding),
    )
    for shown in (padded, region):
        if frame := smallest_frame(photo, (shown[2] - shown[0], shown[3] - shown[1])):
            drawn, scale = frame
            left = place(shown[0], shown[2], drawn[0] * scale, photo[0])
            top = place(shown[1], shown[3], drawn[1] * scale, photo[1])
            return Frame(left, top, scale, drawn)
    sides = f"{right - left}x{bottom - top}"
    raise InvalidInput(
        f"{label} must repaint a region of an aspect of at most {MAX_ASPECT}:1, not {sides} of an image of "
        f"{photo[0]}x{photo[1]}; repaint a shorter region, and the rest in further jobs"
    )


def smallest_frame(photo: Size, shown: Size) -> tuple[Size, float] | None:
    """The size drawn, and the scale, of the smallest part that shows a region of this size; None where there is none.

    First among parts of usual proportions within the photo, of those that are drawn pixel by pixel or made smaller,
    then among all of those, and then among parts that are enlarged. Only a region that takes up nearly all of the photo
    makes a part stand over its edge.
    """
    ratio = min(USUAL_ASPECT, max(1 / USUAL_ASPECT, shown[0] / shown[1]))
    for longest, least_scale, overhang in (
        (USUAL_LONGEST, 1.0, 0.0), (MAX_ASPECT, 1.0, 0.0), (USUAL_LONGEST, 0.0, 0.0), (MAX_ASPECT, 0.0, 0.0),
        (LONGEST, 0.0, OVERHANG),
    ):  # fmt: skip
        fitting: list[tuple[float, float, Size, float]] = []
        for drawn in kept_sizes(CONDITIONING_AREA, CONDITIONING_MULTIPLE):
            aspect = drawn[0] / drawn[1]
            needed = max(shown[0] / drawn[0], shown[1] / drawn[1])
            room = min(photo[0] / drawn[0], photo[1] / drawn[1]) * (1 + overhang)
            # A photo that is too small for the model's size shows as much of itself as it can.
            scale = max(needed, least_scale) if least_scale or overhang else room
            if max(aspect, 1 / aspect) <= longest and needed <= scale <= room:
                area = scale * scale * drawn[0] * drawn[1]
                rank = scale if least_scale else area if overhang else -area
                fitting.append((round(rank, 6), abs(math.log(aspect / ratio)), drawn, scale))
        if fitting:
            *_, drawn, scale = min(fitting)
            return drawn, scale
    return None


def place(start: int, end: int, length: float, side: int) -> float:
    """Where a part of a length begins that has a region in its middle, as far as the photo's side allows."""
    if length > side + 1e-6:
        return (side - length) / 2
    # From a whole pixel on: a part that is drawn pixel by pixel is not resampled then.
    return min(max(0, round((start + end - length) / 2)), max(0.0, side - length))
