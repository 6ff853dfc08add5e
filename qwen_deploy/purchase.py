"""Which pools of cards an endpoint gets, and how long a job may run on them: read, chosen, read again before paying.

Knows nothing of the rest of an endpoint's configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from qwen_worker.settings import Settings

from . import cards, offers, second_card
from .errors import DeployError, UsageError
from .offers import Offer, Wish
from .options import DeployOptions, FitOptions
from .records import Timing
from .runpod.api import Api


@dataclass(frozen=True)
class Purchase:
    """`offers`: of every pool; `chosen`: those that are taken, best first; `notes`: sentences for the plan."""

    offers: list[Offer]
    chosen: list[Offer]
    min_cuda: str | None
    notes: list[str]

    @property
    def pools(self) -> list[str]:
        return [offer.fit.pool.id for offer in self.chosen]

    @property
    def limit(self) -> int:
        """Seconds that a job may run on a new endpoint whose limit nobody gives."""
        return offers.limit_for(self.chosen)


def plan_purchase(
    api: Api, options: DeployOptions, settings: Settings, tasks: Sequence[str], torch_cuda: str | None,
    min_cuda: str | None, places: Sequence[str], limit: float, gpu_count: int, timings: Sequence[Timing],
) -> Purchase:  # fmt: skip
    """`places`: data centres whose stock counts, all where none is named; `limit`: seconds that a job may run.

    Raises `DeployError` where no pool will do, before anything is sent."""
    names = split_list("auto" if options.gpu is None else options.gpu)
    if not names:
        raise UsageError(f"--gpu must name pools, e.g. ADA_24,AMPERE_48, or be auto, not {options.gpu!r}.")
    pools = cards.read_pools(api, min_cuda, places)
    is_auto = names == ["auto"]
    if options.no_fit_check and not is_auto:
        fits = [cards.Fit(pool, None, "not checked") for pool in pools]
    else:
        fits = [cards.fit(pool, settings, tasks, options.ram_gb, torch_cuda) for pool in pools]
    on_two = second_card.draws_on_two(settings, gpu_count)
    read = offers.read_offers(fits, settings, tasks, timings, gpu_count, on_two)
    wish = wish_of(options, tasks, limit)
    if is_auto:
        chosen = offers.choose_offers(read, wish)
    else:
        names = cards.require_pools(names, fits, options.ram_gb, not options.no_fit_check)
        offers.require_priced(read, names)
        chosen = [offer for name in names for offer in read if offer.fit.pool.id == name]
    notes = notes_of(chosen, wish)
    if on_two:
        with_one = offers.read_offers(fits, settings, tasks, timings)
        notes += second_card.notes_of(chosen, with_one, settings, options.ram_gb)
    return Purchase(read, chosen, min_cuda, notes)


def wish_of(options: FitOptions, tasks: Sequence[str], limit: float) -> Wish:
    """What each task may take: pictures --seconds, edits as long as a job may run; where only edits are, --seconds."""
    picture, most = options.seconds or offers.PICTURE_SECONDS, limit or inf
    edit = min(options.seconds, most) if options.seconds and "generate" not in tasks else most
    return Wish({task: picture if task == "generate" else edit for task in tasks}, options.prefer)


def notes_of(chosen: Sequence[Offer], wish: Wish) -> list[str]:
    """What is to be known of the chosen pools before a yes."""
    notes: list[str] = []
    for offer in chosen:
        name = offer.fit.pool.id
        if not offer.is_known:
            words = f"{name}: what a picture or an edit takes is not known for these models and cards"
            notes.append(f"{words}, and so not what it costs.")
        picture = offer.seconds.get("generate")
        if picture and picture.seconds > wish.seconds["generate"]:
            most = wish.seconds["generate"]
            notes.append(f"{name}: a picture takes ~{picture.seconds:.0f} s ({picture.basis}), more than {most:g} s.")
        if offer.unknown:
            cards_named = ", ".join(offer.unknown)
            notes.append(f"{name} has cards whose seconds are not known here, and a worker may get one: {cards_named}.")
    if len(chosen) > 1:
        notes.append("RunPod places each worker on whichever of these pools has a card, at that pool's price.")
    return notes


def limit_notes(chosen: Sequence[Offer], limit: float) -> list[str]:
    """What the chosen pools cannot do in `limit` seconds, with the option that lets them."""
    slow = [words for offer in chosen if limit and (words := offers.describe_limit(offer, limit))]
    return [*slow, f"--execution-timeout {offers.limit_for(chosen)} would do."] if slow else []


def require_offered(api: Api, purchase: Purchase | None) -> None:
    """A build takes long. Raises `DeployError` for a pool that is gone since the plan, or that has become dearer."""
    if purchase is None:
        return
    now = {pool.id: pool for pool in cards.read_pools(api, purchase.min_cuda)}
    for offer in purchase.chosen:
        name, price = offer.fit.pool.id, offer.fit.pool.price
        again = "Nothing was changed: run this again, with --skip-build and the same --tag if the image is pushed."
        if name not in now:
            raise DeployError(f"Pool {name} is no longer in RunPod's catalogue, where the plan had it. {again}")
        if now[name].price > price or now[name].price <= 0:
            prices = f"${now[name].price:.2f}/h now, and ${price:.2f}/h in the plan"
            raise DeployError(f"Pool {name} costs {prices}. {again}")


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
