"""Tells a job's `webhook` how the job ended: the whole job, posted up to three times."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from .job import LocalJob
from .plane import PlaneObserver

TRIES = 3
PAUSE_SECONDS = 10.0  # between two tries, as on the platform
ANSWER_SECONDS = 30.0  # that the other side may take to answer


class Webhooks(PlaneObserver):
    """`say`: prints a line where a webhook is given up. A job is what it is, whether its webhook hears of it or not."""

    def __init__(self, say: Callable[[str], None], pause_seconds: float = PAUSE_SECONDS):
        self.say, self.pause_seconds = say, pause_seconds
        self.posting: set[asyncio.Task[None]] = set()  # asyncio forgets tasks that nothing refers to

    def on_ended(self, job: LocalJob) -> None:
        if job.request.webhook:
            body = {**job.state(), "input": job.request.input, "webhook": job.request.webhook}
            task = asyncio.get_running_loop().create_task(self.post(job.request.webhook, job.id, body))
            self.posting.add(task)
            task.add_done_callback(self.posting.discard)

    async def post(self, url: str, job_id: str, body: Mapping[str, Any]) -> None:
        reason = ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(self.pause_seconds)
            reason = await self.try_once(url, body)
            if not reason:
                return
        self.say(f"the webhook of {job_id} was tried {TRIES} times and given up: {reason}")

    async def try_once(self, url: str, body: Mapping[str, Any]) -> str:
        """Why it failed, or nothing."""
        timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(url, json=body, allow_redirects=False) as response,
            ):
                return "" if response.status == 200 else f"it answered {response.status} instead of 200"
        except TimeoutError:
            return f"it did not answer within {ANSWER_SECONDS:.0f} s"
        except (aiohttp.ClientError, ValueError) as error:
            return f"it cannot be reached ({type(error).__name__})"
