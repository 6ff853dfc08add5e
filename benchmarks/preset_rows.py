"""What each preset takes and costs on each of RunPod's cards: the table of presets on the page of cards.

As the deploy helper reads the seconds: for an endpoint with both models whose default is the preset, in the layout that
the card gets. Knows nothing of how a figure was had.
"""

from collections.abc import Mapping

from qwen_deploy import cards
from qwen_deploy.cards import capability_of
from qwen_deploy.command_options import RAM_GB
from qwen_deploy.environment import worker_settings
from qwen_deploy.estimates import COMPUTED
from qwen_deploy.offers import Offer, read_offers
from qwen_worker.memory.placement import FP8_CAPABILITY
from qwen_worker.model_settings import Precision

from .cards_page import table
from .rates import CARDS, PRICES, Card

TASKS = {"generate": "picture", "edit": "edit"}
# By preset, the environment of an endpoint that draws by it. The published few-step LoRAs, for what `fast` takes.
PRESETS: Mapping[str, Mapping[str, str]] = {
    "quality": {},
    "balanced": {"QWEN_PRESET": "balanced"},
    "fast": {
        "QWEN_IMAGE_FAST_LORA": "lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-8steps-V1.1.safetensors",
        "QWEN_EDIT_FAST_LORA": ("lightx2v/Qwen-Image-Lightning/Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors"),
        "QWEN_PRESET": "fast",
    },
}
HEAD = """
## Presets on each card

Seconds and dollars of a job at 1024x1024 by each [preset](jobs.md#presets) on each card, with both models and in the
layout that the card then gets, as above. `fast` has a few-step LoRA of 8 steps; one of 4 steps takes about half.
{basis}

{table}
**8 bits are a choice of speed, too.** `auto` quantizes only where bf16 does not fit. On a card that holds bf16,
`QWEN_PRECISION=fp8` (`int8` on cards before Ada) draws faster, and [changes pictures a
little](speed.md#what-precisions-do-to-pictures). This is a picture by `quality` on an endpoint with `--tasks generate`,
where one model has the card for itself:

{eight_bits}
`python deploy_qwen.py cost --env QWEN_PRECISION=fp8` shows every pool so, and `--env QWEN_PRESET=balanced` by another
preset.
"""


def section() -> str:
    """The section in Markdown."""
    offers = {(card, preset): offer_of(card, env) for card in CARDS for preset, env in PRESETS.items()}
    names = [f"{name}, `{preset}`" for name in TASKS.values() for preset in PRESETS]
    lines = [
        [
            *head_cells(card, offers[card, "quality"]),
            *(cell(offers[card, preset], task) for task in TASKS for preset in PRESETS),
        ]
        for card in CARDS
    ]
    bases = {figure.basis for offer in offers.values() for figure in offer.seconds.values() if figure}
    basis = (
        "All figures are computed." if bases <= {COMPUTED} else "What was measured is in bold, the rest is computed."
    )
    whole = table(["card", "$/h", "layout", *names], lines)
    return HEAD.format(
        basis=basis, table=whole, eight_bits=table(["card", "bf16", "8 bits", "faster"], eight_bit_lines())
    )


def eight_bit_lines() -> list[list[str]]:
    """The cards that hold one model in bf16: its seconds, and those in fp8 or int8."""
    lines: list[list[str]] = []
    for card in CARDS:
        plain = offer_of(card, {}, ("generate",))
        plan, figure = plain.fit.plan, plain.seconds["generate"]
        if not plan or not figure or plan.precision is not Precision.BF16:
            continue
        capability = capability_of(card.pool)
        precision = Precision.FP8 if capability and capability >= FP8_CAPABILITY else Precision.INT8
        other = offer_of(card, {"QWEN_PRECISION": precision.value}, ("generate",))
        if faster := other.seconds["generate"]:
            factor = f"{figure.seconds / faster.seconds:.2f} times"
            words = [cell(plain, "generate"), f"{precision.value}: {cell(other, 'generate')}", factor]
            lines.append([card.name, *words])
    return lines


def head_cells(card: Card, offer: Offer) -> list[str]:
    price = PRICES.get(card.pool)
    return [card.name, f"{price:.2f}" if price else "none", offer.fit.layout]


def offer_of(card: Card, env: Mapping[str, str], tasks: tuple[str, ...] = tuple(TASKS)) -> Offer:
    """The card as a pool of its own, for an endpoint of these tasks with this environment."""
    settings = worker_settings(dict(env))
    pool = cards.Pool(card.pool, (card.name,), (card.name,), card.memory, PRICES.get(card.pool, 0), "HIGH")
    return read_offers([cards.fit(pool, settings, tasks, RAM_GB, None)], settings, tasks)[0]


def cell(offer: Offer, task: str) -> str:
    """Seconds, and dollars where the card has a price; in bold what was measured."""
    figure = offer.seconds[task]
    if not figure:
        return "does not fit"
    words = f"{figure.seconds:.3g} s" + (f", ${offer.dollars(task):.3f}" if offer.price else "")
    return words if figure.basis == COMPUTED else f"**{words}**"
