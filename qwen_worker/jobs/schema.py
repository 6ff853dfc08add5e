"""The JSON schema of a job's input, made of the request models and of what reads the fields of other APIs. Pure.

The schema accepts whatever the worker accepts. What the schema accepts and the worker refuses breaks a rule of
`BeyondSchema`, or is found in pictures, files and buckets, which are looked at later. Knows nothing of routes, nor of
replies.
"""

import json
from typing import Any, cast

from ..errors import BeyondSchema
from . import openai_images
from .aliases import ALIASES, OWN_MEANING, READERS, TRUE_GUIDANCE
from .containers import LORA_OR_PATH, LORA_PARTS, MAX_FIELDS, OBJECTS
from .expansion import MARGIN, SIDE_FIELDS
from .parsing import IDLE_FIELDS
from .request import DRAWING_FIELDS, IMAGE_FIELDS, Drawing, Edit, Generate, Request
from .schema_rules import MESSAGES, NO_LORA, NUMBERED_PICTURES, PICTURES, Rules, names_of, spelled
from .tasks import TASKS, Layers
from .values import NULL, JsonSchema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLACE = "#/$defs/{}"  # where a definition stands
CALLS = {route: "openai_" + route.rpartition("/")[2] for route in (*openai_images.TASKS, openai_images.MODELS)}
LORAS: JsonSchema = {"anyOf": [LORA_OR_PATH, {"type": "array", "items": LORA_OR_PATH}]}
FEW: JsonSchema = {"maxProperties": MAX_FIELDS}
NEVER: JsonSchema = {"not": {}}
SHORT = 80  # characters of a schema that is written as often as it is needed

OWN_MEANINGS = frozenset[str]().union(*OWN_MEANING.values())

Fields = dict[str, JsonSchema]  # by name


def job_schema() -> JsonSchema:
    """The schema of `input`."""
    return {"$schema": DIALECT, **input_schema(PLACE), "$defs": definitions(PLACE)}


def input_schema(place: str) -> JsonSchema:
    """The schema of `input` without its definitions, each of which it refers to by `place` with its name."""
    rules = "".join(f"\n- {rule}" for rule in BeyondSchema)
    return {
        "title": "The input of a job",
        "description": "A field with the value null counts as absent. An unknown field is refused here, also where the "
        "endpoint sets QWEN_UNKNOWN_FIELDS=warn. The worker may still refuse an input that this schema accepts: for "
        f"what is in its pictures, LoRAs and s3Config, or for one of these reasons.{rules}",
        "anyOf": [
            *({"$ref": place.format(name)} for name in (*TASKS, *CALLS.values())),
            {"type": "object", "maxProperties": 0, "description": "The task health. RunPod hands out no such job."},
        ],
    }


def definitions(place: str) -> dict[str, JsonSchema]:
    """By name: the schemas of each task's input and of each call of OpenAI's, and what these are made of."""
    found: dict[str, JsonSchema] = {"messages": MESSAGES}
    for shared, base in (("drawing_fields", Drawing), ("report_fields", Request)):
        models = [model for model in TASKS.values() if issubclass(model, Drawing) is issubclass(base, Drawing)]
        all_own = [own_fields(model) for model in models]
        common = {
            name: schema for name, schema in own_fields(base).items() if all(own.get(name) == schema for own in all_own)
        }
        taken = {name for own in all_own for name in own}
        fields = fields_of(common, place.format(shared)) | fields_without_effect(common, taken)
        found[shared] = fields_schema(fields, place.format(shared))
        for model, own in zip(models, all_own, strict=True):
            found |= task_definitions(
                model, {name: own[name] for name in own if name not in common}, fields, place, shared
            )
    return found | {CALLS[openai_images.MODELS]: call_schema(openai_images.MODELS, {})}


