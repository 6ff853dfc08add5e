"""The size at which the pipeline draws an edit, and the size of the picture that the job gets.

The edit pipelines look at an input picture in about a megapixel of its aspect, and the model lays what it draws over
what it sees, latent by latent. At any other size the drawing comes out zoomed and shifted: on the tiny checkpoint a
circle whose centre belongs at x = 63 of 256 lands at 28 when drawn 512 pixels wide, and at 86 when drawn 1536 wide. An
edit is therefore drawn at the size at which its input picture is looked at, and then resampled. Qwen-Image-2.1 can be
told in which size to look (`output_resolution`): there that follows from the size asked for. Knows nothing of torch or
of the pipelines.
"""

import math
from typing import NamedTuple

from PIL import Image

from ..jobs.field_types import MIN_SIDE
from ..jobs.named_sizes import CONDITIONING_MULTIPLE, MAX_STRETCH, Grid, Size, grid_of, named_size
from ..jobs.request import MATCH_SIZE, MAX_REFERENCE_SIDE, MIN_REFERENCE_SIDE, Drawing, Edit
from ..jobs.tasks import Layers
from .images import MAX_ASPECT
from .inset import Inset, inset_of, rounded_size
from .layers import layer_size

NOTICED = 2.0  # pixels of a result for each drawn one, from which on the caller is told
CONDITIONING_SIDE = 1024  # pixels: of the square whose area input pictures have; of diffusers' edit pipelines
CONDITIONING_AREA = CONDITIONING_SIDE**2


class Sizes(NamedTuple):
    """`drawn` by the pipeline, and `delivered` to the caller.

    `seen`: the side of the square whose area the input pictures have where the model looks at them. `inset`: where the
    input picture lies in the drawing; None where it fills it.
    """

    drawn: Size
    delivered: Size
    seen: int = CONDITIONING_SIDE
    inset: Inset | None = None


def sizes_of(request: Drawing, sources: list[Image.Image], mask: Image.Image | None, grid: Grid) -> Sizes:
    """The sizes of the request's pictures. `grid`: what the checkpoint says of sizes."""
    if isinstance(request, Layers):
        size = layer_size(sources[0].size, request.resolution, grid.multiple)
        return Sizes(size, size)
    if isinstance(request, Edit):
        return edit_sizes(request, sources[request.size_from].size, mask, grid)
    if sources:
        return start_sizes(request, sources[0].size, mask, grid)
    asked = named_size(request, grid) or sides_of_job(request)
    assert asked is not None  # a picture from a prompt has a default for both
    return Sizes(asked, asked)


def edit_sizes(request: Edit, source: Size, mask: Image.Image | None, grid: Grid) -> Sizes:
    """The sizes of an edit of a picture of the size `source`, which is that of the canvas where it grows."""
    if request.size == MATCH_SIZE:
        seen = seen_side(source) if grid.follows_size else CONDITIONING_SIDE
        inset = inset_of(source, seen * seen, CONDITIONING_MULTIPLE)
        return Sizes(inset.drawn, source, seen, inset)
    by_name = None
    if not request.grows:
        by_name = named_size(request, grid_of(request, grid), source[0] / source[1]) or sides_of_job(request)
    kept = source if keeps_own_size(request, source, mask, grid) else None
    asked = by_name or kept
    seen = seen_side(asked) if grid.follows_size and asked else CONDITIONING_SIDE
    looked_at = conditioning_size(source, seen)
    if request.draw_size == "asked":
        can_be_drawn = by_name or (asked and is_drawable(asked, grid.multiple, grid.longest))
        drawn = asked if asked and can_be_drawn else looked_at
        return Sizes(drawn, asked or drawn, seen)
    delivered = asked or looked_at
    # A mask and the start from the input picture tie every pixel of the result to one of that picture. What else is
    # asked in another shape is composed anew by the model: stretched faces are not delivered.
    is_tied = mask is not None or request.strength < 1
    if is_tied or stretch(source, delivered) <= MAX_STRETCH:
        return Sizes(looked_at, delivered, seen)
    return Sizes(conditioning_size(delivered, seen), delivered, seen)


