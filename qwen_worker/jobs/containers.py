"""Fields that other APIs hold in objects, in lists or in several numbered fields, brought into fields of ours. Pure.

Knows nothing of limits but the number of fields: `request.py` has them.
"""

import re
from typing import TYPE_CHECKING

from ..errors import BeyondSchema, InvalidInput
from .field_types import PICTURE_SCHEMA, TEXT_SCHEMA
from .request import LORA_FIELDS
from .values import NULL, JsonSchema, Warn, agree, short_json

if TYPE_CHECKING:
    from pydantic import JsonValue

    Sent = dict[str, JsonValue]  # what a job sends, by name; the functions here change it

MAX_FIELDS = 64  # more than any task has under all names; bounds the length of a refusal, which names every bad field
OBJECTS = ("parameters", "extra_body")  # whose fields are fields of the job
MAIN_PICTURES = ("image", "image_url", "image_base64", "url", "input_image", "seed_image")
LISTS_OF_PICTURES = ("images", "image_urls", "input_images", "init_images")
# How a picture begins that is sent as base64, whose lines have at least 64 characters, or a text that is a URL and
# nothing else: no prompt is one.
PICTURE_TEXT = re.compile(
    r"\s*(?:data:image/|iVBORw0KGgo|/9j/|UklGR|R0lGOD|[A-Za-z0-9+/_-]{64}|https?://\S+\s*$)", re.IGNORECASE
)
NUMBERED = re.compile(r"(?:input_)?image(?:_url|_base64)?_?([1-9])")
# Of each LoRA that other APIs give in fields of their own: the names of its path, and the name of its scale.
LORA_PARTS = (
    (("lora_weights", "lora", "replicate_weights"), "lora_scale"),
    (("extra_lora", "extra_lora_weights"), "extra_lora_scale"),
    (("lora_2",), "lora_2_scale"),
)
# Names of a LoRA's path and of its scale within an object.
LORA_NAMES = {"weight": "scale", "strength": "scale", "url": "path", "model": "path", "local_path": "path"}
# By field of such an object, why it has no effect.
LORA_NO_EFFECT = {
    "int_id": "it has no effect: the path alone says which LoRA it is",
    "weight_name": "it has no effect: path names a file of a repository, as ORG/NAME/FILE.safetensors",
}
PATH_NAMES = ("path", *(name for name, own in LORA_NAMES.items() if own == "path"), "name")
PATH: JsonSchema = {"anyOf": [LORA_FIELDS["path"], NULL]}
SCALE: JsonSchema = {"anyOf": [LORA_FIELDS["scale"], NULL]}
LORA: JsonSchema = {
    "type": "object",
    "properties": {
        "scale": SCALE,
        **{name: SCALE if own == "scale" else PATH for name, own in {**LORA_NAMES, "path": "path"}.items()},
        **{name: {} for name in ("name", *LORA_NO_EFFECT)},
    },
    "anyOf": [{"required": [name], "properties": {name: LORA_FIELDS["path"]}} for name in PATH_NAMES],
    "additionalProperties": NULL,
}
LORA_OR_PATH: JsonSchema = {"anyOf": [LORA, LORA_FIELDS["path"]]}
MESSAGE_PICTURE: JsonSchema = {
    "anyOf": [PICTURE_SCHEMA, {"type": "object", "properties": {"url": PICTURE_SCHEMA}, "required": ["url"]}]
}
HAS_PICTURE: JsonSchema = {
    "anyOf": [
        {"properties": {"image": MESSAGE_PICTURE}, "required": ["image"]},
        {"properties": {"image": False, "image_url": MESSAGE_PICTURE}, "required": ["image_url"]},
    ],
}
PICTURE_PART: JsonSchema = {
    "type": "object",
    "properties": {"text": {"anyOf": [{"not": {"type": "string"}}, TEXT_SCHEMA]}},
    **HAS_PICTURE,
}
TEXT_PART: JsonSchema = {
    "type": "object",
    "properties": {"text": TEXT_SCHEMA},
    "required": ["text"],
    "not": HAS_PICTURE,
}


def messages_schema(*parts: JsonSchema) -> JsonSchema:
    """The schema of `messages` whose content is a text or parts of these kinds."""
    content = {"anyOf": [TEXT_SCHEMA, {"type": "array", "items": {"anyOf": list(parts)}}]}
    message = {"type": "object", "properties": {"content": content}, "required": ["content"]}
    return {"type": "array", "items": message, "minItems": 1, "maxItems": 1}


