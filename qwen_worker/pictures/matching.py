"""An edit compared with its input picture, and brought back to it where the job asks: to its place, to its colours.

Both are measured on the drawing, beside the picture that the pipeline was given, whatever size is delivered. What is
measured goes with the picture as `info[COMPARISON]`, as its marks do, up to the reply. Where too little of the picture
is unchanged, nothing is measured surely, and nothing is moved. Knows nothing of how a picture is drawn.
"""

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from ..errors import BeyondSchema, InvalidInput
from ..jobs.request import Drawing, Edit
from ..jobs.values import Warn
from .registration import BLOCK, FIT_SIDES, Place, Registration, register, size_at_side, undo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .drift import Drift

COMPARISON = "comparison"  # in a picture's `info`
PIXELS_OF_BLOCK = 200  # that a drift is measured on, of `BLOCK` times `BLOCK`
UNNOTICED = 0.1  # pixels: a picture that lies nearer to its input is not resampled


@dataclass(frozen=True)
class Matching:
    """What a job asks: whether its edit is brought to its input's place, and to its colours; else both are measured."""

    align: bool
    keep_colours: bool
    number: int = 0  # of the source, as the job counts them

    @classmethod
    def of(cls, request: Drawing) -> Self | None:
        """None for a job that does not ask. Raises `InvalidInput` where OpenCV is missing."""
        if not isinstance(request, Edit):
            return None
        asked = [name for name in ("align", "keep_colours", "compare_input") if getattr(request, name)]
        if not asked:
            return None
        if importlib.util.find_spec("cv2") is None:
            sentence = f"{asked[0]} needs the package opencv-python-headless, which this worker does not have"
            raise InvalidInput(f"{sentence}; send the job without it", BeyondSchema.ENDPOINT)
        return cls(request.align, request.keep_colours, request.size_from)

    def match(self, source: Image.Image, drawn: Image.Image, factor: float = 1.0) -> Image.Image:
        """The drawing as it is asked for, with what was measured in its `info`. Takes about a second.

        `source`: what the pipeline was given, RGB. `factor`: pixels of the result for each of the drawing.
        """
        from .drift import drift_of

        size = drawn.size
        source = source.convert("RGB")
        source = source if source.size == size else source.resize(size, Image.Resampling.LANCZOS)
        found = register(source, drawn.convert("RGB"))
        aligned = (
            undo(drawn, found.place) if found.is_sure and found.place.distance(Place(), size) > UNNOTICED else drawn
        )
        facts: dict[str, Any] = {"registration": registration_facts(found, factor)}
        result = aligned if self.align else drawn
        if self.align:
            facts["registration"]["aligned"] = found.is_sure
        drift: Drift | None = None
        if found.is_sure:
            one, other = (usable_blocks(picture, found) for picture in (source, aligned.convert("RGB")))
            drift = drift_of(one, other, found.unchanged[found.unchanged | found.flat])
        if drift:
            facts["colour_drift"] = {"mean": list(drift.mean), "histogram": list(drift.histogram)}
            if self.keep_colours:
                result = drift.undo(result)
        if self.keep_colours:
            facts.setdefault("colour_drift", {})["undone"] = drift is not None
        result = result if result is not drawn else drawn.copy()
        result.info[COMPARISON] = facts
        return result


def registration_facts(found: Registration, factor: float) -> dict[str, Any]:
    """As a reply has them. `factor`: pixels of the result for each of the drawing."""
    place = found.place.resized(factor)
    numbers = {"shift_x": place.shift_x, "shift_y": place.shift_y}
    facts: dict[str, Any] = {name: round(number, 2) for name, number in numbers.items()}
    return facts | {"scale": round(place.scale, 5), "confidence": round(found.confidence, 3)}


def usable_blocks(picture: Image.Image, found: Registration) -> "NDArray[np.float32]":
    """(blocks, pixels of each, 3): some pixels of the blocks of an RGB picture that are unchanged, or flat."""
    import numpy as np

    if max(picture.size) > FIT_SIDES[-1]:
        picture = picture.resize(size_at_side(picture.size, FIT_SIDES[-1]), Image.Resampling.BOX)
    rows, columns = found.unchanged.shape
    pixels = np.asarray(picture)[: rows * BLOCK, : columns * BLOCK]
    blocks = pixels.reshape(rows, BLOCK, columns, BLOCK, 3).transpose(0, 2, 1, 3, 4)[found.unchanged | found.flat]
    return blocks.reshape(len(blocks), -1, 3)[:, :: BLOCK * BLOCK // PIXELS_OF_BLOCK].astype(np.float32)


def report(pictures: list[Image.Image], warn: Warn) -> dict[str, Any]:
    """What `metadata` says of the pictures' comparison: by fact a list, in their order. Empty where none was made.

    `warn` is told of what was asked and not done.
    """
    found = [picture.info[COMPARISON] for picture in pictures if COMPARISON in picture.info]
    if not found:
        return {}
    if any(one["registration"].get("aligned") is False for one in found):
        warn("align: too little of the picture is unchanged to know where it lies, and it is left where it was drawn")
    if any(one.get("colour_drift", {}).get("undone") is False for one in found):
        warn("keep_colours: too little of the picture is unchanged to know its drift, and its colours are as drawn")
    return {name: [one.get(name) for one in found] for name in ("registration", "colour_drift")}
