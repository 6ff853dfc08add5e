"""The proof that an endpoint serves what was deployed: its configuration field by field, test jobs on new workers.

Raises `NotServing` where it does not; undoes nothing.
"""

from pathlib import Path

from . import configuration
from .check import Check, timing_of
from .commands import card_of
from .errors import NotServing
from .intent import Intent
from .runpod.rollout import Watch
from .session import ROOT, Session

TEST_PICTURE = ROOT / "examples/red-circle.png"


def prove(session: Session, options, intent: Intent, endpoint: dict, before: int | None) -> None:
    """Test jobs on workers of the new version; then falling back as it was asked for. Raises `NotServing`."""
    check = checks(session, options, endpoint, before, intent.version, options.wait)
    session.screen.heading("Waiting for workers of the new version")
    with session.screen.following():
        told = check.health()
    session.screen.good(f"health: version {told.get('worker_version')}, {told.get('status')}")
    for task in intent.tasks:
        with session.screen.following():
            answer, files = check.draw(task)
        timing = timing_of(task, answer, card_of(session, endpoint["id"], answer.worker))
        session.records.note_timing(endpoint["id"], timing)
        session.screen.good(f"{task}: {answer.seconds:.1f} s, {', '.join(map(str, files))}")
        limit = intent.target["timeout"] / 1000
        if 0 < limit < answer.seconds:
            session.screen.warn(
                f"{task} took {answer.seconds:.0f} s on a cold worker, more than the endpoint's --execution-timeout of "
                f"{limit:g} s: raise it, or the first job of each worker will be ended."
            )
    if intent.changes and intent.checked().target != intent.target:
        settle(session, options, intent, endpoint)


def settle(session: Session, options, intent: Intent, endpoint: dict) -> None:
    """Set falling back to what was asked for, now that the model has drawn."""
    wanted = intent.target["env"].get("QWEN_FALLBACK", "allow")
    session.screen.heading(f"Setting falling back to {wanted}")
    _, before = update(session, endpoint["id"], intent.checked().target, intent.target)
    require_kept(session, endpoint["id"], intent.target)
    with session.screen.following():
        told = checks(session, options, endpoint, before, intent.version, options.wait).health()
    if (mode := (told.get("fallback") or {}).get("mode")) != wanted:
        raise NotServing(f"health: fallback.mode must be {wanted}, not {mode}.")
    session.screen.good(f"health: falling back is {wanted}")


def update(session: Session, endpoint_id: str, present: dict, target: dict) -> tuple[dict, int | None]:
    """PATCH what differs. The endpoint, and its version before where workers will be replaced."""
    replaced = configuration.rolls_out(configuration.changes(present, target))
    before = session.api.releases(endpoint_id).get("endpointVersion") if replaced else None
    return session.api.update(endpoint_id, configuration.patch_body(present, target)), before


def require_kept(session: Session, endpoint_id: str, target: dict) -> None:
    """Field by field: what RunPod holds is what was sent."""
    left = configuration.changes(configuration.flat(session.api.endpoint(endpoint_id)), target)
    if left:
        words = "; ".join(f"{field} is {present}, not {new}" for field, present, new in configuration.describe(left))
        raise NotServing(f"RunPod did not keep what was sent: {words}.")


def checks(
    session: Session, options, endpoint: dict, before: int | None, version: str | None, patience: float
) -> Check:
    watch = Watch(session.api, endpoint["id"], before, patience, options.capacity_wait, session.screen.progress)
    fields = {}
    if getattr(options, "test_steps", None):
        fields["num_inference_steps"] = options.test_steps
    if getattr(options, "test_size", None):
        fields |= {"width": options.test_size, "height": options.test_size}
    folder = getattr(options, "output", Path("out"))
    return Check(session.queue(endpoint), watch, version, TEST_PICTURE, folder, fields, session.screen.warn)
