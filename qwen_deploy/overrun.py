"""What a job took against what its endpoint lets it take, and whether drawing or loading is slow.

Test jobs and `send` run under the endpoint's own limit, as the jobs of its callers do. Knows nothing of what is done
about a job that took too long.
"""

from math import ceil

from .runpod.jobs import Answer, stage_of
from .runpod.schemas import Endpoint, JobStatus

MARGIN = 1.25  # by which a limit is longer than the slowest job that is known
CLOSE = 0.8  # of the limit: from there on a slower host or a longer prompt may not make it
LOADING = ("opening", "waiting", "loading")  # the worker's stages before it draws
ENDED = "deadline_exceeded"  # how the worker's error begins where it ended the job itself, just before the limit
ADVICE = "Raise --execution-timeout, or take faster cards (--gpu)."


def whole_minutes(seconds: float) -> int:
    """The least limit, in seconds, for a job that takes so long: with `MARGIN`, in whole minutes."""
    return ceil(seconds * MARGIN / 60) * 60


def limit_of(endpoint: Endpoint) -> float | None:
    """Seconds that the endpoint lets a job run; None for as long as it likes."""
    return (endpoint.get("timeout") or 0) / 1000 or None


class StageWatch:
    """Keeps the last stage that a job's worker named."""

    def __init__(self) -> None:
        self.stage: str | None = None

    def look(self, status: JobStatus) -> None:
        self.stage = stage_of(status) or self.stage


def load_seconds(answer: Answer) -> float:
    return (answer.metadata.get("timings") or {}).get("load", 0.0)


def explain_overrun(task: str, answer: Answer, limit: float | None, stage: str | None) -> str | None:
    """Why the job does not do under the limit; None for one that does, or that failed for another reason.

    `stage`: the last that its worker named.
    """
    if limit is None:
        return None
    if answer.state == "COMPLETED" and not answer.error:
        if answer.seconds <= limit:
            return None
        took = f"it took {answer.seconds:.0f} s, and only a longer limit than {limit:g} s lets it end"
        return f"{task}: {took}. {slow_part(answer)}. {advice(answer.seconds)}"
    if answer.state != "TIMED_OUT" and not answer.error.startswith(ENDED):
        return None
    words = f" ({answer.error})" if answer.error else ""
    if stage is None:
        slow = "its worker named no stage"
    else:
        slow = f"{'loading' if stage in LOADING else 'drawing'} is slow: its last stage was {stage}"
    return f"{task}: the job was ended at the endpoint's limit of {limit:g} s{words}; {slow}. {ADVICE}"


def explain_closeness(task: str, answer: Answer, limit: float | None) -> str | None:
    """What took most of the limit in a job that did under it; None where there was time to spare."""
    if limit is None or answer.seconds <= CLOSE * limit:
        return None
    took = f"{task} took {answer.seconds:.0f} of the {limit:g} s that a job may run"
    return f"{took}: {slow_part(answer)}. {advice(answer.seconds)}"


def slow_part(answer: Answer) -> str:
    load = load_seconds(answer)
    drawing = max(answer.seconds - load, 0.0)
    name = "Loading" if load > drawing else "Drawing"
    return f"{name} is slow: {load:.0f} s load, {drawing:.0f} s draw and the rest"


def advice(seconds: float) -> str:
    return f"--execution-timeout {whole_minutes(seconds)} would do, or faster cards (--gpu)."
