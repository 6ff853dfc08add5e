"""What a job draws on, and how the drawn picture becomes the job's result. Knows nothing of torch and of the models."""

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ..jobs.job import Job
from ..jobs.named_sizes import Grid, brought_warning, grid_of, with_size
from ..jobs.request import Drawing, Edit, Generate
from ..jobs.tasks import Layers
from ..jobs.values import Warn
from .alpha import as_asked
from .control import prepare
from .images import to_rgb
from .inputs import Inputs
from .inset import Inset
from .masks import restore_outside
from .matching import COMPARISON, Matching
from .photo import STITCH_KEY
from .sizes import CONDITIONING_SIDE, capped_side, enlarged_warning, moved_warning, sizes_of
from .stitch import Stitch


@dataclass(frozen=True)
class Canvas:
    """What a job draws on: its pictures as in `Inputs`, and sizes in pixels.

    `size`: width and height that the pipeline draws. `delivered_size`: those of the result, where they are others.
    `seen`: as in `Sizes`, or less where the job caps it. `is_soft`: whether the mask's greys say how the drawing fades.
    `stitch`: what the drawing is a part of; `shows_through`: whether that has transparency. `inset`: where the input
    lies in the drawing, if it does not fill it: pictures and mask are of the drawing's size then, `original` and
    `own_mask` of the input's. `matching`: how the two are compared.
    """

    sources: list[Image.Image]
    mask: Image.Image | None
    size: tuple[int, int]
    delivered_size: tuple[int, int] | None = None
    seen: int = CONDITIONING_SIDE
    original: Image.Image | None = None
    is_soft: bool = False
    stitch: Stitch | None = None
    shows_through: bool = False
    # The picture that the drawing begins with, or keeps a part of; `sources` are those that the model looks at.
    start: Image.Image | None = None
    inset: Inset | None = None
    own_mask: Image.Image | None = None
    matching: Matching | None = None
    control: tuple[Image.Image, ...] = ()  # control pictures of `size`

    @property
    def result_size(self) -> tuple[int, int]:
        return self.delivered_size or self.size

    @property
    def crop(self) -> list[int] | None:
        """Which part of the result is drawn alone: left, top, right and bottom, in pixels; None where all of it is."""
        return list(self.stitch.frame.box_in(self.result_size)) if self.stitch else None

    @property
    def enlargement(self) -> float:
        """Pixels of the result for each drawn one, along a side."""
        if self.stitch:
            return self.stitch.frame.scale
        return 1 / self.inset.scale if self.inset else self.result_size[0] / self.size[0]

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The result of a drawing in sRGB, RGB or RGBA, in the result's size."""
        return self.restore(self.fit(drawn))

    def fit(self, drawn: Image.Image) -> Image.Image:
        """The drawing in the result's size, and brought to its input's place and colours where the job asks for that.

        What is a part of a photo stays as it was drawn, and holds what brings it back there when the file is written.
        """
        if self.matching:
            drawn = self.matching.match(self.sources[self.matching.number], drawn, self.enlargement)
        if self.stitch:
            drawn.info[STITCH_KEY] = self.stitch
            return drawn
        if self.inset:
            return self.inset.take_out(drawn, self.result_size)
        return drawn if drawn.size == self.result_size else drawn.resize(self.result_size, Image.Resampling.LANCZOS)

    def restore(self, fitted: Image.Image) -> Image.Image:
        """With a mask, the drawing in the source's own colour space, and outside the mask the source's own pixels.

        Those have their transparency. A part of a photo is left as it is.
        """
        if self.stitch or self.mask is None:
            return fitted
        kept = self.original or self.start
        assert kept is not None, "a mask is one of a picture that is kept"
        restored = restore_outside(fitted, kept, self.own_mask or self.mask, self.is_soft)
        restored.info |= {name: fact for name, fact in fitted.info.items() if name == COMPARISON}
        return restored

    def used_mask(self) -> Image.Image | None:
        """What is used of a drawing that `fit` has made: a mask of its size, or None for all of it."""
        if self.stitch:
            return self.stitch.drawn_mask
        mask = self.own_mask or self.mask
        return mask and mask.resize(self.result_size, Image.Resampling.NEAREST)

    def report(self, request: Drawing, pictures: list[Image.Image]) -> dict[str, Any]:
        """What `metadata` says of the results: which part of a photo was drawn, and whether files have transparency."""
        facts: dict[str, Any] = {"crop": self.crop} if self.crop else {}
        shows = (one.mode == "RGBA" or (STITCH_KEY in one.info and self.shows_through) for one in pictures)
        if request.output_format != "jpeg" and any(shows):
            facts["background"] = "transparent"
        return facts


def finish_drawing(drawn: Image.Image, request: Drawing, canvas: Canvas, warn: Warn) -> Image.Image:
    """The result of a drawing, with the alpha that the model draws where the request may want it."""
    may_keep = drawn.mode == "RGBA" and request.background != "opaque"
    fitted = canvas.fit(drawn if may_keep else to_rgb(drawn))
    return canvas.restore(as_asked(fitted, request, warn, canvas.used_mask() if may_keep else None))


def canvas_of(job: Job, inputs: Inputs, grid: Grid) -> Canvas:
    """What the job draws on; its request gets the size that is decided here, and the job warns of what is not as asked.

    `grid`: what the checkpoint says of sizes and pictures.
    """
    request, inputs = job.request, inputs.for_model(grid.draws_alpha)
    if inputs.margins:
        request = request.model_copy(update={"expand": inputs.margins, "fit": None, "aspect_ratio": None})
    looked_at = inputs.sources if isinstance(request, Edit | Layers) else []
    start = inputs.sources[0] if request.starts_from_picture else None
    matching = Matching.of(request)
    if stitch := inputs.stitch:
        job.request = with_size(request, stitch.photo.size)
        canvas = Canvas(looked_at, inputs.mask, stitch.frame.drawn, stitch.photo.size, stitch=stitch, start=start)
        shows_through, seen = stitch.photo.has_transparency, capped_side(request, canvas.seen)
        return replace(canvas, matching=matching, seen=seen, shows_through=shows_through)
    sizes = sizes_of(request, inputs.sources, inputs.mask, grid)
    brought = brought_warning(request, grid_of(request, grid), sizes.delivered)
    moved = moved_warning(request, inputs.sources, sizes)
    for warning in filter(None, (brought, moved, enlarged_warning(sizes))):
        job.warn(warning)
    job.request = with_size(request, sizes.delivered)
    seen = capped_side(request, sizes.seen)
    canvas = Canvas(looked_at, inputs.mask, sizes.drawn, sizes.delivered, seen, inputs.original, start=start)
    canvas = replace(canvas, is_soft=request.has_soft_mask, matching=matching)
    if isinstance(request, Generate) and inputs.control:
        return replace(canvas, control=prepare(inputs.control, request.controls, sizes.drawn, job.warn))
    return with_inset(canvas, sizes.inset, request.size_from) if sizes.inset and isinstance(request, Edit) else canvas


def with_inset(canvas: Canvas, inset: Inset, number: int) -> Canvas:
    """The canvas with source `number`, the start and the mask as they lie in the drawing."""
    sources = list(canvas.sources)
    sources[number] = inset.place(sources[number])
    canvas = replace(canvas, sources=sources, inset=inset, original=canvas.original or canvas.start)
    if canvas.start:
        canvas = replace(canvas, start=sources[number])  # a drawing starts from the only picture
    if canvas.mask is None:
        return canvas
    mask = inset.place(canvas.mask, Image.Resampling.NEAREST)
    return replace(canvas, mask=mask, own_mask=canvas.mask)
