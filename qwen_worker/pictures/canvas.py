"""What a job draws on, and how the drawn picture becomes the job's result. Knows nothing of torch and of the models."""

from dataclasses import dataclass, replace

from PIL import Image

from ..jobs.job import Job
from ..jobs.named_sizes import Grid, brought_warning, grid_of, with_size
from ..jobs.request import Edit
from .inputs import Inputs
from .inset import Inset
from .masks import restore_outside
from .matching import COMPARISON, Matching
from .sizes import enlarged_warning, moved_warning, sizes_of


@dataclass(frozen=True)
class Canvas:
    """What a job draws on: its pictures as in `Inputs`, and sizes in pixels.

    `size`: width and height that the pipeline draws. `delivered_size`: those of the result, where they are others.
    `inset`: where the input lies in the drawing, if it does not fill it: the source and the mask are of the drawing's
    size then, `original` and `own_mask` of the input's. `matching`: how the drawing is compared with its source.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    size: tuple[int, int]
    delivered_size: tuple[int, int] | None = None
    original: Image.Image | None = None
    inset: Inset | None = None
    own_mask: Image.Image | None = None
    matching: Matching | None = None

    @property
    def result_size(self) -> tuple[int, int]:
        return self.delivered_size or self.size

    @property
    def enlargement(self) -> float:
        """Pixels of the result for each drawn one, along a side."""
        return 1 / self.inset.scale if self.inset else self.result_size[0] / self.size[0]

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The result of a drawing in sRGB, in the result's size.

        With a mask it is in the source's own colour space, and outside the mask it has the source's own pixels.
        """
        if self.matching:
            drawn = self.matching.match(self.sources[self.matching.number], drawn, self.enlargement)
        compared = {COMPARISON: drawn.info[COMPARISON]} if COMPARISON in drawn.info else {}
        if self.inset:
            drawn = self.inset.take_out(drawn, self.result_size)
        elif drawn.size != self.result_size:
            drawn = drawn.resize(self.result_size, Image.Resampling.LANCZOS)
        if self.mask is not None:
            drawn = restore_outside(drawn, self.original or self.sources[0], self.own_mask or self.mask)
        drawn.info |= compared
        return drawn


def canvas_of(job: Job, inputs: Inputs, grid: Grid) -> Canvas:
    """What the job draws on; its request gets the size that is decided here, and the job warns of what is not as asked.

    `grid`: what the checkpoint says of sizes.
    """
    request = job.request
    sizes = sizes_of(request, inputs.sources, inputs.mask, grid)
    brought = brought_warning(request, grid_of(request, grid), sizes.delivered)
    moved = moved_warning(request, inputs.sources, sizes)
    for warning in filter(None, (brought, moved, enlarged_warning(sizes))):
        job.warn(warning)
    job.request = with_size(request, sizes.delivered)
    canvas = Canvas(inputs.sources, inputs.mask, sizes.drawn, sizes.delivered, inputs.original)
    canvas = replace(canvas, matching=Matching.of(request))
    return with_inset(canvas, sizes.inset, request.size_from) if sizes.inset and isinstance(request, Edit) else canvas


def with_inset(canvas: Canvas, inset: Inset, number: int) -> Canvas:
    """The canvas with source `number`, and the mask, as they lie in the drawing."""
    sources = list(canvas.sources)
    sources[number] = inset.place(sources[number])
    if canvas.mask is None:
        return replace(canvas, sources=sources, inset=inset)
    mask = inset.place(canvas.mask, Image.Resampling.NEAREST)
    original = canvas.original or canvas.sources[number]
    return replace(canvas, sources=sources, mask=mask, original=original, inset=inset, own_mask=canvas.mask)
