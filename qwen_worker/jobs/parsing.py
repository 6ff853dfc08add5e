"""A job's `input` as the request of its task, or the sentence that refuses it: the field, the rule and the value.

The rules themselves stand in `request.py`. Knows nothing of torch, diffusers or the SDK.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..errors import BeyondSchema, InvalidInput
from ..model_settings import Role
from ..preset_settings import Preset
from ..settings import UnknownFields
from .aliases import Fields
from .checks import with_checks
from .containers import LORA_NAMES, require_few
from .control import require_controlnet
from .field_types import Lora
from .other_apis import NEXT_PRESETS, check_model
from .presets import Presets
from .refusals import UNKNOWN, beyond_schema, describe_error, did_you_mean, public_fields
from .request import IMAGE_FIELDS, MAX_IMAGES_IN, MAX_STARTS, START_STRENGTH, Drawing, Edit, Request, seed_of
from .sizes_asked import join_sizes
from .tasks import TASKS, Layers
from .values import JsonSchema, Warn, agree, ignore, read_number, short_json

if TYPE_CHECKING:
    from pydantic import JsonValue

# By field that a task which draws leaves out where it has none of that name, the schema of its values.
IDLE_FIELDS: dict[str, JsonSchema] = {"model": {"type": "string"}, "strength": {}}


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
        require_served_task(task, presets.settings.served_roles)
    gather_images(fields, model, sent_as)
    if issubclass(model, Drawing):
        leave_out(fields, model, sent_as, models or {}, warn)
        require_controlnet(fields, task, presets.settings.QWEN_CONTROLNET is not None, sent_as)
    if presets.settings.QWEN_UNKNOWN_FIELDS is UnknownFields.WARN:
        drop_unknown(fields, model, warn)
    if issubclass(model, Drawing) and not model.needs_prompt:
        fields.setdefault("prompt", "")
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
    request = with_start(join_sizes(request, sent_as), sent_as, warn)
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
    if "strength" in fields and not issubclass(model, Edit) and (issubclass(model, Layers) or not fields.get("images")):
        strength = fields.pop("strength")
        if read_number(strength) != 1:
            label = sent_as.get("strength", "strength")
            why = f"in task {model.task}" if issubclass(model, Layers) else "without an input picture"
            warn(f"{label} {short_json(strength)} has no effect {why}")


def with_start(request: Drawing, sent_as: Mapping[str, str], warn: Warn) -> Drawing:
    """The request with a strength where generate begins with a picture: 1, as for edits, would leave nothing of it."""
    if isinstance(request, Edit | Layers) or not request.images or request.starts_from_picture:
        return request
    if "strength" not in request.model_fields_set:
        return request.model_copy(update={"strength": START_STRENGTH})
    warn(f"{sent_as.get('strength', 'strength')} 1 leaves nothing of the input picture: the prompt alone is drawn")
    return request


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

    Raises `InvalidInput` unless exactly one of the three is used by an edit, and none by a task that draws nothing.
    """
    names = [name for name in IMAGE_FIELDS if name in fields]
    if not issubclass(model, Drawing):
        if names:
            raise InvalidInput(f"{names[0]} is not taken by {model.task}; task edit takes it")
        return
    if not names and not issubclass(model, Edit | Layers):
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
    if isinstance(value, list) and len(value) > 1 and issubclass(model, Layers):
        sentence = f"task layers takes one image, not {len(value)}: send a job for each"
        raise InvalidInput(sentence, BeyondSchema.TOGETHER)
    if isinstance(value, list) and len(value) > MAX_STARTS and not issubclass(model, Edit):
        sentence = f"images must hold one image at most for {model.task}, which begins with it, not {len(value)}"
        raise InvalidInput(f"{sentence}; task edit takes several", BeyondSchema.TOGETHER)
    if isinstance(value, list) and len(value) > MAX_IMAGES_IN:
        sentence = f"images must be a list of 1 to {MAX_IMAGES_IN} images, not {short_json(value)}"
        raise InvalidInput(sentence, BeyondSchema.TOGETHER)
    fields["images"] = value
    if name != "images":
        sent_as["images"] = sent_as.get(name, name)
