"""The fields of a job under their own names, whichever client wrote it.

Each name that other image APIs give to a field of ours stands here. Knows no limits: `request.py` has them.
"""

import re
from typing import TYPE_CHECKING, Any

from ..errors import BeyondSchema, InvalidInput
from . import containers, other_apis
from .expansion import SIDE_FIELDS, gather_sides
from .request import IMAGE_FIELDS
from .sizes_asked import size_reader
from .tasks import TASKS
from .values import Reader, Warn, agree, short_json

if TYPE_CHECKING:
    from pydantic import JsonValue

# Names that other image APIs give to our fields.
ALIASES = {
    "positive_prompt": "prompt",
    "negative": "negative_prompt",
    "true_cfg_scale": "guidance_scale",
    "true_guidance_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "n": "num_images",
    "num_outputs": "num_images",
    "num_images_per_prompt": "num_images",
    "num_outputs_per_prompt": "num_images",
    "batch_size": "num_images",
    "number_results": "num_images",
    "image_format": "output_format",
    "output_compression": "output_quality",
    "image_urls": "images",
    "reference_images": "images",
    "input_images": "images",
    "init_images": "images",
    "init_image": "image",
    "image_base64": "image",
    "url": "image",
    "input_image": "image",
    "seed_image": "image",
    "mask": "mask_image",
    "mask_url": "mask_image",
    "denoise": "strength",
    "denoising_strength": "strength",
    "outpaint": "expand",
    "layers": "num_layers",
    "control_image_url": "control_image",
    "control_images": "control_image",
    "control_mode": "control_type",
    "controlnet_conditioning_scale": "control_scale",
    "control_guidance_start": "control_start",
    "control_guidance_end": "control_end",
    "enhance_prompt": "prompt_extend",
    "enable_prompt_expansion": "prompt_extend",
}
# By name, what else is read from what a client sends under it: our fields by their names.
READERS: dict[str, Reader] = {
    **other_apis.READERS,
    **{name: size_reader(name) for name in ("size", "image_size", "target_size", "resolution", "aspect_ratio")},
}
# By task, the names of its fields that mean something else to other APIs, or that other tasks refuse with advice.
OWN_MEANING = {"layers": frozenset({"num_layers", "layers", "resolution"})}
OWN_NAMES = {name for model in TASKS.values() for name in model.model_fields} | {*IMAGE_FIELDS, "task", "model"}
PARTS_OF_LORAS = {name for names, scale in containers.LORA_PARTS for name in (*names, scale)}
# By field of ours, the fields that it is gathered from.
PARTS = {"loras": PARTS_OF_LORAS, "expand": {*SIDE_FIELDS}}
GATHERED = {*PARTS_OF_LORAS, *SIDE_FIELDS, "inputs", "messages"}
NAMES = {*ALIASES, *READERS, *OWN_NAMES, *GATHERED, *containers.OBJECTS}
WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# diffusers calls so the guidance that the Qwen-Image pipelines have, and `guidance_scale` a distilled model's, which
# they have not: people send both.
TRUE_GUIDANCE = ("true_cfg_scale", "true_guidance_scale")


class Fields:
    """A job's fields by their own names, and by own name the name that each was sent as.

    `warn` is told what is understood and left out. `sent`: what was sent, by the names that it was sent as.
    """

    def __init__(self, job_input: "dict[Any, JsonValue]", warn: Warn):
        self.values: dict[str, JsonValue] = {}
        self.sent: dict[str, JsonValue] = {}
        self.sent_as: dict[str, str] = {}
        self.warn = warn
        sent = self.effective(job_input)
        task = sent.get("task")
        own = OWN_MEANING.get(task if isinstance(task, str) else "", frozenset[str]())
        for key, value in sent.items():
            named = (
                READERS[key].read(value, warn) if key in READERS and key not in own else {ALIASES.get(key, key): value}
            )
            for name, named_value in named.items():
                self.add(name, named_value, key)

    def origins(self, name: str) -> "list[JsonValue]":
        """What was sent for a field of ours, under each name that can give it."""
        names = {name, self.sent_as.get(name, name), *PARTS.get(name, ())}
        return [self.sent[one] for one in names if one in self.sent]

    def effective(self, job_input: "dict[Any, JsonValue]") -> "dict[str, JsonValue]":
        """The input without nulls, and without what has no effect beside another field.

        Raises `InvalidInput` for a key that is no text, as only a caller in this process can give one.
        """
        sent = read_names(job_input)
        containers.open_objects(sent)
        sent = read_names(sent)
        containers.read_carriers(sent)
        self.sent = dict(sent)
        true_name = next((name for name in TRUE_GUIDANCE if name in sent), None)
        if true_name:
            for key in [key for key in sent if ALIASES.get(key, key) == "guidance_scale" and key not in TRUE_GUIDANCE]:
                value = sent.pop(key)
                if not agree(value, sent[true_name]):
                    self.warn(f"{key} {short_json(value)} has no effect beside {true_name}, which is the guidance used")
        # fal's default for `acceleration` stands beside `use_turbo` in its clients' bodies.
        if sent.get("acceleration") == "none" and any(sent.get(name) is True for name in other_apis.SPEED_WISHES):
            del sent["acceleration"]
        for name in containers.gather_loras(sent):
            place = "beside loras: give each of them a scale" if sent.get("loras") else "without a LoRA"
            self.warn(f"{name} has no effect {place}")
        containers.gather_pictures(sent)
        gather_sides(sent)
        return sent

    def add(self, name: str, value: "JsonValue", key: str) -> None:
        """Give the field the value that was sent as `key`. Raises `InvalidInput` where it has another one already."""
        if name not in self.values:
            self.values[name] = value
            if name != key:
                self.sent_as[name] = key
        elif name == key and agree(self.values[name], value):
            self.sent_as.pop(name, None)
        elif not agree(self.values[name], value):
            first = self.sent_as.get(name, name)
            raise InvalidInput(
                f"{name} is given twice, as {first} ({short_json(self.values[name])}) and as {key} "
                f"({short_json(value)}), and the two differ: send one of them",
                BeyondSchema.TWICE,
            )


def read_names(fields: "dict[Any, JsonValue]") -> "dict[str, JsonValue]":
    """The fields that are not null; a name in camel case, as JavaScript writes it, in the spelling of ours.

    Raises `InvalidInput` for a key that is no text.
    """
    read: dict[str, JsonValue] = {}
    for key, value in fields.items():
        if value is None:
            continue
        if not isinstance(key, str) or not key.isprintable():
            raise InvalidInput(f"{short_json(key)} is not the name of a field")
        snake = key if key in NAMES else WORD_BEGINS.sub("_", key).lower()
        containers.put(read, snake if snake in NAMES else key, value, key)
    return read
