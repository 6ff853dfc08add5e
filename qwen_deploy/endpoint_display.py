"""Endpoints, their workers and their saved configurations in tables that fit a terminal of 80 columns.

Shows no value of the environment that may be a secret. Knows nothing of plans.
"""

from collections.abc import Mapping, Sequence

from . import configuration
from .environment import mask_secret
from .records import Record
from .runpod.schemas import Endpoint, ReleaseList, Worker, WorkerList
from .screen import Screen
from .session import Session

READY = ("idle", "running")


def show_endpoint(screen: Screen, endpoint: Endpoint) -> None:
    """Its configuration, field by field."""
    screen.heading(f"Endpoint {endpoint['id']} ({endpoint['name']})")
    fields = configuration.flatten(endpoint)
    env = fields["env"]
    rows = [
        [name, configuration.describe_value(name, value)]
        for name, value in fields.items()
        if name not in ("name", "env")
    ]
    env_rows = [[f"env.{name}", mask_secret(name, env[name])] for name in sorted(env)]
    screen.table(["field", "value"], rows + env_rows, whole=("field",))


def show_workers(screen: Screen, workers: Sequence[Worker], releases: ReleaseList) -> None:
    rollout = releases["rollout"]
    screen.heading(
        f"Workers: {rollout['workersOnLatest']} of {rollout['workersTotal']} on version "
        f"{releases.get('endpointVersion')}"
    )
    rows = [
        [
            worker["id"],
            worker["status"].lower() + (", old" if worker["isStale"] else ""),
            short_card(worker.get("gpuTypeId")),
            worker.get("dataCenterId"),
            (worker.get("image") or "").rpartition(":")[2],
            "" if (uptime := worker.get("uptimeSeconds")) is None else f"{uptime} s",
        ]
        for worker in workers
    ]
    if rows:
        screen.table(["worker", "state", "card", "data centre", "tag", "up"], rows, whole=("worker", "state"))


def show_next(screen: Screen, endpoint: Endpoint) -> None:
    """The commands for what one wants to do next with the endpoint."""
    which, image = f"--endpoint-id {endpoint['id']}", str(endpoint.get("image", ""))
    # One that is named by a digest, or without a registry, is no image that a deployment takes.
    is_tagged = "/" in image and ":" in image.rpartition("/")[2] and "@" not in image
    rows: list[list[str]] = [
        ["a picture", f'send {which} "a fox in the snow"'],
        ["its logs", f"logs {which}"],
        ["its health", f"send {which}"],
        ["its bill", f"spent {which}"],
        ["which cards", f"cost {which}"],
        ["another card", f"{which} --image {image} --gpu POOL"] if is_tagged else [],
        ["go back", f"rollback {which}"],
        ["stop paying", f"pause {which}"],
    ]
    screen.heading("Next (each after `python deploy_qwen.py`)")
    for purpose, command in filter(None, rows):
        screen.say(f"{purpose:<13} {command}")


def short_card(card: str | None) -> str:
    """A card's id without its maker."""
    return (card or "").removeprefix("NVIDIA ").removeprefix("GeForce ")


def pool_names(endpoint: Endpoint) -> str:
    """The pools that the endpoint's workers get their cards from."""
    return ", ".join(configuration.flatten(endpoint).get("gpu.pools", [])) or "no card"


def describe_workers(endpoint: Endpoint, answer: WorkerList) -> str:
    """How many there are of how many, and of those that are not ready what they are."""
    most, summary = configuration.flatten(endpoint)["workers.max"], answer["summary"]
    if not most:
        return "paused"
    others = [f"{count} {state}" for state, count in summary.items() if count and state not in (*READY, "total")]
    return ", ".join([f"{summary['total']} of {most}", *others])


def describe_price(workers: Sequence[Worker], prices: Mapping[str, float | None]) -> str:
    """Dollars an hour of the workers that hold a card; `?` where the catalogue has no price for one of them."""
    total = 0.0
    for worker in workers:
        card = worker.get("gpuTypeId")
        if worker["status"] == "THROTTLED" or card is None:
            continue  # it waits for a card, and costs nothing
        price = prices.get(card)
        if not price:
            return "?"
        total += price * worker["gpuCount"]
    return f"{total:.2f}"


def show_what_goes(screen: Screen, session: Session, endpoint: Endpoint) -> None:
    """What a deletion takes away, and what it leaves behind."""
    workers, counts = session.api.workers(endpoint["id"])["workers"], session.job_counts(endpoint) or {}
    jobs = counts.get("inQueue", 0) + counts.get("inProgress", 0)
    screen.say(f"  goes:  the endpoint, its workers ({len(workers)} now), jobs that wait or run ({jobs}),")
    screen.say("         its log, its address: callers get errors from then on")
    screen.say(f"  stays: the image {endpoint.get('image')} in its registry")
    for volume in endpoint.get("networkVolumes", []):
        screen.say(f"  stays: volume {volume}, which is paid for until it is deleted too")


def show_records(screen: Screen, records: Sequence[Record]) -> None:
    """Saved configurations, newest first, below the folder that holds their files."""
    if not records:
        screen.say("No saved configuration.")
        return
    by_folder: dict[str, list[Record]] = {}
    for record in records:
        by_folder.setdefault(str(record.path.parent), []).append(record)
    for folder, own in by_folder.items():
        screen.heading(f"Endpoint {own[0].endpoint['id']} ({own[0].endpoint['name']}), in {folder}")
        rows = [
            [record.saved_at.replace("+00:00", "Z"), str(record.endpoint.get("image", "")), record.path.name]
            for record in own
        ]
        screen.table(["saved", "image", "file, for --to"], rows, whole=("file, for --to",))
