"""The page of cards: seconds and dollars a picture and an edit on each of RunPod's pools, from what has been recorded.

There are three kinds of figures, and each is marked. Measured: `fit` or `speed` ran on that card. Scaled: they ran on
another card, under this one's memory where `fit` has it, and the seconds are multiplied by the ratio of the two cards'
dense bfloat16 rates. Computed: from the share of its rate that diffusers reaches on an H100 (18.5 s a picture, measured
by cache-dit's authors). Loads and idle seconds are left out. `python deploy_qwen.py cost` takes live prices and the
seconds of an endpoint's own jobs.
"""

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import cards_page
from .measure.stage_times import job_seconds
from .report.rows import FULL_STEPS, MEASURED

PASSES = 2 * FULL_STEPS
# Of a pass at 1024x1024 with about a hundred tokens of text. A picture: linear layers 57, attention 13, for 4,096
# latents. An edit by Qwen-Image-Edit: as many again for its input picture, and 1,379 tokens of text, of which most are
# of the picture. By Qwen-Image-Edit-2509 or -2511: by the number of input pictures, each of 203 tokens in the text.
TFLOP_A_PASS = {"generate": 70, "edit": 198}
TFLOP_A_PLUS_PASS = {1: 166, 2: 292}
H100_SECONDS, H100_RATE = 18.5, 989
SHARE = PASSES * TFLOP_A_PASS["generate"] / H100_SECONDS / H100_RATE
SIZE, QUALITY = 1024, "quality"
MAX_STEPS = 100  # that a job may ask for
SCALED, COMPUTED = "scaled", "computed"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/cards.md"


@dataclass(frozen=True)
class Card:
    """A pool's card: dollars an hour by RunPod's serverless price list of June 2026, GB, dense bfloat16 TFLOP/s."""

    pool: str
    name: str
    price: float
    memory: int
    rate: float


CARDS = [
    Card("AMPERE_16", "RTX A4000", 0.58, 16, 76.7),
    Card("AMPERE_24", "RTX A5000", 0.68, 24, 111),
    Card("ADA_24", "RTX 4090", 1.12, 24, 165),
    Card("AMPERE_48", "A40", 1.22, 48, 150),
    Card("ADA_48_PRO", "L40S", 1.91, 48, 362),
    Card("AMPERE_80", "A100", 2.74, 80, 312),
    Card("BLACKWELL_96", "RTX PRO 6000", 4.00, 96, 504),
    Card("ADA_80_PRO", "H100", 4.18, 80, 989),
    Card("HOPPER_141", "H200", 5.58, 141, 989),
    Card("BLACKWELL_180", "B200", 8.64, 180, 2250),
]


@dataclass(frozen=True)
class Figure:
    """A job's seconds on a card, and seconds a step. `basis`: measured, computed, or scaled from another card."""

    seconds: float
    step_seconds: float
    basis: str


def add_options(parser: argparse.ArgumentParser) -> None:
    results = Path(__file__).parent / "results"
    parser.add_argument("--fit", type=Path, default=results / "fit.json", help="what fit has recorded")
    parser.add_argument("--speed", type=Path, default=results / "speed.json", help="what speed has recorded")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (default: docs/cards.md)")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    fit, speed = recorded(options.fit), recorded(options.speed)
    rows = [row_of(card, preset, fit, speed) for preset in presets(speed) for card in CARDS]
    edits = {"edit": TFLOP_A_PASS["edit"], "one": TFLOP_A_PLUS_PASS[1], "two": TFLOP_A_PLUS_PASS[2]}
    ratios = {name: tflop / TFLOP_A_PASS["generate"] for name, tflop in edits.items()}
    options.page.write_text(cards_page.page(rows, fit, speed, ratios))
    return rows, {"size": SIZE, "prices of": "2026-06"}


def recorded(path: Path) -> list[dict]:
    """The rows of a record, each with its device: None where the row is not measured."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    return [row | {"device": report["runs"][row["run"]]["device"] if row["run"] else None} for row in report["rows"]]


def presets(speed: Iterable[dict]) -> list[str]:
    """`quality`, and the others that were measured with the real architecture: the passes of their jobs are known."""
    return list(dict.fromkeys([QUALITY, *(row["preset"] for row in speed if is_real(row))]))


def row_of(card: Card, preset: str, fit: list[dict], speed: list[dict]) -> dict:
    row = {"pool": card.pool, "card": card.name, "$/h": f"{card.price:.2f}", "preset": preset}
    for task, name in (("generate", "picture"), ("edit", "edit")):
        figure = figure_of(card, task, preset, fit, speed)
        row |= {
            f"{name} s": round(figure.seconds, 1),
            f"$ {name}": f"{card.price / 3600 * figure.seconds:.3f}",
            f"{name} is": figure.basis,
            f"{name} steps in {cards_page.LIMIT} s": min(MAX_STEPS, int(cards_page.LIMIT / figure.step_seconds)),
        }
    return row


def figure_of(card: Card, task: str, preset: str, fit: list[dict], speed: list[dict]) -> Figure:
    """The figure of the best basis that the records have: measured on the card, scaled from another, or computed."""
    jobs = [row for row in speed if usable(row, task) and row["preset"] == preset and not row["settings"]]
    capped = [row for row in fit if usable(row, task) and row["cap GB"] == card.memory] if preset == QUALITY else []
    # A whole job counts before one of some steps, an endpoint's layout for both tasks before that of one task.
    jobs.sort(key=lambda row: not row["whole"])
    capped.sort(key=lambda row: not row["part"].endswith("-both"))
    for row in jobs + capped:
        if is_card(row["device"], card):
            return Figure(seconds_of(row), seconds_of(row) / steps_of(row), MEASURED)
    for row in capped + jobs:
        if other := next((candidate for candidate in CARDS if is_card(row["device"], candidate)), None):
            seconds = seconds_of(row) * other.rate / card.rate
            return Figure(seconds, seconds / steps_of(row), f"{SCALED} from {other.name}")
    passes, steps = passes_of(preset, speed)
    seconds = passes * TFLOP_A_PASS[task] / (card.rate * SHARE)
    return Figure(seconds, seconds / steps, COMPUTED)


def usable(row: dict, task: str) -> bool:
    """Whether the row is a measured job of ours at the page's size, of the real architecture."""
    ours = row.get("contender", row.get("part", "").partition("-")[0]) == "ours"
    return ours and is_real(row) and row["task"] == task and row["size"] == SIZE


def is_real(row: dict) -> bool:
    return row["checkpoint"] != "tiny" and row["measured"] == MEASURED


def seconds_of(row: dict) -> float:
    """Seconds of a job as the preset has it; where only some steps were timed, by the stages."""
    return row["job s"] if row.get("whole") else job_seconds(row, FULL_STEPS)


def steps_of(row: dict) -> int:
    return row["steps"] if row.get("whole") else FULL_STEPS


def passes_of(preset: str, speed: list[dict]) -> tuple[int, int]:
    """(passes through the transformer, steps) of a preset's job, as any device has shown them for either task."""
    for row in speed:
        if row["preset"] == preset != QUALITY and is_real(row):
            return row["passes"], row["steps"]
    return PASSES, FULL_STEPS


def is_card(device: str | None, card: Card) -> bool:
    """Whether the card's name is a word of the device's: A40 is none of "RTX A4000"."""
    return device is not None and re.search(rf"\b{re.escape(card.name)}\b", device) is not None
