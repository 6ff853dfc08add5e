"""What a job draws on, and how the drawn picture becomes the job's result. Knows nothing of torch and of the models."""

from dataclasses import dataclass

from PIL import Image

from ..jobs.job import Job
from ..jobs.named_sizes import Grid, brought_warning, grid_of, with_size
from ..jobs.request import Edit
from .inputs import Inputs
from .masks import restore_outside
from .sizes import CONDITIONING_SIDE, moved_warning, sizes_of
from .stitch import STITCH_KEY, Stitch


@dataclass(frozen=True)
class Canvas:
    """What a job draws on: its pictures as in `Inputs`, and sizes in pixels.

    `size`: width and height that the pipeline draws. `delivered_size`: those of the result, where they are others.
    `seen`: as in `Sizes`. `is_soft`: whether the mask's greys say how the drawing fades. `stitch`: what the drawing is
    a part of.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    size: tuple[int, int]
    delivered_size: tuple[int, int] | None = None
    seen: int = CONDITIONING_SIDE
    original: Image.Image | None = None
    is_soft: bool = False
    stitch: Stitch | None = None
    # The picture that the drawing begins with, or keeps a part of; `sources` are those that the model looks at.
    start: Image.Image | None = None

    @property
    def result_size(self) -> tuple[int, int]:
        return self.delivered_size or self.size

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The result of a drawing in sRGB, RGB or RGBA, in the result's size.

        With a mask it is in the source's own colour space, and outside the mask it has the source's own pixels. What is
        a part of a photo stays as it was drawn, and holds what brings it back there when the file is written.
        """
        if self.stitch:
            drawn.info[STITCH_KEY] = self.stitch
            return drawn
        if drawn.size != self.result_size:
            drawn = drawn.resize(self.result_size, Image.Resampling.LANCZOS)
        kept = self.original or self.start
        if self.mask is None or kept is None:
            return drawn
        return restore_outside(drawn, kept, self.mask, self.is_soft)


def canvas_of(job: Job, inputs: Inputs, grid: Grid) -> Canvas:
    """What the job draws on; its request gets the size that is decided here, and the job warns of what is not as asked.

    `grid`: what the checkpoint says of sizes and pictures.
    """
    request, inputs = job.request, inputs.for_model(grid.draws_alpha)
    if inputs.margins:
        request = request.model_copy(update={"expand": inputs.margins, "fit": None, "aspect_ratio": None})
    looked_at = inputs.sources if isinstance(request, Edit) else []
    start = inputs.sources[0] if request.starts_from_picture else None
    if stitch := inputs.stitch:
        job.request = with_size(request, stitch.photo.size)
        return Canvas(looked_at, inputs.mask, stitch.frame.drawn, stitch.photo.size, stitch=stitch, start=start)
    sizes = sizes_of(request, inputs.sources, inputs.mask, grid)
    brought = brought_warning(request, grid_of(request, grid), sizes.delivered)
    moved = moved_warning(request, inputs.sources, sizes)
    for warning in filter(None, (brought, moved)):
        job.warn(warning)
    job.request = with_size(request, sizes.delivered)
    return Canvas(looked_at, inputs.mask, *sizes, inputs.original, request.has_soft_mask, start=start)
