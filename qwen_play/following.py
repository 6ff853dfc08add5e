"""A job from being handed in to its end, as moments that a page can show. Knows nothing of the page.

A worker may be lost in between: RunPod then queues the job again, and a moment says so.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .endpoint import Endpoint, Status
from .errors import NoAnswer

ASK_SECONDS = 0.4  # from one question to the next
PATIENCE_SECONDS = 120  # how long an endpoint that does not answer is asked again
STAGES = {
    "opening": "Opening pictures and LoRAs",
    "checking": "Checking the pictures",
    "rewriting": "Rewriting the prompt",
    "waiting": "Waiting: the worker is busy with another job",
    "loading": "Loading the model",
    "drawing": "Drawing",
    "delivering": "Delivering the picture",
}
ENDS = {
    "CANCELLED": "Stopped.",
    "TIMED_OUT": "The job was ended at its time limit. Ask for fewer steps, or raise the endpoint's execution timeout.",
}


@dataclass(frozen=True)
class Moment:
    """`note` is what the visitor should know of the way here; `failure` and `reply` come with the end."""

    state: str
    text: str
    step: int = 0
    total: int = 0
    preview: str = ""  # a JPEG in base64
    warnings: tuple[str, ...] = ()
    note: str = ""
    failure: str = ""
    reply: dict[str, Any] | None = None
    seconds: float | None = None

    @property
    def over(self) -> bool:
        return bool(self.failure) or self.reply is not None or self.state in ENDS


def follow(
    endpoint: Endpoint,
    job_id: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Moment]:
    """What has changed, until the job is over. Raises `PlayError` where the endpoint cannot be asked any longer."""
    shown: Moment | None = None
    before = Status("")
    note, quiet_since = "", None
    while shown is None or not shown.over:
        try:
            status = endpoint.status(job_id)
            quiet_since = None
        except NoAnswer as error:
            quiet_since = quiet_since or clock()
            if clock() - quiet_since > PATIENCE_SECONDS:
                raise
            moment = replace(shown or Moment("", ""), text=f"{error} Asking again ...")
        else:
            note = lost_worker(before, status) or note
            before = status
            moment = moment_of(status, shown, note)
        if moment != shown:
            shown = moment
            yield moment
        if not moment.over:
            sleep(ASK_SECONDS)


def lost_worker(before: Status, now: Status) -> str:
    """What to say where the job has left the worker that had it."""
    if before.state == "IN_PROGRESS" and now.state == "IN_QUEUE":
        return "The worker that had this job is gone. The job goes to the next worker and begins again."
    if before.worker and now.worker and before.worker != now.worker:
        return "The worker that had this job is gone. Another worker has begun it again."
    return ""


def moment_of(status: Status, shown: Moment | None, note: str) -> Moment:
    if status.state == "COMPLETED":
        return end_of(status, note)
    if status.over:
        text = ENDS.get(status.state, "Failed.")
        if status.state == "CANCELLED" and shown and shown.total:
            text = f"Stopped at step {shown.step} of {shown.total}."
        failure = "" if status.state == "CANCELLED" else status.error or ENDS.get(status.state, "No reason was given.")
        return Moment(status.state, text, note=note, failure=failure, seconds=status.seconds)
    progress = status.output or {}
    if status.state == "IN_QUEUE" or not progress:
        waits = status.state == "IN_QUEUE"
        return Moment(status.state, "Waiting for a worker" if waits else "The worker has begun", note=note)
    step, total = int(progress.get("step", 0)), int(progress.get("total", 0))
    preview = progress.get("preview") or (shown.preview if shown and step else "")  # not every message has one
    warnings = tuple(map(str, progress.get("warnings", ())))
    return Moment(status.state, progress_text(progress), step, total, preview, warnings, note)


def end_of(status: Status, note: str) -> Moment:
    """A reply without pictures is none: the worker's `error` is in it, or nothing that a page can show."""
    reply = status.output
    if reply is None or reply.get("error") or not (reply.get("image") or reply.get("image_url")):
        failure = status.error or str((reply or {}).get("error") or "The endpoint's reply holds no picture.")
        return Moment("FAILED", "Failed.", note=note, failure=failure, seconds=status.seconds)
    return Moment(status.state, "Done.", note=note, reply=reply, seconds=status.seconds)


def progress_text(progress: dict[str, Any]) -> str:
    stage = str(progress.get("stage", ""))
    text = STAGES.get(stage, stage.capitalize() or "The worker has begun")
    if stage == "drawing" and progress.get("total"):
        text = f"Step {progress.get('step', 0)} of {progress['total']}"
        if isinstance(left := progress.get("seconds_left"), int | float):
            text += f", about {max(1, round(left))} s left"
    return text
