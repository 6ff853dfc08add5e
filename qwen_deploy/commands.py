"""The commands that change no endpoint: `status`, `logs`, `send`, `cost`, each a short story of its own."""

import base64
import json
import os
from collections.abc import Callable

from . import cards, configuration
from .display import show_endpoint, show_workers
from .environment import cuda_floor, parse_assignments, worker_settings
from .errors import DeployError, UsageError
from .intent import choose_tasks
from .pictures import read_pictures
from .proof import job_timing
from .runpod.jobs import describe_progress
from .screen import Screen
from .session import ROOT, Session

SessionOpener = Callable[[], Session]


def status(screen: Screen, options, open_api: SessionOpener) -> int:
    session = open_api()
    endpoint = session.api.endpoint(options.endpoint_id)
    show_endpoint(screen, endpoint)
    show_workers(screen, session, endpoint["id"])
    counts = session.queue(endpoint).counts()
    jobs = " · ".join(f"{name} {count}" for name, count in (counts.get("jobs") or {}).items())
    screen.say(f"Jobs: {jobs or 'none'}")
    return 0


def logs(screen: Screen, options, open_api: SessionOpener) -> int:
    session = open_api()
    ids = (
        [options.worker]
        if options.worker
        else [one["id"] for one in session.api.workers(options.endpoint_id)["workers"]]
    )
    if not ids:
        screen.say("No workers now, and RunPod keeps no log of those that are gone.")
    if options.follow and len(ids) != 1:
        raise UsageError(f"--follow needs --worker, one of: {', '.join(ids) or 'none now'}.")
    for worker in ids:
        for one in session.api.logs(options.endpoint_id, worker, options.source, options.tail, options.follow):
            mark = "" if len(ids) == 1 else f"{worker} "
            screen.say(f"{mark}{one.get('ts', '')} {one.get('source', ''):<9} {one.get('line', '')}")
    return 0


def send(screen: Screen, options, open_api: SessionOpener) -> int:
    fields = job_fields(options)
    session = open_api()
    endpoint = session.api.endpoint(options.endpoint_id)

    def watch(told: dict) -> None:
        screen.progress(describe_progress(told))

    with screen.live_progress():
        answer = session.queue(endpoint).ask(fields, options.timeout, options.timeout, watch, screen.warn)
    if answer.state != "COMPLETED" or answer.error:
        raise DeployError(f"The job is {answer.state}: {answer.error or 'no reason given'}")
    if fields["task"] in ("health", "debug"):
        screen.say(json.dumps(answer.reply, indent=2))
        return 0
    facts = answer.metadata
    files = [one.save(options.output, f"{answer.job_id}-{n}") for n, one in enumerate(read_pictures(answer.reply))]
    timing = job_timing(fields["task"], answer, cards.worker_card(session.api, endpoint["id"], answer.worker))
    session.records.add_timing(endpoint["id"], timing)
    if facts.get("backend") != "qwen-image":
        screen.warn(f"A stand-in, not a picture by the model: {facts.get('fallback_reason')}")
    screen.good(f"{answer.seconds:.1f} s, seed {facts.get('seed')}: {', '.join(map(str, files))}")
    return 0


def job_fields(options) -> dict:
    """The job's input. Raises `UsageError` for a file that cannot be read or a --field that is not NAME=JSON."""
    task = options.task or ("health" if not options.prompt else "edit" if options.image else "generate")
    fields: dict = {"task": task} | ({"prompt": options.prompt} if options.prompt else {})
    try:
        pictures = [base64.b64encode(path.read_bytes()).decode() for path in options.image]
        if options.mask:
            fields["mask_image"] = base64.b64encode(options.mask.read_bytes()).decode()
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}.") from None
    if pictures:
        fields |= {"image": pictures[0]} if len(pictures) == 1 else {"images": pictures}
    for text in options.field:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--field must be NAME=JSON, not {text!r}.")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value  # a bare word is a text
    return fields


def cost(screen: Screen, options, open_api: SessionOpener) -> int:
    """Dollars an image: the live price for the seconds that were measured on that pool; never guessed for another."""
    session = open_api()
    endpoint = session.api.endpoint(options.endpoint_id) if options.endpoint_id else None
    present = configuration.flatten(endpoint) if endpoint else {}
    env = {**present.get("env", {}), **parse_assignments(options.env, os.environ)}
    tasks, settings = choose_tasks(options.tasks, env), worker_settings(env)
    timings = session.records.timings(options.endpoint_id) if options.endpoint_id else []
    rows, cuda = [], cuda_floor(ROOT)
    for pool in cards.read_pools(session.api, options.min_cuda):
        one = cards.fit(pool, settings, tasks, options.ram_gb, cuda)
        seconds = {task: seconds_per_picture(task, pool, timings, options.seconds) for task in ("generate", "edit")}
        rows.append([
            pool.id, ", ".join(pool.cards), f"{pool.memory} GB", f"${pool.price:.2f}", pool.stock.lower(),
            one.layout if one.plan else "does not fit",
            *(price_per_picture(pool, seconds[task]) for task in seconds),
        ])  # fmt: skip
    names = ["pool", "cards", "memory", "$/h", "stock", f"layout ({options.ram_gb:g} GB RAM)", "$/picture", "$/edit"]
    screen.table(names, rows)
    given = f"Computed from {options.seconds:g} s a picture." if options.seconds else ""
    screen.say(
        given or "Measured: the mean of this endpoint's jobs sent from here on a card of the pool, loads left out."
    )
    screen.say("Idle seconds, loads of cold workers and the disk come on top.")
    return 0


def seconds_per_picture(task: str, pool: cards.Pool, timings: list[dict], given: float | None) -> float | None:
    """Seconds a picture, given or measured on one of the pool's cards; None where neither is there."""
    if given:
        return given
    kinds = ("generate",) if task == "generate" else ("edit", "background_replacement")
    found = [one["seconds"] / one["pictures"] for one in timings if one["task"] in kinds and one["card"] in pool.types]
    return sum(found) / len(found) if found else None


def price_per_picture(pool: cards.Pool, seconds: float | None) -> str:
    return "not measured" if seconds is None else f"${pool.price / 3600 * seconds:.4f}"


ACTIONS = {"status": status, "logs": logs, "send": send, "cost": cost}
