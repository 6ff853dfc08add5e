"""A job's `input` as the request of its task, or the sentence that refuses it: the field, the rule and the value.

The rules themselves stand in `request.py`. Knows nothing of torch, diffusers or the SDK.
"""

import json
import re
from typing import Any

from pydantic import ValidationError

from ..errors import InvalidInput
from .presets import Presets
from .request import (
    IMAGE_FIELDS,
    IMAGE_RULE,
    MAX_IMAGES_IN,
    MAX_PROMPT_CHARACTERS,
    TASKS,
    BackgroundReplacement,
    Drawing,
    Edit,
    Lora,
    Request,
    seed_of,
)

MAX_FIELDS = 64  # more than any task has under all names; bounds what is said about them

# Names that hosted image APIs use for the same thing.
ALIASES = {
    "true_cfg_scale": "guidance_scale",
    "true_guidance_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "steps": "num_inference_steps",
    "n": "num_images",
    "num_outputs": "num_images",
    "num_images_per_prompt": "num_images",
    "image_format": "output_format",
    "output_compression": "output_quality",
    "image_urls": "images",
    "mask": "mask_image",
    "mask_url": "mask_image",
}


def parse(fields: Any, job_id: str, presets: Presets | None = None) -> Request:
    """The job's `input` as the request of its task, with what its preset sets.

    Raises `InvalidInput` naming the field, the rule and the value.
    """
    if not isinstance(fields, dict):
        raise InvalidInput(f"input must be an object, not {shown(fields)}")
    if len(fields) > MAX_FIELDS:
        raise InvalidInput(f"input must have at most {MAX_FIELDS} fields, not {len(fields)}")
    fields, sent_as = canonical(fields)
    task = fields.pop("task", None)
    task = implied_task(fields) if task is None else task
    if not isinstance(task, str) or task not in TASKS:
        raise InvalidInput(f"task must be one of {', '.join(TASKS)}, not {shown(task)}")
    model = TASKS[task]
    gather_images(fields, model, sent_as)
    try:
        request = model.model_validate(fields)
    except ValidationError as error:
        first = {str(one["loc"][:1]): one for one in reversed(error.errors(include_url=False))}
        raise InvalidInput("; ".join(sentence(one, model, sent_as) for one in reversed(first.values()))) from None
    if not isinstance(request, Drawing):
        return request
    if request.seed == -1:
        request = request.model_copy(update={"seed": seed_of(job_id)})
    return (presets or Presets()).applied(request)


def implied_task(fields: dict) -> str:
    if any(name in fields for name in IMAGE_FIELDS):
        return "edit"
    return "generate" if "prompt" in fields else "health"


def canonical(fields: dict) -> tuple[dict, dict[str, str]]:
    """The fields under their own names, and the alias each was sent as. Null counts as absent, twice is refused."""
    named, sent_as = {}, {}
    for key, value in fields.items():
        if value is None:
            continue
        if not isinstance(key, str) or not key.isprintable():
            raise InvalidInput(f"{shown(key)} is not the name of a field")
        if key == "size":
            width, height = split_size(value)
            pairs = {"width": width, "height": height}
        else:
            pairs = {ALIASES.get(key, key): value}
        for name, part in pairs.items():
            if name in named:
                raise InvalidInput(f"{name} is given twice, as {sent_as.get(name, name)} and as {key}")
            named[name] = part
            if name != key:
                sent_as[name] = key
    return named, sent_as


def split_size(value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[x*](\d{1,5})", value) if isinstance(value, str) else None
    if not match:
        raise InvalidInput(f"size must be WIDTHxHEIGHT in pixels, not {shown(value)}")
    return int(match[1]), int(match[2])


def gather_images(fields: dict, model: type[Request], sent_as: dict[str, str]) -> None:
    """image, image_url and images are three ways to give the same thing: exactly one may be used."""
    given = [name for name in IMAGE_FIELDS if name in fields]
    if not issubclass(model, Edit):
        if given:
            raise InvalidInput(f"{given[0]} is not taken by {model.task}; task edit takes it")
        return
    if len(given) != 1:
        raise InvalidInput(
            f"exactly one of {', '.join(IMAGE_FIELDS)} must be given, not {' and '.join(given) or 'none'}"
        )
    if isinstance(fields[given[0]], list) and len(fields[given[0]]) > MAX_IMAGES_IN:
        raise InvalidInput(f"images must be a list of 1 to {MAX_IMAGES_IN} images, not {shown(fields[given[0]])}")
    if given[0] != "images":
        fields["images"] = [fields.pop(given[0])]
        sent_as["images"] = given[0]


def sentence(error: dict, model: type[Request], sent_as: dict[str, str]) -> str:
    """One validation error in our words: the field, the rule, the value."""
    if not error["loc"]:
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    if name == "loras" and len(error["loc"]) > 1:
        return sentence_of_lora(error)
    label = f"{name} (sent as {sent_as[name]})" if name in sent_as else name
    if error["type"] == "missing":
        return f"{label} is required by {model.task}"
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return (
            f"{shown(name)} is not a field of {model.task}; its fields are {', '.join(public_fields(model)) or 'none'}"
        )
    if error["type"] == "value_error":
        return f"{label} {error['ctx']['error']}"
    if name == "mask_image" and model is BackgroundReplacement:
        return "mask_image is not taken by background_replacement; task edit takes it"
    value = shown(error["input"])
    if isinstance(error["input"], str) and len(error["input"]) > MAX_PROMPT_CHARACTERS:
        value = f"{len(error['input'])} characters"
    rule = rule_of(model, error["loc"])
    return f"{label} must be {rule}, not {value}"


def sentence_of_lora(error: dict) -> str:
    """The same for what is in one of `loras`."""
    _, number, *rest = error["loc"]
    label = f"loras[{number}]"
    if not rest:
        return f"{label} must be an object of path, scale, not {shown(error['input'])}"
    name = str(rest[0])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"{shown(name)} is not a field of {label}; its fields are {', '.join(Lora.model_fields)}"
    if error["type"] == "missing":
        return f"{label}.{name} is required"
    return f"{label}.{name} must be {Lora.model_fields[name].description}, not {shown(error['input'])}"


def rule_of(model: type[Request], loc: tuple) -> str:
    field = model.model_fields[loc[0]]
    if loc[0] == "images" and len(loc) > 1:
        return IMAGE_RULE
    if field.description:
        return field.description
    # An optional field keeps its rule in the first arm of the union.
    return next(
        meta.description
        for arm in getattr(field.annotation, "__args__", ())
        for meta in getattr(arm, "__metadata__", ())
        if getattr(meta, "description", None)
    )


def public_fields(model: type[Request]) -> list[str]:
    names = [name for name in model.model_fields if not (name == "mask_image" and model is BackgroundReplacement)]
    return [other for name in names for other in (IMAGE_FIELDS if name == "images" else (name,))]


def shown(value: Any) -> str:
    """A value as its JSON, short enough for a sentence."""
    if isinstance(value, (dict, list, tuple)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    try:
        text = json.dumps(value, ensure_ascii=True)
    except TypeError:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