MESSAGES_RULE = "a list of one message of the user, with a text and perhaps pictures: or send prompt and images"


def require_few(fields: "Sent", name: str = "input") -> None:
    """Refuse an object with more fields than any task has. Raises `InvalidInput`."""
    if len(fields) > MAX_FIELDS:
        raise InvalidInput(f"{name} must have at most {MAX_FIELDS} fields, not {len(fields)}", BeyondSchema.COUNT)


def open_objects(sent: "Sent") -> None:
    """Bring the fields within `parameters` and `extra_body` to the others."""
    for name in OBJECTS:
        if name not in sent:
            continue
        inner = sent.pop(name)
        if not isinstance(inner, dict):
            raise InvalidInput(f"{name} must be an object of fields, not {short_json(inner)}")
        require_few(inner, name)
        for key, value in inner.items():
            if value is not None:
                put(sent, key, value, f"{name}.{key}")
    require_few(sent)


def read_carriers(sent: "Sent") -> None:
    """Bring the prompt and the pictures that `inputs` and `messages` hold to the other fields."""
    if "inputs" in sent:  # Hugging Face's: the prompt, or the picture where the prompt is in `parameters`
        inputs, name = sent.pop("inputs"), "image" if "prompt" in sent else "prompt"
        if name == "prompt" and isinstance(inputs, str) and PICTURE_TEXT.match(inputs):
            sentence = "prompt is required: inputs is a picture here; send the prompt in parameters"
            raise InvalidInput(sentence, BeyondSchema.TOGETHER)
        put(sent, name, inputs, "inputs")
    if "messages" in sent:
        for name, value in read_messages(sent.pop("messages")).items():
            put(sent, name, value, "messages")


def put(sent: "Sent", name: str, value: "JsonValue", label: str) -> None:
    """Set the field. Raises `InvalidInput` where it is there with another value."""
    if name in sent and not agree(sent[name], value):
        sentence = f"{name} is given twice, as {name} and as {label}, and the two differ: send one of them"
        raise InvalidInput(sentence, BeyondSchema.TWICE)
    sent[name] = value


def read_messages(messages: "JsonValue") -> "Sent":
    """The prompt and the pictures of a chat's only message, as DashScope and OpenAI's chat clients write it."""
    message = messages[0] if isinstance(messages, list) and len(messages) == 1 else None
    content = message.get("content") if isinstance(message, dict) else None
    texts: list[str] = []
    pictures: list[JsonValue] = []
    for part in content if isinstance(content, list) else [content]:
        fields = part if isinstance(part, dict) else {"text": part}
        picture, text = fields.get("image") or fields.get("image_url"), fields.get("text")
        picture = picture.get("url") if isinstance(picture, dict) else picture
        has_picture = isinstance(picture, str) and picture != ""
        if has_picture:
            pictures.append(picture)
        if isinstance(text, str):
            texts.append(text)
        elif not has_picture:
            raise InvalidInput(f"messages must be {MESSAGES_RULE}")
    read: Sent = {"prompt": "\n".join(texts)}
    if pictures:
        read["images"] = pictures
    return read


def gather_pictures(sent: "Sent") -> None:
    """Bring numbered pictures, and references beside a main picture, into `images` in their order.

    Raises `InvalidInput` where `images` is given too, and where two fields of one number differ.
    """
    if sent.get("reference_images") == []:
        del sent["reference_images"]
    drop_empty_lists(sent)
    main = next((name for name in MAIN_PICTURES if name in sent), None)
    numbered: dict[int, str] = {}
    for name in [name for name in sent if NUMBERED.fullmatch(name)]:
        first = numbered.setdefault(int(name[-1]), name)
        if first != name and not agree(sent[first], sent[name]):
            sentence = f"{first} and {name} are one picture, and the two differ: send one of them"
            raise InvalidInput(sentence, BeyondSchema.TWICE)
        if first != name:
            del sent[name]
    if main and 1 in numbered and agree(sent[main], sent[numbered[1]]):
        del sent[numbered.pop(1)]  # the main picture, counted as the first
    names = [numbered[number] for number in sorted(numbered)]
    if "reference_images" in sent and (main or names):
        names.append("reference_images")
    if not names:
        return
    if "images" in sent:
        sentence = f"images is given twice, as {names[0]} and as images: send images alone"
        raise InvalidInput(sentence, BeyondSchema.TWICE)
    pictures: list[JsonValue] = []
    for name in [main, *names] if main else names:
        picture = sent.pop(name)
        pictures += picture if isinstance(picture, list) else [picture]
    sent["images"] = pictures


