"""A job's progress and reply as one stream of chunks, for endpoints that stream. Knows nothing of how a job is done.

The platform takes chunks below 1 MB and posts the list of all of them as the result, which has its own limit.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

CHUNK_BYTES = 1_000_000
ENVELOPE = 100  # bytes beside the chunks: the body's own brackets, and a separator for each chunk counted below


async def stream(answer: Callable[..., Awaitable[dict]], job: dict, limit: int) -> AsyncIterator[dict]:
    """The progress messages of `answer(job, tell, limit)` as they come, then what it returns.

    Previews stop, and then all progress, before the list would leave too little of `limit` bytes for the reply. Left
    early, as by a stop, it stops the job and waits until that has ended.
    """
    messages: asyncio.Queue[dict | None] = asyncio.Queue()
    left = limit - ENVELOPE - CHUNK_BYTES

    async def tell(message: dict) -> None:
        messages.put_nowait(message)

    answering = asyncio.create_task(answer(job, tell, min(limit, CHUNK_BYTES)))
    answering.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            for form in (message, {name: value for name, value in message.items() if name != "preview"}):
                size = len(json.dumps(form, ensure_ascii=False).encode()) + 2
                if size <= left and size < CHUNK_BYTES:
                    left -= size
                    yield form
                    break
        yield answering.result()
    finally:
        answering.cancel()
        await asyncio.wait([answering])
