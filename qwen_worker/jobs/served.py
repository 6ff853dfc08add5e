"""What a job may ask of the checkpoint that serves it, once that is known: sizes, pictures and the length of prompts.

Knows nothing of how a checkpoint is found; the limits of every checkpoint stand in `request.py`.
"""

from ..errors import BeyondSchema, InvalidInput
from .field_types import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from .request import MAX_PROMPT_TOKENS, Drawing, Edit

COARSE_MULTIPLE = 32  # pixels: of Qwen-Image-2.1 and of the tiny checkpoint, whose VAEs halve a side four times


def require_served(request: Drawing, multiple: int, max_images: int) -> None:
    """Refuse a size that the checkpoint's pipeline would floor in silence, and more pictures than it takes.

    `multiple`: pixels of which width and height must be a multiple. Raises `InvalidInput`.
    """
    is_resampled = isinstance(request, Edit) and request.draw_size == "input"
    sides = {"width": request.width, "height": request.height}
    off_grid = {name: side for name, side in sides.items() if side and side % multiple and not is_resampled}
    if off_grid:
        rule = f"must be a multiple of {multiple} for this checkpoint, not"
        sentences = [f"{name} {rule} {side}{nearest_sides(side, multiple)}" for name, side in off_grid.items()]
        raise InvalidInput("; ".join(sentences), BeyondSchema.ENDPOINT)
    if isinstance(request, Edit) and len(request.images) > max_images:
        sentence = f"images must hold at most {max_images} for this checkpoint, not {len(request.images)}"
        raise InvalidInput(sentence, BeyondSchema.ENDPOINT)


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
