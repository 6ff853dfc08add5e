"""The platform's side of an endpoint in memory: its queue, its workers, and what becomes of each job.

Everything happens on one event loop. Knows no HTTP, and starts no process.
"""

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .job import ENDED, RETRIABLE, JobRequest, LocalJob, Status

STARTS_AFTER_DEATH = 1  # a job whose worker dies goes to another one, so often; then it fails
MOST_KEPT_BYTES = 1_000_000_000  # of all results; above it the oldest are forgotten before their time
SWEEP_SECONDS = 0.25  # from one look for jobs that are over time to the next


class UnknownJob(Exception):
    """There is no job of this id, or nothing is known of it any more."""


class PlaneObserver:
    """Hears what happens at the plane, on its event loop. `body`: as a worker posted it."""

    def on_taken(self, job: LocalJob) -> None: ...
    def on_posted(self, kind: str, job: LocalJob, body: dict[str, Any]) -> None: ...  # result, progress or chunk
    def on_refused(self, job: LocalJob, size: int) -> None: ...  # a result of so many bytes, which is too many
    def on_requeued(self, job: LocalJob) -> None: ...
    def on_ended(self, job: LocalJob) -> None: ...
    def on_pinged(self, worker: str, job_ids: list[str]) -> None: ...
    def on_ready(self, worker: str) -> None: ...
    def on_unfit(self, worker: str, reason: str) -> None: ...
    def on_refresh(self, worker: str) -> None: ...  # its process must be replaced


