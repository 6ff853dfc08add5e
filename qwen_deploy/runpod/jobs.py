"""Jobs of an endpoint's queue: sent, followed, cancelled. Knows nothing of what a job asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, cast

from ..errors import ApiError, DeployError, NotServing
from .client import Client, hold_interrupts
from .schemas import Endpoint, JobStatus, JsonObject, QueueHealth
from .shapes import read_shape

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
POLL_SECONDS = 2.0


class Metadata(TypedDict, total=False):
    """What the reply of a drawing job says of its pictures, as far as it is read here."""

    backend: str
    fallback_reason: str
    worker_version: str
    width: int  # pixels
    height: int
    dimensions: str
    steps: int
    gpus: int
    seed: int
    seeds: list[int]
    processing_time: float  # seconds
    timings: dict[str, float]  # seconds


@dataclass(frozen=True)
class Answer:
    """What became of a job. `seconds` is how long it ran, as the platform counts."""

    job_id: str
    state: str
    reply: JsonObject
    error: str
    worker_id: str | None
    seconds: float

    @property
    def metadata(self) -> Metadata:
        metadata = self.reply.get("metadata")
        return cast(Metadata, metadata) if isinstance(metadata, dict) else {}


class Queue:
    """The jobs of one endpoint. Raises `DeployError` for an endpoint that takes no queued jobs."""

    def __init__(self, client: Client, endpoint: Endpoint):
        urls = endpoint.get("requestUrls") or {}
        if "run" not in urls:
            kind = endpoint.get("type")
            raise DeployError(f"Endpoint {endpoint['id']} takes no queued jobs: its type is {kind}, not QUEUE.")
        self.client, self.urls, self.clock = client, urls, client.clock

    def job_counts(self) -> dict[str, int]:
        """Jobs by state."""
        health = self.client.call("GET", self.urls["health"], "the queue's health")
        return read_shape(health, QueueHealth, "the queue's health").get("jobs") or {}

    def send(self, fields: JsonObject, limit: float | None = None, repeat: bool = False) -> str:
        """The id of a new job. `limit`: seconds that it may run, in place of the endpoint's own.

        `repeat`: the job is sent again although RunPod may have taken it already; then it may run twice.
        """
        body: JsonObject = {"input": fields}
        if limit:
            # The platform counts the time to live from the sending, the wait in the queue included.
            body["policy"] = {"executionTimeout": round(limit * 1000), "ttl": round((limit + 3600) * 1000)}
        answer = self.client.call("POST", self.urls["run"], "the job", body, repeat=repeat)
        return read_shape(answer, JobStatus, "the job")["id"]

    def status(self, job_id: str) -> JobStatus:
        url = self.urls["status"].replace("{job_id}", job_id)
        return read_shape(self.client.call("GET", url, f"job {job_id}"), JobStatus, f"job {job_id}")

    def cancel(self, job_id: str) -> bool:
        """Whether the job is cancelled or over. Never raises: its callers are handling another failure already."""
        try:
            self.client.call("POST", self.urls["cancel"].replace("{job_id}", job_id), f"job {job_id}")
        except ApiError as error:
            return error.status == 404
        except DeployError:
            return False
        return True

    def ask(
        self, fields: JsonObject, limit: float | None, patience: float, on_status: Callable[[JobStatus], None],
        note: Callable[[str], None], repeat: bool = False,
    ) -> Answer:  # fmt: skip
        """Send a job and wait for its answer, at most `patience` seconds; `limit` seconds for it to run, None for any.

        `on_status` is called with each status; whatever it raises ends the wait. A job that is not answered is
        cancelled; where that fails too, `note` takes a sentence. Raises `NotServing` when patience ends.
        """
        job_id, answer = None, None
        try:
            with hold_interrupts():  # nobody could cancel a job whose id is lost
                job_id = self.send(fields, limit, repeat)
            answer = self.wait(job_id, patience, on_status)
            return answer
        finally:  # Ctrl-C too must not leave a job that runs and is paid for
            if job_id and not answer and not self.cancel(job_id):
                note(f"Job {job_id} could not be cancelled and may still run.")

    def wait(self, job_id: str, patience: float, on_status: Callable[[JobStatus], None]) -> Answer:
        deadline = self.clock.now() + patience
        while True:
            status = self.status(job_id)
            if status.get("status") in FINAL:
                return read_answer(job_id, status)
            if self.clock.now() > deadline:
                raise NotServing(f"Job {job_id} is {status.get('status')} after {patience:.0f} s.")
            on_status(status)
            self.clock.pause(POLL_SECONDS)


def read_answer(job_id: str, status: JobStatus) -> Answer:
    """From a final status."""
    output = last_item(status.get("output"))
    reply = cast(JsonObject, output) if isinstance(output, dict) else {}
    error = str(status.get("error") or reply.get("error") or "")
    seconds = (status.get("executionTime") or 0) / 1000
    return Answer(job_id, status.get("status", ""), reply, error, status.get("workerId"), seconds)


def last_item(output: object) -> object:
    """The newest of a job's outputs: with STREAM=1 they are a list of the progress messages and, at last, the reply."""
    if not isinstance(output, list):
        return output
    items = cast(list[object], output)
    return items[-1] if items else None


def stage_of(status: JobStatus) -> str | None:
    """The stage that a running job's worker names; None where it names none."""
    output = last_item(status.get("output"))
    stage = cast(JsonObject, output).get("stage") if isinstance(output, dict) else None
    return str(stage) if stage else None
