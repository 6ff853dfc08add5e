"""Jobs of an endpoint's queue: sent, followed, cancelled. Knows nothing of what a job draws."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ApiError, DeployError, NotServing
from .client import Client, hold_interrupts

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Answer:
    """What became of a job. `seconds` it ran, `waited` in the queue; both as the platform counts them."""

    job_id: str
    state: str
    reply: dict
    error: str
    worker: str | None
    seconds: float
    waited: float

    @property
    def metadata(self) -> dict:
        facts = self.reply.get("metadata")
        return facts if isinstance(facts, dict) else {}


class Queue:
    """The jobs of one endpoint. `pause` takes seconds."""

    def __init__(self, client: Client, endpoint: dict, pause: Callable[[float], None] = time.sleep):
        urls = endpoint.get("requestUrls") or {}
        if "run" not in urls:
            kind = endpoint.get("type")
            raise DeployError(f"Endpoint {endpoint['id']} takes no queued jobs: its type is {kind}, not QUEUE.")
        self.client, self.urls, self.pause = client, urls, pause

    def counts(self) -> dict:
        """Jobs by state and workers by state."""
        return self.client.call("GET", self.urls["health"], "the queue's health")

    def send(self, fields: dict, limit: float | None = None, repeat: bool = False) -> str:
        """The id of a new job. `limit`: seconds that it may run, in place of the endpoint's own.

        `repeat`: send it again where it may have been taken already; then it may run twice.
        """
        body = {"input": fields}
        if limit:
            # The platform counts the time to live from the sending, the wait in the queue included.
            body["policy"] = {"executionTimeout": round(limit * 1000), "ttl": round((limit + 3600) * 1000)}
        return self.client.call("POST", self.urls["run"], "the job", body, repeat=repeat)["id"]

    def status(self, job_id: str) -> dict:
        return self.client.call("GET", self.urls["status"].replace("{job_id}", job_id), f"job {job_id}")

    def cancel(self, job_id: str) -> bool:
        """Whether the job is cancelled or over. Never raises: it is called where something else failed already."""
        try:
            self.client.call("POST", self.urls["cancel"].replace("{job_id}", job_id), f"job {job_id}")
        except ApiError as error:
            return error.status == 404
        except DeployError:
            return False
        return True

    def ask(
        self, fields: dict, limit: float, patience: float, watch: Callable[[dict], None], note: Callable[[str], None],
        repeat: bool = False,
    ) -> Answer:  # fmt: skip
        """Send a job and wait for its answer, at most `patience` seconds; `limit` seconds for it to run.

        `watch` is called with each status; whatever it raises ends the wait. A job that is not answered is cancelled,
        and `note` is told where that failed too. Raises `NotServing` when patience ends.
        """
        job_id = None
        try:
            with hold_interrupts():  # a job whose id is lost could not be cancelled
                job_id = self.send(fields, limit, repeat)
            return self.wait(job_id, patience, watch)
        except BaseException:
            if job_id and not self.cancel(job_id):
                note(f"Job {job_id} could not be cancelled and may still run.")
            raise

    def wait(self, job_id: str, patience: float, watch: Callable[[dict], None]) -> Answer:
        ends = time.monotonic() + patience
        while True:
            status = self.status(job_id)
            if status.get("status") in FINAL:
                return read_answer(job_id, status)
            if time.monotonic() > ends:
                raise NotServing(f"Job {job_id} is {status.get('status')} after {patience:.0f} s.")
            watch(status)
            self.pause(POLL_SECONDS)


def read_answer(job_id: str, status: dict) -> Answer:
    reply = status.get("output")
    if isinstance(reply, list):  # STREAM=1: the progress messages, then the reply
        reply = reply[-1] if reply else {}
    reply = reply if isinstance(reply, dict) else {}
    milliseconds = status.get("executionTime") or 0, status.get("delayTime") or 0
    error = str(status.get("error") or reply.get("error") or "")
    worker = status.get("workerId")
    return Answer(job_id, status["status"], reply, error, worker, *(value / 1000 for value in milliseconds))


def describe_progress(status: dict) -> str:
    """A running job's own words, where it sends any: stage, step, seconds left."""
    told = status.get("output")
    told = told[-1] if isinstance(told, list) and told else told
    words = [str(status.get("status", "")).lower().replace("_", " ")]
    if isinstance(told, dict) and "stage" in told:
        words.append(str(told["stage"]))
        if told.get("total"):
            words.append(f"step {told.get('step', 0)}/{told['total']}")
        if isinstance(told.get("seconds_left"), int | float):
            words.append(f"{told['seconds_left']:.0f} s left")
    return " · ".join(word for word in words if word)