class Plane:
    """`clock`: seconds that only grow. `observers` may be added at any time."""

    def __init__(self, observers: Iterable[PlaneObserver] = (), clock: Callable[[], float] = time.monotonic):
        self.observers, self.clock = list(observers), clock
        self.jobs: dict[str, LocalJob] = {}
        self.queue: deque[LocalJob] = deque()
        self.stops: dict[str, str | None] = {}  # by job id the worker that is to stop it; None: whoever asks first
        self.workers: dict[str, bool] = {}  # by name, whether it has asked for a job yet
        self.retiring: set[str] = set()  # workers that get no more jobs
        self.totals: Counter[str] = Counter()
        self.changed = asyncio.Event()  # set at every change, and replaced by a new one
        self.closed = False

    # What clients do

    def submit(self, request: JobRequest, sync: bool = False, job_id: str | None = None) -> LocalJob:
        """Queue a job."""
        self.sweep()
        job = LocalJob(job_id or f"{'sync-' * sync}{uuid.uuid4()}-u1", request, sync, self.clock())
        self.jobs[job.id] = job
        self.queue.append(job)
        self.notify()
        return job

    def find(self, job_id: str) -> LocalJob:
        """Raises `UnknownJob`."""
        self.sweep()
        if job_id not in self.jobs:
            raise UnknownJob(job_id)
        return self.jobs[job_id]

    def cancel(self, job: LocalJob) -> None:
        """Stop a job; one that has ended stays as it is."""
        if job.status not in ENDED:
            self.stop(job, Status.CANCELLED)

    def retry(self, job: LocalJob) -> bool:
        """Queue a job again that has failed or was too slow; whether it is one."""
        if job.status not in RETRIABLE:
            return False
        job.retries += 1
        self.totals["retried"] += 1
        job.renew()
        self.stops.pop(job.id, None)  # of the start before, which its worker may not have heard yet
        self.queue.append(job)
        self.notify()
        return True

    def purge(self) -> int:
        """Take every waiting job from the queue; how many these were."""
        waiting = list(self.queue)
        for job in waiting:
            self.cancel(job)
        return len(waiting)

    def health(self) -> dict[str, dict[str, int]]:
        """As /health says it."""
        self.sweep()
        statuses = Counter(job.status for job in self.jobs.values())
        busy = {job.worker for job in self.jobs.values() if job.status is Status.IN_PROGRESS}
        ready = {name for name, is_ready in self.workers.items() if is_ready}
        return {
            "jobs": {
                "completed": self.totals[Status.COMPLETED],
                "failed": self.totals[Status.FAILED] + self.totals[Status.TIMED_OUT],
                "inProgress": statuses[Status.IN_PROGRESS],
                "inQueue": statuses[Status.IN_QUEUE],
                "retried": self.totals["retried"],
            },
            "workers": {
                "idle": len(ready - busy),
                "initializing": len(self.workers) - len(ready),
                "ready": len(ready),
                "running": len(ready & busy),
                "throttled": 0,
                "unhealthy": 0,
            },
        }

    # What workers do

    async def take(
        self, worker: str, most: int, seconds: float, gone: "asyncio.Future[Any] | None" = None
    ) -> Sequence[LocalJob]:
        """Up to `most` jobs, once there is one; none after so many seconds, or when `gone` is done."""
        self.enter(worker)
        # A worker that is to get no more jobs is kept waiting: an answer at once would have it ask without pause.
        if not await self.wait_until(lambda: bool(self.queue) and worker not in self.retiring, seconds, gone):
            return []
        jobs = [self.queue.popleft() for _ in range(min(most, len(self.queue)))]
        for job in jobs:
            job.start(worker, self.clock())
            self.tell("on_taken", job)
        self.notify()
        return jobs

    async def take_stops(self, worker: str, seconds: float, gone: "asyncio.Future[Any] | None" = None) -> list[str]:
        """The ids of jobs that the worker is to stop, once there is one."""

        def due() -> list[str]:
            return [job_id for job_id, target in self.stops.items() if target in (worker, None)]

        if not await self.wait_until(lambda: bool(due()), seconds, gone):
            return []
        found = due()
        for job_id in found:
            del self.stops[job_id]
        self.notify()
        return found

    def hear_progress(self, job: LocalJob, body: dict[str, Any]) -> None:
        if job.status is Status.IN_PROGRESS:
            job.set_output(body.get("output"))
        self.tell("on_posted", "progress", job, body)
        self.notify()

    def hear_chunk(self, job: LocalJob, body: dict[str, Any]) -> None:
        if job.status is Status.IN_PROGRESS:
            job.chunks.append(body.get("output"))
        self.tell("on_posted", "chunk", job, body)
        self.notify()

    def hear_result(self, job: LocalJob, worker: str, body: dict[str, Any], size: int = 0) -> None:
        """The first result of a job counts. `size`: its bytes. `stopPod` in it asks for a new worker."""
        if body.get("stopPod"):
            self.retiring.add(worker)
            self.tell("on_refresh", worker)
        self.tell("on_posted", "result", job, body)
        if job.status not in ENDED:
            job.has_output, job.output = "output" in body, body.get("output")
            job.error = body.get("error") or None
            job.kept_bytes = size
            self.end(job, Status.FAILED if job.error else Status.COMPLETED)
            self.forget_oldest()
        self.notify()

    def forget_oldest(self) -> None:
        """Forget the jobs that ended first, until the results fit in memory; the last result always stays."""
        kept = sorted((job for job in self.jobs.values() if job.ended is not None), key=lambda job: job.ended or 0)
        size = sum(job.kept_bytes for job in kept)
        for job in kept[:-1]:
            if size <= MOST_KEPT_BYTES:
                return
            size -= job.kept_bytes
            del self.jobs[job.id]

    def refuse_result(self, job: LocalJob, size: int) -> None:
        """A result of so many bytes is dropped: the platform's clients then see a job that completed without output."""
        self.tell("on_refused", job, size)
        if job.status not in ENDED:
            job.has_output, job.output = False, None
            self.end(job, Status.COMPLETED)

    def hear_ping(self, worker: str, job_ids: list[str], unhealthy: str | None = None) -> None:
        """`job_ids`: of the jobs that the worker has. `unhealthy`: why it takes none."""
        self.tell("on_pinged", worker, job_ids)
        if unhealthy is not None:
            self.tell("on_unfit", worker, unhealthy)

    # What becomes of workers

    def expect(self, worker: str) -> None:
        """A process has been started that has not yet asked for a job."""
        self.workers[worker] = False
        self.notify()

    def enter(self, worker: str) -> None:
        if not self.workers.get(worker):
            self.workers[worker] = True
            self.tell("on_ready", worker)
            self.notify()

    def retire(self, worker: str) -> None:
        """Give a worker no more jobs."""
        self.retiring.add(worker)
        self.notify()

    def lose(self, worker: str) -> None:
        """A worker's process has ended: its jobs go to another one, at the head of the queue."""
        self.workers.pop(worker, None)
        self.retiring.discard(worker)
        self.stops = {job_id: target for job_id, target in self.stops.items() if target != worker}
        for job in reversed([job for job in self.jobs.values() if job.worker == worker]):
            if job.status is Status.IN_PROGRESS:
                self.requeue(job)
        self.notify()

    def requeue(self, job: LocalJob) -> None:
        """Hand out again a job whose worker is gone, or fail it if that has happened too often."""
        if job.retries >= STARTS_AFTER_DEATH:
            job.has_output, job.output = False, None
            job.error = f"job timed out after {job.retries} retries: its worker ended each time while it ran the job"
            self.end(job, Status.FAILED)
            return
        job.retries += 1
        self.totals["retried"] += 1
        job.renew()
        self.queue.appendleft(job)
        self.tell("on_requeued", job)

    def close(self) -> None:
        """Let nobody wait any longer, and hand out nothing more."""
        self.closed = True
        self.notify()

    # Time

    async def keep_time(self) -> None:
        """Look again and again for jobs that are over time; never returns."""
        while True:
            self.sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    def sweep(self) -> None:
        """End jobs whose `executionTimeout` is over, and forget those whose `ttl` or retention is over."""
        now = self.clock()
        for job in list(self.jobs.values()):
            if job.is_overdue(now):
                self.stop(job, Status.TIMED_OUT)
            if now >= job.expires():
                if job.status not in ENDED:
                    self.stop(job, Status.TIMED_OUT)
                del self.jobs[job.id]
                self.notify()

    def stop(self, job: LocalJob, status: Status) -> None:
        """End a job that has no result, and have its worker stop it."""
        if job.status is Status.IN_PROGRESS:
            self.stops[job.id] = job.worker
        job.has_output, job.output = False, None
        self.end(job, status)

    def end(self, job: LocalJob, status: Status) -> None:
        if job in self.queue:  # also one that was queued again, when the result of its first start comes late
            self.queue.remove(job)
        job.end(status, self.clock())
        self.totals[status] += 1
        self.tell("on_ended", job)
        self.notify()

    async def wait_until(
        self, true: Callable[[], bool], seconds: float, gone: "asyncio.Future[Any] | None" = None
    ) -> bool:
        """Whether it has become so, before the seconds were over, `gone` was done or the plane closed."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while True:
            if self.closed or (gone is not None and gone.done()):
                return False
            if true():
                return True
            left = ends - loop.time()
            if left <= 0:
                return False
            changing = asyncio.ensure_future(self.changed.wait())
            try:
                waiting = {changing} if gone is None else {changing, gone}
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changing.cancel()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def tell(self, event: str, *facts: object) -> None:
        for observer in self.observers:
            getattr(observer, event)(*facts)
