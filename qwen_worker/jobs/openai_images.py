"""A job that holds a call of OpenAI's Images API, as fields of ours, and our reply as OpenAI's answer to it.

Such a job's input is `{"openai_route": "/v1/images/generations", "openai_input": {...}}`. The limits are those of every
job: what is not translated here goes on under its own name and is accepted or refused as anywhere. Knows nothing of
how a job is done.
"""

import json
import time
from typing import Any

from ..errors import InvalidInput
from .parsing import shown

GENERATIONS, EDITS, MODELS = "/v1/images/generations", "/v1/images/edits", "/v1/models"
TASKS = {GENERATIONS: "generate", EDITS: "edit"}
# Says nothing about the picture.
ABOUT_THE_CALLER = ("user", "safety_identifier")
# Asks for what happens anyway; any other value is refused.
AS_ALWAYS = {
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "partial_images": (0,),
    "quality": ("auto", "standard"),
    "size": ("auto",),
    "stream": (False,),
}
DELIVERIES = {"b64_json": "inline", "url": "url"}
PRESETS = {"low": "fast", "medium": "balanced", "high": "quality", "hd": "quality"}  # by their `quality`
NOT_TAKEN = {"task": "the route says it", "mask": "mask_image is: it is white where the picture is to be repainted"}
FAULTS_OF_THE_CALLER = (
    "invalid_input", "image_unreadable", "image_fetch_failed", "lora_fetch_failed", "result_too_large"
)  # fmt: skip


class Call:
    """`models`: by task, the name under which the endpoint's model is called."""

    def __init__(self, given: dict, models: dict[str, str]):
        self.given, self.route, self.models = given, given["openai_route"], models

    def fields(self) -> dict:
        """The input of ours that asks for the same. Raises `InvalidInput`."""
        for name in self.given:
            if name not in ("openai_route", "openai_input"):
                raise InvalidInput(f"{shown(name)} is not a field of a job with openai_route")
        if self.route == MODELS:
            return {"task": "health"}  # which loads nothing either
        if not isinstance(self.route, str) or self.route not in TASKS:
            raise InvalidInput(f"openai_route must be {GENERATIONS}, {EDITS} or {MODELS}, not {shown(self.route)}")
        asked = self.given.get("openai_input")
        if not isinstance(asked, dict):
            raise InvalidInput(f"openai_input must be an object, not {shown(asked)}")
        asked = {name: value for name, value in asked.items() if value is not None and is_heard(name, value)}
        for name, advice in NOT_TAKEN.items():
            if name in asked:
                raise InvalidInput(f"{name} is not taken by {self.route}; {advice}")
        task = TASKS[self.route]
        model = asked.pop("model", self.models[task])
        if model != self.models[task]:
            raise InvalidInput(f"model must be {shown(self.models[task])} for {self.route}, not {shown(model)}")
        return {"task": task, **in_our_words(asked)}

    def reply(self, reply: dict) -> dict:
        """Our reply in OpenAI's shape, never longer than ours; `metadata` is beside it as ever."""
        if "error" in reply:
            code = reply["error"].split(":")[0]
            kind = "invalid_request_error" if code in FAULTS_OF_THE_CALLER else "server_error"
            error = {"message": reply["error"], "type": kind, "param": None, "code": code}
            # As text: the SDK makes any other error that in a stream, its local API answers it with a 500.
            return {"error": json.dumps(error)} | ({"refresh_worker": True} if "refresh_worker" in reply else {})
        if self.route == MODELS:
            about = {"object": "model", "created": 0, "owned_by": "qwen-image"}
            return {"object": "list", "data": [{"id": name, **about} for name in dict.fromkeys(self.models.values())]}
        ours, theirs = ("image", "b64_json") if "image" in reply else ("image_url", "url")
        drawn = reply.get(f"{ours}s") or [reply[ours]]
        return {"created": int(time.time()), "data": [{theirs: one} for one in drawn], "metadata": reply["metadata"]}


def call_of(given: Any, models: dict[str, str]) -> Call | None:
    """The call that a job's input holds; None where it holds none."""
    return Call(given, models) if isinstance(given, dict) and "openai_route" in given else None


def is_heard(name: str, value: Any) -> bool:
    """Whether the field makes a difference, or must be refused."""
    same = any(value == one and type(value) is type(one) for one in AS_ALWAYS.get(name, ()))
    return name not in ABOUT_THE_CALLER and not same


def in_our_words(asked: dict) -> dict:
    """The fields that are called or written otherwise than ours, as ours."""
    fields = dict(asked)
    translate(fields, "response_format", "delivery", DELIVERIES)
    translate(fields, "quality", "preset", PRESETS)
    if isinstance(fields.get("image"), list):
        if "images" in fields:
            raise InvalidInput("images is given twice, as image and as images")
        fields["images"] = fields.pop("image")
    if isinstance(fields.get("images"), list):
        fields["images"] = [url_of(one) for one in fields["images"]]
    return fields


def translate(fields: dict, theirs: str, ours: str, meanings: dict[str, str]) -> None:
    """Put our field in the place of theirs."""
    if theirs not in fields:
        return
    wanted = fields.pop(theirs)
    if not isinstance(wanted, str) or wanted not in meanings:
        *others, last = map(repr, meanings)
        raise InvalidInput(f"{theirs} must be {', '.join(others)} or {last}, not {shown(wanted)}")
    if ours in fields:
        raise InvalidInput(f"{ours} is given twice, as {theirs} and as {ours}")
    fields[ours] = meanings[wanted]


def url_of(picture: Any) -> Any:
    """OpenAI's JSON wraps a URL or data URI: `{"image_url": "..."}`."""
    wrapped = isinstance(picture, dict) and list(picture) == ["image_url"]
    return picture["image_url"] if wrapped else picture
