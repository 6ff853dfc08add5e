"""The story of `cost`: dollars of a picture, of a cold start and of a day on every pool, before or after a deployment.

Knows nothing of what RunPod has billed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from . import cards, configuration, offers
from .endpoints import find_endpoint
from .environment import cuda_floor, parse_assignments, worker_settings
from .errors import DeployError
from .estimates import Figure, SecondsTable
from .intent import choose_tasks
from .offers import Offer
from .options import CostOptions
from .purchase import wish_of
from .recommended import environment_of_models
from .screen import Screen
from .second_card import draws_on_two
from .session import ROOT, Session

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Usage:
    """How an endpoint is used: jobs a day, seconds that a worker idles after a job, workers that always run."""

    jobs: int
    idle: float
    workers_min: int
    price: float  # dollars an hour of a worker

    def day(self, seconds: float, cold: float) -> tuple[float, float]:
        """Dollars a day, the least and the most, for jobs of so many `seconds` that never wait for each other.

        Least: all in one run. Most: each alone, on a worker that starts `cold`, draws and idles; a worker that is never
        gone costs the whole day and no more.
        """
        drawing = self.jobs * seconds
        if self.workers_min:
            both = max(self.workers_min * DAY_SECONDS, drawing)
            return both * self.price / 3600, both * self.price / 3600
        run = cold + drawing + self.idle
        alone = min(self.jobs * (cold + seconds + self.idle), max(DAY_SECONDS, run))
        return run * self.price / 3600, max(run, alone) * self.price / 3600


def show_costs(screen: Screen, options: CostOptions, session: Session) -> None:
    """A table of the pools, and what is in its figures. Raises `DeployError`, and `UsageError` for wrong options."""
    is_named = options.endpoint_id is not None or options.name is not None
    endpoint = find_endpoint(session.api, options) if is_named else None
    present: Mapping[str, object] = configuration.flatten(endpoint) if endpoint else {}
    own_env = configuration.flatten(endpoint)["env"] if endpoint else {}
    asked = environment_of_models(options.models, parse_assignments(options.env, os.environ), options.tasks)
    env = {**own_env, **asked}
    tasks, settings = choose_tasks(options.tasks, env), worker_settings(env)
    torch_cuda = cuda_floor(ROOT)
    pools = cards.read_pools(session.api, options.min_cuda)
    fits = [cards.fit(pool, settings, tasks, options.ram_gb, torch_cuda) for pool in pools]
    timings = session.records.timings(endpoint["id"]) if endpoint else []
    fields = {**configuration.DEFAULTS, **present}
    count = int(str(fields["gpu.count"]))
    read = offers.read_offers(fits, settings, tasks, timings, count, draws_on_two(settings, count))
    limit = float(str(fields["timeout"])) / 1000
    chosen, why_none = chosen_pools(read, options, tasks, limit)
    source = "volume" if fields.get("networkVolumes") else "disk"
    rows = [
        [str(chosen.index(offer.fit.pool.id) + 1) if offer.fit.pool.id in chosen else "", *cells(offer, source)]
        for offer in read
    ]
    names = [offers.article(task) for task in tasks]
    screen.table(["", "pool", "$/h", "stock", *names, "cold start", "known"], rows, whole=("pool", "$/h"))
    if options.per_day is not None:
        screen.heading(f"{options.per_day} jobs a day")
        days = [[offer.fit.pool.id, *day_cells(offer, source, fields, options.per_day)] for offer in read]
        screen.table(["pool", *(f"each {name}" for name in names)], days)
    explain(screen, options, source, fields, chosen, why_none)


def chosen_pools(
    read: list[Offer], options: CostOptions, tasks: tuple[str, ...], limit: float
) -> tuple[list[str], str]:
    """The pools that --gpu auto would take, best first, or why it would take none."""
    try:
        return [offer.fit.pool.id for offer in offers.choose_offers(read, wish_of(options, tasks, limit))], ""
    except DeployError as error:
        return [], str(error)


def cells(offer: Offer, source: str) -> list[str]:
    """Of a pool: what it is, and the seconds and dollars of a job of each task and of a cold start."""
    pool, load = offer.fit.pool, offer.load[source]
    figures = [*offer.seconds.values(), load]
    bases = dict.fromkeys(figure.basis for figure in figures if figure)
    known = " and ".join(bases) or "not known" if offer.fit.plan else "does not fit"
    price = f"${offer.price:.2f}" if offer.price > 0 else "none"
    return [pool.id, price, pool.stock.lower(), *(priced(figure, offer.price) for figure in figures), known]


def priced(figure: Figure | None, price: float) -> str:
    """Seconds, and the dollars below them."""
    if figure is None:
        return ""
    return f"~{figure.seconds:.0f} s" + (f"\n${price / 3600 * figure.seconds:.4f}" if price > 0 else "")


def day_cells(offer: Offer, source: str, fields: Mapping[str, object], jobs: int) -> list[str]:
    """Dollars a day for so many jobs of each task alone."""
    load = offer.load[source]
    idle, workers_min = float(str(fields.get("workers.idleTimeout", 0))), int(str(fields["workers.min"]))
    usage = Usage(jobs, idle, workers_min, offer.price)
    days = [usage.day(figure.seconds, load.seconds) if figure and load else None for figure in offer.seconds.values()]
    return ["" if day is None or not usage.price else f"${day[0]:.2f} to ${day[1]:.2f}" for day in days]


def explain(
    screen: Screen, options: CostOptions, source: str, fields: Mapping[str, object], chosen: list[str], why_none: str
) -> None:
    """What is in the figures and what is not, and what --gpu auto would do."""
    screen.say(f"--gpu auto takes {', '.join(chosen)}." if chosen else f"--gpu auto takes none of them: {why_none}")
    rate = SecondsTable().read_rates[source]
    screen.say(
        "Computed: arithmetic over the rates that cards attain, at 1024x1024 by the preset that is served, on the "
        "pool's slowest card. Measured on this endpoint: the median of its jobs sent from here."
    )
    screen.say(
        f"A cold start is a worker that starts and loads one model from its {source} ({rate:g} GB/s where it is "
        "computed). A download comes on top, and so do the disk and the volume."
    )
    if options.per_day is not None:
        idle = fields.get("workers.idleTimeout", 0)
        screen.say(
            f"A day: at the least all jobs in one run, with one cold start; at the most each alone, with a cold start "
            f"and {idle} s of --idle-timeout. Workers that always run (--workers-min) are paid for the whole day."
        )
