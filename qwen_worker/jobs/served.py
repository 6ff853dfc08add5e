"""What a job may ask of the checkpoint that serves it, once that is known: sizes, pictures and the length of prompts.

Knows nothing of how a checkpoint is found; the limits of every checkpoint stand in `request.py`.
"""

from typing import NamedTuple

from ..errors import BeyondSchema, InvalidInput
from .field_types import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from .named_sizes import pixels_of
from .request import MAX_PROMPT_TOKENS, Drawing, Edit

COARSE_MULTIPLE = 32  # pixels: of Qwen-Image-2.1 and of the tiny checkpoint, whose VAEs halve a side four times


class Limits(NamedTuple):
    """What a checkpoint can serve. `multiple`, `max_side`: pixels of a side; `max_images`: input pictures of an edit.

    `draws_alpha`: whether its VAE has a fourth channel, which is transparency. `caps_references`: whether its pipeline
    can be told in how many pixels to look at input pictures.
    """

    multiple: int
    max_side: int
    max_images: int
    draws_alpha: bool = False
    caps_references: bool = False


def require_served(request: Drawing, limits: Limits) -> None:
    """Refuse a size that the checkpoint's pipeline would floor in silence, or that its makers do not draw; more
    pictures than it takes; transparency of one without; and a size of input pictures that it cannot be told.

    Raises `InvalidInput`.
    """
    width, height = pixels_of(request.size) or (request.width, request.height)
    sentences = [
        f"{name} must be at most {limits.max_side} for this checkpoint, not {side}"
        for name, side in (("width", width), ("height", height))
        if side and side > limits.max_side
    ] or off_grid_sentences(request, limits.multiple)
    if isinstance(request, Edit) and len(request.images) > limits.max_images:
        sentences = [f"images must hold at most {limits.max_images} for this checkpoint, not {len(request.images)}"]
    if request.background == "transparent" and not limits.draws_alpha:
        sentences = [
            "background must be 'auto' or 'opaque' for this checkpoint, not 'transparent': its pictures have no "
            "transparency; Qwen-Image-2.1 draws some"
        ]
    if isinstance(request, Edit) and request.reference_pixels and not limits.caps_references:
        sentences = [
            "reference_pixels is not for this checkpoint, whose pipeline looks at input pictures in about a megapixel "
            "whatever a job says; send the job without it, or use Qwen-Image-2.1"
        ]
    if sentences:
        raise InvalidInput("; ".join(sentences), BeyondSchema.ENDPOINT)


def off_grid_sentences(request: Drawing, multiple: int) -> list[str]:
    """One for each side that is no multiple; an edit that is resampled may have any."""
    if isinstance(request, Edit) and request.draw_size == "input":
        return []
    rule = f"must be a multiple of {multiple} for this checkpoint, not"
    return [
        f"{name} {rule} {side}{nearest_sides(side, multiple)}"
        for name, side in (("width", request.width), ("height", request.height))
        if side and side % multiple
    ]


def nearest_sides(side: int, multiple: int = SIDE_MULTIPLE) -> str:
    """The words that name the sides next to one that is off the grid; nothing for one outside the limits."""
    lower = side // multiple * multiple
    if not MIN_SIDE <= side <= MAX_SIDE or side == lower:
        return ""
    nearest = f"; the nearest are {lower} and {lower + multiple}"
    if multiple == COARSE_MULTIPLE:
        return nearest
    lower = side // COARSE_MULTIPLE * COARSE_MULTIPLE
    return (
        f"{nearest}, or {lower} and {lower + COARSE_MULTIPLE} where the checkpoint needs multiples of {COARSE_MULTIPLE}"
    )


def require_tokens(name: str, count: int) -> None:
    """Refuse a prompt that the pipeline would cut without a word. Raises `InvalidInput`."""
    if count > MAX_PROMPT_TOKENS:
        raise InvalidInput(f"{name} must be at most {MAX_PROMPT_TOKENS} tokens, not {count}", BeyondSchema.WORDS)
