"""Plans, endpoints and saved configurations in tables. Shows no value of the environment that may be a secret."""

import json

from . import configuration, image
from .cards import Fit
from .environment import mask_secret
from .intent import FORBID_FALLBACK, Intent
from .records import Record
from .screen import Screen
from .session import Session


def show_intent(screen: Screen, options, one: image.Image, intent: Intent) -> None:
    """Everything that will be done, before it is."""
    where = f"endpoint {intent.endpoint['id']} ({intent.endpoint['name']})" if intent.endpoint else "a new endpoint"
    screen.heading(f"Plan for {where}")
    if intent.fits:
        show_fits(screen, intent.fits, intent.target["gpu.pools"], options.ram_gb)
    for note in intent.notes:
        screen.warn(note)
    if not options.skip_build:
        screen.say(f"build and push  {one.reference}")
    show_changes(screen, intent.changes)
    if options.dry_run:
        show_dry_run(screen, options, one, intent)


def show_fits(screen: Screen, fits: list[Fit], taken: list[str], ram_gb: float) -> None:
    """Pools by price, with the layout of the models on each."""
    rows = [
        [
            "*" if fit.pool.id in taken else "",
            fit.pool.id,
            f"{fit.pool.memory} GB",
            f"${fit.pool.price:.2f}/h",
            fit.pool.stock.lower(),
            fit.layout if fit.plan else "does not fit" if fit.reason.startswith("too small") else fit.reason,
        ]
        for fit in fits
    ]
    screen.table(["", "pool", "memory", "price", "stock", f"layout (computed; {ram_gb:g} GB of RAM assumed)"], rows)


def show_changes(screen: Screen, changes: list[configuration.Change]) -> None:
    if changes:
        screen.table(["field", "now", "then"], configuration.describe_changes(changes))
    else:
        screen.say("Nothing to change: the endpoint is as wanted.")


def show_dry_run(screen: Screen, options, one: image.Image, intent: Intent) -> None:
    """The commands and the requests that would be sent."""
    if not options.skip_build:
        tool = image.find_tool(options.builder)
        for command in (image.build_command(tool, one, options), image.push_command(tool, one)):
            screen.say("$ " + " ".join(command))
    if intent.changes:
        meant = intent if options.no_test else intent.with_fallback_forbidden()
        if intent.endpoint:
            body = configuration.patch_body(meant.present, meant.target)
            method, path = "PATCH", f"/v2/serverless/{intent.endpoint['id']}"
        else:
            body, method, path = configuration.create_body(meant.target), "POST", "/v2/serverless"
        if "env" in body:
            body["env"] = {name: mask_secret(name, value) for name, value in body["env"].items()}
        screen.say(f"{method} {path} {json.dumps(body)}")
        if not options.no_test and meant.target != intent.target:
            screen.say(f"{' '.join(FORBID_FALLBACK)} goes back to what is asked for when the test jobs are through.")
    screen.say("Dry run: nothing was sent but reads.")


def show_use(screen: Screen, endpoint: dict, saved: Record | None) -> None:
    screen.say(f"  jobs:    POST {endpoint['requestUrls']['run']}")
    screen.say(f'  try it:  python deploy_qwen.py send --endpoint-id {endpoint["id"]} "a fox in the snow"')
    if saved:
        screen.say(f"  undo it: python deploy_qwen.py rollback --endpoint-id {endpoint['id']}")


def show_records(screen: Screen, records: list[Record]) -> None:
    rows = [[one.saved_at, one.endpoint.get("image", ""), one.path] for one in records]
    screen.table(["saved", "image", "file"], rows) if rows else screen.say("No saved configuration.")


def show_endpoint(screen: Screen, endpoint: dict) -> None:
    """Its configuration, field by field."""
    screen.heading(f"Endpoint {endpoint['id']} ({endpoint['name']})")
    held = configuration.flatten(endpoint)
    env = held.pop("env", {})
    rows = [[name, configuration.describe_value(name, value)] for name, value in held.items() if name != "name"]
    screen.table(["field", "value"], rows + [[f"env.{name}", mask_secret(name, env[name])] for name in sorted(env)])


def show_workers(screen: Screen, session: Session, endpoint_id: str) -> None:
    answer, released = session.api.workers(endpoint_id), session.api.releases(endpoint_id)
    rollout = released["rollout"]
    screen.heading(
        f"Workers: {rollout['workersOnLatest']} of {rollout['workersTotal']} on version "
        f"{released.get('endpointVersion')}"
    )
    rows = [
        [
            one["id"],
            one["status"].lower(),
            "old" if one["isStale"] else "",
            one.get("gpuTypeId"),
            one.get("dataCenterId"),
            one.get("image"),
            "" if one.get("uptimeSeconds") is None else f"{one['uptimeSeconds']} s",
        ]
        for one in answer["workers"]
    ]
    if rows:
        screen.table(["worker", "state", "", "card", "data centre", "image", "up"], rows)
