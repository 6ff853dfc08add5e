"""RunPod's error answers (RFC 9457 problems) in the operator's words. Knows nothing of what was asked for, or how."""

import re
from collections.abc import Mapping
from typing import cast

from ..errors import ApiError
from .schemas import Problem

KEYS_PAGE = "https://console.runpod.io/user/settings"
SENTENCES = {
    401: f"RunPod does not accept RUNPOD_API_KEY (401: {{detail}}). Make a key at {KEYS_PAGE} and export it.",
    402: "The RunPod account's balance does not cover this (402: {detail}). Add credit at "
    "https://console.runpod.io/user/billing.",
    403: "RUNPOD_API_KEY may not do this with {subject} (403: {detail}). It needs to read and write Serverless, and "
    f"for volumes, Pods and registries all of the REST API: {KEYS_PAGE}.",
    404: "{subject} does not exist or belongs to another account (404: {detail}).",
    409: "{subject} is being changed by something else (409: {detail}). Look at `status`, then run this again.",
    429: "RunPod takes no more requests for now (429: {detail}). Wait{wait} and run this again.",
}
SECRET_FIELDS = ("env", "username", "password")  # fields of a request whose values no sentence repeats


def refusal(
    status: int, problem: Problem, subject: str, body: Mapping[str, object], retry_after: float | None = None
) -> ApiError:
    """The error for an answer to the request with this body. `subject` names what was asked for.

    `retry_after` is in seconds.
    """
    detail = str(problem.get("detail") or problem.get("title") or "no reason given").rstrip(".")
    if status in (400, 422):
        return ApiError(f"RunPod refused {subject} ({status}): {refused_fields(problem, body) or detail}.", status)
    if status >= 500:
        text = f"RunPod is failing ({status}: {detail}). Nothing to mend here: try later; https://uptime.runpod.io"
        return ApiError(text, status)
    wait = f" {retry_after:.0f} s" if retry_after else ""
    sentence = SENTENCES.get(status, "RunPod answered {subject} with {status}: {detail}.")
    return ApiError(sentence.format(subject=subject, status=status, detail=detail, wait=wait), status)


def refused_fields(problem: Problem, body: Mapping[str, object]) -> str:
    """Each refused field with the rule and the value that was sent, from entries such as `$.disk: must be >= 1`."""
    sentences: list[str] = []
    for entry in problem.get("errors") or []:
        path, _, rule = str(entry).partition(": ")
        if not rule:
            sentences.append(str(entry))
            continue
        path = re.sub(r"^\$|^/|^\.", "", path)
        if unknown := re.search(r"additional propert\w+ '([^']+)'", rule):
            path = f"{path}.{unknown.group(1)}"
        path = path.lstrip("./").replace("/", ".")
        sentences.append(f"{path or 'the request'}: {rule}{sent_value(body, path)}")
    return "; ".join(sentences)


def sent_value(body: Mapping[str, object], path: str) -> str:
    """`, not 4000`, for a value that the request holds at this dotted path and that is no secret."""
    field, _, inner_path = path.partition(".")
    if field not in body or field in SECRET_FIELDS:
        return ""
    value = body[field]
    if not inner_path:
        return f", not {value!r}"
    return sent_value(cast(Mapping[str, object], value), inner_path) if isinstance(value, Mapping) else ""
