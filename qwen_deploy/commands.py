"""The commands that change no endpoint: `status`, `logs`, `send`, `cost`, each a short story of its own."""

import base64
import json
from collections.abc import Callable
from typing import Any

from . import cards
from .costs import show_costs
from .display import show_endpoint, show_workers
from .errors import DeployError, UsageError
from .options import CostOptions, LogsOptions, SendOptions, StatusOptions
from .overrun import StageWatch, explain_overrun, limit_of
from .pictures import read_pictures
from .proof import job_timing
from .runpod.jobs import describe_progress
from .runpod.schemas import JobStatus, JsonObject
from .screen import Screen
from .session import Session

QUEUE_SECONDS = 900  # that `send` waits beside the seconds that a job may run: for a worker, and for its files
SessionOpener = Callable[[], Session]
# What a command does: it takes the options of that command (hence Any) and returns the exit code.
Action = Callable[[Screen, Any, SessionOpener], int]


def status(screen: Screen, options: StatusOptions, open_session: SessionOpener) -> int:
    session = open_session()
    endpoint = session.api.endpoint(options.endpoint_id)
    show_endpoint(screen, endpoint)
    show_workers(screen, session, endpoint["id"])
    counts = session.queue(endpoint).job_counts()
    jobs = " · ".join(f"{state} {count}" for state, count in counts.items())
    screen.say(f"Jobs: {jobs or 'none'}")
    return 0


def logs(screen: Screen, options: LogsOptions, open_session: SessionOpener) -> int:
    session = open_session()
    ids = (
        [options.worker]
        if options.worker
        else [worker["id"] for worker in session.api.workers(options.endpoint_id)["workers"]]
    )
    if not ids:
        screen.say("No workers now, and RunPod keeps no log of those that are gone.")
    if options.follow and len(ids) != 1:
        raise UsageError(f"--follow needs --worker, one of: {', '.join(ids) or 'none now'}.")
    for worker_id in ids:
        for entry in session.api.logs(options.endpoint_id, worker_id, options.source, options.tail, options.follow):
            mark = "" if len(ids) == 1 else f"{worker_id} "
            screen.say(f"{mark}{entry.get('ts', '')} {entry.get('source', ''):<9} {entry.get('line', '')}")
    return 0


def send(screen: Screen, options: SendOptions, open_session: SessionOpener) -> int:
    fields = job_fields(options)
    session = open_session()
    endpoint = session.api.endpoint(options.endpoint_id)

    limit, stages = limit_of(endpoint), StageWatch()
    patience = options.timeout or QUEUE_SECONDS + (limit or QUEUE_SECONDS)

    def show(status: JobStatus) -> None:
        stages.look(status)
        screen.progress(describe_progress(status))

    with screen.live_progress():
        answer = session.queue(endpoint).ask(fields, limit, patience, show, screen.warn)
    overrun = explain_overrun(str(fields["task"]), answer, limit, stages.stage)
    if answer.state != "COMPLETED" or answer.error:
        raise DeployError(overrun or f"The job is {answer.state}: {answer.error or 'no reason given'}")
    if overrun:
        screen.warn(overrun)
    task = str(fields["task"])
    if task in ("health", "debug"):
        screen.say(json.dumps(answer.reply, indent=2))
        return 0
    pictures = read_pictures(answer.reply)
    files = [picture.save(options.output, f"{answer.job_id}-{number}") for number, picture in enumerate(pictures)]
    card = cards.worker_card(session.api, endpoint["id"], answer.worker_id)
    session.records.add_timing(endpoint["id"], job_timing(task, answer, card))
    metadata = answer.metadata
    if metadata.get("backend") != "qwen-image":
        screen.warn(f"A stand-in, not a picture by the model: {metadata.get('fallback_reason')}")
    screen.good(f"{answer.seconds:.1f} s, seed {metadata.get('seed')}: {', '.join(map(str, files))}")
    return 0


def job_fields(options: SendOptions) -> JsonObject:
    """The job's input. Raises `UsageError` for a file that cannot be read or a --field that is not NAME=JSON."""
    task = options.task or ("health" if not options.prompt else "edit" if options.image else "generate")
    fields: JsonObject = {"task": task}
    if options.prompt:
        fields["prompt"] = options.prompt
    try:
        pictures = [base64.b64encode(path.read_bytes()).decode() for path in options.image]
        if options.mask:
            fields["mask_image"] = base64.b64encode(options.mask.read_bytes()).decode()
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}.") from None
    if pictures:
        fields |= {"image": pictures[0]} if len(pictures) == 1 else {"images": pictures}
    for assignment in options.field:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise UsageError(f"--field must be NAME=JSON, not {assignment!r}.")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value  # a bare word is a text
    return fields


def cost(screen: Screen, options: CostOptions, open_session: SessionOpener) -> int:
    show_costs(screen, options, open_session())
    return 0


ACTIONS: dict[str, Action] = {"status": status, "logs": logs, "send": send, "cost": cost}
