"""A job's progress and reply as one stream of chunks, for endpoints that stream. Knows nothing of how a job is done.

The platform takes chunks below 1 MB and posts the list of all of them as the result, which has its own limit.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from .progress import Message, Post

CHUNK_BYTES = 1_000_000
ENVELOPE_BYTES = 100  # beside the chunks: the body's own brackets; each chunk's separator is counted with the chunk

SdkJob = dict[str, Any]  # as the SDK hands it to a handler: `id`, `input`, perhaps `policy`, `s3Config` and others
Reply = dict[str, Any]  # as the SDK posts it
Answer = Callable[[SdkJob, Post, int], Coroutine[Any, Any, Reply]]  # (job, post, bytes that its reply may have)


async def stream(answer: Answer, job: SdkJob, limit_bytes: int) -> AsyncGenerator[Message | Reply, None]:
    """The progress messages of `answer(job, post, limit_bytes)` as they come, then the reply that it returns.

    Previews stop, and then all progress, before the list would leave too little of `limit_bytes` for the reply. A
    stream that is closed early, as by a stop, stops the job and waits until that has ended.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    left_bytes = limit_bytes - ENVELOPE_BYTES - CHUNK_BYTES

    async def post(message: Message) -> None:
        messages.put_nowait(message)

    answering = asyncio.create_task(answer(job, post, min(limit_bytes, CHUNK_BYTES)))
    answering.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            for chunk in (message, {name: value for name, value in message.items() if name != "preview"}):
                chunk_bytes = len(json.dumps(chunk, ensure_ascii=False).encode()) + 2
                if chunk_bytes <= left_bytes and chunk_bytes < CHUNK_BYTES:
                    left_bytes -= chunk_bytes
                    yield chunk
                    break
        yield answering.result()
    finally:
        answering.cancel()
        await asyncio.wait([answering])
