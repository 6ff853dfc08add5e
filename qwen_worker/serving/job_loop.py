"""What the SDK's job loop leaves to its user: a prompt, bounded end on SIGTERM, early stops, a slot that is stuck.

The SDK ends after its held polls, up to 90 seconds on an idle worker, and loses a job that is handed out in the last of
them; it does not hear a stop for a job whose handler has not been entered yet; and a slot that never becomes free keeps
the worker from taking jobs for ever, billed. Knows nothing of what a job is.
"""

import asyncio
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from ..log import log_line
from .stream import SdkJob

EARLY_SECONDS = 2.0  # how long a stop waits for a job that is still on its way to the handler
WATCH_SECONDS = 5.0  # between looks at the slots
SETTLE_SECONDS = 0.05  # for the SDK to queue what its last poll brought

Result = TypeVar("Result")
JobsPoll = Callable[[object, int], Awaitable[list[SdkJob] | None]]  # (HTTP session, how many) -> the jobs taken
StopsPoll = Callable[[object], Awaitable[list[str]]]  # (HTTP session) -> ids of jobs to stop


class RunningJob(Protocol):
    id: str


class Scaler(Protocol):
    """What this module uses of the SDK's `JobScaler`."""

    jobs_fetcher: JobsPoll
    stop_signals_fetcher: StopsPoll
    job_progress: Iterable[RunningJob]  # those that the SDK counts as running

    def current_occupancy(self) -> int: ...
    def kill_worker(self) -> None: ...


class JobLoop:
    """`jobs`: the tasks of the jobs that are being answered, by id. `grace_seconds`: that they get after SIGTERM.

    `stuck_seconds`: that a slot may be stuck before the process ends, for the platform to start another.
    """

    # Both are set by `attach`.
    loop: asyncio.AbstractEventLoop
    scaler: Scaler

    def __init__(self, jobs: dict[str, asyncio.Task[Any]], slots: int, grace_seconds: float, stuck_seconds: float):
        self.jobs, self.slots = jobs, slots
        self.grace_seconds, self.stuck_seconds = grace_seconds, stuck_seconds
        self.attached = False
        self.ending = asyncio.Event()  # set by SIGTERM
        self.polling = False  # whether a poll for jobs is held
        self.early_stops: set[asyncio.Task[None]] = set()  # asyncio forgets tasks that nothing refers to

    def concurrency(self, _current: int) -> int:
        """For the SDK as its `concurrency_modifier`: the first thing it calls on its event loop."""
        if not self.attached:
            self.attach()
        return self.slots

    def attach(self) -> None:
        """Take the place of the SDK's signal handlers and wrap its two polls."""
        self.attached, self.loop = True, asyncio.get_running_loop()
        scaler: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if not hasattr(scaler, "kill_worker"):
            return  # not the main thread: the SDK has set no signal handler either
        self.scaler = scaler
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        poll_jobs, poll_stops = self.scaler.jobs_fetcher, self.scaler.stop_signals_fetcher
        self.scaler.jobs_fetcher = functools.partial(self.fetch_jobs, poll_jobs)
        self.scaler.stop_signals_fetcher = functools.partial(self.fetch_stops, poll_stops)
        self.watching = asyncio.create_task(self.watch())

    def on_signal(self, *_: object) -> None:
        with suppress(RuntimeError):  # a second signal, when the loop is closed already
            self.loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Take no more jobs; end those that run once the grace is over."""
        if self.ending.is_set():
            return
        self.ending.set()
        self.loop.call_later(self.grace_seconds, self.cancel_jobs)
        if not self.polling:
            self.scaler.kill_worker()

    def cancel_jobs(self) -> None:
        for task in self.jobs.values():
            task.cancel()

    async def fetch_jobs(self, poll: JobsPoll, session: object, count: int) -> list[SdkJob] | None:
        """The jobs that the SDK's poll brings; None once SIGTERM has come."""
        if self.ending.is_set():
            return None
        self.polling = True
        try:
            return await run_until(self.ending.wait(), poll(session, count))
        finally:
            self.polling = False
            if self.ending.is_set():
                # The SDK ends only when it has queued what its poll brought: it forgets a job that comes after its end.
                self.loop.call_later(SETTLE_SECONDS, self.scaler.kill_worker)

    async def fetch_stops(self, poll: StopsPoll, session: object) -> list[str]:
        """The ids to stop, for the SDK. After SIGTERM the SDK asks once more only: the jobs are stopped here then."""
        while True:
            ids = await run_until(self.wait_for_last_job(), poll(session)) or []
            for early in (job_id for job_id in ids if job_id not in self.jobs):
                task = asyncio.create_task(self.stop_once_entered(early))
                self.early_stops.add(task)
                task.add_done_callback(self.early_stops.discard)
            entered = [job_id for job_id in ids if job_id in self.jobs]
            if not self.ending.is_set():
                return entered
            for job_id in entered:
                self.jobs[job_id].cancel()
            if not self.has_jobs():
                return []
            await asyncio.sleep(SETTLE_SECONDS)  # a control plane that answers at once is not asked without pause

    async def stop_once_entered(self, job_id: str) -> None:
        ends = self.loop.time() + EARLY_SECONDS
        while self.loop.time() < ends:
            if job_id in self.jobs:
                self.jobs[job_id].cancel()
                return
            await asyncio.sleep(0.02)

    async def watch(self) -> None:
        """End the process once one job has been stuck for `stuck_seconds`."""
        stuck_since: dict[str, float] = {}
        while True:
            now = self.loop.time()
            stuck_since = {job_id: stuck_since.get(job_id, now) for job_id in self.stuck_jobs()}
            for job_id, since in stuck_since.items():
                if now - since > self.stuck_seconds:
                    log_line(job_id, "ERROR", f"the job has held its slot for {now - since:.0f} seconds after its end")
                    end_process(1)
            await asyncio.sleep(min(WATCH_SECONDS, self.stuck_seconds / 4))

    def stuck_jobs(self) -> set[str]:
        """Jobs that the SDK counts and no handler answers, and those that were stopped and have not ended.

        Every job is among them for a moment: while its result is posted, or until the step that it was stopped in is
        over.
        """
        unanswered = {job.id for job in self.scaler.job_progress} - set(self.jobs)
        return unanswered | {job_id for job_id, task in self.jobs.items() if task.cancelling()}

    def has_jobs(self) -> bool:
        return bool(self.jobs) or self.scaler.current_occupancy() > 0

    async def wait_for_last_job(self) -> None:
        """Until SIGTERM has come and no job is left."""
        await self.ending.wait()
        while self.has_jobs():
            await asyncio.sleep(SETTLE_SECONDS)


async def run_until(event: Awaitable[object], work: Awaitable[Result]) -> Result | None:
    """What the work returns, or None where the event comes first: the work is cancelled then."""
    event, work = asyncio.ensure_future(event), asyncio.ensure_future(work)
    try:
        await asyncio.wait({event, work}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        event.cancel()
        work.cancel()


def end_process(code: object = None) -> None:
    """End the process although a load, a fetch or an upload that nobody waits for any more may still be on a thread.

    `code`: as `SystemExit` has it, a number or None for success; anything else means failure.
    """
    sys.stdout.flush()
    for child in multiprocessing.active_children():
        child.terminate()  # the SDK's heartbeat
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
