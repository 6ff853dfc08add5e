"""The sizes that a job gives by a name, in pixels: an aspect ratio, 1K or 2K, or sides in a text. Pure.

The tables are those of the models' makers: at these sizes the released models draw best. Knows nothing of pictures, nor
of how they are drawn.
"""

import math
import re
from typing import NamedTuple

from .field_types import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from .request import Drawing, Edit

Size = tuple[int, int]  # width and height in pixels

MATCH_INPUT = "match_input_image"  # the aspect ratio of the picture that is edited
RATIOS = (1 / 1, 16 / 9, 4 / 3, 3 / 2)  # of the sizes in each table, in this order
TABLES: dict[str, tuple[Size, ...]] = {
    "1K": ((1328, 1328), (1664, 928), (1472, 1104), (1584, 1056)),  # Qwen-Image's
    "2K": ((2048, 2048), (2752, 1536), (2400, 1792), (2528, 1696)),  # Qwen-Image-2.1's
}
OWN_SIDE = 1024  # pixels: of the square of an edit, and of a checkpoint without a table
CONDITIONING_MULTIPLE = 32  # pixels, to which diffusers' edit pipelines round each side
SAME_RATIO = 1.01  # two ratios that differ by less are one: 1.78:1 is 16:9
# A result may be stretched by this much along one axis, which nobody sees: the sizes in use for 4:3 or 3:2 are rounded.
MAX_STRETCH = 1.05
PIXELS = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class Grid(NamedTuple):
    """What a checkpoint says of sizes. `multiple`: of which each side is one; `table`: its own one of `TABLES`."""

    multiple: int = SIDE_MULTIPLE
    table: str | None = "1K"

    @property
    def longest(self) -> int:
        """The longest side in pixels."""
        return max(MAX_SIDE, *(max(size) for size in TABLES[self.table])) if self.table else MAX_SIDE

    def nearest(self, width: float, height: float) -> Size:
        """The size of about these sides that lies on the grid."""
        near = [math.floor(side / self.multiple + 0.5) * self.multiple for side in (width, height)]
        width, height = (min(max(side, MIN_SIDE), self.longest) for side in near)
        return int(width), int(height)


def grid_of(request: Drawing, checkpoint_grid: Grid) -> Grid:
    """The grid on which the request's named size lies.

    An edit is drawn at about a megapixel, whatever its checkpoint's table, and then resampled: the checkpoint's
    multiple binds only one that is drawn at the size asked for. By its ratio alone it has the size of its drawing.
    """
    if not isinstance(request, Edit):
        return checkpoint_grid
    if request.draw_size == "asked":
        return Grid(checkpoint_grid.multiple, None)
    return Grid(SIDE_MULTIPLE if request.size else CONDITIONING_MULTIPLE, None)


def named_size(request: Drawing, grid: Grid, source_ratio: float = 1.0) -> Size | None:
    """The size that the request names; None where it names none, or no other than its input picture has anyway.

    `source_ratio`: width by height of the picture that gives the proportions where the request names none.
    """
    if pixels := pixels_of(request.size):
        return grid.nearest(*pixels)
    ratio, table = ratio_of(request.aspect_ratio), request.size or grid.table
    if ratio is None and request.size is None:
        return None
    ratio = ratio or source_ratio
    exact = table_size(table, ratio)
    if exact and max(exact) <= grid.longest:
        return grid.nearest(*exact)
    width, height = sides_of(table, ratio)
    shrink = min(1.0, grid.longest / max(width, height))
    return grid.nearest(width * shrink, height * shrink)


def sides_of(table: str | None, ratio: float) -> tuple[float, float]:
    """The sides of this ratio that make as many pixels as the table's square."""
    area = TABLES[table][0][0] ** 2 if table else OWN_SIDE**2
    return math.sqrt(area * ratio), math.sqrt(area / ratio)


def with_size(request: Drawing, size: Size) -> Drawing:
    """The request with the size that was decided: jobs that name one size in two ways are alike then."""
    return request.model_copy(update={"width": size[0], "height": size[1], "size": None, "aspect_ratio": None})


def brought_warning(request: Drawing, grid: Grid, delivered: Size) -> str | None:
    """A sentence for a size that the checkpoint does not draw as it is named."""
    ratio = ratio_of(request.aspect_ratio)
    if ratio is None and request.size is None:
        return None
    if ratio is None and not isinstance(request, Edit):
        ratio = 1.0
    name = f"size {request.size}" if request.size else f"aspect_ratio {request.aspect_ratio}"
    exact = pixels_of(request.size) or (table_size(request.size or grid.table, ratio) if ratio else None)
    if exact is None and max(sides_of(request.size or grid.table, ratio or delivered[0] / delivered[1])) > grid.longest:
        return f"{name} is brought to {delivered[0]}x{delivered[1]}: a side has at most {grid.longest} pixels"
    if not exact or exact == delivered:
        return None
    named = "" if pixels_of(request.size) else f", {exact[0]}x{exact[1]},"
    rule = f"width and height are multiples of {grid.multiple}, at most {grid.longest}"
    return f"{name}{named} is brought to {delivered[0]}x{delivered[1]}: {rule}"


def table_size(table: str | None, ratio: float) -> Size | None:
    """The table's size of this ratio, if it has one."""
    for (long, short), known in zip(TABLES.get(table or "", ()), RATIOS, strict=False):
        if times_apart(known, max(ratio, 1 / ratio)) <= SAME_RATIO:
            return (long, short) if ratio >= 1 else (short, long)
    return None


def pixels_of(text: str | None) -> Size | None:
    """The sides that a text such as 1024x768 names."""
    match = PIXELS.fullmatch(text or "")
    return (int(match[1]), int(match[2])) if match else None


def ratio_of(text: str | None) -> float | None:
    """Width by height of a text such as 16:9; None where it names none."""
    width, colon, height = (text or "").partition(":")
    return float(width) / float(height) if colon else None


def times_apart(one: float, other: float) -> float:
    """How many times the larger of two positive numbers is the other."""
    return max(one / other, other / one)
