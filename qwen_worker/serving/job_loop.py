"""What the SDK's job loop leaves to its user: a prompt, bounded end on SIGTERM, early stops, a slot that is stuck.

The SDK ends after its held polls, up to 90 seconds on an idle worker, and loses a job that is handed out in the last of
them; it does not hear a stop for a job whose handler has not been entered yet; and a slot that never becomes free keeps
the worker from taking jobs for ever, billed. Knows nothing of what a job is.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ..log import log_line

EARLY_SECONDS = 2.0  # how long a stop waits for a job that is still on its way to the handler
WATCH_SECONDS = 5.0  # between looks at the slots
SETTLE_SECONDS = 0.05  # for the SDK to queue what a last poll brought


class JobLoop:
    """`jobs`: the tasks of the jobs that are being answered, by id. `grace`: seconds that they get after SIGTERM.

    `patience`: seconds that a slot may be stuck before the process ends, for the platform to start another.
    """

    def __init__(self, jobs: dict[str, asyncio.Task], slots: int, grace: float, patience: float):
        self.jobs, self.slots, self.grace, self.patience = jobs, slots, grace, patience
        self.scaler: Any = None
        self.ending: asyncio.Event | None = None
        self.taking = False
        self.waiting: set[asyncio.Task] = set()  # stops for jobs not entered yet; kept, or asyncio forgets them

    def concurrency(self, _current: int) -> int:
        """For the SDK as its `concurrency_modifier`: the first thing it calls on its event loop."""
        if self.ending is None:
            self.attach()
        return self.slots

    def attach(self) -> None:
        """Take the place of the SDK's signal handlers and wrap its two polls."""
        self.loop, self.ending = asyncio.get_running_loop(), asyncio.Event()
        self.scaler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if not hasattr(self.scaler, "kill_worker"):
            return  # not the main thread: the SDK has set none either
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self.on_signal)
        take, stops = self.scaler.jobs_fetcher, self.scaler.stop_signals_fetcher
        self.scaler.jobs_fetcher = lambda session, count: self.take(take, session, count)
        self.scaler.stop_signals_fetcher = lambda session: self.stops(stops, session)
        self.watching = asyncio.create_task(self.watch())

    def on_signal(self, *_: Any) -> None:
        with suppress(RuntimeError):  # a second signal, when the loop is closed already
            self.loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Take no more jobs; end those that run once the grace is over."""
        if self.ending.is_set():
            return
        self.ending.set()
        self.loop.call_later(self.grace, self.cut_short)
        if not self.taking:
            self.scaler.kill_worker()

    def cut_short(self) -> None:
        for task in self.jobs.values():
            task.cancel()

    async def take(self, fetch: Callable, session: Any, count: int) -> list[dict] | None:
        if self.ending.is_set():
            return None
        self.taking = True
        try:
            return await self.unless(self.ending.wait(), fetch(session, count))
        finally:
            self.taking = False
            if self.ending.is_set():
                # Not before what the poll brought is queued: the SDK forgets a job that comes after its end.
                self.loop.call_later(SETTLE_SECONDS, self.scaler.kill_worker)

    async def stops(self, fetch: Callable, session: Any) -> list[str]:
        """The ids to stop; after SIGTERM it stops them itself, as the SDK asks only once more."""
        while True:
            ids = await self.unless(self.all_over(), fetch(session)) or []
            for early in (one for one in ids if one not in self.jobs):
                task = asyncio.create_task(self.stop_once_entered(early))
                self.waiting.add(task)
                task.add_done_callback(self.waiting.discard)
            ids = [one for one in ids if one in self.jobs]
            if not self.ending.is_set():
                return ids
            for one in ids:
                self.jobs[one].cancel()
            if not self.busy():
                return []
            await asyncio.sleep(SETTLE_SECONDS)  # a plane that answers at once is not asked without pause

    async def stop_once_entered(self, job_id: str) -> None:
        ends = self.loop.time() + EARLY_SECONDS
        while self.loop.time() < ends:
            if job_id in self.jobs:
                self.jobs[job_id].cancel()
                return
            await asyncio.sleep(0.02)

    async def watch(self) -> None:
        """End the process once one job has been stuck for as long as may be."""
        since: dict[str, float] = {}
        while True:
            now = self.loop.time()
            since = {one: since.get(one, now) for one in self.stuck()}
            for job_id, at in since.items():
                if now - at > self.patience:
                    log_line(job_id, "ERROR", f"the job has held its slot for {now - at:.0f} seconds after its end")
                    leave(1)
            await asyncio.sleep(min(WATCH_SECONDS, self.patience / 4))

    def stuck(self) -> set[str]:
        """Jobs that the SDK counts and no handler answers, and those that were stopped and have not ended.

        Each is so for a moment: while its result is posted, or until the step that it was stopped in is over.
        """
        unanswered = {job.id for job in self.scaler.job_progress} - set(self.jobs)
        return unanswered | {job_id for job_id, task in self.jobs.items() if task.cancelling()}

    def busy(self) -> bool:
        return bool(self.jobs) or self.scaler.current_occupancy() > 0

    async def all_over(self) -> None:
        await self.ending.wait()
        while self.busy():
            await asyncio.sleep(SETTLE_SECONDS)

    async def unless(self, event: Awaitable, work: Awaitable) -> Any:
        """What the work returns, or None where the event comes first: the work is cancelled then."""
        event, work = asyncio.ensure_future(event), asyncio.ensure_future(work)
        try:
            await asyncio.wait({event, work}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            event.cancel()
            work.cancel()


def leave(code: int | None = 0) -> None:
    """End the process although a load, a fetch or an upload that nobody waits for any more may still be on a thread."""
    sys.stdout.flush()
    for child in multiprocessing.active_children():
        child.terminate()  # the SDK's heartbeat
    os._exit(code or 0)
