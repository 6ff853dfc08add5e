"""A job's `input` as the request of its task, or the sentence that refuses it: the field, the rule and the value.

The rules themselves stand in `request.py`. Knows nothing of torch, diffusers or the SDK.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..errors import BeyondSchema, InvalidInput
from ..preset_settings import Preset
from ..settings import Role, UnknownFields
from .aliases import ALIASES, Fields
from .checks import with_checks
from .containers import LORA_NAMES, require_few
from .other_apis import NEXT_PRESETS, check_model
from .presets import Presets
from .request import (
    IMAGE_FIELDS,
    IMAGE_RULE,
    MASK_FIELDS,
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
from .served import nearest_sides
from .sizes_asked import join_sizes
from .values import DECIMAL, MAX_EXACT, JsonSchema, Warn, agree, ignore, read_number, short_json

if TYPE_CHECKING:
    from pydantic import JsonValue
    from pydantic_core import ErrorDetails

# What people call the prompt; none of them resembles the word.
PROMPT_NAMES = ("text", "caption", "description", "instruction", "query", "input_text")
# pydantic's errors of lists, texts and numbers outside their limits
LENGTHS = ("too_short", "too_long", "string_too_long")
UNKNOWN = ("extra_forbidden", "invalid_key")
BOUNDS = ("greater_than", "greater_than_equal", "less_than_equal", "multiple_of")
# By field that a task which draws leaves out where it has none of that name, the schema of its values.
IDLE_FIELDS: dict[str, JsonSchema] = {"model": {"type": "string"}, "strength": {}}
MAX_NAME = 40  # characters of an unknown name that are compared with the fields' names
CLOSE = 0.8  # a name that resembles a field's by less may mean a picture, if it has one of these words
PICTURE_NAME = re.compile(r"image|img|picture|photo|base64|b64|^(?:file|src|source|pic)(?:_|$)", re.IGNORECASE)


def parse(
    job_input: "JsonValue",
    job_id: str,
    presets: Presets | None = None,
    warn: Warn = ignore,
    models: Mapping[str, str] | None = None,
) -> Request:
    """The job's `input` as the request of its task, completed by its preset and its seed.

    `warn` is told what is understood and not done as asked. `models`: the names of the endpoint's models by task.
    Raises `InvalidInput` naming the field, the rule and the value.
    """
    if not isinstance(job_input, dict):
        raise InvalidInput(f"input must be an object, not {short_json(job_input)}")
    require_few(job_input)
    sent = Fields(job_input, warn)
    fields, sent_as = sent.values, sent.sent_as
    task = fields.pop("task", None)
    task = implied_task(fields, job_input) if task is None else task
    if not isinstance(task, str) or task not in TASKS:
        raise InvalidInput(f"task must be one of {', '.join(TASKS)}, not {short_json(task)}")
    model, presets = TASKS[task], presets or Presets()
    if issubclass(model, Drawing):
        require_served_task(task, presets.settings.QWEN_TASKS)
    gather_images(fields, model, sent_as)
    if issubclass(model, Drawing):
        leave_out(fields, model, sent_as, models or {}, warn)
    if presets.settings.QWEN_UNKNOWN_FIELDS is UnknownFields.WARN:
        drop_unknown(fields, model, warn)
    try:
        request = model.model_validate(fields)
    except ValidationError as error:
        details = error.errors(include_url=False)
        first_by_field = {str(detail["loc"][:1]): detail for detail in reversed(details)}
        sentences = [describe_error(detail, model, sent_as) for detail in reversed(first_by_field.values())]
        beyond = [beyond_schema(detail, sent) for detail in details]
        if any(detail["type"] in UNKNOWN and len(detail["loc"]) == 1 for detail in details):
            sentences.append(f"its fields are {', '.join(public_fields(model)) or 'none'}")
        raise InvalidInput("; ".join(sentences), *(filter(None, beyond) if all(beyond) else ())) from None
    if not isinstance(request, Drawing):
        return request
    request = join_sizes(request, sent_as)
    request = with_checks(request, presets.settings, sent_as, warn)
    if request.output_format == "png" and request.output_quality is not None:
        name = sent_as.get("output_quality", "output_quality")
        warn(f"{name} {request.output_quality} has no effect with output_format png")
    if request.seed == -1:
        request = request.model_copy(update={"seed": seed_of(job_id)})
    request = presets.apply(grant_speed(request, presets, sent_as, warn), warn)
    for sentence in presets.warnings_of(request):
        warn(sentence)
    return request


def require_served_task(task: str, served: Collection[Role]) -> None:
    """Refuse a task whose model this endpoint does not have. Raises `InvalidInput`."""
    if Role.of(task) not in served:
        names = [name for name, model in TASKS.items() if issubclass(model, Drawing) and Role.of(name) in served]
        sentence = f"task {task} is not served by this endpoint, which serves {' and '.join(names)}"
        raise InvalidInput(sentence, BeyondSchema.ENDPOINT)


def grant_speed(request: Drawing, presets: Presets, sent_as: Mapping[str, str], warn: Warn) -> Drawing:
    """The request with a preset that is served, where a field of another API asks for fast.

    Fast then brings its steps and guidance too: clients send their host's own defaults along.
    """
    asked_by, role = sent_as.get("preset", ""), Role.of(request.task)
    if request.preset != Preset.FAST or asked_by not in NEXT_PRESETS:
        return request
    if reason := presets.obstacle(Preset.FAST, role):
        preset = NEXT_PRESETS[asked_by]
        warn(f"{asked_by} asks for preset 'fast', and the picture is drawn by '{preset}': {reason}")
        return request.model_copy(update={"preset": preset})
    values = presets.values(Preset.FAST, role)
    others = [
        f"{sent_as.get(name, name)} {getattr(request, name):g}"
        for name, value in values.items()
        if name in request.model_fields_set and getattr(request, name) != value
    ]
    if others:
        steps, guidance = values.values()
        warn(
            f"{' and '.join(others)} {'are' if len(others) > 1 else 'is'} left out: {asked_by} asks for preset 'fast', "
            f"which draws {steps} steps at guidance_scale {guidance:g}"
        )
    return request.model_copy(update=values)


def implied_task(fields: "dict[str, JsonValue]", job_input: "dict[str, JsonValue]") -> str:
    """The task of a job that names none. Raises `InvalidInput` for fields without a prompt or an image among them."""
    if any(name in fields for name in IMAGE_FIELDS):
        return "edit"
    if "prompt" in fields:
        return "generate"
    if not job_input:
        return "health"
    if "prompt" in job_input:
        raise InvalidInput("prompt is required, and this prompt is null: send a text")
    rule = "prompt is required where task is not given and the input is not empty"
    names = [short_json(name) for name, value in job_input.items() if value is not None] or ["nulls"]
    hint = next(filter(None, (did_you_mean(name, ["prompt"]) for name in job_input)), "")
    raise InvalidInput(f"{rule}; this input has only {', '.join(names)}{hint}")


def leave_out(
    fields: "dict[str, JsonValue]",
    model: type[Drawing],
    sent_as: Mapping[str, str],
    models: Mapping[str, str],
    warn: Warn,
) -> None:
    """Leave out the name of the model, and a strength where there is no picture, as other APIs' defaults have it."""
    if "model" in fields:
        check_model(fields.pop("model"), models.get(Role.of(model.task).value), model.task, warn)
    if "strength" in fields and not issubclass(model, Edit):
        strength = fields.pop("strength")
        if read_number(strength) != 1:
            label = sent_as.get("strength", "strength")
            warn(f"{label} {short_json(strength)} has no effect without an input picture")


