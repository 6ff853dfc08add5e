"""The commands that change no endpoint: `status`, `logs`, `send`, `cost`, each a short story of its own."""

import base64
import json

from . import cards, configuration
from .costs import show_costs
from .diagnosis import find_causes
from .endpoint_display import show_endpoint, show_next, show_workers
from .endpoints import find_endpoint, resume_command
from .errors import ApiError, DeployError, NotServing, UsageError
from .options import CostOptions, LogsOptions, SendOptions, StatusOptions
from .overrun import StageWatch, explain_overrun, limit_of
from .pictures import read_pictures
from .proof import job_timing
from .runpod.jobs import Answer
from .runpod.schemas import Endpoint, JobStatus, JsonObject
from .runpod.waiting import Waiting
from .screen import Screen
from .session import Action, Session, SessionOpener

QUEUE_SECONDS = 900  # that `send` waits beside the seconds that a job may run: for a worker, and for its files


def status(screen: Screen, options: StatusOptions, open_session: SessionOpener) -> int:
    """The endpoint, its workers and its queue; and where jobs do not get done, why."""
    session = open_session()
    endpoint = find_endpoint(session.api, options)
    workers, releases = session.api.workers(endpoint["id"])["workers"], session.api.releases(endpoint["id"])
    counts = session.job_counts(endpoint)
    show_endpoint(screen, endpoint)
    show_workers(screen, workers, releases)
    jobs = " · ".join(f"{state} {count}" for state, count in (counts or {}).items())
    screen.say(f"Jobs: {jobs or ('none' if counts is not None else 'not known')}")
    causes = find_causes(session, endpoint, workers, counts)
    for cause in causes:
        screen.bad(cause)
    if not causes:
        screen.good("Healthy: nothing keeps its jobs from being done.")
    show_next(screen, endpoint)
    return 0


def logs(screen: Screen, options: LogsOptions, open_session: SessionOpener) -> int:
    session = open_session()
    endpoint_id = find_endpoint(session.api, options)["id"]
    ids = (
        [options.worker] if options.worker else [worker["id"] for worker in session.api.workers(endpoint_id)["workers"]]
    )
    if not ids:
        screen.say("No workers now, and RunPod keeps no log of those that are gone.")
    if options.follow and len(ids) != 1:
        raise UsageError(f"--follow needs --worker, one of: {', '.join(ids) or 'none now'}.")
    for worker_id in ids:
        for entry in session.api.logs(endpoint_id, worker_id, options.source, options.tail, options.follow):
            mark = "" if len(ids) == 1 else f"{worker_id} "
            screen.say(f"{mark}{entry.get('ts', '')} {entry.get('source', ''):<9} {entry.get('line', '')}")
            if screen.is_lost:
                return 0  # with --follow there would be no end
    return 0


def send(screen: Screen, options: SendOptions, open_session: SessionOpener) -> int:
    fields = job_fields(options)
    session = open_session()
    endpoint = find_endpoint(session.api, options)
    limit, stages = limit_of(endpoint), StageWatch()
    patience = options.timeout or QUEUE_SECONDS + (limit or QUEUE_SECONDS)
    answer = ask(session, endpoint, fields, patience, stages)
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


def ask(session: Session, endpoint: Endpoint, fields: JsonObject, patience: float, stages: StageWatch) -> Answer:
    """The answer to a job, which is waited for with the reasons on the screen. `patience` in seconds.

    The job runs under the endpoint's own limit, and `stages` keeps the last stage that its worker names.

    Raises `DeployError` for an endpoint that is paused, or deleted meanwhile.
    """
    endpoint_id, screen = endpoint["id"], session.screen
    if configuration.flatten(endpoint)["workers.max"] == 0:
        raise DeployError(
            f"Endpoint {endpoint_id} is paused, nobody would take the job. Go on: {resume_command(endpoint)}"
        )
    waiting, last = Waiting(session.api, endpoint_id), ""

    def show(status: JobStatus) -> None:
        nonlocal last
        stages.look(status)
        last = waiting.describe_job(status)
        screen.progress(last)

    try:
        with screen.live_progress():
            return session.queue(endpoint).ask(fields, limit_of(endpoint), patience, show, screen.warn)
    except NotServing as failure:
        why = f"python deploy_qwen.py status --endpoint-id {endpoint_id}"
        raise DeployError(f"{failure} Last: {last}. Why: {why}") from None
    except ApiError as error:
        if error.status == 404 and not session.api.has_endpoint(endpoint_id):
            raise DeployError(f"Endpoint {endpoint_id} was deleted while the job waited: there is no answer.") from None
        raise


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