def task_definitions(
    model: type[Request], own: Fields, common: Fields, place: str, shared: str
) -> dict[str, JsonSchema]:
    """The definitions of one task. `own`: the fields that it alone has; `common`: the others, with all their names."""
    task, found = model.task, dict[str, JsonSchema]()
    own_place = place.format(f"{task}_fields")
    if issubclass(model, Drawing):
        own = {name: schema for name, schema in IDLE_FIELDS.items() if name not in common} | own
    fields = {"task": {"enum": [task, None]}, **fields_of(own, own_place)}
    if issubclass(model, Drawing):
        fields = idle_elsewhere({*own, *common}) | fields
    # An empty list of references is left out, whatever the task.
    fields["reference_images"] = one_of(*([PICTURES] if "images" in own else []), {"const": []}, NULL)
    found[f"{task}_fields"] = fields_schema(fields, own_place)
    parts = [{"$ref": place.format(shared)}, {"$ref": own_place}]
    carriers: Fields = {"inputs": {}, "messages": {"$ref": place.format("messages")}} if "prompt" in common else {}
    containers: Fields = {}
    for name in reversed(OBJECTS):  # `extra_body` may also stand within `parameters`
        found[f"{task}_{name}"] = closed_object(parts, carriers | containers, carriers) | FEW
        containers[name] = {"anyOf": [{"$ref": place.format(f"{task}_{name}")}, NULL]}
    rules, many = Rules([*common, *fields], place), carriers | containers
    if "prompt" in common:
        guidance = refer_to(place.format(shared), TRUE_GUIDANCE[0])
        parts += [*rules.of_prompts(model.needs_prompt), *rules.of_pictures(issubclass(model, Edit | Layers))]
        parts += [*rules.of_guidance(guidance), *rules.of_loras()]
    if model is Generate:
        parts += rules.of_start(optional(DRAWING_FIELDS["strength"]))
    for route in [route for route, one in openai_images.TASKS.items() if one == task]:
        said = dict.fromkeys(openai_images.ROUTE_SAYS, NULL)
        found[CALLS[route]] = call_schema(route, closed_object(parts, many | said, many))
    named = [] if model is Edit else [rules.some("task", "task")]
    if model is Generate:  # a job without a task is an edit where it has a picture
        named = [{"anyOf": [*named, rules.without_pictures()]}]
    whole = closed_object([*parts, *named], {**many, "openai_route": NEVER}, many)
    found[task] = {"title": f"Task {task}", "description": model.__doc__, **whole, **FEW}
    return found | rules.definitions


def fields_of(own: Fields, place: str) -> Fields:
    """The schemas of fields of ours, which stand at the place, by all their names."""
    fields = {name: optional(schema) for name, schema in own.items()}
    fields |= {name: refer_to(place, target) for name, target in ALIASES.items() if target in own}
    for name, reader in READERS.items():
        if name in OWN_MEANINGS and name in fields:
            continue
        if reader.schema is not None and set(reader.gives) <= set(own):
            forms = [reader.schema] if reader.idle is None else [reader.schema, reader.idle]
            fields[name] = optional(one_of(*forms), own.get(name))
    if "guidance_scale" in own:
        first, *others = TRUE_GUIDANCE
        fields |= {first: fields["guidance_scale"], **{name: refer_to(place, first) for name in others}}
        beside = {"description": f"The same as {first}, beside which it has no effect."}
        fields |= {name: beside for name in names_of("guidance_scale", fields) if name not in TRUE_GUIDANCE}
    if "expand" in own:
        fields |= dict.fromkeys(SIDE_FIELDS, one_of(MARGIN, NULL))
    return fields


def idle_elsewhere(names: set[str]) -> Fields:
    """The schemas of fields that some tasks take, as far as they have no effect where only `names` are taken."""
    taken = {name for model in TASKS.values() if issubclass(model, Drawing) for name in own_fields(model)}
    return {
        name: optional(reader.idle)
        for name, reader in READERS.items()
        if reader.idle is not None
        and name not in names
        and (name in OWN_MEANINGS or (reader.gives and set(reader.gives) <= taken - names))
    }


