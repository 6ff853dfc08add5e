"""How far a job has come, posted to the platform while it runs: one message at a time, spaced, none after the result.

The SDK's own `progress_update` sends each message from a thread of its own, and the last may arrive after the result,
which leaves the job unfinished for ever. Knows nothing of what drawing is.
"""

# The SDK has no type stubs.
# pyright: reportMissingTypeStubs=false

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from ..jobs.job import Job, Stage

POST_SECONDS = 5  # what one message may take; a result waits no longer for the last one
Message = dict[str, Any]  # of values that JSON can hold
Post = Callable[[Message], Awaitable[None]]


class Progress:
    """`async with Progress(job, post, every):` posts what has changed, at most once in `every` seconds.

    Nothing is posted where `post` is None or `every` is 0.
    """

    def __init__(self, job: Job, post: Post | None, every: float):
        self.job, self.post, self.every = job, post, every
        self.over = asyncio.Event()
        self.posting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self.post and self.every:
            self.posting = asyncio.create_task(self.run(self.post))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the message that is on its way; a stopped job drops it, since nothing is posted for it."""
        if self.posting is None:
            return
        answering = cast("asyncio.Task[Any]", asyncio.current_task())  # a coroutine always runs in a task
        stops = answering.cancelling()
        self.over.set()
        if kind is asyncio.CancelledError:
            self.posting.cancel()
        with suppress(asyncio.CancelledError):
            await self.posting
        # A stop that came during the wait has ended only the message, and its CancelledError is suppressed above.
        if answering.cancelling() > stops:
            raise asyncio.CancelledError

    async def run(self, post: Post) -> None:
        posted: Message | None = None
        while not self.over.is_set():
            message = message_of(self.job)
            preview = self.job.pop_preview()
            if message != posted or preview:
                posted = message
                await post(message | ({"preview": preview} if preview else {}))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), self.every)


def message_of(job: Job) -> Message:
    """`step` of `total` counts the steps of all pictures; `seconds_left` is of the steps, once they are timed."""
    seconds_left = job.drawing_seconds_left()
    message: Message = {
        "stage": job.stage.name.lower(),
        "step": job.steps_done,
        "total": job.total_steps,
        "percent": round(100 * job.steps_done / job.total_steps),
    }
    if job.stage is Stage.LOADING and (load := job.describe_load()):
        message["load"] = load
    if seconds_left is not None:
        message["seconds_left"] = round(seconds_left, 1)
    if job.warnings:
        message["warnings"] = list(job.warnings)
    return message


def poster(job_id: str) -> Post | None:
    """Posts to where the platform takes results, marked as progress; None where there is no platform."""
    if not os.environ.get("RUNPOD_WEBHOOK_POST_OUTPUT"):
        return None
    import aiohttp
    from runpod.http_client import get_auth_header
    from runpod.serverless.modules.rp_http import JOB_DONE_URL

    address = JOB_DONE_URL.replace("$ID", job_id) + "&isStream=false"
    headers: dict[str, str] = {
        **get_auth_header(),
        "X-Request-ID": job_id,
        "Content-Type": "application/x-www-form-urlencoded",
    }

    async def post(message: Message) -> None:
        body = json.dumps({"status": "IN_PROGRESS", "output": message}, ensure_ascii=False)
        # A message that does not arrive is no loss: the next one says more.
        with suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(POST_SECONDS)) as session,
                session.post(address, data=body.encode()) as answer,
            ):
                await answer.read()

    return post
