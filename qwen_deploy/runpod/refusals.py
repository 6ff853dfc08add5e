"""RunPod's error answers (RFC 9457 problems) in the operator's words. Knows nothing of what was asked for, or how."""

import re

from ..errors import ApiError

KEYS_PAGE = "https://console.runpod.io/user/settings"
SENTENCES = {
    401: f"RunPod does not accept RUNPOD_API_KEY (401: {{detail}}). Make a key at {KEYS_PAGE} and export it.",
    402: "The RunPod account's balance does not cover this (402: {detail}). Add credit at "
    "https://console.runpod.io/user/billing.",
    403: f"RUNPOD_API_KEY may not do this (403: {{detail}}). It needs to read and write Serverless: {KEYS_PAGE}.",
    404: "{what} does not exist or belongs to another account (404: {detail}).",
    409: "{what} is being changed by something else (409: {detail}). Look at `status`, then run this again.",
    429: "RunPod takes no more requests for now (429: {detail}). Wait{wait} and run this again.",
}
SECRET_PARTS = ("env",)  # of a request: its values are not repeated


def refusal(status: int, problem: dict, what: str, body: dict | None = None, retry_after: float | None = None):
    """The `ApiError` for an answer. `what` names the thing asked for, `retry_after` is in seconds."""
    detail = str(problem.get("detail") or problem.get("title") or "no reason given").rstrip(".")
    if status in (400, 422):
        return ApiError(f"RunPod refused {what} ({status}): {fields_refused(problem, body or {}) or detail}.", status)
    if status >= 500:
        text = f"RunPod is failing ({status}: {detail}). Nothing to mend here: try later; https://uptime.runpod.io"
        return ApiError(text, status)
    wait = f" {retry_after:.0f} s" if retry_after else ""
    sentence = SENTENCES.get(status, "RunPod answered {what} with {status}: {detail}.")
    return ApiError(sentence.format(what=what, status=status, detail=detail, wait=wait), status)


def fields_refused(problem: dict, body: dict) -> str:
    """Each refused field with the rule and the value that was sent, from entries such as `$.disk: must be >= 1`."""
    found = []
    for entry in problem.get("errors") or []:
        path, _, rule = str(entry).partition(": ")
        if not rule:
            found.append(str(entry))
            continue
        unknown = re.search(r"additional propert\w+ '([^']+)'", rule)
        path = ".".join(part for part in (re.sub(r"^\$|^/|^\.", "", path), unknown and unknown.group(1)) if part)
        path = path.lstrip("./").replace("/", ".")
        found.append(f"{path or 'the request'}: {rule}{sent_value(body, path)}")
    return "; ".join(found)


def sent_value(body: dict, path: str) -> str:
    """`, not 4000`, for a value that the request holds at this dotted path and that is no secret."""
    parts = path.split(".")
    if not path or parts[0] in SECRET_PARTS:
        return ""
    value = body
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return ""
        value = value[part]
    return f", not {value!r}"