def fields_without_effect(own: Fields, taken: set[str]) -> Fields:
    """The schemas of fields that are understood without these fields of ours, as far as they have no effect.

    `taken`: the fields that some task takes.
    """
    fields = {
        name: optional(reader.idle)
        for name, reader in READERS.items()
        if reader.idle is not None and name not in OWN_MEANINGS and not (reader.gives and set(reader.gives) <= taken)
    }
    for names, scale in LORA_PARTS:
        fields |= dict.fromkeys(names, one_of(LORAS, NO_LORA) if "loras" in own else NO_LORA)
        fields[scale] = {}  # `Rules.of_loras` says when it has limits
    return fields


def own_fields(model: type[Request]) -> Fields:
    """The fields that the task takes, by the names that stand in jobs."""
    found: Fields = model.model_json_schema().get("properties", {})
    fields = {name: plain(schema) for name, schema in found.items() if schema.get("type") != "null"}
    if "images" in fields:
        # One name gives a picture or a list of pictures, whichever it is; `images` must be a list.
        fields |= {name: PICTURES for name in IMAGE_FIELDS if name != "images"}
        fields["images"] = {**fields["images"], "minItems": 0}  # an empty list is left out beside another picture
    if model is Generate:
        del fields["strength"]  # which any value may have, as far as it has no effect
    return fields


def fields_schema(fields: Fields, place: str) -> JsonSchema:
    """The schema of objects that have these fields, and perhaps others. It stands at the place.

    A long schema of several fields is written once, and the others refer to it.
    """
    groups: dict[str, list[str]] = {}  # names of fields by their schema's text
    for name, schema in fields.items():
        groups.setdefault(json.dumps(schema), []).append(name)
    properties, patterns = dict(fields), dict[str, JsonSchema]()
    for text, (first, *others) in groups.items():
        short = fields[first] if len(text) <= SHORT else refer_to(place, first)
        properties |= dict.fromkeys(others, short)
        patterns[spelled(first, *others)] = short
    if "images" in fields:
        patterns[NUMBERED_PICTURES] = PICTURES
    return {"type": "object", "properties": properties, "patternProperties": patterns}


def closed_object(parts: list[JsonSchema], fields: Fields, spelled_freely: Fields) -> JsonSchema:
    """The schema of objects that have the fields of the parts and these, and no others."""
    patterns = {spelled(name): schema for name, schema in spelled_freely.items()}
    return {
        "type": "object",
        "allOf": list(parts),
        "properties": fields,
        "patternProperties": patterns,
        "unevaluatedProperties": NULL,
    }


def call_schema(route: str, asked: JsonSchema) -> JsonSchema:
    """The schema of a job that holds a call of OpenAI's. `asked`: the schema of what the call asks for."""
    return {
        "title": f"OpenAI's {route}",
        "type": "object",
        "properties": {"openai_route": {"const": route}, "openai_input": asked},
        "required": ["openai_route", *(["openai_input"] if asked else [])],
        "additionalProperties": False,
    }


def plain(schema: Any) -> Any:
    """pydantic's schema without titles, which repeat names."""
    if isinstance(schema, list):
        return [plain(one) for one in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    given = cast(JsonSchema, schema)
    return {key: plain(value) for key, value in given.items() if key != "title" or isinstance(value, dict)}


def optional(schema: JsonSchema, notes_of: JsonSchema | None = None) -> JsonSchema:
    """The schema with null; what describes it, or the other one, stands at its top."""
    described = schema if notes_of is None else notes_of
    notes = {key: described[key] for key in ("description", "default") if described.get(key) is not None}
    return one_of({key: value for key, value in schema.items() if key not in ("description", "default")}, NULL) | notes


def one_of(*schemas: JsonSchema) -> JsonSchema:
    """The schema of what at least one of them accepts."""
    if {} in schemas:
        return {}
    found: list[JsonSchema] = []
    for schema in schemas:
        found += [one for one in (schema["anyOf"] if list(schema) == ["anyOf"] else [schema]) if one not in found]
    return {"anyOf": found}


def refer_to(place: str, name: str) -> JsonSchema:
    """The schema of a field of the definition at the place."""
    return {"$ref": f"{place}/properties/{name}"}
