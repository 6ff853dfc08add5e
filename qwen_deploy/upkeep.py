"""The commands that look after endpoints: `list`, `pause`, `resume`, `delete`, `open`, each a short story of its own.

What they change is the number of workers, or that an endpoint exists; never what it serves.
"""

import os
import sys
import webbrowser

from . import configuration
from .command_options import DeleteOptions, ListOptions, OpenOptions, PauseOptions, ResumeOptions
from .endpoint_display import describe_price, describe_workers, pool_names, show_what_goes
from .endpoints import find_endpoint, plain_name, resume_command, title_of
from .errors import ApiError, DeployError, UsageError
from .proof import require_kept
from .runpod.schemas import Endpoint
from .screen import Screen, require_yes
from .session import Action, Session, SessionOpener

CONSOLE = "https://console.runpod.io/serverless/user/endpoint/"
CHANGING = ("pause", "resume", "delete")  # the commands that change an endpoint by one request, and undo nothing
GONE_SECONDS = 120  # that the workers of a paused endpoint get to end, while the operator watches
LOOK_SECONDS = 5


def list_endpoints(screen: Screen, options: ListOptions, open_session: SessionOpener) -> int:
    """Every endpoint of the account, with what its workers cost now. The exit code."""
    session = open_session()
    endpoints = session.api.endpoints()
    if not endpoints:
        screen.say("This account has no endpoint.")
        return 0
    prices = read_prices(session)
    rows: list[list[str]] = []
    for endpoint in endpoints:
        try:
            workers = session.api.workers(endpoint["id"])
        except ApiError as error:
            if error.status != 404:
                raise
            continue  # it was deleted since the list was read
        version = str(endpoint.get("image", "")).rpartition(":")[2]
        running, price = describe_workers(endpoint, workers), describe_price(workers["workers"], prices)
        rows.append([plain_name(endpoint), endpoint["id"], pool_names(endpoint), running, price, version])
    screen.table(["name", "id", "cards", "workers", "$/h", "version"], rows, whole=("id", "$/h", "version"))
    screen.say("$/h: what the workers of this moment cost an hour by RunPod's list; `?` where it names no price.")
    return 0


def read_prices(session: Session) -> dict[str, float | None]:
    """Dollars an hour by card; none where the catalogue is refused, since the endpoints can be listed without it."""
    try:
        return {card["id"]: card["price"].get("serverless") for card in session.api.gpus()}
    except ApiError as error:
        session.screen.warn(f"No prices: {error}")
        return {}


def pause(screen: Screen, options: PauseOptions, open_session: SessionOpener) -> int:
    """No workers until `resume`. The exit code."""
    session = open_session()
    endpoint = find_endpoint(session.api, options)
    endpoint_id, title = endpoint["id"], title_of(endpoint)
    if configuration.flatten(endpoint)["workers.max"] == 0:
        screen.good(f"Endpoint {title} is paused already. Go on: {resume_command(endpoint)}")
        return 0
    screen.heading(f"Pause endpoint {title}")
    screen.say("Its workers end, and the jobs that they run with them. Nobody takes jobs until it is resumed.")
    require_yes(screen, options.yes)
    session.records.save(endpoint)
    set_workers(session, endpoint, 0, 0)
    is_empty = wait_until_empty(session, endpoint_id)
    waiting = (session.job_counts(endpoint) or {}).get("inQueue", 0)
    screen.good(f"Endpoint {title} is paused: RunPod starts no worker.")
    if not is_empty:
        screen.warn(f"Workers are still there after {GONE_SECONDS} s, and may cost: look with `status`.")
    if waiting:
        screen.warn(f"Jobs in the queue: {waiting}. They wait for a worker, at most as long as their time to live.")
    for volume in endpoint.get("networkVolumes", []):
        screen.say(f"  still paid for: volume {volume}")
    screen.say(f"  go on: {resume_command(endpoint)}")
    return 0


