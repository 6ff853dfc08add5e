"""Bodies of requests, read up to a limit, and JSON answers. Knows nothing of jobs."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request, Response

MOST_DISCARDED_BYTES = 100_000_000  # of a body that is too large; then the connection ends


class TooLarge(Exception):
    """A body above the limit. `size`: its bytes, as far as they were read."""

    def __init__(self, size: int, limit: int):
        super().__init__(f"The body has more than {limit // 1_000_000} MB, which is the limit of this route")
        self.size, self.limit = size, limit


class ClientGone(Exception):
    """The client ended the connection before its request was whole."""


async def read_body(request: Request, limit: int) -> bytes:
    """Raises `TooLarge`, having kept no more than the limit, and `ClientGone`.

    What is above the limit is read and thrown away: a client that is still sending does not read an answer.
    """
    declared = request.headers.get("content-length", "")
    size = 0
    expects = request.headers.get("expect", "").lower() == "100-continue"
    if declared.isdigit() and int(declared) > limit and (expects or int(declared) > MOST_DISCARDED_BYTES):
        raise TooLarge(int(declared), limit)
    parts: list[bytes] = []
    async for part in chunks(request):
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
            if size > MOST_DISCARDED_BYTES:
                break
    if size > limit:
        raise TooLarge(size, limit)
    return b"".join(parts)


async def chunks(request: Request):
    """The parts of a body as they arrive."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


@asynccontextmanager
async def watched(request: Request) -> AsyncGenerator["asyncio.Future[None]"]:
    """A future that is done when the other side has ended the connection; to be used once the body is read."""
    gone = asyncio.ensure_future(until_gone(request))
    try:
        yield gone
    finally:
        gone.cancel()


async def until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answer(data: Any, status: int = 200, **headers: str) -> Response:
    body = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, media_type="application/json", headers=headers or None)


def refusal(sentence: str, status: int = 400) -> Response:
    return answer({"error": sentence}, status)
