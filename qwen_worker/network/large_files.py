"""A file of many gigabytes behind a URL that the operator has named: its beginning, or all of it on this disk.

By the SDK's `rp_ssrf` as every other URL, from public addresses only. A download that breaks off leaves what has come,
and the next one goes on there, if the server sends ranges. Knows nothing of what is in the files.
"""
# pyright: reportMissingTypeStubs=false
# The SDK has no stubs; its own annotations are read.

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LoadError
from .fetch import USER_AGENT

if TYPE_CHECKING:
    from requests import Response

MAX_BYTES = 200_000_000_000  # of one file: the largest transformer in float32 has 82 GB
SECONDS_WITHOUT_BYTES = 60.0
PIECE_BYTES = 1 << 20
OK, PARTIAL = 200, 206  # HTTP statuses


def read_start(url: str, label: str, count: int) -> tuple[bytes, int]:
    """The first `count` bytes behind the URL, or all where it has fewer, and its size. Raises `LoadError`.

    `label`: the file's name in errors.
    """
    with opened(url, label, {}) as response:
        require_status(response, label, (OK,))
        return response.raw.read(count), size_of(response, label)


def download(url: str, label: str, target: Path, size: int) -> None:
    """Have the file at `target`, whole or not at all. `size`: its bytes. Raises `LoadError`.

    Until then what has come is beside it, under its name and `.part`.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as stream:
        if stream.tell() > size:
            stream.truncate(0)
        if stream.tell() < size:
            headers = {"Range": f"bytes={stream.tell()}-"} if stream.tell() else {}
            with opened(url, label, headers) as response:
                require_status(response, label, (OK, PARTIAL))
                if response.status_code == OK:  # the server sends no ranges
                    stream.truncate(0)
                while piece := response.raw.read(PIECE_BYTES):
                    stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    if (have := part.stat().st_size) != size:
        raise LoadError(f"{label} could not be fetched: {have:,} of {size:,} bytes have come", transient=True)
    part.rename(target)


@contextmanager
def opened(url: str, label: str, headers: dict[str, str]) -> "Generator[Response]":
    """The answer of the URL's server. Raises `LoadError`, in which neither the URL nor an address stands."""
    from requests import RequestException
    from runpod.serverless.utils.rp_ssrf import (
        SSRFError,
        safe_get,  # pyright: ignore[reportUnknownVariableType]  its headers are annotated as any dict
    )
    from urllib3.exceptions import HTTPError

    # If the server compressed the file, the number of bytes that have come would not say where to go on.
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
    try:
        with safe_get(
            url,
            stream=True,
            timeout=SECONDS_WITHOUT_BYTES,  # pyright: ignore[reportArgumentType]  requests takes floats
            headers=headers,
            max_bytes=MAX_BYTES,
        ) as response:
            yield response
    except SSRFError:
        raise LoadError(f"{label} may not be fetched: its URL leads to no public http or https host") from None
    except OSError as error:
        if isinstance(error, RequestException):
            raise LoadError(f"{label} could not be fetched: {type(error).__name__}", transient=True) from None
        raise LoadError(f"{label} could not be fetched: {error.strerror or type(error).__name__}") from None
    except (HTTPError, ValueError) as error:
        raise LoadError(f"{label} could not be fetched: {type(error).__name__}", transient=True) from None


def require_status(response: "Response", label: str, accepted: tuple[int, ...]) -> None:
    status = response.status_code
    if status not in accepted:
        transient = status == 429 or status >= 500
        raise LoadError(f"{label} could not be fetched: it was answered with HTTP status {status}", transient=transient)


def size_of(response: "Response", label: str) -> int:
    """The bytes of a whole answer. Raises `LoadError` where the server does not say."""
    declared = response.headers.get("Content-Length", "")
    if not declared.isdigit():
        raise LoadError(f"{label} could not be fetched: its server does not say how large it is")
    return int(declared)
