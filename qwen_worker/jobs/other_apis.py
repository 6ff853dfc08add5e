"""Fields of other image APIs that are no mere names of ours: what each asks for, in our fields or in a warning. Pure.

Knows nothing of limits: `request.py` has them.
"""

from typing import TYPE_CHECKING

from ..errors import BeyondSchema, InvalidInput
from .containers import LORA, LORA_OR_PATH, read_loras
from .request import DRAWING_FIELDS, MAX_LORAS
from .values import DECIMAL, JsonSchema, Reader, Warn, agree, read_number, read_whole, short_json, text_like

if TYPE_CHECKING:
    from pydantic import JsonValue

# By field, the sentence for the value true, which asks for what this worker does not do.
NOT_DONE_IF_TRUE = {
    "watermark": "this worker draws no watermark",
    "enable_sync_mode": "the route says whether the caller waits: /runsync waits, /run does not",
    "use_kv_cache": "this worker has no such cache",
    "restore_faces": "this worker draws faces as the model does",
    "tiling": "this worker draws no pictures that can be tiled",
    "enable_hr": "the picture is drawn once, at its whole size",
    "enable_teacache": "preset balanced has a step cache",
    "vae_use_slicing": "the worker decides by its memory how it decodes",
    "vae_use_tiling": "the worker decides by its memory how it decodes",
}
ONE_SCHEDULER = "the model has one scheduler, flow-matching Euler, which is used"
NO_REFINER = "the model has no refiner"
NO_SCRIPTS = "this worker runs no scripts"
ONE_NOISE = "it has no effect: the seed alone says the noise"
ONE_PASS = "the picture is drawn once, at its whole size"
# By field, why it has no effect, whatever its value; clients cannot leave some of them out.
NO_EFFECT = {
    "scheduler": ONE_SCHEDULER,
    "sampler": ONE_SCHEDULER,
    "sampler_name": ONE_SCHEDULER,
    "sampler_index": ONE_SCHEDULER,
    **dict.fromkeys(("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond"), ONE_SCHEDULER),
    **dict.fromkeys(("subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w"), ONE_NOISE),
    "initial_noise_multiplier": ONE_NOISE,
    **dict.fromkeys(("firstphase_width", "firstphase_height", "firstpass_image"), ONE_PASS),
    **dict.fromkeys(("script_name", "script_args", "alwayson_scripts"), NO_SCRIPTS),
    "styles": "they have no effect: the prompt alone says the style",
    "resize_mode": "it has no effect: the input picture is neither cut nor extended",
    **dict.fromkeys(
        ("mask_blur", "mask_blur_x", "mask_blur_y"), "the new picture fades into the old one over 8 pixels"
    ),
    "inpainting_fill": "it has no effect: strength says how much of the input picture the drawing begins with",
    "inpaint_full_res": "the whole picture is drawn, and not the masked part alone",
    "latent_mask": "it has no effect: mask_image is the mask",
    "image_cfg_scale": "it has no effect: guidance_scale is the model's only guidance",
    "delivery_method": "the route says whether the caller waits: /runsync waits, /run does not",
    "style": "it has no effect: the prompt alone says the style",
    "input_fidelity": "it has no effect: an edit follows its input picture as closely as the model does",
    "shift": "it has no effect: the schedule's shift follows from the size",
    "clip_skip": "it has no effect: the model has no CLIP",
    **dict.fromkeys(("refiner_inference_steps", "refiner_checkpoint", "refiner_switch_at"), NO_REFINER),
    "high_noise_frac": NO_REFINER,
    "generator_device": "it has no effect: noise is computed on the CPU",
    "max_sequence_length": "it has no effect: the whole prompt is read, up to 1,019 tokens",
    "override_settings": "it has no effect: the endpoint's settings are its operator's",
}
NOTHING: "tuple[JsonValue, ...]" = (None, "", 0, False, [], {})  # values that ask for nothing
# By such a field, another value that asks for nothing: the default of the API that has the field.
DEFAULTS: "dict[str, JsonValue]" = {
    **dict.fromkeys(("subseed", "seed_resize_from_h", "seed_resize_from_w"), -1),
    **dict.fromkeys(("s_noise", "initial_noise_multiplier", "inpainting_fill"), 1),
    **dict.fromkeys(("mask_blur", "mask_blur_x", "mask_blur_y"), 4),
    "delivery_method": "sync",
    "sampler_index": "Euler",
}
# By field, the values that ask for what happens anyway, and why no other value is served.
ONLY_VALUES: "dict[str, tuple[tuple[JsonValue, ...], str]]" = {
    "moderation": (("auto", "low"), "this worker has no moderation"),
    "partial_images": ((0,), "preview shows unfinished pictures"),
    "stream": ((False,), "the endpoint's settings say whether replies are streamed"),
    "n_iter": ((1,), "num_images says how many pictures are drawn"),
    "inpainting_mask_invert": (
        (0, False),
        "white areas of mask_image are drawn anew; send the mask with black and white exchanged",
    ),
}
NO_NETS = "a job's ControlNet is the endpoint's; send control_image, control_type and control_scale as fields"
NO_LAYERS = "task layers takes it; send that task with the picture, or the job without it for a whole picture"
NO_WORKFLOW = "this worker is no ComfyUI; send prompt, negative_prompt, size, steps and seed as fields"
# By field of another product, what to send instead.
NOT_HERE = {
    **dict.fromkeys(("control_net", "controlnet", "controlnets"), NO_NETS),
    **dict.fromkeys(("num_layers", "layers"), NO_LAYERS),
    **dict.fromkeys(("workflow", "workflow_inputs"), NO_WORKFLOW),
}
# They say who calls, and how a client of another host waits and keeps its files; nothing about the picture. Those of
# `enable_hr` have no effect without it, and a warning with it.
CALLER_FIELDS = (
    "user", "metadata", "safety_identifier", "request_id", "client_id", "task_type", "task_uuid", "include_cost",
    "max_poll_attempts", "poll_interval_millis", "save_images", "send_images", "do_not_save_samples",
    "do_not_save_grid", "comments", "infotext", "force_task_id", "include_init_images", "disable_extra_networks",
    "override_settings_restore_afterwards", "inpaint_full_res_padding", "mask_round", "hr_scale", "hr_upscaler",
    "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler",
    "hr_prompt", "hr_negative_prompt", "hr_additional_modules", "hr_cfg", "hr_distilled_cfg",
)  # fmt: skip
SPEED_WISHES = ("go_fast", "use_turbo", "turbo")  # true asks for preset fast
# Where a field of another API asks for preset fast and the endpoint does not serve it: the preset that is drawn.
NEXT_PRESETS = {**dict.fromkeys(("acceleration", *SPEED_WISHES), "quality"), "quality": "balanced"}
ACCELERATIONS = {"none": "quality", "regular": "balanced", "high": "fast"}
QUALITIES = {"low": "fast", "medium": "balanced", "high": "quality", "hd": "quality"}  # OpenAI's, as presets
RESPONSE_FORMATS = {"b64_json": "inline", "url": "url"}  # OpenAI's, as deliveries
OUTPUT_TYPES = {"base64Data": "inline", "dataURI": "inline"}  # Runware's, as deliveries; "URL" is its default
WEBHOOKS = ("callback_url", "webhook_url")  # what other hosts call `webhook`
BESIDE_INPUT = {"webhook": "webhook", "webhookV2": "webhookV2", "s3Config": "s3Config", "policy": "policy"}
FLAG: JsonSchema = {"type": "boolean"}


