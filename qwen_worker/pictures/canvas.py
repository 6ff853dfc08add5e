"""What a job draws on, and how the drawn picture becomes the job's result. Knows nothing of torch and of the models."""

from dataclasses import dataclass

from PIL import Image

from ..jobs.job import Job
from ..jobs.named_sizes import Grid, brought_warning, grid_of, with_size
from ..jobs.request import Generate
from .control import prepare
from .inputs import Inputs
from .masks import restore_outside
from .sizes import moved_warning, sizes_of


@dataclass(frozen=True)
class Canvas:
    """What a job draws on: its pictures as in `Inputs`, and sizes in pixels.

    `size`: width and height that the pipeline draws. `delivered_size`: those of the result, where they are others.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    size: tuple[int, int]
    delivered_size: tuple[int, int] | None = None
    original: Image.Image | None = None
    control: tuple[Image.Image, ...] = ()  # control pictures of `size`

    @property
    def result_size(self) -> tuple[int, int]:
        return self.delivered_size or self.size

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The result of a drawing in sRGB, in the result's size.

        With a mask it is in the source's own colour space, and outside the mask it has the source's own pixels.
        """
        if drawn.size != self.result_size:
            drawn = drawn.resize(self.result_size, Image.Resampling.LANCZOS)
        if self.mask is None:
            return drawn
        return restore_outside(drawn, self.original or self.sources[0], self.mask)


def canvas_of(job: Job, inputs: Inputs, grid: Grid) -> Canvas:
    """What the job draws on; its request gets the size that is decided here, and the job warns of what is not as asked.

    `grid`: what the checkpoint says of sizes.
    """
    request = job.request
    sizes = sizes_of(request, inputs.sources, inputs.mask, grid)
    brought = brought_warning(request, grid_of(request, grid), sizes.delivered)
    moved = moved_warning(request, inputs.sources, sizes)
    for warning in filter(None, (brought, moved)):
        job.warn(warning)
    job.request = with_size(request, sizes.delivered)
    control = prepare(inputs.control, request.controls, sizes.drawn, job.warn) if isinstance(request, Generate) else ()
    return Canvas(inputs.sources, inputs.mask, *sizes, inputs.original, control)
