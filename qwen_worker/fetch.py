"""An input image's bytes from its URL: public addresses only, capped in bytes and in total time.

The address rules (scheme, public IPs, pinned connection, every redirect checked again) are the SDK's `rp_ssrf`; the
byte cap and the deadline are ours, because the SDK's timeout is per read and a server can drip for ever. Knows nothing
of pictures.
"""

import socket
import threading
import time
from urllib.parse import urlsplit

from .errors import InvalidInput, JobError
from .side_thread import Busy, Late, SideThreads

CHUNK = 65536  # bytes asked of the socket at a time; fewer are taken as they come
MAX_FETCHES = 16
fetches = SideThreads(MAX_FETCHES)


def is_url(text: str) -> bool:
    """Whether the text names a scheme, as base64 never does."""
    return "://" in text[:40] and not text[:5].lower() == "data:"


def fetch(url: str, label: str, max_bytes: int, deadline: float, cancelled: threading.Event | None = None) -> bytes:
    """The body behind an http(s) URL, within `deadline` seconds in all.

    Raises `image_fetch_failed` or `invalid_input`, or `Cancelled` within a moment once `cancelled` is set. Runs on a
    side thread that is left behind then, since name resolution and response headers cannot be interrupted; a
    server that drips headers for ever holds one of `MAX_FETCHES` such threads for as long as it does.
    """
    scheme = urlsplit_or_fail(url, label)
    if scheme not in ("http", "https"):
        raise failed(label, f"must be an http or https URL, not {scheme[:20]!r}")
    import runpod.serverless.utils.rp_ssrf  # noqa: F401  a second or two at first: not out of the deadline

    ends = time.monotonic() + deadline
    try:
        return fetches.within(deadline, lambda: download(url, label, max_bytes, ends), cancelled)
    except Busy:
        raise failed(label, f"was not fetched: {MAX_FETCHES} servers are still being waited for") from None
    except Late:
        raise failed(label, f"was not fetched within {deadline:g} seconds") from None


def failed(label: str, why: str) -> JobError:
    return JobError("image_fetch_failed", f"{label} {why}")


def urlsplit_or_fail(url: str, label: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises on a port that is no number
        return parts.scheme.lower()
    except ValueError:
        raise failed(label, "is not a valid URL") from None


def download(url: str, label: str, max_bytes: int, ends: float) -> bytes:
    """Neither the URL nor an address goes into an error: the URL may be signed, the address may be inside."""
    from requests import RequestException
    from runpod.serverless.utils.rp_ssrf import SSRFError, safe_get
    from urllib3.exceptions import HTTPError

    try:
        seconds_left = max(0.1, ends - time.monotonic())
        with safe_get(url, stream=True, timeout=seconds_left) as response:
            if response.status_code != 200:
                raise failed(label, f"was answered with HTTP status {response.status_code}")
            return read_capped(response, label, max_bytes, ends)
    except SSRFError as error:
        if isinstance(error.__cause__, socket.gaierror):
            raise failed(label, "names a host that does not resolve") from None
        if "size cap" in str(error):
            raise too_large(label, max_bytes) from None
        raise failed(label, "leads to an address that may not be fetched: only public http(s) hosts are") from None
    except (RequestException, HTTPError, OSError, ValueError) as error:
        raise failed(label, f"could not be fetched ({type(error).__name__})") from None


def read_capped(response, label: str, max_bytes: int, ends: float) -> bytes:
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(label, max_bytes, f"{int(declared) / 1e6:.1f} MB")
    body = bytearray()
    # read1 returns what has arrived; read(n) would wait for n bytes from a server that drips.
    while chunk := response.raw.read1(CHUNK, decode_content=True):
        body += chunk
        if len(body) > max_bytes:
            raise too_large(label, max_bytes)
        if time.monotonic() > ends:
            raise failed(label, "was not fetched in time")
    return bytes(body)


def too_large(label: str, max_bytes: int, size: str = "more") -> InvalidInput:
    return InvalidInput(f"{label} must be at most {max_bytes / 1e6:.0f} MB, not {size}")
