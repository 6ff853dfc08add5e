"""How far a job has come, told to the platform while it runs: one message at a time, spaced, none after the result.

The SDK's own `progress_update` sends each message from a thread of its own, and the last may arrive after the result,
which leaves the job unfinished for ever. Knows nothing of what drawing is.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ..jobs.job import Job

POST_SECONDS = 5  # what one message may take; a result waits no longer for the last one
Post = Callable[[dict], Awaitable[None]]


class Progress:
    """`async with Progress(job, post, every):` sends what changed, at most every so many seconds, until it is left.

    `post` None sends nothing.
    """

    def __init__(self, job: Job, post: Post | None, every: float):
        self.job, self.post, self.every = job, post, every
        self.over = asyncio.Event()

    async def __aenter__(self) -> None:
        self.task = asyncio.create_task(self.run()) if self.post and self.every else None

    async def __aexit__(self, kind, *_: Any) -> None:
        """Waits for the message that is on its way; a stopped job drops it, since nothing is posted for it."""
        if self.task is None:
            return
        job = asyncio.current_task()
        stops = job.cancelling()
        self.over.set()
        if kind is asyncio.CancelledError:
            self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        # A stop that came meanwhile has ended the message alone, with or without an error.
        if job.cancelling() > stops:
            raise asyncio.CancelledError

    async def run(self) -> None:
        told = None
        while not self.over.is_set():
            now = report(self.job)
            preview = self.job.take_preview()
            if now != told or preview:
                told = now
                await self.post(now | ({"preview": preview} if preview else {}))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), self.every)


def report(job: Job) -> dict:
    """`step` of `total` counts the steps of all pictures; `seconds_left` is of the steps, once they are timed."""
    left = job.seconds_left()
    return {
        "stage": job.stage.name.lower(),
        "step": job.step,
        "total": job.total,
        "percent": round(100 * job.step / job.total),
    } | ({"seconds_left": round(left, 1)} if left is not None else {})


def poster(job_id: str) -> Post | None:
    """Posts to where the platform takes results, marked as progress; None where there is no platform."""
    if not os.environ.get("RUNPOD_WEBHOOK_POST_OUTPUT"):
        return None
    import aiohttp
    from runpod.http_client import get_auth_header
    from runpod.serverless.modules.rp_http import JOB_DONE_URL

    address = JOB_DONE_URL.replace("$ID", job_id) + "&isStream=false"
    headers = {**get_auth_header(), "X-Request-ID": job_id, "Content-Type": "application/x-www-form-urlencoded"}

    async def post(message: dict) -> None:
        body = json.dumps({"status": "IN_PROGRESS", "output": message}, ensure_ascii=False)
        # A message that does not arrive is no loss: the next one says more.
        with suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(POST_SECONDS)) as session,
                session.post(address, data=body.encode()) as answer,
            ):
                await answer.read()

    return post
