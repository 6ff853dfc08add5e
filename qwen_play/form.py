"""What a visitor has filled in, and the job's input that follows from it. Knows neither the page nor the endpoint.

The limits of a job's fields are the worker's: what it refuses, it refuses in a sentence that the page shows.
"""

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PlayError

RATIOS = ("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3")
PRESETS = ("quality", "balanced", "fast")
SMALL_SIDE = 512  # pixels: the square of the size "small"
SIDE_STEP = 32  # pixels: a multiple of this is a side for every checkpoint
MOST_PICTURES = 3

JobInput = dict[str, Any]  # of values that JSON can hold, but for the pictures before they are encoded


@dataclass(frozen=True)
class Picture:
    """On this machine's disk; `suffix` is that of its format, with the dot."""

    file: Path
    suffix: str = ".png"


@dataclass(frozen=True)
class Form:
    """The empty text leaves a field to the endpoint. Numbers are texts as they were typed: the worker refuses others.

    `loras` has one a line, its scale at the end.
    """

    prompt: str
    negative_prompt: str = ""
    preset: str = ""
    ratio: str = ""
    small: bool = False
    steps: str = ""
    guidance: str = ""
    seed: str = ""
    loras: str = ""
    pictures: tuple[Picture, ...] = ()
    new_background: bool = False
    strength: float = 1.0
    mask: Picture | None = None


def job_input(form: Form, encode: Callable[[str, Picture], object]) -> JobInput:
    """The job's input, where `encode` makes a picture's value from the picture's name and the picture.

    Raises `PlayError` for what cannot be said to the worker at all.
    """
    if len(form.pictures) > MOST_PICTURES:
        raise PlayError(f"Pictures: at most {MOST_PICTURES}, not {len(form.pictures)}. Remove some of them.")
    fields: JobInput = {"task": task_of(form), "prompt": form.prompt}
    given = {
        "negative_prompt": form.negative_prompt,
        "preset": form.preset,
        **size_fields(form),
        "num_inference_steps": read_number(form.steps),
        "guidance_scale": read_number(form.guidance),
        "seed": read_number(form.seed),
        "loras": read_loras(form.loras),
    }
    fields |= {name: value for name, value in given.items() if value not in ("", [])}
    if form.pictures:
        fields |= picture_fields(form, encode)
    return fields | {"preview": True}


def base64_text(_name: str, picture: Picture) -> str:
    return base64.b64encode(picture.file.read_bytes()).decode()


def task_of(form: Form) -> str:
    if not form.pictures:
        return "generate"
    return "background_replacement" if form.new_background else "edit"


def size_fields(form: Form) -> JobInput:
    """A small picture is asked for in pixels; an edit is never small, since models draw it in about a megapixel."""
    if not form.small or form.pictures:
        return {"aspect_ratio": form.ratio}
    across, down = (int(side) for side in (form.ratio or "1:1").split(":"))
    width = SMALL_SIDE * math.sqrt(across / down)
    height = SMALL_SIDE * math.sqrt(down / across)
    return {"width": rounded_side(width), "height": rounded_side(height)}


def rounded_side(pixels: float) -> int:
    return SIDE_STEP * round(pixels / SIDE_STEP)


def read_number(text: str) -> int | float | str:
    """The text itself where it is none."""
    text = text.strip()
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text


def read_loras(text: str) -> list[JobInput]:
    """From lines such as `ORG/NAME 0.8`. The scale may be missing."""
    found: list[JobInput] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        path, _, last = line.rpartition(" ")
        scale = read_number(last)
        found.append({"path": line} if isinstance(scale, str) or not path else {"path": path.strip(), "scale": scale})
    return found


def picture_fields(form: Form, encode: Callable[[str, Picture], object]) -> JobInput:
    values = [encode(f"picture-{number}", picture) for number, picture in enumerate(form.pictures, 1)]
    fields: JobInput = {"image": values[0]} if len(values) == 1 else {"images": values}
    if form.mask and not form.new_background:
        fields["mask_image"] = encode("mask", form.mask)
    if form.strength < 1:
        fields["strength"] = form.strength
    return fields
