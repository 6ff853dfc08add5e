"""The proof that an endpoint serves what was deployed: its configuration field by field, test jobs on new workers.

Raises `NotServing` where it does not; undoes nothing.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import configuration
from .cards import worker_card
from .errors import NotServing
from .intent import Intent
from .pictures import read_pictures
from .runpod.jobs import Answer, Queue, describe_progress
from .runpod.rollout import Watch
from .session import ROOT, Session

TEST_PICTURE = ROOT / "examples/red-circle.png"
# A cold worker loads tens of GB before it draws: more than the endpoint's own limit may allow.
JOB_SECONDS = 1200
PROMPTS = {
    "generate": {"prompt": "a large red circle in the center, on a blue background", "seed": 7},
    "edit": {"prompt": "make the background green", "seed": 7},
}


def prove(session: Session, options, intent: Intent, endpoint: dict, before: int | None) -> None:
    """Test jobs on workers of the new version; then falling back as it was asked for. Raises `NotServing`."""
    check = prepare_test_jobs(session, options, endpoint, before, intent.version, options.wait)
    session.screen.heading("Waiting for workers of the new version")
    with session.screen.live_progress():
        told = check.health()
    session.screen.good(f"health: version {told.get('worker_version')}, {told.get('status')}")
    for task in intent.tasks:
        with session.screen.live_progress():
            answer, files = check.draw(task)
        timing = job_timing(task, answer, worker_card(session.api, endpoint["id"], answer.worker))
        session.records.add_timing(endpoint["id"], timing)
        session.screen.good(f"{task}: {answer.seconds:.1f} s, {', '.join(map(str, files))}")
        limit = intent.target["timeout"] / 1000
        if 0 < limit < answer.seconds:
            session.screen.warn(
                f"{task} took {answer.seconds:.0f} s on a cold worker, more than the endpoint's --execution-timeout of "
                f"{limit:g} s: raise it, or the first job of each worker will be ended."
            )
    if intent.changes and intent.with_fallback_forbidden().target != intent.target:
        settle(session, options, intent, endpoint)


def settle(session: Session, options, intent: Intent, endpoint: dict) -> None:
    """Set falling back to what was asked for, now that the model has drawn."""
    wanted = intent.target["env"].get("QWEN_FALLBACK", "allow")
    session.screen.heading(f"Setting falling back to {wanted}")
    _, before = update_endpoint(session, endpoint["id"], intent.with_fallback_forbidden().target, intent.target)
    require_kept(session, endpoint["id"], intent.target)
    with session.screen.live_progress():
        told = prepare_test_jobs(session, options, endpoint, before, intent.version, options.wait).health()
    if (mode := (told.get("fallback") or {}).get("mode")) != wanted:
        raise NotServing(f"health: fallback.mode must be {wanted}, not {mode}.")
    session.screen.good(f"health: falling back is {wanted}")


def update_endpoint(session: Session, endpoint_id: str, present: dict, target: dict) -> tuple[dict, int | None]:
    """PATCH what differs. The endpoint, and its version before where workers will be replaced."""
    replaced = configuration.replaces_workers(configuration.changes(present, target))
    before = session.api.releases(endpoint_id).get("endpointVersion") if replaced else None
    return session.api.update(endpoint_id, configuration.patch_body(present, target)), before


def require_kept(session: Session, endpoint_id: str, target: dict) -> None:
    """Field by field: what RunPod holds is what was sent."""
    left = configuration.changes(configuration.flatten(session.api.endpoint(endpoint_id)), target)
    if left:
        words = "; ".join(
            f"{field} is {present}, not {new}" for field, present, new in configuration.describe_changes(left)
        )
        raise NotServing(f"RunPod did not keep what was sent: {words}.")


def prepare_test_jobs(
    session: Session, options, endpoint: dict, before: int | None, version: str | None, patience: float
) -> "TestJobs":
    watch = Watch(session.api, endpoint["id"], before, patience, options.capacity_wait, session.screen.progress)
    fields = {}
    if getattr(options, "test_steps", None):
        fields["num_inference_steps"] = options.test_steps
    if getattr(options, "test_size", None):
        fields |= {"width": options.test_size, "height": options.test_size}
    folder = getattr(options, "output", Path("out"))
    return TestJobs(session.queue(endpoint), watch, version, TEST_PICTURE, folder, fields, session.screen.warn)


@dataclass
class TestJobs:
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
                    raise NotServing(f"health: {describe_wrong_version(self.version, told)}")
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
            raise NotServing(f"{task}: {describe_wrong_version(self.version, facts.get('worker_version'))}")
        pictures = read_pictures(answer.reply)
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
            self.watch.look(f"{what} {describe_progress(status)}")

        return self.queue.ask(fields, JOB_SECONDS, max(self.watch.left, 1.0), look, self.note, repeat=True)


def require_completed(answer: Answer, what: str) -> None:
    if answer.state != "COMPLETED" or answer.error:
        reason = answer.error or "no reason given"
        raise NotServing(f"{what}: the job is {answer.state}: {reason[:500]}")


def describe_wrong_version(deployed: str, told: object) -> str:
    return f"worker_version must be {deployed}, not {told}: this is not the deployed build."


def job_timing(task: str, answer: Answer, card: str | None) -> dict:
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