def read_flag(name: str, sentence: str) -> Reader:
    """A reader of a field that is true or false, of which false asks for nothing."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if require_flag(name, value):
            warn(f"{name} true: {sentence}")
        return {}

    return Reader(read, idle=FLAG)


def read_wish(name: str, ours: str, wanted: str) -> Reader:
    """A reader of a field that, where it is true, asks for a value of ours; false leaves that to the endpoint."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        return {ours: wanted} if require_flag(name, value) else {}

    return Reader(read, (ours,), FLAG, idle={"const": False})


def read_choice(name: str, ours: str, values: dict[str, str], without_effect: tuple[str, ...] = ()) -> Reader:
    """A reader of a field that has words for the values of ours. `without_effect`: those that ask for the default."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if value in without_effect:
            return {}
        if not isinstance(value, str) or value not in values:
            raise InvalidInput(f"{name} must be {listed(values)}, not {short_json(value)}")
        return {ours: values[value]}

    return Reader(
        read, (ours,), {"enum": list(values)}, idle={"enum": list(without_effect)} if without_effect else None
    )


def read_idle(name: str, sentence: str) -> Reader:
    """A reader of a field that has no effect."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if value not in NOTHING and not agree(value, DEFAULTS.get(name)):
            warn(f"{name} {short_json(value)}: {sentence}")
        return {}

    return Reader(read, idle={})


def read_only_values(name: str, values: "tuple[JsonValue, ...]", why: str) -> Reader:
    """A reader of a field of which only the values are served that ask for what happens anyway."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if not any(agree(value, one) for one in values):
            texts = () if read_number(value) == value else (BeyondSchema.TEXT_NUMBER,)
            raise InvalidInput(f"{name} must be {listed(values)}, not {short_json(value)}: {why}", *texts)
        return {}

    return Reader(read, idle={"anyOf": [{"enum": list(values)}, text_like(DECIMAL.pattern)]})


def read_not_here(name: str, sentence: str) -> Reader:
    """A reader of a field that asks for another product."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if value in NOTHING:
            return {}
        raise InvalidInput(f"{name} is not here: {sentence}")

    return Reader(read, idle={"enum": list(NOTHING)})


