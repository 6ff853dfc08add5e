"""How a picture was drawn, in its file, where the job asks for it: a prompt is private otherwise.

Two texts lie in the picture's `info` until `encoding.encode_picture` writes them: one in the layout of AUTOMATIC1111's
web UI, which most programs that show parameters read, and one as JSON. The JSON is ASCII: readers of EXIF's XPComment
know no characters of more than 16 bits. Knows nothing of the formats of pictures.
"""

import json
import struct
from typing import TYPE_CHECKING, Any

from ..jobs.reply import DrawingFacts
from ..jobs.request import Drawing
from ..jobs.tasks import Layers

if TYPE_CHECKING:
    from PIL import Image

PARAMETERS_KEY = "worker_parameters"  # in a picture's `info`; a caller's own PNG may hold some under `parameters`
PNG_NAMES = ("parameters", "parameters_json")  # of the two texts in a PNG
# Of a reply's metadata, what describes the picture and not the worker's turn.
KEPT_FACTS = (
    "backend", "model", "revision", "prompt", "instruction", "width", "height", "drawn_dimensions", "preset", "steps",
    "guidance_scale", "guidance_start", "guidance_end", "strength", "loras", "step_cache", "worker_version",
)  # fmt: skip
# EXIF's tags and types.
EXIF_VERSION, USER_COMMENT, EXIF_FOLDER, XP_COMMENT = 0x9000, 0x9286, 0x8769, 0x9C9C
BYTE, LONG, UNDEFINED = 1, 4, 7
MAX_EXIF_BYTES = 65_533  # of a JPEG


def embed_parameters(pictures: "list[Image.Image]", request: Drawing, facts: DrawingFacts) -> None:
    """Have the files of these pictures say how each was drawn. `facts`: the reply's, in which paths have no secrets."""
    seeds = request.seeds * len(pictures) if isinstance(request, Layers) else request.seeds  # layers have one seed
    for picture, seed in zip(pictures, seeds, strict=True):
        text, data = text_of(request, facts, seed), data_of(request, facts, seed)
        if request.output_format == "jpeg" and len(exif_of(text, json.dumps(data))) > MAX_EXIF_BYTES:
            # A rewritten prompt's length was not known when the job was parsed: the caller's own has room.
            text = text_of(request, {**facts, "instruction": facts["prompt"]}, seed)
            data.pop("instruction", None)
        picture.info[PARAMETERS_KEY] = text, json.dumps(data)


def text_of(request: Drawing, facts: DrawingFacts, seed: int) -> str:
    """The prompt, the negative prompt, and a line of names and values.

    The prompt is the one to send again: where it was rewritten, the text that came back. So are the steps, of which a
    `strength` below 1 has run only a part.
    """
    is_partial = request.strength < 1
    values: dict[str, Any] = {
        "Steps": request.num_inference_steps if is_partial else facts["steps"],
        "CFG scale": facts["guidance_scale"],
        "Seed": seed,
        "Size": facts["dimensions"],
        "Model": facts["model"] if facts["backend"] == "qwen-image" else facts["backend"],
    }
    if is_partial:
        values["Denoising strength"] = request.strength
    if loras := facts.get("loras"):
        values["Loras"] = ", ".join(f"{lora['path']}: {lora['scale']:g}" for lora in loras)
    lines = [facts.get("instruction", facts["prompt"]) if request.prompt_extend else facts["prompt"]]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {quote(str(value))}" for name, value in values.items()))
    return "\n".join(lines).replace("\0", "\ufffd")  # a NUL ends a text for some readers


def quote(value: str) -> str:
    """The value in quotes where it has what separates values."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def data_of(request: Drawing, facts: DrawingFacts, seed: int) -> dict[str, Any]:
    steps = request.num_inference_steps
    data = {
        "task": request.task,
        "negative_prompt": request.negative_prompt,
        "seed": seed,
        "num_inference_steps": steps,
    }
    data |= {name: value for name, value in facts.items() if name in KEPT_FACTS}
    return {name: value for name, value in data.items() if value is not None}


def exif_of(text: str, data: str) -> bytes:
    """EXIF with the text as UserComment and the JSON as XPComment: no orientation, and nothing else.

    Built here, because Pillow would write UserComment with a type that exiv2 does not read as a text. UserComment is
    UTF-16 in the byte order of the whole EXIF, which is big-endian, as AUTOMATIC1111's web UI reads it.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    xp_comment = data.encode("utf-16-le") + b"\0\0"
    # After the header two folders of two entries each, every one of them 2 + 2 * 12 + 4 bytes; then the texts.
    folder, texts = 38, 68
    return b"".join((
        b"Exif\0\0MM\0*", struct.pack(">I", 8),
        struct.pack(">H HHII HHII I", 2, EXIF_FOLDER, LONG, 1, folder, XP_COMMENT, BYTE, len(xp_comment), texts, 0),
        struct.pack(">H HHI4s HHII I", 2, EXIF_VERSION, UNDEFINED, 4, b"0232", USER_COMMENT, UNDEFINED, len(comment),
                    texts + len(xp_comment), 0),
        xp_comment, comment,
    ))  # fmt: skip
