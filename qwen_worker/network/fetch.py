"""The body behind a URL that a job names: from public addresses only, capped in bytes and in total time.

The address rules (scheme, public IPs, pinned connection, every redirect checked again) are the SDK's `rp_ssrf`. The
byte cap and the deadline are ours, because the SDK's timeout is per read and a server can drip for ever. Knows nothing
of what is fetched.
"""
# pyright: reportMissingTypeStubs=false
# The SDK has no stubs; its own annotations are read.

import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import InvalidInput, JobError
from .side_threads import Busy, Late, SideThreads

if TYPE_CHECKING:
    from requests import Response

CHUNK_BYTES = 65536  # the most that is asked of the socket at a time
MAX_FETCHES = 16
# Hosts such as Wikimedia refuse clients that go by the name of their library.
USER_AGENT = "qwen-image-worker (a serverless worker on RunPod, at the request of one of its jobs)"
fetch_threads = SideThreads(MAX_FETCHES)


class HttpStatusError(JobError):
    """A server has answered with another `status` than 200."""

    def __init__(self, error: JobError, status: int):
        super().__init__(error.code, error.sentence)
        self.status = status


@dataclass(frozen=True)
class FetchTarget:
    """What is fetched, as errors name it. `label`: its field in the job. `code`: of the error when the fetch fails."""

    label: str
    max_bytes: int
    code: str = "image_fetch_failed"

    def fetch_error(self, reason: str) -> JobError:
        return JobError(self.code, f"{self.label} {reason}")

    def size_error(self, size: str = "more") -> InvalidInput:
        return InvalidInput(f"{self.label} must be at most {self.max_bytes / 1e6:.0f} MB, not {size}")


def fetch(url: str, label: str, max_bytes: int, seconds: float, cancelled: threading.Event | None = None) -> bytes:
    """The body behind an http(s) URL, within `seconds` in all.

    Raises `JobError` image_fetch_failed or invalid_input, or `Cancelled` within a moment once `cancelled` is set.
    """
    target, body = FetchTarget(label, max_bytes), bytearray()
    require_url(url, target)
    deadline = time.monotonic() + seconds
    with explain_waits(target, seconds, fetch_threads):
        fetch_threads.run_within(seconds, lambda: download(url, target, deadline, body.extend), cancelled)
    return bytes(body)


@contextmanager
def explain_waits(target: FetchTarget, seconds: float, threads: SideThreads) -> Generator[None]:
    """Raise a failure of the target where the block's fetch on a side thread is not done in time, or never begins.

    The fetch is left behind then, and at a stop: name resolution and response headers cannot be interrupted. A server
    that drips headers for ever holds one of the threads for as long as it does so.
    """
    try:
        yield
    except Busy:
        raise target.fetch_error(f"was not fetched: {threads.count} servers are still being waited for") from None
    except Late:
        raise target.fetch_error(f"was not fetched within {seconds:g} seconds") from None


def require_url(url: str, target: FetchTarget) -> None:
    """Refuse what is no http(s) URL."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises on a port that is no number
    except ValueError:
        raise target.fetch_error("is not a valid URL") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise target.fetch_error(f"must be an http or https URL, not {parts.scheme.lower()[:20]!r}")
    # The first import of the SDK takes a second or two, which would else count against the fetch's time.
    import runpod.serverless.utils.rp_ssrf  # noqa: F401  # pyright: ignore[reportUnusedImport]  imported for later


def download(
    url: str,
    target: FetchTarget,
    deadline: float,
    receive: Callable[[bytes], None],
    headers: Mapping[str, str] | None = None,
) -> Mapping[str, str] | None:
    """Pass the body on to `receive` as it comes, and return the response's headers; None where the body is unchanged.

    `deadline`: of `time.monotonic()`. `headers`: the request's; by them the server may answer "not modified". Raises
    `JobError` of the target, in which neither the URL nor an address stands: the URL may be signed, the address may be
    an internal one.
    """
    from requests import RequestException
    from runpod.serverless.utils.rp_ssrf import (
        SSRFError,
        safe_get,  # pyright: ignore[reportUnknownVariableType]  its headers are annotated as any dict
    )
    from urllib3.exceptions import HTTPError

    try:
        seconds_left = max(0.1, deadline - time.monotonic())
        with safe_get(
            url,
            stream=True,
            timeout=seconds_left,  # pyright: ignore[reportArgumentType]  the SDK hands it to requests, which takes floats
            headers={"User-Agent": USER_AGENT, **(headers or {})},
        ) as response:
            if headers and response.status_code == 304:
                return None
            if response.status_code != 200:
                status = response.status_code
                raise HttpStatusError(target.fetch_error(f"was answered with HTTP status {status}"), status)
            read_capped(response, target, deadline, receive)
            return response.headers
    except SSRFError as error:
        if isinstance(error.__cause__, socket.gaierror):
            raise target.fetch_error("names a host that does not resolve") from None
        if "size cap" in str(error):
            raise target.size_error() from None
        raise target.fetch_error("leads to an address that may not be fetched: only public http(s) hosts are") from None
    except (RequestException, HTTPError, OSError, ValueError) as error:
        raise target.fetch_error(f"could not be fetched ({type(error).__name__})") from None


def read_capped(response: "Response", target: FetchTarget, deadline: float, receive: Callable[[bytes], None]) -> None:
    """Pass the body on to `receive`. Raises `JobError` past the target's cap or the deadline."""
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > target.max_bytes:
        raise target.size_error(f"{int(declared) / 1e6:.1f} MB")
    count = 0
    # read1 returns what has arrived; read(n) would wait for n bytes from a server that drips.
    while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
        count += len(chunk)
        if count > target.max_bytes:
            raise target.size_error()
        receive(chunk)
        if time.monotonic() > deadline:
            raise target.fetch_error("was not fetched in time")
