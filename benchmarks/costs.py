"""The page of cards: seconds and dollars of a picture and an edit on each of RunPod's pools.

The seconds are those of `benchmarks/results/computed.json`, read as the deploy helper reads them, so that the page says
what `--gpu auto` goes by. What `fit` and `speed` have measured stands beside them.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from qwen_deploy import cards
from qwen_deploy.command_options import RAM_GB
from qwen_deploy.environment import cuda_floor, worker_settings
from qwen_deploy.estimates import SecondsTable
from qwen_deploy.offers import FRESH_LIMIT, PICTURE_SECONDS, Offer, Wish, choose_offers, read_offers

from . import cards_page, computed, preset_rows
from .computed import recorded
from .rates import CARDS, PRICES, PRICES_OF

ROOT = Path(__file__).parents[1]
TASKS = ("generate", "edit")


def add_options(parser: argparse.ArgumentParser) -> None:
    computed.add_options(parser)
    parser.set_defaults(output=ROOT / "docs/cards.md")


def run(options: argparse.Namespace) -> tuple[list[dict], None]:
    """The rows of the page, which is written."""
    usual, fast = offers_of({}), offers_of(preset_rows.PRESETS["fast"])
    rows = [row_of(offer, with_fast) for offer, with_fast in zip(usual, fast, strict=True)]
    wish = Wish({"generate": PICTURE_SECONDS, "edit": FRESH_LIMIT})
    auto = [offer.fit.pool.id for offer in choose_offers(offers_of({}, cuda_floor(ROOT)), wish)]
    facts = {"prices_of": PRICES_OF, "auto": ", ".join(auto), "plus": plus_share(), "presets": preset_rows.section()}
    options.output.write_text(cards_page.page(rows, recorded(options.fit), recorded(options.speed), facts))
    return rows, None


def offers_of(env: Mapping[str, str], cuda: str | None = None) -> list[Offer]:
    """An offer of each pool that has a price, for an endpoint with this environment; `cuda`: of the image's torch."""
    settings = worker_settings(dict(env))
    pools = [pool_of(name, price) for name, price in PRICES.items()]
    return read_offers([cards.fit(pool, settings, TASKS, RAM_GB, cuda) for pool in pools], settings, TASKS)


def pool_of(name: str, price: float) -> cards.Pool:
    members = [card for card in CARDS if card.pool == name]
    names = tuple(card.name for card in members)
    return cards.Pool(name, names, names, min(card.memory for card in members), price, "HIGH")


def row_of(offer: Offer, fast: Offer) -> dict:
    """A pool's row, without what does not fit. `fast`: the pool's offer for an endpoint that draws by preset `fast`."""
    pool = offer.fit.pool
    row = {"pool": pool.id, "cards": ", ".join(pool.cards), "$/h": f"{pool.price:.2f}", "layout": offer.fit.layout}
    bases: dict[str, None] = {}
    jobs = {"picture": (offer, "generate"), "edit": (offer, "edit"), "fast picture": (fast, "generate")}
    for name, (source, task) in jobs.items():
        if figure := source.seconds[task]:
            row |= {f"{name} s": round(figure.seconds, 1), f"$ {name}": f"{source.dollars(task):.3f}"}
            bases[figure.basis] = None
    return row | {"known": " and ".join(bases)}


def plus_share() -> float:
    """What an edit by -2509 or -2511 takes of one by Qwen-Image-Edit, on an H100 in bfloat16."""
    row = SecondsTable().rows["H100", "bf16, modulation table"]
    return row["edit plus"]["quality"] / row["edit"]["quality"]