def seen_side(asked: Size) -> int:
    """The side of the square of about as many pixels as are asked for."""
    return min(max(round(math.sqrt(asked[0] * asked[1])), MIN_REFERENCE_SIDE), MAX_REFERENCE_SIDE)


def capped_side(request: Drawing, side: int) -> int:
    """The side of the square whose area the input pictures have, where the job may say that it is less."""
    most = request.reference_pixels if isinstance(request, Edit) else None
    return min(side, math.isqrt(most)) if most else side


def start_sizes(request: Drawing, source: Size, mask: Image.Image | None, grid: Grid) -> Sizes:
    """The sizes of a drawing that begins with a picture, and does not look at it: any size that is asked is drawn."""
    if not request.grows:
        has_sides = bool(request.model_fields_set & {"width", "height"})  # generate has a default for both
        asked = named_size(request, grid, source[0] / source[1]) or (sides_of_job(request) if has_sides else None)
        if asked:
            return Sizes(asked, asked)
    drawn = conditioning_size(source)
    return Sizes(drawn, source if keeps_own_size(request, source, mask, grid) else drawn)


def keeps_own_size(request: Drawing, source: Size, mask: Image.Image | None, grid: Grid) -> bool:
    """Whether the result of a job that asks for no size has that of its picture: a part of which is kept then.

    A larger picture than a job may ask for comes here only where it is to be drawn as a whole.
    """
    if mask is None or request.keeps_size:
        return request.keeps_size
    return is_drawable(source, 1, grid.longest) or not (request.mask_crop is False or is_larger(source))


def sides_of_job(request: Drawing) -> Size | None:
    return (request.width, request.height) if request.width and request.height else None


def moved_warning(request: Drawing, sources: list[Image.Image], sizes: Sizes) -> str | None:
    """A sentence for a result that does not lie on its input picture as that is: another shape is asked for."""
    if not sources or sizes.inset:
        return None
    source = sources[request.size_from if isinstance(request, Edit) else 0].size
    if request.starts_from_picture and stretch(source, sizes.delivered) > MAX_STRETCH:
        done = "stretched to them; send aspect_ratio match_input_image or no size"
    elif (
        not isinstance(request, Edit)
        or request.draw_size == "asked"
        or sizes.drawn == conditioning_size(source, sizes.seen)
    ):
        return None
    else:
        done = "composed anew in them"
    return (
        f"{sizes.delivered[0]}x{sizes.delivered[1]} has other proportions than the input picture, "
        f"{source[0]}x{source[1]}: the picture was {done}"
    )


def enlarged_warning(sizes: Sizes) -> str | None:
    """A sentence for a result of the input's size that has far more pixels than were drawn of it."""
    if not sizes.inset or sizes.inset.scale**2 > 1 / NOTICED:
        return None
    (width, height), (drawn_width, drawn_height) = sizes.delivered, sizes.inset.content
    return (
        f"size {MATCH_SIZE}: the picture is drawn in {drawn_width}x{drawn_height} pixels, as the model draws them, and "
        f"enlarged to {width}x{height}; with mask_image all outside the mask keeps the input's own pixels"
    )


def conditioning_size(source: Size, side: int = CONDITIONING_SIDE) -> Size:
    """The size in which the edit pipelines look at a picture: `calculate_dimensions` of diffusers, word for number.

    `side`: of the square that has its area.
    """
    return rounded_size(source[0] / source[1], side * side, CONDITIONING_MULTIPLE)


def is_larger(photo: Size) -> bool:
    """Whether a photo has more pixels than the model draws of it."""
    width, height = conditioning_size(photo) if max(photo) <= MAX_ASPECT * min(photo) else (0, 0)
    return photo[0] * photo[1] > width * height


def is_drawable(size: Size, multiple: int, longest: int) -> bool:
    """Whether a job could ask for a picture of this size."""
    return all(side % multiple == 0 and MIN_SIDE <= side <= longest for side in size)


def stretch(source: Size, delivered: Size) -> float:
    """How many times more one axis grows than the other when a picture is brought from one size to the other."""
    ratio = source[0] * delivered[1] / (source[1] * delivered[0])
    return max(ratio, 1 / ratio)
