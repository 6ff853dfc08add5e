"""The pictures of a reply: decoded from base64 or fetched from a URL, identified by their header, saved.

Reads headers only: the operator's machine needs no imaging library. Knows nothing of jobs.
"""

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import requests

from .errors import DeployError, NotServing
from .runpod.schemas import JsonObject

FETCH_SECONDS = 60
MAX_BYTES = 64_000_000


@dataclass(frozen=True)
class Picture:
    """`width` and `height` in pixels; None for WebP and JPEG, whose headers are not read for them."""

    data: bytes
    format: str
    width: int | None = None
    height: int | None = None

    def save(self, folder: Path, name: str) -> Path:
        """Raises `DeployError` where the folder does not take it."""
        path = folder / f"{name}.{self.format}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.data)
        except OSError as error:
            raise DeployError(f"The picture cannot be saved as {path} (--output): {error.strerror}.") from None
        return path


def read_pictures(reply: Mapping[str, object]) -> list[Picture]:
    """The pictures in order, of a reply in any shape. Raises `NotServing` where there is none or one is no picture."""
    found = reply.get("images") or reply.get("image_urls") or reply.get("output") or None
    entries = cast(list[object], found if isinstance(found, list) else [reply.get("image") or reply.get("image_url")])
    texts = [cast(JsonObject, entry).get("url") if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(text, str) and text for text in texts):
        raise NotServing("The reply holds no picture under `image`, `image_url`, `images` or `output`.")
    return [read_picture(text) for text in cast(list[str], texts)]


def read_picture(text: str) -> Picture:
    """From a URL, from base64, or from a data URI, which ends with base64."""
    if text.startswith(("http://", "https://")):
        return identify_picture(fetch_picture(text))
    try:
        return identify_picture(base64.b64decode(text.partition("base64,")[2] or text, validate=True))
    except binascii.Error:
        raise NotServing(f"The reply's `image` is not base64: it begins with {text[:20]!r}.") from None


def fetch_picture(url: str) -> bytes:
    """The bytes behind a URL, fetched without the API key: a presigned URL is its own permission."""
    try:
        with requests.get(url, timeout=FETCH_SECONDS, stream=True) as response:
            response.raise_for_status()
            data: bytes = response.raw.read(MAX_BYTES + 1, decode_content=True)
    except requests.RequestException as error:
        host = urlsplit(url).hostname
        raise NotServing(f"The reply's picture could not be fetched from {host}: {type(error).__name__}.") from None
    if len(data) > MAX_BYTES:
        raise NotServing(f"The reply's picture has more than {MAX_BYTES / 1e6:g} MB.")
    return data


def identify_picture(data: bytes) -> Picture:
    """By its first and last bytes: PNG with its size, WebP or JPEG. Raises `NotServing` for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and data.endswith(b"IEND\xaeB`\x82"):
        return Picture(data, "png", *struct.unpack(">II", data[16:24]))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= struct.unpack("<I", data[4:8])[0] + 8:
        return Picture(data, "webp")
    if data.startswith(b"\xff\xd8\xff") and data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return Picture(data, "jpg")
    raise NotServing(f"The reply's picture is no whole PNG, WebP or JPEG: {len(data)} bytes from {data[:8]!r}.")
