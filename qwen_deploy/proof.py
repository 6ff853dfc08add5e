"""The proof that an endpoint serves what was deployed: its configuration field by field, test jobs on new workers.

Raises `NotServing` where it does not; undoes nothing.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from . import configuration, second_card
from .cards import worker_card
from .configuration import Configuration
from .errors import NotServing
from .intent import Intent
from .options import DeployOptions, ProofOptions
from .overrun import StageWatch, explain_closeness, explain_overrun, limit_of, load_seconds
from .pictures import read_pictures
from .records import Timing
from .runpod.jobs import Answer, Queue
from .runpod.rollout import Watch
from .runpod.schemas import Endpoint, JobStatus, JsonObject
from .screen import Screen
from .session import ROOT, Session

TEST_PICTURE = ROOT / "examples/red-circle.png"
PROMPTS: dict[str, JsonObject] = {
    "generate": {"prompt": "a large red circle in the center, on a blue background", "seed": 7},
    "edit": {"prompt": "make the background green", "seed": 7},
}


def prove(
    session: Session, options: DeployOptions, intent: Intent, endpoint: Endpoint, version_before: int | None
) -> None:
    """Test jobs on workers of the new version; then falling back as it was asked for. Raises `NotServing`."""
    screen = session.screen
    jobs = prepare_test_jobs(session, options, endpoint, version_before, intent.version, options.wait)
    screen.heading("Waiting for workers of the new version")
    with screen.live_progress():
        reply = jobs.health()
    screen.good(f"health: version {reply.get('worker_version')}, {reply.get('status')}")
    for task in intent.tasks:
        with screen.live_progress():
            answer, files = jobs.draw(task, drawing_fields(options), options.output)
        if intent.draws_on_two:
            second_card.require_two_drew(task, answer.metadata)
        card = worker_card(session.api, endpoint["id"], answer.worker_id)
        session.records.add_timing(endpoint["id"], job_timing(task, answer, card))
        if overrun := explain_overrun(task, answer, jobs.limit, stage=None):
            raise NotServing(overrun)  # nothing but a longer limit than callers have lets such a job end
        count = "two of " if answer.metadata.get("gpus") == second_card.MOST else ""
        screen.good(f"{task}: {answer.seconds:.1f} s on {count}{card or 'a card'}, {', '.join(map(str, files))}")
        if warning := explain_closeness(task, answer, jobs.limit):
            screen.warn(warning)
    with screen.live_progress():
        models = cast(list[JsonObject], jobs.health().get("models") or [])
    if intent.draws_on_two:
        second_card.require_two_at_work(models)
    report_self_checks(models, screen)
    if intent.changes and intent.with_fallback_forbidden().target != intent.target:
        settle(session, options, intent, endpoint)


def report_self_checks(models: list[JsonObject], screen: Screen) -> None:
    """Say what the loaded models' self-checks found. `models`: as `health` has them, with those of one worker alone.

    A finding that did not pass is no reason to roll back: the worker draws without that optimisation, and is slower.
    """
    for model in models:
        findings = cast(list[JsonObject], model.get("self_check") or [])
        failed = [finding for finding in findings if not finding["passed"]]
        for finding in failed:
            screen.warn(f"{model.get('model')}: the self-check failed: {finding['words']}")
        if findings and not failed:
            names = ", ".join(str(finding["name"]) for finding in findings)
            screen.good(f"{model.get('model')}: the self-check passed: {names}")


def settle(session: Session, options: DeployOptions, intent: Intent, endpoint: Endpoint) -> None:
    """Set falling back to what was asked for, now that the model has drawn."""
    wanted = intent.target["env"].get("QWEN_FALLBACK", "allow")
    session.screen.heading(f"Setting falling back to {wanted}")
    tested = intent.with_fallback_forbidden().target
    _, version_before = update_endpoint(session, endpoint["id"], tested, intent.target)
    require_kept(session, endpoint["id"], intent.target)
    jobs = prepare_test_jobs(session, options, endpoint, version_before, intent.version, options.wait)
    with session.screen.live_progress():
        reply = jobs.health()
    mode = cast(JsonObject, reply.get("fallback") or {}).get("mode")
    if mode != wanted:
        raise NotServing(f"health: fallback.mode must be {wanted}, not {mode}.")
    session.screen.good(f"health: falling back is {wanted}")


def update_endpoint(
    session: Session, endpoint_id: str, present: Mapping[str, object], target: Configuration
) -> tuple[Endpoint, int | None]:
    """PATCH what differs. The endpoint, and its version before where workers will be replaced."""
    replaced = configuration.replaces_workers(configuration.changes(present, target))
    version_before = session.api.releases(endpoint_id).get("endpointVersion") if replaced else None
    return session.api.update(endpoint_id, configuration.patch_body(present, target)), version_before


def require_kept(session: Session, endpoint_id: str, target: Mapping[str, object]) -> None:
    """Raises `NotServing` naming each field that RunPod holds otherwise than it was sent."""
    differing = configuration.changes(configuration.flatten(session.api.endpoint(endpoint_id)), target)
    if differing:
        rows = configuration.describe_changes(differing)
        words = "; ".join(f"{field} is {present}, not {sent}" for field, present, sent in rows)
        raise NotServing(f"RunPod did not keep what was sent: {words}.")


def prepare_test_jobs(
    session: Session, options: ProofOptions, endpoint: Endpoint, version_before: int | None, version: str | None,
    patience: float,
) -> "TestJobs":  # fmt: skip
    """`version` must answer, or any where that is None; `patience` are the seconds until the new workers must serve."""
    watch = Watch(session.api, endpoint["id"], version_before, patience, options.capacity_wait, session.screen.progress)
    return TestJobs(session.queue(endpoint), watch, version, session.screen, limit_of(endpoint))


def drawing_fields(options: DeployOptions) -> JsonObject:
    """What the options add to the input of a drawing job."""
    fields: JsonObject = {}
    if options.test_steps:
        fields["num_inference_steps"] = options.test_steps
    if options.test_size:
        fields |= {"width": options.test_size, "height": options.test_size}
    return fields


@dataclass
class TestJobs:
    """The test jobs of one deployment, under the endpoint's own `limit` in seconds; None where it has none.

    `version` is the build that must answer; None where any may (a rollback).
    """

    queue: Queue
    watch: Watch
    version: str | None
    screen: Screen
    limit: float | None

    def health(self) -> JsonObject:
        """The reply of `health` from a worker of the new version; those of the old ones are asked past.

        Raises `NotServing`.
        """
        while True:
            self.watch.look()
            was_mixed = self.watch.stale_count > 0
            answer = self.ask({"task": "health"}, "health")
            version = answer.reply.get("worker_version")
            self.watch.look(f"worker version {version} answered")
            # Both versions take jobs during a rollout: the answer of an old worker says nothing of the new one.
            is_old = answer.worker_id in self.watch.old_ids if answer.worker_id else was_mixed
            if not is_old and not self.watch.stale_count:
                require_completed(answer, "health")
                if self.version is not None and version != self.version:
                    raise NotServing(f"health: {describe_wrong_version(self.version, version)}")
                return answer.reply
            self.queue.clock.pause(5)

    def draw(self, task: str, extra_fields: JsonObject, folder: Path) -> tuple[Answer, list[Path]]:
        """A drawing job: its answer and the pictures, saved in `folder`.

        Raises `NotServing` for all but a picture by the model.
        """
        fields: JsonObject = {**PROMPTS[task], "task": task, **extra_fields}
        if task == "edit":
            fields["image"] = base64.b64encode(TEST_PICTURE.read_bytes()).decode()
        stages = StageWatch()
        answer = self.ask(fields, task, stages)
        require_completed(answer, task, explain_overrun(task, answer, self.limit, stages.stage))
        metadata = answer.metadata
        if metadata.get("backend") != "qwen-image":
            reason = metadata.get("fallback_reason", "it says no backend")
            raise NotServing(f"{task}: backend must be qwen-image, not {metadata.get('backend')}: {reason}.")
        version = metadata.get("worker_version")
        if self.version is not None and version != self.version:
            raise NotServing(f"{task}: {describe_wrong_version(self.version, version)}")
        pictures = read_pictures(answer.reply)
        width, height = metadata.get("width"), metadata.get("height")
        for picture in pictures:
            if picture.width and (picture.width, picture.height) != (width, height):
                raise NotServing(
                    f"{task}: the picture must be {width}x{height} as its metadata says, "
                    f"not {picture.width}x{picture.height}."
                )
        # Named for the endpoint: `make run` and other deployments save pictures in the same folder.
        name = f"proof-{self.watch.endpoint_id}-{task}"
        names = [f"{name}-{number}" if number else name for number in range(len(pictures))]
        return answer, [picture.save(folder, name) for picture, name in zip(pictures, names, strict=True)]

    def ask(self, fields: JsonObject, task: str, stages: StageWatch | None = None) -> Answer:
        def look(status: JobStatus) -> None:
            if stages:
                stages.look(status)
            self.watch.look(task, status)

        patience = max(self.watch.seconds_left, 1.0)
        return self.queue.ask(fields, self.limit, patience, look, self.screen.warn, repeat=True)


def require_completed(answer: Answer, task: str, overrun: str | None = None) -> None:
    """Raises `NotServing` with `overrun`, where that is the reason, or with the job's own words."""
    if answer.state != "COMPLETED" or answer.error:
        if overrun:
            raise NotServing(overrun)
        reason = answer.error or "no reason given"
        raise NotServing(f"{task}: the job is {answer.state}: {reason[:500]}")


def describe_wrong_version(deployed: str, version: object) -> str:
    return f"worker_version must be {deployed}, not {version}: this is not the deployed build."


def job_timing(task: str, answer: Answer, card: str | None) -> Timing:
    metadata, load = answer.metadata, load_seconds(answer)
    timing: Timing = {
        "task": task,
        "card": card,
        "seconds": round(max(answer.seconds - load, metadata.get("processing_time", 0.0) - load, 0.0), 3),
        "load": round(load, 3),
        "pictures": len(metadata.get("seeds") or [1]),
        "size": metadata.get("dimensions"),
        "steps": metadata.get("steps"),
    }
    gpus = metadata.get("gpus", 1)
    return {**timing, "gpus": gpus} if gpus > 1 else timing
