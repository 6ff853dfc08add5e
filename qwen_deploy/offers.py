"""What each pool offers for its price, and which pools --gpu auto takes: seconds, dollars, and how they are known.

Knows nothing of an endpoint's configuration, and sends nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from qwen_worker.settings import Settings

from .cards import Fit
from .errors import DeployError, UsageError
from .estimates import Drawing, Figure, SecondsTable, drawing_of, measured_job, measured_load
from .overrun import whole_minutes
from .records import Timing

PICTURE_SECONDS = 30.0  # that a picture may take where --seconds does not say
MOST_POOLS = 3  # that auto takes: a worker may get a card of any of them
# How much dearer a picture may be on a second or third pool than on the cheapest: RunPod places a worker on whichever
# pool has a card, and promises no order.
DEAREST = 1.5
FRESH_LIMIT = 300  # seconds of a new endpoint's limit, where no job needs more


@dataclass(frozen=True)
class Offer:
    """A pool with what its slowest card takes. None stands for what the table does not have.

    `seconds` by task, of the tasks that are served; `load`: of a cold worker's first job, before it draws, by source;
    `price`: dollars an hour of a worker, 0 where the catalogue names none; `unknown`: the pool's cards that the table
    does not have.
    """

    fit: Fit
    price: float
    seconds: dict[str, Figure | None]
    load: dict[str, Figure | None]
    unknown: tuple[str, ...] = ()

    def dollars(self, task: str) -> float | None:
        """Of one picture or edit, as long as it is drawn."""
        figure = self.seconds.get(task)
        return self.price / 3600 * figure.seconds if figure else None

    @property
    def main_task(self) -> str:
        """The task whose seconds and dollars the offer is compared by."""
        return next(iter(self.seconds))

    @property
    def is_known(self) -> bool:
        return all(self.seconds.values())

    @property
    def is_available(self) -> bool:
        """Whether the models fit, and the catalogue has a card and a price."""
        return self.fit.plan is not None and self.fit.pool.stock != "NONE" and self.price > 0

    def first_job_seconds(self, source: str) -> float | None:
        """The slowest task's, on a cold worker."""
        load = self.load[source]
        figures = [figure for figure in self.seconds.values() if figure]
        return load.seconds + max(figure.seconds for figure in figures) if load and figures else None


@dataclass(frozen=True)
class Wish:
    """Seconds that each task may take, by task, and what decides among the pools that keep to them."""

    seconds: dict[str, float]
    prefer: str = "price"


def read_offers(
    fits: Sequence[Fit], settings: Settings, tasks: Sequence[str], timings: Sequence[Timing] = (), cards: int = 1,
    on_two: bool = False,
) -> list[Offer]:  # fmt: skip
    """An offer of each pool, for workers of so many cards. `timings`: of the endpoint's own jobs; `on_two`: whether
    one picture is drawn on two cards.

    Raises `DeployError` without the table.
    """
    table = SecondsTable()
    drawings = {task: replace(drawing_of(settings, task), gpus=2 if on_two else 1) for task in tasks}
    return [offer_of(fit, table, drawings, timings, fit.pool.price * cards) for fit in fits]


def offer_of(
    fit: Fit, table: SecondsTable, drawings: dict[str, Drawing], timings: Sequence[Timing], price: float
) -> Offer:
    pool = fit.pool
    devices = dict(zip(pool.types, pool.cards, strict=True))  # the longer of a card's two names tells more
    names = [max(pair, key=len) for pair in devices.items()]
    known = [name for name in names if table.card_of(name)]

    def slowest(read: Callable[[str], Figure | None]) -> Figure | None:
        figures = [figure for name in known if fit.plan and (figure := read(name))]
        return max(figures, key=lambda figure: figure.seconds, default=None)

    seconds = {
        task: measured_job(timings, pool.types, task, drawing)
        or slowest(lambda name, drawing=drawing: table.job(name, fit.layout, drawing))
        for task, drawing in drawings.items()
    }
    own_load = measured_load(timings, pool.types)
    load = {
        source: own_load or slowest(lambda name, source=source: table.load(name, fit.layout, source))
        for source in table.read_rates
    }
    return Offer(fit, price, seconds, load, tuple(name for name in names if name not in known))


def choose_offers(offers: Sequence[Offer], wish: Wish) -> list[Offer]:
    """The pools of --gpu auto, best first; the cheapest an hour alone where no pool's seconds are known.

    Raises `DeployError` that says why there is none, and which is nearest."""
    require_some_hold(offers)
    available = [offer for offer in offers if offer.is_available]
    known = [offer for offer in available if offer.is_known]
    if not known:  # models that the table does not have: what a picture takes on each card is not known
        return [min(available, key=lambda offer: offer.price)]
    within = [offer for offer in known if excess(offer, wish) <= 1]
    if not within:
        raise DeployError(explain_none(known, wish))
    order: dict[str, Callable[[Offer], tuple[float, ...]]] = {
        "price": lambda offer: (offer.dollars(offer.main_task) or inf, offer.price),
        "latency": lambda offer: (slowest_share(offer), offer.dollars(offer.main_task) or inf),
        "hourly": lambda offer: (offer.price, offer.dollars(offer.main_task) or inf),
    }
    best, *others = sorted(within, key=order[wish.prefer])
    most = DEAREST * (best.dollars(best.main_task) or inf)
    return [best, *(offer for offer in others if (offer.dollars(offer.main_task) or inf) <= most)][:MOST_POOLS]


