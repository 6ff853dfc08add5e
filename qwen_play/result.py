"""A worker's reply as what a visitor wants to know: the picture, the facts, and whether a model drew it at all."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import Unreadable, short

SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}  # by a file's first bytes


@dataclass(frozen=True)
class Result:
    """`stand_in` is why no model drew the picture, and empty where one did."""

    data: bytes
    suffix: str
    line: str
    stand_in: str
    warnings: tuple[str, ...]
    metadata: dict[str, Any]

    @property
    def seed(self) -> int | None:
        return self.metadata.get("seed")


def read_result(
    reply: dict[str, Any], fetch: Callable[[str], bytes], seconds: float | None, dollars_an_hour: float | None
) -> Result:
    """`seconds` were billed, where the endpoint says so; else the worker's own count. Raises `PlayError`."""
    metadata = reply.get("metadata") or {}
    data = picture_bytes(reply, fetch)
    suffix = next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), "")
    if not suffix:
        raise Unreadable("The endpoint's reply holds no PNG, JPEG or WebP.")
    stand_in = ""
    if metadata.get("backend", "qwen-image") != "qwen-image":
        stand_in = str(metadata.get("fallback_reason") or "The worker gives no reason.")
    seconds = seconds if seconds is not None else metadata.get("processing_time")
    line = facts_line(metadata, seconds, dollars_an_hour)
    return Result(data, suffix, line, stand_in, tuple(map(str, metadata.get("warnings", ()))), metadata)


def picture_bytes(reply: dict[str, Any], fetch: Callable[[str], bytes]) -> bytes:
    text = reply.get("image") or reply.get("image_url")
    if not isinstance(text, str):
        raise Unreadable("The endpoint's reply holds no picture.")
    if text.startswith(("http://", "https://")):
        return fetch(text)
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except binascii.Error:
        raise Unreadable(f"The endpoint's picture is not base64: it begins with {short(text, 20)!r}.") from None


def facts_line(metadata: dict[str, Any], seconds: float | None, dollars_an_hour: float | None) -> str:
    """One line: what the picture is, how long it took and what that costs."""
    facts = [
        str(metadata.get("dimensions", "")).replace("x", " × "),
        f"{metadata['steps']} steps" if "steps" in metadata else "",
        f"guidance {metadata['guidance_scale']:g}" if "guidance_scale" in metadata else "",
        f"strength {metadata['strength']:g}" if metadata.get("strength", 1) != 1 else "",
        f"seed {metadata.get('seed_text') or metadata['seed']}" if "seed" in metadata else "",
        str(metadata.get("preset", "")),
        f"{seconds:.1f} s" if seconds is not None else "",
        f"${seconds * dollars_an_hour / 3600:.4f}" if seconds is not None and dollars_an_hour else "",
    ]
    return " · ".join(filter(None, facts))
