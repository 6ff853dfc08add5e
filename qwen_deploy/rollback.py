"""Back to what was: the saved configuration put back and verified, or a new endpoint left without workers.

Decides nothing about when; knows nothing of how a deployment is proved but its `health` job.
"""

from . import configuration
from .configuration import Configuration
from .errors import ApiError, DeployError
from .intent import Intent
from .options import ProofOptions
from .proof import prepare_test_jobs, require_kept, update_endpoint
from .records import Record
from .session import Session

REST_SECONDS = 600  # that a rolled back endpoint gets to answer; the old configuration is back either way


def undo(session: Session, options: ProofOptions, intent: Intent, saved: Record | None, check: bool) -> None:
    """Leave the old version serving, or say exactly what is where. `check`: its workers must answer. Raises nothing."""
    screen = session.screen
    if not intent.changes:
        screen.warn("Nothing had been changed, so there is nothing to roll back: the endpoint is as it was.")
    elif saved:
        screen.heading("Rolling back")
        roll_back(session, options, saved, check)
    else:
        try:
            park_new_endpoint(session, intent.target)
        except (DeployError, KeyboardInterrupt) as failure:
            screen.bad(f"Looking for it failed: {str(failure) or 'interrupted'}")
            screen.bad(f"If an endpoint named {intent.target['name']} was made, it is there: look in the console.")


def roll_back(session: Session, options: ProofOptions, saved: Record, check: bool) -> bool:
    """Whether the saved configuration is back and, with `check`, answers. Says what is where if not; raises nothing."""
    screen, endpoint_id = session.screen, saved.endpoint["id"]
    try:
        version_before = restore(session, saved)
    except (DeployError, KeyboardInterrupt) as failure:
        if isinstance(failure, ApiError) and failure.status == 404:
            screen.bad(f"Endpoint {endpoint_id} was deleted by somebody else: there is nothing to roll back.")
            screen.bad(f"What its configuration was: {saved.path}")
            return False
        screen.bad(f"Rolling back failed: {str(failure) or 'interrupted'}")
        screen.bad(f"Endpoint {endpoint_id} has the new configuration or the old one: look with `status`.")
        screen.bad(f"To put the old one back: deploy_qwen.py rollback --endpoint-id {endpoint_id} --to {saved.path}")
        return False
    if not check:
        return True
    try:
        jobs = prepare_test_jobs(
            session, options, saved.endpoint, version_before, version=None, patience=min(options.wait, REST_SECONDS)
        )
        with screen.live_progress():
            reply = jobs.health()
    except (DeployError, KeyboardInterrupt) as failure:
        screen.warn(f"Its workers were not heard to answer a health job: {str(failure) or 'interrupted'}")
        return False
    screen.good(f"health: version {reply.get('worker_version', 'not told')} answers")
    return True


def restore(session: Session, saved: Record) -> int | None:
    """Send the saved fields that differ, read them back one by one. The version before, where workers are replaced."""
    endpoint_id, target, version_before = saved.endpoint["id"], configuration.flatten(saved.endpoint), None
    present = configuration.flatten(session.api.endpoint(endpoint_id))
    differs = bool(configuration.changes(present, target))
    if differs:
        _, version_before = update_endpoint(session, endpoint_id, present, target)
    require_kept(session, endpoint_id, target)
    back = f"Rolled back: endpoint {endpoint_id} has {target.get('image')} again"
    session.screen.good(f"{back if differs else f'Endpoint {endpoint_id} is as it was'}, verified field by field.")
    return version_before


def park_new_endpoint(session: Session, target: Configuration) -> None:
    """A new endpoint that does not serve is kept for its logs, without workers that cost.

    Its environment becomes what was asked for: the next run keeps the environment that it reads, a forbidden fallback
    too.
    """
    endpoints = session.api.endpoints_named(target["name"])
    if not endpoints:
        session.screen.warn(f"There is no endpoint named {target['name']}: none was made, or it was deleted meanwhile.")
        return
    endpoint_id = endpoints[0]["id"]
    session.api.update(endpoint_id, {"env": target["env"], "workers": {"min": 0, "max": 0}})
    session.screen.warn(
        f"Endpoint {endpoint_id} was made and does not serve: it is left with no workers, so it costs nothing. Its "
        f"configuration is there to look at; run this again with --workers-max {target['workers.max']} to mend it, "
        f"or `deploy_qwen.py delete --endpoint-id {endpoint_id}`."
    )