def drop_empty_lists(sent: "Sent") -> None:
    """Leave out lists without a picture, as other APIs' defaults have them, where another field has pictures."""
    names = [name for name in sent if name in (*MAIN_PICTURES, *LISTS_OF_PICTURES) or NUMBERED.fullmatch(name)]
    empty = [name for name in names if sent[name] == []]
    if len(empty) < len(names) or "reference_images" in sent:
        for name in empty:
            del sent[name]


def gather_loras(sent: "Sent") -> "list[str]":
    """Bring the LoRAs that have fields of their own into `loras`. Returns the names of scales without a LoRA.

    Raises `InvalidInput` where `loras` is given too, and where it is open which LoRA has which scale.
    """
    found: list[JsonValue] = []
    used: list[str] = []
    idle: list[str] = []
    for names, scale_name in LORA_PARTS:
        for name in [name for name in names if sent.get(name) in ("", [])]:
            del sent[name]  # an empty one, as forms and other APIs' defaults have it
        given = [name for name in names if name in sent]
        if not given:
            if sent.pop(scale_name, None) is not None:
                idle.append(scale_name)
            continue
        if len(given) != 1:
            sentence = f"{' and '.join(given)} name the same LoRA: send one of them, or both in loras"
            raise InvalidInput(sentence, BeyondSchema.TWICE)
        found += with_scales(sent.pop(given[0]), sent.pop(scale_name, None), given[0], scale_name)
        used.append(given[0])
    if used and "loras" in sent:
        sentence = f"loras is given twice, as {used[0]} and as loras: send loras alone"
        raise InvalidInput(sentence, BeyondSchema.TWICE)
    if used:
        sent["loras"] = found
    return idle


def with_scales(paths: "JsonValue", scales: "JsonValue", name: str, scale_name: str) -> "list[JsonValue]":
    """One LoRA or a list of them, each with its scale, or all with the only one."""
    several = paths if isinstance(paths, list) else [paths]
    each = scales if isinstance(scales, list) else [scales] * len(several)
    if len(each) != len(several):
        sentence = f"{scale_name} must have one scale for each of {name}, {len(several)}, not {len(each)}"
        raise InvalidInput(sentence, BeyondSchema.TOGETHER)
    loras: list[JsonValue] = []
    for path, scale in zip(several, each, strict=True):
        lora: Sent = name_lora(path) if isinstance(path, dict) else {"path": path}
        if scale is not None and not agree(lora.setdefault("scale", scale), scale):
            sentence = f"{scale_name} ({short_json(scale)}) and the scale in {name} differ: send one of them"
            raise InvalidInput(sentence, BeyondSchema.TWICE)
        loras.append(lora)
    return loras


def read_loras(value: "JsonValue", warn: Warn) -> "JsonValue":
    """A list of LoRAs, of which each may be its path alone; a single one may stand without the list."""
    if isinstance(value, dict):
        return [read_lora(value, warn)]
    return [read_lora(one, warn) for one in value] if isinstance(value, list) else value


def read_lora(value: "JsonValue", warn: Warn) -> "JsonValue":
    """One LoRA as a job's `loras` has it: an object, or its path alone."""
    if isinstance(value, str):
        return {"path": value}
    if not isinstance(value, dict):
        return value
    lora = name_lora(value)
    for name, sentence in LORA_NO_EFFECT.items():
        if name in lora:
            warn(f"{name} {short_json(lora.pop(name))} of a LoRA: {sentence}")
    return lora


def name_lora(fields: "Sent") -> "Sent":
    """A LoRA's fields by our names, and without the name that a host calls it by."""
    lora: Sent = {name: value for name, value in fields.items() if value is not None}
    for name, own in LORA_NAMES.items():
        if name in lora and own not in lora:
            lora[own] = lora.pop(name)
    if "name" in lora:
        lora.setdefault("path", lora.pop("name"))
    return lora
