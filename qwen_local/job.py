"""One job of the endpoint at home: what was asked for, how far it is, and what its status says. Knows no HTTP."""

import itertools
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_RETENTION_SECONDS = 30 * 60  # how long the platform keeps the result of a job from /run
RUNSYNC_RETENTION_SECONDS = 60
RUN_RESULT_BYTES, RUNSYNC_RESULT_BYTES = 10_000_000, 20_000_000  # of a result; the platform drops a larger one


class Status(StrEnum):
    """The platform's own words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT})
RETRIABLE = frozenset({Status.FAILED, Status.TIMED_OUT})


@dataclass(frozen=True)
class JobRequest:
    """What a client sent. `beside`: what stands beside `input` and goes to the worker too, as `policy`."""

    input: Any
    beside: "Mapping[str, Any]" = field(default_factory=dict[str, Any])
    ttl_seconds: float = 24 * 3600
    execution_seconds: float | None = None
    webhook: str | None = None


@dataclass(eq=False)
class LocalJob:
    """Times are seconds of the plane's clock. `sync`: whether it came by /runsync."""

    id: str
    request: JobRequest
    sync: bool
    created: float
    status: Status = Status.IN_QUEUE
    started: float | None = None
    ended: float | None = None
    worker: str | None = None  # that has it, or had it last
    output: Any = None
    error: Any = None
    has_output: bool = False
    kept_bytes: int = 0  # of the result
    retries: int = 0
    chunks: list[Any] = field(default_factory=list[Any])
    chunks_read: int = 0

    def for_worker(self) -> dict[str, Any]:
        """As the SDK takes it."""
        return {"id": self.id, "input": self.request.input, **self.request.beside}

    def start(self, worker: str, now: float) -> None:
        self.worker = worker
        if self.status not in ENDED:
            self.status, self.started = Status.IN_PROGRESS, now
            self.has_output, self.output = False, None

    def end(self, status: Status, now: float) -> None:
        self.status, self.ended = status, now

    def renew(self) -> None:
        """Back to what it was before a worker had it, but for the count of retries."""
        self.status, self.started, self.ended = Status.IN_QUEUE, None, None
        self.has_output, self.output, self.error = False, None, None
        self.chunks, self.chunks_read = [], 0

    def set_output(self, output: Any) -> None:
        self.output, self.has_output = output, True

    def pop_chunks(self) -> list[Any]:
        """The chunks that no client has read yet."""
        unread = list(itertools.islice(self.chunks, self.chunks_read, None))
        self.chunks_read = len(self.chunks)
        return unread

    def expires(self) -> float:
        """When nothing more is known of the job. The platform deletes a job at its `ttl` even while it runs."""
        last = self.created + self.request.ttl_seconds
        if self.ended is None:
            return last
        return min(last, self.ended + (RUNSYNC_RETENTION_SECONDS if self.sync else RUN_RETENTION_SECONDS))

    def is_overdue(self, now: float) -> bool:
        """Whether its `executionTimeout` is over."""
        limit = self.request.execution_seconds
        return limit is not None and self.status is Status.IN_PROGRESS and now - (self.started or now) >= limit

    def result_bytes(self) -> int:
        return RUNSYNC_RESULT_BYTES if self.sync else RUN_RESULT_BYTES

    def state(self) -> dict[str, Any]:
        """As /status says it: times in milliseconds."""
        found: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if self.started is not None:
            found["delayTime"] = round(1000 * (self.started - self.created))
            found["workerId"] = self.worker
            if self.ended is not None:
                found["executionTime"] = round(1000 * (self.ended - self.started))
        if self.has_output:
            found["output"] = self.output
        if self.error is not None:
            found["error"] = self.error
        if self.retries:
            found["retries"] = self.retries
        return found
