"""Pictures as a job's text gives them, base64 or a data URI, and what people and programs put in their place.

Knows nothing of what the bytes are (`images.py`).
"""

import base64
import binascii
import re

from ..errors import InvalidInput
from .structure import unreadable_error

MAX_BYTES = 20_000_000  # one encoded input image; the platform's largest request body
QUOTES = " \t\r\n\"'"  # what may stand around an image in a job
MAX_PATH = 4096  # characters
# A drive, a share, a home, or a folder from here or from the root; or a name with the ending of a picture. Base64 has
# no dot, colon, tilde or backslash, and begins with a slash for a JPEG alone.
LOCAL_PATH = re.compile(
    r"[A-Za-z]:[\\/]|\\\\|~|\.{1,2}[\\/]|/(?!9j/)[^\0\n]*$"
    r"|(?![A-Za-z][\w+.-]*:)[^\0\n]*\.(?:png|jpe?g|webp|gif|bmp|tiff?|hei[cf]|avif)$",
    re.IGNORECASE,
)
# What forms and addresses make of the characters of a data URI; none of them stands for itself there.
ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%3A": ":", "%3B": ";", "%2C": ",", "%0D": "", "%0A": "", "%20": ""}


def require_reachable(text: str, label: str) -> None:
    """Refuse what names a picture on the sender's own machine, or is what a program made of one. Raises `JobError`."""
    if text.startswith("[object "):
        reason = f"is the text {text[:15]}, which JavaScript makes of an object; send the base64 of the file in it"
    elif text[:5].lower() == "blob:":
        reason = "is a blob: URL, which only the browser that made it can read; send the base64 of the file"
    elif len(text) <= MAX_PATH and LOCAL_PATH.match(text):
        reason = "is the path of a file, which the worker cannot reach; send the file's base64, or an http(s) URL"
    else:
        return
    raise unreadable_error(label, reason)


def decode_base64(text: str, label: str) -> bytes:
    """The bytes of base64 (either alphabet, with or without line breaks and padding) or of a base64 data URI.

    The URI may lack its beginning, up to `base64,`, and either may be escaped as in an address. Raises `JobError`
    image_unreadable or invalid_input; `label` is the picture's name in them.
    """
    if "%" in text:
        for escape, character in ESCAPES.items():
            text = text.replace(escape, character).replace(escape.lower(), character)
    head, comma, rest = text.partition(",")
    if comma and head.rstrip().lower().endswith("base64"):
        text = rest
    elif head[:5].lower() == "data:":
        raise unreadable_error(label, "is a data URI without ';base64,'")
    packed = re.sub(r"\s+", "", text).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise unreadable_error(label, "is neither base64, a base64 data URI nor an http(s) URL") from None
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{label} must be at most {MAX_BYTES / 1e6:.0f} MB, not {len(data) / 1e6:.1f} MB")
    return data
