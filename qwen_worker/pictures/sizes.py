"""The size at which the pipeline draws an edit, and the size of the picture that the job gets.

The edit pipelines look at an input picture in about a megapixel of its aspect, and the model lays what it draws over
what it sees, latent by latent. At any other size the drawing comes out zoomed and shifted: on the tiny checkpoint a
circle whose centre belongs at x = 63 of 256 lands at 28 when drawn 512 pixels wide, and at 86 when drawn 1536 wide. An
edit is therefore drawn at the size at which its input picture is looked at, and then resampled. Knows nothing of torch
or of the pipelines.
"""

from typing import NamedTuple

from PIL import Image

from ..jobs.field_types import MAX_SIDE, MIN_SIDE
from ..jobs.named_sizes import CONDITIONING_MULTIPLE, MAX_STRETCH, Grid, Size, grid_of, named_size
from ..jobs.request import Drawing, Edit

CONDITIONING_AREA = 1024 * 1024  # pixels; `VAE_IMAGE_SIZE` of diffusers' edit pipelines


class Sizes(NamedTuple):
    """`drawn` by the pipeline, and `delivered` to the caller."""

    drawn: Size
    delivered: Size


def sizes_of(request: Drawing, sources: list[Image.Image], mask: Image.Image | None, grid: Grid) -> Sizes:
    """The sizes of the request's pictures. `grid`: what the checkpoint says of sizes."""
    sides = (request.width, request.height) if request.width and request.height else None
    if not isinstance(request, Edit):
        asked = named_size(request, grid) or sides
        assert asked is not None  # a picture from a prompt has a default for both
        return Sizes(asked, asked)
    source = sources[request.size_from].size
    looked_at = conditioning_size(source)
    asked = named_size(request, grid_of(request, grid), source[0] / source[1]) or sides
    if request.draw_size == "asked":
        own = source if mask and is_drawable(source, grid.multiple) else looked_at
        return Sizes(asked or own, asked or own)
    delivered = asked or (source if mask and is_drawable(source, 1) else looked_at)
    # A mask and the start from the input picture tie every pixel of the result to one of that picture. What else is
    # asked in another shape is composed anew by the model: stretched faces are not delivered.
    is_tied = mask is not None or request.strength < 1
    if is_tied or stretch(source, delivered) <= MAX_STRETCH:
        return Sizes(looked_at, delivered)
    return Sizes(conditioning_size(delivered), delivered)


def moved_warning(request: Drawing, sources: list[Image.Image], sizes: Sizes) -> str | None:
    """A sentence for an edit that does not lie on its input picture as that is, because another shape is asked for."""
    if not isinstance(request, Edit):
        return None
    source, is_tied = sources[request.size_from].size, request.mask_image is not None or request.strength < 1
    if is_tied and stretch(source, sizes.delivered) > MAX_STRETCH:
        done = "stretched to them; send aspect_ratio match_input_image or no size"
    elif request.draw_size == "asked" or sizes.drawn == conditioning_size(source):
        return None
    else:
        done = "composed anew in them"
    return (
        f"{sizes.delivered[0]}x{sizes.delivered[1]} has other proportions than the input picture, "
        f"{source[0]}x{source[1]}: the picture was {done}"
    )


def conditioning_size(source: Size) -> Size:
    """The size in which the edit pipelines look at a picture: `calculate_dimensions` of diffusers, word for number."""
    ratio = source[0] / source[1]
    width = (CONDITIONING_AREA * ratio) ** 0.5
    return round(width / CONDITIONING_MULTIPLE) * CONDITIONING_MULTIPLE, (
        round(width / ratio / CONDITIONING_MULTIPLE) * CONDITIONING_MULTIPLE
    )


def is_drawable(size: Size, multiple: int) -> bool:
    """Whether a job could ask for a picture of this size."""
    return all(side % multiple == 0 and MIN_SIDE <= side <= MAX_SIDE for side in size)


def stretch(source: Size, delivered: Size) -> float:
    """How many times more one axis grows than the other when a picture is brought from one size to the other."""
    ratio = source[0] * delivered[1] / (source[1] * delivered[0])
    return max(ratio, 1 / ratio)