def refuse_beside(name: str, beside: str) -> Reader:
    """A reader of a field whose place is beside `input`, where it is called `beside`."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        raise InvalidInput(f'{name} stands beside input, not in it: send {{"input": {{...}}, "{beside}": ...}}')

    return Reader(read)


def read_output_format(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    value = value.lower() if isinstance(value, str) else value
    return {"output_format": "jpeg" if value == "jpg" else value}


def read_quality(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    """OpenAI's `quality`, which is a preset; a number is the quality of the file."""
    if isinstance(read_whole(value), int) and not isinstance(value, bool):
        return FILE_QUALITY.read(value, warn)
    return PRESET_QUALITY.read(value, warn)


def quality_reader(name: str) -> Reader:
    """A reader of the quality of the file, of which OpenAI's and Replicate's lowest is 0, and ours 1."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if isinstance(value, bool) or read_whole(value) != 0:
            return {"output_quality": value}
        warn(f"{name} {short_json(value)} is brought to 1, the lowest")
        return {"output_quality": 1}

    return Reader(read, ("output_quality",), {"anyOf": [{"const": 0}, DRAWING_FIELDS["output_quality"]]})


def read_disable_safety_checker(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    return {"enable_safety_checker": not require_flag("disable_safety_checker", value)}


def refuse_input(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    raise InvalidInput('input is given within input: send {"input": {"prompt": "..."}}, with one input alone')


def ignore_caller(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    return {}


def require_flag(name: str, value: "JsonValue") -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be true or false, not {short_json(value)}")
    return value


def any_case(word: str) -> str:
    """The pattern of a word in small letters, capitals or both."""
    return "".join(f"[{letter}{letter.upper()}]" for letter in word)


def listed(values: "dict[str, str] | tuple[JsonValue, ...]") -> str:
    """Values as a sentence lists them."""
    *others, last = [repr(value) if isinstance(value, str) else short_json(value) for value in values]
    return f"{', '.join(others)} or {last}" if others else last


def check_model(model: "JsonValue", served: str | None, task: str, warn: Warn) -> None:
    """Tell the caller who names another model than the one that serves the task. `served`: its name, where known.

    Raises `InvalidInput` for what is no name.
    """
    if not isinstance(model, str):
        raise InvalidInput(f"model must be the name of a model, not {short_json(model)}")
    asked = model.partition("@")[0].casefold()
    if served and asked not in ("", served.casefold(), served.casefold().rpartition("/")[2]):
        warn(f"model {short_json(model)} is not here: {served} serves {task}")


FILE_QUALITY = quality_reader("quality")
PRESET_QUALITY = read_choice("quality", "preset", QUALITIES, ("auto", "standard"))
FORMAT_READER = Reader(
    read_output_format,
    ("output_format",),
    {
        "type": "string",
        "pattern": f"^(?:{'|'.join(map(any_case, ('jpg', *DRAWING_FIELDS['output_format']['enum'])))})$",
    },
)
READERS: dict[str, Reader] = {
    **{name: read_flag(name, sentence) for name, sentence in NOT_DONE_IF_TRUE.items()},
    **{name: read_idle(name, sentence) for name, sentence in NO_EFFECT.items()},
    **{name: read_only_values(name, *rule) for name, rule in ONLY_VALUES.items()},
    **{name: read_not_here(name, sentence) for name, sentence in NOT_HERE.items()},
    **{name: read_wish(name, "delivery", "inline") for name in ("sync_mode", "enable_base64_output")},
    **{name: read_wish(name, "preset", "fast") for name in SPEED_WISHES},
    **{name: refuse_beside(name, beside) for name, beside in BESIDE_INPUT.items()},
    **{name: refuse_beside(name, "webhook") for name in WEBHOOKS},
    **dict.fromkeys(CALLER_FIELDS, Reader(ignore_caller, idle={})),
    "acceleration": read_choice("acceleration", "preset", ACCELERATIONS),
    "quality": Reader(
        read_quality,
        ("preset", "output_quality"),
        {"anyOf": [PRESET_QUALITY.schema, FILE_QUALITY.schema]},
        PRESET_QUALITY.idle,
    ),
    **{name: quality_reader(name) for name in ("output_quality", "output_compression")},
    "response_format": read_choice("response_format", "delivery", RESPONSE_FORMATS),
    "output_type": read_choice("output_type", "delivery", OUTPUT_TYPES, ("pil", "URL")),
    "output_format": FORMAT_READER,
    "image_format": FORMAT_READER,
    "loras": Reader(
        lambda value, warn: {"loras": read_loras(value, warn)},
        ("loras",),
        {"anyOf": [LORA, {"type": "array", "items": LORA_OR_PATH, "maxItems": MAX_LORAS}]},
    ),
    "disable_safety_checker": Reader(read_disable_safety_checker, ("enable_safety_checker",), FLAG),
    "input": Reader(refuse_input),
}