def drop_unknown(fields: "dict[str, JsonValue]", model: type[Request], warn: Warn) -> None:
    """Leave out what is no field of the task, with a warning for each."""
    known = public_fields(model)
    for name in [name for name in fields if name not in known]:
        del fields[name]
        warn(f"{short_json(name)} is not a field of {model.task}{did_you_mean(name, known)}, and has no effect")
    loras = fields.get("loras")
    for number, lora in enumerate(loras if isinstance(loras, list) else ()):
        if isinstance(lora, dict):  # of the names in `LORA_NAMES`, only those are left that are given twice
            for name in [name for name in lora if name not in (*Lora.model_fields, *LORA_NAMES)]:
                del lora[name]
                warn(f"{short_json(name)} is not a field of loras[{number}], and has no effect")


def gather_images(fields: "dict[str, JsonValue]", model: type[Request], sent_as: dict[str, str]) -> None:
    """Bring image and image_url, two other ways to give one picture, into the form of images.

    Raises `InvalidInput` unless exactly one of the three is used by an edit, and none by another task.
    """
    names = [name for name in IMAGE_FIELDS if name in fields]
    if not issubclass(model, Edit):
        if names:
            raise InvalidInput(f"{names[0]} is not taken by {model.task}; task edit takes it")
        return
    if not names:
        raise InvalidInput(f"exactly one of {', '.join(IMAGE_FIELDS)} must be given, not none")
    # One name gives a picture or a list of pictures, whichever it is; `images` must be a list.
    given: dict[str, JsonValue] = {}
    for name in names:
        one = fields.pop(name)
        single: list[JsonValue] = [one]
        given[name] = one if isinstance(one, list) or name == "images" else single
    name, value = next(iter(given.items()))
    if not all(agree(other, value) for other in given.values()):
        sentence = f"exactly one of {', '.join(IMAGE_FIELDS)} must be given, not {' and '.join(names)}"
        raise InvalidInput(sentence, BeyondSchema.TWICE)
    if isinstance(value, list) and len(value) > MAX_IMAGES_IN:
        sentence = f"images must be a list of 1 to {MAX_IMAGES_IN} images, not {short_json(value)}"
        raise InvalidInput(sentence, BeyondSchema.TOGETHER)
    fields["images"] = value
    if name != "images":
        sent_as["images"] = sent_as.get(name, name)


