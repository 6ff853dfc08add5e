"""Fields of other image APIs that are no mere names of ours: what each asks for, in our fields or in a warning. Pure.

Knows nothing of limits: `request.py` has them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import InvalidInput
from .values import Warn, short_json

if TYPE_CHECKING:
    from pydantic import JsonValue

    Read = Callable[[JsonValue, Warn], dict[str, JsonValue]]

# By field, the sentence for the value true, which asks for what this worker does not do.
NOT_DONE_IF_TRUE = {
    "watermark": "this worker draws no watermark",
    "enable_sync_mode": "the route says whether the caller waits: /runsync waits, /run does not",
    "use_kv_cache": "this worker has no such cache",
}
NUMBERED = ("image1", "image2", "image3")
SAMPLERS = ("scheduler", "sampler", "sampler_name")
CALLER_FIELDS = ("user", "metadata", "safety_identifier")  # they say who calls, and nothing about the picture
# Where a field of another API asks for preset fast and the endpoint does not serve it: the preset that is drawn.
NEXT_PRESETS = {"acceleration": "quality", "go_fast": "quality", "use_turbo": "quality", "quality": "balanced"}
ACCELERATIONS = {"none": "quality", "regular": "balanced", "high": "fast"}
QUALITIES = {"low": "fast", "medium": "balanced", "high": "quality", "hd": "quality"}  # OpenAI's, as presets
RESPONSE_FORMATS = {"b64_json": "inline", "url": "url"}  # OpenAI's, as deliveries
BESIDE_INPUT = ("webhook", "webhookV2", "s3Config", "policy")


def read_flag(name: str, sentence: str) -> "Read":
    """A reader of a field that is true or false, of which false asks for nothing."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if require_flag(name, value):
            warn(f"{name} true: {sentence}")
        return {}

    return read


def read_wish(name: str, ours: str, wanted: str) -> "Read":
    """A reader of a field that, where it is true, asks for a value of ours; false leaves that to the endpoint."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        return {ours: wanted} if require_flag(name, value) else {}

    return read


def read_choice(name: str, ours: str, values: dict[str, str], without_effect: tuple[str, ...] = ()) -> "Read":
    """A reader of a field that has words for the values of ours. `without_effect`: those that ask for the default."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if value in without_effect:
            return {}
        if not isinstance(value, str) or value not in values:
            *others, last = map(repr, values)
            raise InvalidInput(f"{name} must be {', '.join(others)} or {last}, not {short_json(value)}")
        return {ours: values[value]}

    return read


def read_sampler(name: str) -> "Read":
    """A reader of a field that names a sampler or a schedule."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        warn(f"{name} {short_json(value)}: the model has one scheduler, flow-matching Euler, which is used")
        return {}

    return read


def read_output_format(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    return {"output_format": "jpeg" if value == "jpg" else value}


def read_disable_safety_checker(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    return {"enable_safety_checker": not require_flag("disable_safety_checker", value)}


def read_loras(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    """The LoRAs, of which each may be its path alone, and `weight` another name of `scale`."""
    return {"loras": [read_lora(one) for one in value] if isinstance(value, list) else value}


def read_lora(value: "JsonValue") -> "JsonValue":
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, dict) and "weight" in value and value.get("scale") is None:
        return {("scale" if name == "weight" else name): one for name, one in value.items() if name != "scale"}
    return value


def require_flag(name: str, value: "JsonValue") -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be true or false, not {short_json(value)}")
    return value


def refuse_beside(name: str) -> "Read":
    """A reader of a field whose place is beside `input`."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        raise InvalidInput(f'{name} stands beside input, not in it: send {{"input": {{...}}, "{name}": ...}}')

    return read


def refuse_input(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    raise InvalidInput('input is given within input: send {"input": {"prompt": "..."}}, with one input alone')


def ignore_caller(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    return {}


READERS: "dict[str, Read]" = {
    **{name: read_flag(name, sentence) for name, sentence in NOT_DONE_IF_TRUE.items()},
    **{name: read_wish(name, "delivery", "inline") for name in ("sync_mode", "enable_base64_output")},
    **{name: read_wish(name, "preset", "fast") for name in ("go_fast", "use_turbo")},
    **{name: read_sampler(name) for name in SAMPLERS},
    **{name: refuse_beside(name) for name in BESIDE_INPUT},
    **dict.fromkeys(CALLER_FIELDS, ignore_caller),
    "acceleration": read_choice("acceleration", "preset", ACCELERATIONS),
    "quality": read_choice("quality", "preset", QUALITIES, ("auto", "standard")),
    "response_format": read_choice("response_format", "delivery", RESPONSE_FORMATS),
    "output_format": read_output_format,
    "image_format": read_output_format,
    "loras": read_loras,
    "disable_safety_checker": read_disable_safety_checker,
    "input": refuse_input,
}


def gather_loras(sent: "dict[str, JsonValue]") -> None:
    """Bring the LoRAs that Replicate's names give, each with a scale in a field of its own, into `loras`.

    Raises `InvalidInput` for a scale without its LoRA, and where `loras` is given too.
    """
    found: list[JsonValue] = []
    used: list[str] = []
    for names, scale_name in (
        (("lora_weights", "lora"), "lora_scale"),
        (("extra_lora", "extra_lora_weights"), "extra_lora_scale"),
    ):
        given = [name for name in names if name in sent]
        if not given and scale_name not in sent:
            continue
        if len(given) != 1:
            raise InvalidInput(f"{scale_name} goes with exactly one of {' and '.join(names)}, not {len(given)} of them")
        scale = sent.pop(scale_name, 1.0)
        lora: dict[str, JsonValue] = {"path": sent.pop(given[0]), "scale": scale}
        found.append(lora)
        used.append(given[0])
    if used and "loras" in sent:
        raise InvalidInput(f"loras is given twice, as {used[0]} and as loras: send loras alone")
    if used:
        sent["loras"] = found


def gather_numbered(sent: "dict[str, JsonValue]") -> None:
    """Bring image1, image2 and image3 into `images`. Raises `InvalidInput` where `images` is given too."""
    names = [name for name in NUMBERED if name in sent]
    if names and "images" in sent:
        raise InvalidInput(f"images is given twice, as {names[0]} and as images: send images alone")
    if names:
        numbered: list[JsonValue] = [sent.pop(name) for name in names]
        sent["images"] = numbered
