"""The body of /run and /runsync, read as the platform reads it, or refused in a sentence. Pure.

Knows nothing of what an `input` may hold: that is the worker's business.
"""

import json
from typing import Any, cast
from urllib.parse import urlsplit

from .job import JobRequest

TO_WORKER = ("webhook", "policy", "s3Config")  # what goes to the worker beside `input`
DAY_MS = 24 * 3600 * 1000
EXECUTION_MS = (5_000, 7 * DAY_MS)
TTL_MS = (10_000, 7 * DAY_MS)
WAIT_MS = (1_000, 300_000)


class BadRequest(Exception):
    """A sentence for the caller."""


def read_json(body: bytes) -> Any:
    """Raises `BadRequest` for what is no JSON."""
    try:
        return json.loads(body)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        is_syntax = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
        reason = str(error) if is_syntax else "a number in it has too many digits"
    raise BadRequest(f'The body must be JSON, as {{"input": {{"prompt": "a fox"}}}}: {reason}')


def as_object(value: Any) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def read_request(body: bytes) -> JobRequest:
    """Raises `BadRequest`."""
    fields = as_object(read_json(body))
    if fields is None or "input" not in fields:
        raise BadRequest('The body must be a JSON object with an input, as {"input": {"prompt": "a fox in the snow"}}')
    if not fields["input"]:
        raise BadRequest(
            f"input must not be empty, as {short_json(fields['input'])} is: RunPod hands no such job to a worker. "
            'For the health of a worker send {"input": {"task": "health"}}'
        )
    given = fields.get("policy")
    policy = as_object({} if given is None else given)
    if policy is None:
        raise BadRequest(f'policy must be an object, as {{"executionTimeout": 60000}}, not {short_json(given)}')
    low = policy.get("lowPriority")
    if low is not None and not isinstance(low, bool):
        raise BadRequest(f"policy.lowPriority must be true or false, not {short_json(low)}")
    execution = milliseconds("policy.executionTimeout", policy.get("executionTimeout"), EXECUTION_MS)
    ttl = milliseconds("policy.ttl", policy.get("ttl"), TTL_MS)
    beside = {name: fields[name] for name in TO_WORKER if fields.get(name) is not None}
    return JobRequest(
        input=fields["input"],
        beside=beside,
        ttl_seconds=(DAY_MS if ttl is None else ttl) / 1000,
        execution_seconds=None if execution is None else execution / 1000,
        webhook=read_webhook(fields.get("webhook")),
    )


def milliseconds(name: str, value: Any, limits: tuple[int, int]) -> float | None:
    """None where nothing is given. Raises `BadRequest`."""
    least, most = limits
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise BadRequest(f"{name} must be a number of milliseconds from {least} to {most}, not {short_json(value)}")
    return value


def read_webhook(value: Any) -> str | None:
    if value is None:
        return None
    rule = f"webhook must be a URL that begins with http:// or https://, not {short_json(value)}"
    if not isinstance(value, str):
        raise BadRequest(rule)
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise BadRequest(rule) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(rule)
    return value


def read_wait(text: str | None, default: float) -> float:
    """The seconds that /runsync waits, from its `?wait=`. Raises `BadRequest`."""
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = None
    return (milliseconds("wait", text if value is None else value, WAIT_MS) or 0) / 1000


def short_json(value: Any, most: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 3]}..."