def resume(screen: Screen, options: ResumeOptions, open_session: SessionOpener) -> int:
    """As many workers as before the pause. The exit code."""
    if options.workers_max is not None and options.workers_max < 1:
        raise UsageError(f"--workers-max must be at least 1, not {options.workers_max}; `pause` ends all workers.")
    session = open_session()
    endpoint = find_endpoint(session.api, options)
    title = title_of(endpoint)
    present = configuration.flatten(endpoint)
    if present["workers.max"] and options.workers_max in (None, present["workers.max"]):
        screen.good(f"Endpoint {title} is not paused: it has up to {present['workers.max']} workers.")
        return 0
    low, high = workers_before(session, endpoint)
    high = options.workers_max or high
    screen.heading(f"Resume endpoint {title}")
    always = f"{min(low, high)} always there, and paid for" if low else "none while there are no jobs"
    screen.say(f"Workers: up to {high}, {always}.")
    require_yes(screen, options.yes)
    set_workers(session, endpoint, min(low, high), high)
    screen.good(f"Endpoint {title} takes jobs again.")
    return 0


def workers_before(session: Session, endpoint: Endpoint) -> tuple[int, int]:
    """The fewest and most workers of the newest saved configuration that had any, else of a new endpoint."""
    for record in session.records.saved(endpoint["id"]):
        saved = configuration.flatten(record.endpoint)
        if saved["workers.max"]:
            return saved["workers.min"], saved["workers.max"]
    session.screen.warn("No saved configuration says how many workers there were: --workers-max sets another number.")
    return 0, configuration.DEFAULT_WORKERS_MAX


def set_workers(session: Session, endpoint: Endpoint, low: int, high: int) -> None:
    """Change the numbers alone. Raises `NotServing` where RunPod does not keep them."""
    present = configuration.flatten(endpoint)
    target = present.copy()
    target["workers.min"], target["workers.max"] = low, high
    session.api.update(endpoint["id"], configuration.patch_body(present, target))
    require_kept(session, endpoint["id"], {"workers.min": low, "workers.max": high})


def wait_until_empty(session: Session, endpoint_id: str) -> bool:
    """Whether no worker is left within `GONE_SECONDS`."""
    clock = session.api.client.clock
    started = clock.now()
    with session.screen.live_progress():
        while workers := session.api.workers(endpoint_id)["workers"]:
            seconds = clock.now() - started
            if seconds >= GONE_SECONDS:
                return False
            session.screen.progress(f"{len(workers)} workers are ending · {seconds:.0f} s")
            clock.pause(LOOK_SECONDS)
    return True


def delete(screen: Screen, options: DeleteOptions, open_session: SessionOpener) -> int:
    """Delete the one endpoint that was named and shown, for good. The exit code."""
    session = open_session()
    endpoint = find_endpoint(session.api, options)
    endpoint_id, title = endpoint["id"], title_of(endpoint)
    screen.heading(f"Delete endpoint {title}")
    show_what_goes(screen, session, endpoint)
    require_yes(screen, options.yes, f"Delete {title} for good?")
    record = session.records.save(endpoint)
    session.api.delete(endpoint_id)
    if session.api.has_endpoint(endpoint_id):
        raise DeployError(f"RunPod took the request, and endpoint {endpoint_id} is still there: look with `list`.")
    screen.good(f"Endpoint {title} is deleted. What its configuration was: {record.path}")
    return 0


def open_page(screen: Screen, options: OpenOptions, open_session: SessionOpener) -> int:
    """Print the address of the endpoint's page, and show it where there is a screen with a browser. The exit code."""
    session = open_session()
    address = CONSOLE + find_endpoint(session.api, options)["id"]
    screen.say(address)
    if has_desktop():
        try:
            webbrowser.open(address)
        except webbrowser.Error:
            screen.warn("No browser was found here.")
    return 0


def has_desktop() -> bool:
    """Whether a browser would open beside the terminal: one that runs in it would take it over."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))


ACTIONS: dict[str, Action] = {
    "list": list_endpoints, "pause": pause, "resume": resume, "delete": delete, "open": open_page,
}  # fmt: skip
