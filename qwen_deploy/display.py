"""Plans in tables, and how to use what was deployed. Shows no value of the environment that may be a secret."""

import json
from typing import cast

from qwen_worker.settings import Fallback

from . import configuration
from .environment import mask_secret, worker_settings
from .image import Image, build_command, find_tool, push_command
from .intent import FORBID_FALLBACK, Intent
from .offers import Offer, describe
from .options import DeployOptions
from .records import Record
from .runpod.schemas import Endpoint
from .screen import Screen

# What callers get when a model cannot be loaded, by the endpoint's QWEN_FALLBACK.
STAND_INS = {
    Fallback.ALLOW: (
        "If a model cannot be loaded, callers get a marked stand-in picture; --env QWEN_FALLBACK=forbid gives them an "
        "error instead."
    ),
    Fallback.FORBID: "If a model cannot be loaded, callers get an error, and never a stand-in (QWEN_FALLBACK=forbid).",
    Fallback.FORCE: "No model is loaded: every caller gets a marked stand-in picture (QWEN_FALLBACK=force).",
}


def show_intent(screen: Screen, options: DeployOptions, image: Image, intent: Intent) -> None:
    """Everything that will be done, before it is."""
    where = f"endpoint {intent.endpoint['id']} ({intent.endpoint['name']})" if intent.endpoint else "a new endpoint"
    screen.heading(f"Plan for {where}")
    if intent.purchase:
        show_offers(screen, intent.purchase.offers, intent.purchase.pools, options.ram_gb)
    for note in intent.notes:
        screen.warn(note)
    if not options.skip_build:
        screen.say(f"build and push  {image.reference}")
    show_changes(screen, intent.changes)
    screen.say(STAND_INS[worker_settings(intent.target["env"]).QWEN_FALLBACK])
    if options.dry_run:
        show_dry_run(screen, options, image, intent)


def show_offers(screen: Screen, offers: list[Offer], chosen: list[str], ram_gb: float) -> None:
    """The chosen pools in their order and then the others, with what each takes and its layout of the models."""
    by_pool = {offer.fit.pool.id: offer for offer in offers}
    taken, others = [by_pool[name] for name in chosen], [by_pool[name] for name in by_pool if name not in chosen]
    rows: list[list[str]] = []
    for offer in [*taken, *others]:
        fit, pool = offer.fit, offer.fit.pool
        layout = "does not fit" if fit.reason.startswith("too small") else fit.layout
        rows.append([
            str(chosen.index(pool.id) + 1) if pool.id in chosen else "", pool.id, f"{pool.memory} GB",
            f"${offer.price:.2f}/h" if offer.price > 0 else "no price", pool.stock.lower(),
            describe(offer) if fit.plan else "", layout,
        ])  # fmt: skip
    names = [
        "",
        "pool",
        "memory",
        "price",
        "stock",
        "takes and costs",
        f"layout (computed; {ram_gb:g} GB of RAM assumed)",
    ]
    screen.table(names, rows, whole=("pool", "price"))


def show_changes(screen: Screen, changes: list[configuration.Change]) -> None:
    if changes:
        screen.table(["field", "now", "then"], configuration.describe_changes(changes))
    else:
        screen.say("Nothing to change: the endpoint is as wanted.")


def show_dry_run(screen: Screen, options: DeployOptions, image: Image, intent: Intent) -> None:
    """The commands and the requests that would be sent."""
    if not options.skip_build:
        tool = find_tool(options.builder)
        for command in (build_command(tool, image, options), push_command(tool, image)):
            screen.say("$ " + " ".join(command))
    if intent.changes:
        first = intent if options.no_test else intent.with_fallback_forbidden()
        if intent.endpoint:
            body = configuration.patch_body(first.present or {}, first.target)
            method, path = "PATCH", f"/v2/serverless/{intent.endpoint['id']}"
        else:
            body, method, path = configuration.create_body(first.target), "POST", "/v2/serverless"
        if "env" in body:
            env = cast(dict[str, str], body["env"])
            body["env"] = {name: mask_secret(name, value) for name, value in env.items()}
        screen.say(f"{method} {path} {json.dumps(body)}")
        if not options.no_test and first.target != intent.target:
            screen.say(f"{' '.join(FORBID_FALLBACK)} goes back to what is asked for when the test jobs are through.")
    screen.say("Dry run: nothing was sent but reads.")


def show_use(screen: Screen, endpoint: Endpoint, saved: Record | None) -> None:
    """How to send jobs to an endpoint that serves and, where a configuration was saved, how to go back to it."""
    screen.say(f"  jobs:    POST {endpoint.get('requestUrls', {})['run']}")
    screen.say(f'  try it:  python deploy_qwen.py send --endpoint-id {endpoint["id"]} "a fox in the snow"')
    if saved:
        screen.say(f"  undo it: python deploy_qwen.py rollback --endpoint-id {endpoint['id']}")
