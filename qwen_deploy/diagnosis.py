"""Why an endpoint's queue is stuck, in sentences that say what to do: by one look at its workers, logs and settings.

Looks and judges; changes nothing. `runpod.rollout` judges the same logs over time, while a deployment is proved.
"""

from collections.abc import Mapping, Sequence

from . import cards, configuration
from .configuration import Configuration
from .endpoints import resume_command
from .errors import DeployError
from .runpod.rollout import last_words
from .runpod.schemas import Endpoint, Worker
from .runpod.start_log import CRASHES, count_starts, missing_image
from .runpod.waiting import READY
from .session import Session

LOGS_READ = 3  # of workers that are not ready: a log takes seconds to read, and workers of one image fail alike


def find_causes(
    session: Session, endpoint: Endpoint, workers: Sequence[Worker], counts: Mapping[str, int] | None
) -> list[str]:
    """A sentence for each cause; none where nothing keeps jobs from being done.

    `counts` are the jobs by state, None where they could not be read.
    """
    fields = configuration.flatten(endpoint)
    waiting = (counts or {}).get("inQueue", 0)
    if fields["workers.max"] == 0:
        return [
            f"Paused: the endpoint may have no workers, so nobody takes its jobs ({waiting} wait). RunPod does that "
            f"too when an endpoint had no jobs for seven days. Go on: {resume_command(endpoint)}"
        ]
    causes = settings_causes(fields)
    if counts is None:
        causes.append(
            "The queue cannot be read: RUNPOD_API_KEY has no right to it, or the endpoint takes no queued jobs. "
            "A key needs the right to send requests to the endpoint: https://console.runpod.io/user/settings"
        )
    not_ready = [worker for worker in workers if worker["status"] not in (*READY, "THROTTLED")]
    for worker in not_ready[:LOGS_READ]:
        if cause := worker_cause(session, endpoint["id"], worker):
            causes.append(cause)
            break
    if not causes:
        causes += capacity_causes(session, fields, workers, waiting)
    return causes


def settings_causes(fields: Configuration) -> list[str]:
    """What the endpoint's own variables make of its jobs."""
    env = fields["env"]
    causes: list[str] = []
    if env.get("SERVER_MODE", "runpod") != "runpod":
        causes.append(f"SERVER_MODE is {env['SERVER_MODE']}: such workers take no jobs of a queue. It must be runpod.")
    if env.get("QWEN_FALLBACK") == "force":
        causes.append("QWEN_FALLBACK is force: every job gets a stand-in. --unset-env QWEN_FALLBACK ends that.")
    return causes


def worker_cause(session: Session, endpoint_id: str, worker: Worker) -> str | None:
    """What the log of a worker that is not ready says of why; None where it only starts."""
    worker_id = worker["id"]
    lines = [entry["line"] for entry in session.api.logs(endpoint_id, worker_id, "system")]
    if words := missing_image(lines):
        return (
            f"Image missing: worker {worker_id} cannot pull {worker.get('image') or 'its image'}. Is it pushed, and "
            f"public or with --registry-credential? RunPod says: {words}"
        )
    if (starts := count_starts(lines)) >= CRASHES:
        wrote = last_words(session.api, endpoint_id, worker_id)
        return f"Crash loop: worker {worker_id} started its container {starts} times.{wrote}"
    if worker["status"] == "UNHEALTHY":
        return f"Unhealthy: worker {worker_id}.{last_words(session.api, endpoint_id, worker_id)}"
    return None


def capacity_causes(session: Session, fields: Configuration, workers: Sequence[Worker], waiting: int) -> list[str]:
    """Too few workers or cards for the jobs that wait."""
    states = [worker["status"] for worker in workers]
    most = fields["workers.max"]
    if "THROTTLED" in states and not set(states) & set(READY):
        offer = offer_pools(read_pools(session, fields), fields)
        return [f"No capacity: {states.count('THROTTLED')} throttled, which wait for a card. {offer}"]
    if not waiting or "INITIALIZING" in states or "IDLE" in states:
        return []
    if not states:
        pools = read_pools(session, fields)
        if set(pool_stock(pools, fields).values()) == {"NONE"}:
            return [f"No capacity: {waiting} jobs wait, and no worker is started. {offer_pools(pools, fields)}"]
        return [f"No worker yet for {waiting} jobs: RunPod should start one within seconds. Look again."]
    if len(states) >= most:
        return [f"Too few workers: all {most} are busy, and {waiting} jobs wait. --workers-max may be more."]
    return []


def pool_stock(pools: Sequence[cards.Pool], fields: Configuration) -> dict[str, str]:
    """What there is now of the endpoint's pools, by name; NONE for one that the catalogue does not have any more."""
    stock = {pool.id: pool.stock for pool in pools}
    return {name: stock.get(name, "NONE") for name in fields.get("gpu.pools", [])} if pools else {}


def offer_pools(pools: Sequence[cards.Pool], fields: Configuration) -> str:
    """What there is of the endpoint's pools, and other pools with as much memory that have cards now."""
    own = fields.get("gpu.pools", [])
    memory = min((pool.memory for pool in pools if pool.id in own), default=0)
    free = [pool for pool in pools if pool.stock in ("MEDIUM", "HIGH")]
    others = [pool for pool in free if pool.id not in own and pool.memory >= memory]
    stock = ", ".join(f"{name} {level.lower()}" for name, level in pool_stock(pools, fields).items())
    sentence = f"RunPod's stock: {stock or 'not known'}."
    if others:
        sentence += f" Cards are free in {', '.join(pool.id for pool in others[:4])}: add one with --gpu."
    if centers := fields.get("dataCenterIds"):
        sentence += f" Only {', '.join(centers)} may be used: --data-centers '' lifts that."
    return sentence


def read_pools(session: Session, fields: Configuration) -> list[cards.Pool]:
    """The catalogue's pools; none where it cannot be read, because the rest of the diagnosis stands without it."""
    try:
        return cards.read_pools(session.api, fields.get("gpu.minCudaVersion") or None)
    except DeployError:
        return []
