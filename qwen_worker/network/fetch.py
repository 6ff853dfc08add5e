"""What lies behind a URL that a job names: public addresses only, capped in bytes and in total time.

The address rules (scheme, public IPs, pinned connection, every redirect checked again) are the SDK's `rp_ssrf`; the
byte cap and the deadline are ours, because the SDK's timeout is per read and a server can drip for ever. Knows nothing
of what is fetched.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import InvalidInput, JobError
from .side_threads import Busy, Late, SideThreads

CHUNK = 65536  # bytes asked of the socket at a time; fewer are taken as they come
MAX_FETCHES = 16
fetches = SideThreads(MAX_FETCHES)


@dataclass(frozen=True)
class Wanted:
    """What is fetched, for the errors about it: its name in the job, its cap, and the code where it cannot be had."""

    label: str
    max_bytes: int
    code: str = "image_fetch_failed"

    def failed(self, why: str) -> JobError:
        return JobError(self.code, f"{self.label} {why}")

    def too_large(self, size: str = "more") -> InvalidInput:
        return InvalidInput(f"{self.label} must be at most {self.max_bytes / 1e6:.0f} MB, not {size}")


def fetch(url: str, label: str, max_bytes: int, deadline: float, cancelled: threading.Event | None = None) -> bytes:
    """The body behind an http(s) URL, within `deadline` seconds in all.

    Raises `image_fetch_failed` or `invalid_input`, or `Cancelled` within a moment once `cancelled` is set.
    """
    wanted, body = Wanted(label, max_bytes), bytearray()
    require_url(url, wanted)
    ends = time.monotonic() + deadline
    with told(wanted, deadline, fetches):
        fetches.within(deadline, lambda: download(url, wanted, ends, body.extend), cancelled)
    return bytes(body)


@contextmanager
def told(wanted: Wanted, deadline: float, threads: SideThreads) -> Iterator[None]:
    """Within, a fetch on a side thread that is not done in time, or never begun, is told as one that failed.

    It is left behind at the deadline or at a stop, since name resolution and response headers cannot be interrupted; a
    server that drips headers for ever holds one of the threads for as long as it does.
    """
    try:
        yield
    except Busy:
        raise wanted.failed(f"was not fetched: {threads.most} servers are still being waited for") from None
    except Late:
        raise wanted.failed(f"was not fetched within {deadline:g} seconds") from None


def require_url(url: str, wanted: Wanted) -> None:
    """Refuse what is no http(s) URL."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises on a port that is no number
    except ValueError:
        raise wanted.failed("is not a valid URL") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise wanted.failed(f"must be an http or https URL, not {parts.scheme.lower()[:20]!r}")
    import runpod.serverless.utils.rp_ssrf  # noqa: F401  a second or two at first: not out of the deadline


def download(
    url: str,
    wanted: Wanted,
    ends: float,
    receive: Callable[[bytes], None],
    headers: Mapping[str, str] | None = None,
) -> Mapping[str, str] | None:
    """Pass the body on to `receive` as it comes; the response's headers, None where it is as the request's have it.

    Neither the URL nor an address goes into an error: the URL may be signed, the address may be inside.
    """
    from requests import RequestException
    from runpod.serverless.utils.rp_ssrf import SSRFError, safe_get
    from urllib3.exceptions import HTTPError

    try:
        seconds_left = max(0.1, ends - time.monotonic())
        with safe_get(url, stream=True, timeout=seconds_left, headers=dict(headers or {})) as response:
            if headers and response.status_code == 304:
                return None
            if response.status_code != 200:
                raise wanted.failed(f"was answered with HTTP status {response.status_code}")
            read_capped(response, wanted, ends, receive)
            return response.headers
    except SSRFError as error:
        if isinstance(error.__cause__, socket.gaierror):
            raise wanted.failed("names a host that does not resolve") from None
        if "size cap" in str(error):
            raise wanted.too_large() from None
        raise wanted.failed("leads to an address that may not be fetched: only public http(s) hosts are") from None
    except (RequestException, HTTPError, OSError, ValueError) as error:
        raise wanted.failed(f"could not be fetched ({type(error).__name__})") from None


def read_capped(response, wanted: Wanted, ends: float, receive: Callable[[bytes], None]) -> None:
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > wanted.max_bytes:
        raise wanted.too_large(f"{int(declared) / 1e6:.1f} MB")
    count = 0
    # read1 returns what has arrived; read(n) would wait for n bytes from a server that drips.
    while chunk := response.raw.read1(CHUNK, decode_content=True):
        count += len(chunk)
        if count > wanted.max_bytes:
            raise wanted.too_large()
        receive(chunk)
        if time.monotonic() > ends:
            raise wanted.failed("was not fetched in time")
