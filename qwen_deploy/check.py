"""The test jobs: whether the new workers answer, are the build that was deployed, and draw with the model.

Knows nothing of how the endpoint came to be, nor of what happens when it fails.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import NotServing
from .pictures import pictures_of
from .runpod.jobs import Answer, Queue, progress_of
from .runpod.rollout import Watch

# A cold worker loads tens of GB before it draws: more than the endpoint's own limit may allow.
JOB_SECONDS = 1200
PROMPTS = {
    "generate": {"prompt": "a large red circle in the center, on a blue background", "seed": 7},
    "edit": {"prompt": "make the background green", "seed": 7},
}


@dataclass
class Check:
    """The checks of one deployment. `version` is the build that must answer; None where any may (a rollback).

    `picture` is the input of the edit, `folder` where pictures are saved; `fields` are added to the drawing jobs.
    """

    queue: Queue
    watch: Watch
    version: str | None
    picture: Path
    folder: Path
    fields: dict = field(default_factory=dict)
    note: Callable[[str], None] = print

    def health(self) -> dict:
        """The reply of `health` from a worker of the new version; those of the old ones are asked past.

        Raises `NotServing`.
        """
        while True:
            self.watch.look()
            mixed = self.watch.stale > 0
            answer = self.ask({"task": "health"}, "health")
            told = answer.reply.get("worker_version")
            self.watch.look(f"worker version {told} answered")
            # Both versions take jobs during a rollout: the answer of an old worker says nothing of the new one.
            by_old = answer.worker in self.watch.old if answer.worker else mixed
            if not by_old and not self.watch.stale:
                require_completed(answer, "health")
                if self.version is not None and told != self.version:
                    raise NotServing(f"health: {wrong_version(self.version, told)}")
                return answer.reply
            self.queue.pause(5)

    def draw(self, task: str) -> tuple[Answer, list[Path]]:
        """A drawing job: its answer and the saved pictures. Raises `NotServing` for all but a picture by the model."""
        fields = PROMPTS[task] | {"task": task} | self.fields
        if task == "edit":
            fields["image"] = base64.b64encode(self.picture.read_bytes()).decode()
        answer = self.ask(fields, task)
        require_completed(answer, task)
        facts = answer.metadata
        if facts.get("backend") != "qwen-image":
            reason = facts.get("fallback_reason", "it says no backend")
            raise NotServing(f"{task}: backend must be qwen-image, not {facts.get('backend')}: {reason}.")
        if self.version is not None and facts.get("worker_version") != self.version:
            raise NotServing(f"{task}: {wrong_version(self.version, facts.get('worker_version'))}")
        pictures = pictures_of(answer.reply)
        for one in pictures:
            if one.width and (one.width, one.height) != (facts.get("width"), facts.get("height")):
                asked = f"{facts.get('width')}x{facts.get('height')}"
                raise NotServing(
                    f"{task}: the picture must be {asked} as its metadata says, not {one.width}x{one.height}."
                )
        names = (f"{task}-{number}" if number else task for number in range(len(pictures)))
        return answer, [one.save(self.folder, name) for one, name in zip(pictures, names, strict=False)]

    def ask(self, fields: dict, what: str) -> Answer:
        def look(status: dict) -> None:
            self.watch.look(f"{what} {progress_of(status)}")

        return self.queue.ask(fields, JOB_SECONDS, max(self.watch.left, 1.0), look, self.note, repeat=True)


def require_completed(answer: Answer, what: str) -> None:
    if answer.state != "COMPLETED" or answer.error:
        reason = answer.error or "no reason given"
        raise NotServing(f"{what}: the job is {answer.state}: {reason[:500]}")


def wrong_version(deployed: str, told: object) -> str:
    return f"worker_version must be {deployed}, not {told}: this is not the deployed build."


def timing_of(task: str, answer: Answer, card: str | None) -> dict:
    """What a job took, for `cost`: seconds that are billed, without the load of a cold worker."""
    facts = answer.metadata
    timings = facts.get("timings") or {}
    load = timings.get("load", 0.0)
    return {
        "task": task,
        "card": card,
        "seconds": round(max(answer.seconds - load, facts.get("processing_time", 0.0) - load, 0.0), 3),
        "load": round(load, 3),
        "pictures": len(facts.get("seeds") or [1]),
        "size": facts.get("dimensions"),
        "steps": facts.get("steps"),
    }
