"""What the endpoint says on its terminal: one line for each job, and for what happens to it on the way."""

from contextlib import suppress
from typing import Any

from .job import LocalJob, Status
from .plane import PlaneObserver
from .request import as_object

MOST_CHARACTERS = 160  # of an error
PICTURES = ("image", "image_url", "images", "image_urls")


def say(line: str) -> None:
    """Flushed: the output may be a pipe, and whoever reads it waits for a line. If nobody reads it, jobs go on."""
    with suppress(BrokenPipeError):
        print(line, flush=True)


class JobLines(PlaneObserver):
    """Seconds are from the hand-out to the end. `ending`: whether the endpoint ends, and no other worker follows."""

    ending = False

    def on_ended(self, job: LocalJob) -> None:
        seconds = "" if job.started is None or job.ended is None else f" {job.ended - job.started:.1f} s"
        error = f": {shortened(job.error)}" if job.status is Status.FAILED else ""
        say(f"{job.id} {task_of(job.request.input)}{seconds} {job.status}{error}")

    def on_requeued(self, job: LocalJob) -> None:
        if self.ending:
            say(f"{job.id} was not finished, because the endpoint ends")
            return
        say(f"{job.id} goes to the next worker, because {job.worker} ended while it ran the job")

    def on_refused(self, job: LocalJob, size: int) -> None:
        say(
            f"{job.id} has a reply of {size / 1e6:.1f} MB. RunPod takes no more than "
            f"{job.result_bytes() / 1e6:.0f} MB and drops a larger one, which is done here too"
        )


def task_of(job_input: Any) -> str:
    """What the job is, in one word, as far as its input says so at first sight."""
    fields = as_object(job_input)
    if fields is None:
        return "job"
    route = fields.get("openai_route")
    if isinstance(route, str):
        return "openai " + shortened(route.rpartition("/")[2])
    task = fields.get("task")
    if isinstance(task, str) and task:
        return shortened(task)
    return "edit" if any(fields.get(name) for name in PICTURES) else "generate"


def shortened(text: object) -> str:
    """On one line."""
    line = " ".join(str(text).split())
    printable = "".join(character if character.isprintable() else "?" for character in line)
    return printable if len(printable) <= MOST_CHARACTERS else f"{printable[: MOST_CHARACTERS - 3]}..."
