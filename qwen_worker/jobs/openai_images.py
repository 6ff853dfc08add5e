"""A job that holds a call of OpenAI's Images API, as fields of ours, and our reply as OpenAI's answer to it.

Such a job's input is `{"openai_route": "/v1/images/generations", "openai_input": {...}}`. The limits are those of every
job: a field that is not translated here goes on under its own name, and is accepted or refused as in any job. Knows
nothing of how a job is answered.
"""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BeyondSchema, InvalidInput
from .values import short_json

if TYPE_CHECKING:
    from pydantic import JsonValue

GENERATIONS, EDITS, MODELS = "/v1/images/generations", "/v1/images/edits", "/v1/models"
TASKS = {GENERATIONS: "generate", EDITS: "edit"}
ROUTE_SAYS = ("task", "response_shape")
CALLER_ERROR_CODES = (
    "invalid_input", "image_unreadable", "image_fetch_failed", "lora_fetch_failed", "content_rejected",
    "result_too_large",
)  # fmt: skip


class Call:
    """One call of the Images API. `models`: by task, the name under which the API calls the endpoint's model."""

    def __init__(self, job_input: "dict[str, JsonValue]", models: Mapping[str, str]):
        self.job_input, self.route, self.models = job_input, job_input["openai_route"], models

    def fields(self) -> "dict[str, JsonValue]":
        """The `input` of ours that asks for the same. Raises `InvalidInput`."""
        for name in self.job_input:
            if name not in ("openai_route", "openai_input"):
                raise InvalidInput(f"{short_json(name)} is not a field of a job with openai_route")
        if self.route == MODELS:
            return {"task": "health"}  # a health job loads nothing either
        if not isinstance(self.route, str) or self.route not in TASKS:
            raise InvalidInput(f"openai_route must be {GENERATIONS}, {EDITS} or {MODELS}, not {short_json(self.route)}")
        openai_input = self.job_input.get("openai_input")
        if not isinstance(openai_input, dict):
            raise InvalidInput(f"openai_input must be an object, not {short_json(openai_input)}")
        arguments: dict[str, JsonValue] = {name: value for name, value in openai_input.items() if value is not None}
        for name in ROUTE_SAYS:
            if name in arguments:
                raise InvalidInput(f"{name} is not taken by {self.route}; the route says it")
        if "mask" in arguments:
            if "mask_image" in arguments:
                raise InvalidInput("mask_image is given twice, as mask and as mask_image", BeyondSchema.TWICE)
            # OpenAI's masks are transparent where the picture is repainted.
            mask = arguments.pop("mask")
            arguments = {"mask_from": "alpha", **arguments, "mask_image": mask}
        # `reply` reads the worker's own shape, whatever the endpoint's is.
        return {"task": TASKS[self.route], "response_shape": "worker", **arguments}

    def reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """Our reply in OpenAI's shape, never longer than ours; `metadata` stays as it is."""
        if "error" in reply:
            code = reply["error"].split(":")[0]
            kind = "invalid_request_error" if code in CALLER_ERROR_CODES else "server_error"
            error = {"message": reply["error"], "type": kind, "param": None, "code": code}
            # The error is sent as text: the SDK turns an object into text in a stream, and its local API answers it
            # with a 500.
            return {"error": json.dumps(error)} | ({"refresh_worker": True} if "refresh_worker" in reply else {})
        if self.route == MODELS:
            about = {"object": "model", "created": 0, "owned_by": "qwen-image"}
            return {"object": "list", "data": [{"id": name, **about} for name in dict.fromkeys(self.models.values())]}
        ours, theirs = ("image", "b64_json") if "image" in reply else ("image_url", "url")
        pictures = reply.get(f"{ours}s") or [reply[ours]]
        data = [{theirs: picture} for picture in pictures]
        return {"created": int(time.time()), "data": data, "metadata": reply["metadata"]}


def call_of(job_input: "JsonValue", models: Mapping[str, str]) -> Call | None:
    """The call that a job's input holds; None where it holds none."""
    return Call(job_input, models) if isinstance(job_input, dict) and "openai_route" in job_input else None