def beyond_schema(error: "ErrorDetails", fields: Fields) -> BeyondSchema | None:
    """The rule that one of pydantic's errors breaks, where the schema of a job cannot say it."""
    kind, name = error["type"], str(error["loc"][0]) if error["loc"] else ""
    if kind == "value_error":
        return getattr(error.get("ctx", {})["error"], "beyond_schema", None)
    if kind in ("finite_number", "string_unicode"):
        return BeyondSchema.NOT_JSON
    if kind == "int_type" and isinstance(error["input"], float) and abs(error["input"]) > MAX_EXACT:
        return BeyondSchema.LARGE_FLOAT
    if kind in BOUNDS and any(map(has_number_as_text, fields.origins(name))):
        return BeyondSchema.TEXT_NUMBER
    if kind == "extra_forbidden" and name == "loras" and error["loc"][-1] in LORA_NAMES:
        return BeyondSchema.TWICE
    if kind == "too_short" and name == "images":
        return BeyondSchema.TOGETHER  # an empty list beside no other picture
    # Lists and texts that are made of several fields
    return BeyondSchema.TOGETHER if kind in LENGTHS and name not in fields.sent else None


def has_number_as_text(value: "JsonValue") -> bool:
    """Whether the value is, or holds, a text that is read as a number. It may be deeper than calls can be."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and DECIMAL.fullmatch(one):
            return True
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return False


def describe_error(error: "ErrorDetails", model: type[Request], sent_as: dict[str, str]) -> str:
    """One of pydantic's errors in our words: the field, the rule, the value."""
    if not error["loc"]:
        return str(error.get("ctx", {})["error"])
    name = str(error["loc"][0])
    if name == "loras" and len(error["loc"]) > 1:
        return describe_lora_error(error)
    label = f"{name} (sent as {sent_as[name]})" if name in sent_as else name
    if error["type"] == "missing":
        return f"{label} is required by {model.task}"
    if error["type"] in UNKNOWN:
        return f"{short_json(name)} is not a field of {model.task}{did_you_mean(name, public_fields(model))}"
    if error["type"] == "value_error":
        return f"{label} {error.get('ctx', {})['error']}"
    if name in MASK_FIELDS and model is BackgroundReplacement:
        return f"{name} is not taken by background_replacement; task edit takes it"
    value = short_json(error["input"])
    if isinstance(error["input"], str) and len(error["input"]) > MAX_PROMPT_CHARACTERS:
        value = f"{len(error['input'])} characters"
    nearest = nearest_sides(int(error["input"])) if error["type"] == "multiple_of" else ""
    return f"{label} must be {rule_of(model, error['loc'])}, not {value}{nearest}"


def did_you_mean(name: str, fields: list[str]) -> str:
    """The words that ask for the field which an unknown name resembles; nothing where it resembles none."""
    if name in Edit.model_fields and "prompt" in fields:
        return " (task edit takes it)"
    if name in PROMPT_NAMES and "prompt" in fields:
        return " (did you mean prompt?)"
    own = {alias: own for alias, own in ALIASES.items() if own in fields} | {one: one for one in fields}
    near = difflib.get_close_matches(name[:MAX_NAME], own, 1)
    is_close = difflib.get_close_matches(name[:MAX_NAME], near, 1, CLOSE)
    if not is_close and "prompt" in fields and PICTURE_NAME.search(name):
        return " (did you mean image?)" if "image" in fields else " (did you mean image? task edit takes it)"
    return f" (did you mean {near[0]}?)" if near else ""


def describe_lora_error(error: "ErrorDetails") -> str:
    """An error within one of `loras` in our words: the LoRA's number, its field, the rule, the value."""
    _, number, *rest = error["loc"]
    label = f"loras[{number}]"
    if not rest:
        return f"{label} must be an object of path, scale, not {short_json(error['input'])}"
    name = str(rest[0])
    if error["type"] in UNKNOWN:
        return f"{short_json(name)} is not a field of {label}; its fields are {', '.join(Lora.model_fields)}"
    if error["type"] == "missing":
        return f"{label}.{name} is required"
    return f"{label}.{name} must be {Lora.model_fields[name].description}, not {short_json(error['input'])}"


def rule_of(model: type[Request], place: "tuple[int | str, ...]") -> str:
    """The rule of the field that a place begins with; of one of `images` the rule for a single one."""
    name = str(place[0])
    if name == "images" and len(place) > 1:
        return IMAGE_RULE
    field = model.model_fields[name]
    if field.description:
        return field.description
    # The type of an optional field is a union, whose first member keeps the rule.
    return next(
        metadata.description
        for member in getattr(field.annotation, "__args__", ())
        for metadata in getattr(member, "__metadata__", ())
        if getattr(metadata, "description", None)
    )


def public_fields(model: type[Request]) -> list[str]:
    """The names of the task's fields, without aliases."""
    names = [name for name in model.model_fields if not (name in MASK_FIELDS and model is BackgroundReplacement)]
    return [public for name in names for public in (IMAGE_FIELDS if name == "images" else (name,))]