def slowest_share(offer: Offer) -> float:
    """Seconds of the main task, by which --prefer latency compares."""
    figure = offer.seconds[offer.main_task]
    return figure.seconds if figure else inf


def excess(offer: Offer, wish: Wish) -> float:
    """The largest of the tasks' seconds, each over what it may take; above 1 the offer does not keep to the wish."""
    return max(figure.seconds / wish.seconds[task] for task, figure in offer.seconds.items() if figure)


def require_some_hold(offers: Sequence[Offer]) -> None:
    """Raises `DeployError` where no pool holds the models, none has a card, or none has a price."""
    holding = [offer for offer in offers if offer.fit.plan]
    if not holding:
        reasons = "; ".join(f"{offer.fit.pool.id} {offer.fit.reason}" for offer in offers) or "the catalogue is empty"
        raise DeployError(f"No pool holds the models: {reasons}.")
    if not any(offer.fit.pool.stock != "NONE" for offer in holding):
        names = ", ".join(offer.fit.pool.id for offer in holding)
        raise DeployError(f"No pool that holds the models has a card now: {names}. Try later, or name one.")
    if not any(offer.is_available for offer in holding):
        names = ", ".join(offer.fit.pool.id for offer in holding if offer.fit.pool.stock != "NONE")
        raise DeployError(f"RunPod's catalogue names no price for the pools that hold the models: {names}. Try later.")


def explain_none(known: Sequence[Offer], wish: Wish) -> str:
    """The sentence for a wish that no pool keeps to, with the nearest pool and the options that would take it."""
    nearest = min(known, key=lambda offer: excess(offer, wish))
    tasks = " and ".join(f"{article(task)} in {most:g} s" for task, most in wish.seconds.items())
    words = f"No pool that has a card now draws {tasks}. The nearest is {nearest.fit.pool.id}: {describe(nearest)}."
    figures = {task: ceil(figure.seconds) for task, figure in nearest.seconds.items() if figure}
    options = {"generate": "--seconds", "edit": "--execution-timeout"}
    needed = [f"{options[task]} {least}" for task, least in figures.items() if least > wish.seconds[task]]
    return f"{words} {' '.join(needed)} takes it, and --gpu {nearest.fit.pool.id} too."


def article(task: str) -> str:
    return "a picture" if task == "generate" else "an edit"


def describe(offer: Offer) -> str:
    """Such as `~12 s, ~$0.015 a picture; edit ~31 s; computed`."""
    parts: list[str] = []
    for task, figure in offer.seconds.items():
        if figure is None:
            parts.append("not known" if task == "generate" else "edit not known")
        elif task == offer.main_task:
            parts.append(f"~{figure.seconds:.0f} s, ~${offer.dollars(task):.3f} {article(task)}")
        else:
            parts.append(f"{task} ~{figure.seconds:.0f} s")
    bases = dict.fromkeys(figure.basis for figure in offer.seconds.values() if figure)
    return "; ".join([*parts, " and ".join(bases)]) if bases else "no seconds known for these models on this pool"


def require_priced(offers: Sequence[Offer], names: Sequence[str]) -> None:
    """Raises `UsageError` for a named pool whose price nobody knows: nothing is paid that was not said before."""
    for offer in offers:
        if offer.fit.pool.id in names and not offer.price > 0:
            raise UsageError(
                f"--gpu {offer.fit.pool.id}: RunPod's catalogue names no price for it, so nothing can be said of what "
                "it would cost. Name another pool, or try later."
            )


def limit_for(offers: Sequence[Offer], fresh: int = FRESH_LIMIT) -> int:
    """Seconds that a job may run on these pools, in whole minutes: the slowest task's on a cold worker, with a margin.

    The load is taken from a network volume, the slowest way that is known; `fresh` where nothing needs more.
    """
    needed = [seconds for offer in offers if (seconds := offer.first_job_seconds("volume"))]
    return max(fresh, *(whole_minutes(seconds) for seconds in needed)) if needed else fresh


def describe_limit(offer: Offer, limit: float) -> str | None:
    """What of the offer takes longer than `limit` seconds, and whether drawing or loading is slow; None for nothing."""
    slow = [f"{article(task)} ~{figure.seconds:.0f} s" for task, figure in offer.seconds.items()
            if figure and figure.seconds > limit]  # fmt: skip
    if slow:
        words = " and ".join(slow)
        return f"{offer.fit.pool.id}: drawing is slow: {words}, where --execution-timeout ends jobs after {limit:g} s."
    first, load = offer.first_job_seconds("volume"), offer.load["volume"]
    if first and load and first > limit:
        return (
            f"{offer.fit.pool.id}: loading is slow: a cold worker's first job may take ~{first:.0f} s, of which "
            f"{load.seconds:.0f} s load ({load.basis}), where --execution-timeout ends jobs after {limit:g} s."
        )
    return None
