"""The account of a step: what a card would be given for it, ours and stock diffusers', without a card.

The real pipelines with the worker's speed-ups are traced at full size on a card that is none (`measure/fake_card.py`),
down to the kernels that Inductor chooses. Two of the 60 blocks are traced: the second stands for all that follow it. Of
a step in the middle of a picture, with both prompts of guidance, the record has every kernel with its FLOPs and bytes,
how often the host waits for the card and in which line, and how many graphs are compiled at load and during jobs. From
the kernels follow seconds on each card, by the rates of `rates.py`: computed, and never measured. `computed` takes the
deploy helper's seconds from here. NF4 is not traced: its matrices cannot be without memory. What is not traced in a
call stays in the record as it was.

    python -m benchmarks step
    python -m benchmarks step --kinds generate --sizes 1024 --precisions bf16
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import astuple
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_deploy.cards import capability_of
from qwen_worker.memory import placement
from qwen_worker.model_settings import Precision

from . import published
from .measure.roofline import ATTENTION, ELEMENTWISE, PRODUCT, Work, grouped, seconds
from .rates import CARDS

if TYPE_CHECKING:
    from .measure.kernels import Kernel
    from .measure.step_trace import Step

KINDS = ("generate", "edit", "edit plus", "edit plus, 2 pictures", "edit 2511")
SIZES = (512, 1024, 1328)
OURS, STOCK = "ours", "stock"
# The compute capability of the card that each precision is traced for: an H100's, and of INT8 an A40's.
CAPABILITY = {Precision.BF16: (9, 0), Precision.FP8: (9, 0), Precision.INT8: (8, 6)}
PRECISIONS = tuple(each.value for each in CAPABILITY)
SHOWN_CARDS = ("H200", "H100", "A100", "L40S", "RTX 4090", "RTX A5000")
COLUMNS = (
    "kind", "size", "contender", "precision", "TFLOP", "attention TFLOP",
    "elementwise MB a block", "launches a pass", "waits", "graphs at load", "graphs in jobs",
)  # fmt: skip
BLOCKS = 60


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--contenders", nargs="+", choices=(OURS, STOCK), default=(OURS, STOCK))


def run(options: argparse.Namespace) -> tuple[list[dict], None]:
    traced = list(rows_of(options))
    wanted = {key_of(row) for row in traced}
    kept = [row for row in recorded(options.output) if key_of(row) not in wanted]
    order = {key: number for number, key in enumerate(itertools.product(KINDS, SIZES, (OURS, STOCK), PRECISIONS))}
    rows = sorted([*kept, *traced], key=lambda row: order.get(key_of(row), len(order)))
    head = {
        "benchmark": "step", "date": datetime.now(UTC).date().isoformat(),
        "basis": f"computed: two of {BLOCKS} blocks traced without a card, the third step of a picture with guidance",
        "versions": {package: metadata.version(package) for package in ("torch", "diffusers", "torchao")},
        "works": "kind, count, FLOPs of one, bytes of one, factors of eight bits, masked",
    }  # fmt: skip
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    accounts = {key_of(row): works_of(row) for row in rows}
    for name, items in (("published", published.held(accounts)), ("rows", rows)):
        lines.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]")
    options.output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return [{name: row[name] for name in COLUMNS} | row["seconds"] for row in rows], None


def rows_of(options: argparse.Namespace) -> Iterator[dict]:
    from .measure.step_trace import Tracer

    wanted = [(contender, Precision(each)) for contender in options.contenders for each in options.precisions]
    for contender, precision in wanted:
        if contender == STOCK and precision is not Precision.BF16:
            continue  # diffusers by itself is not told to quantize
        with Tracer(precision, CAPABILITY[precision], contender).open() as tracer:
            for kind in options.kinds:
                for size in options.sizes:
                    named = {"kind": kind, "size": size, "contender": contender, "precision": precision.value}
                    facts = facts_of(tracer.step(kind, size))
                    yield named | facts | {"seconds": seconds_of(works_of(facts), contender, precision)}


def seconds_of(works: list[Work], contender: str, precision: Precision) -> dict[str, float]:
    """Of a step on each of `SHOWN_CARDS` that computes in the precision."""
    shown = [card for card in CARDS if card.name in SHOWN_CARDS]
    if precision is Precision.FP8:
        shown = [card for card in shown if (capability_of(card.pool) or (0, 0)) >= placement.FP8_CAPABILITY]
    return {card.name: round(seconds(works, card, contender), 4) for card in shown}


def facts_of(step: "Step") -> dict:
    """A row's fields of a traced step, but for seconds."""

    def work(kernel: "Kernel", count: int) -> Work:
        return Work(kernel.kind, count, kernel.flops, kernel.bytes, kernel.eight_bits, kernel.masked)

    works = [work(kernel, BLOCKS - 1) for kernel in step.block] + [work(kernel, 1) for kernel in step.outside]
    flops = {kind: sum(each.count * each.flops for each in works if each.kind == kind) for kind in (PRODUCT, ATTENTION)}
    beside = sum(kernel.bytes for kernel in step.block if kernel.kind == ELEMENTWISE)
    return {
        "TFLOP": round(sum(flops.values()) / 1e12, 1),
        "attention TFLOP": round(flops[ATTENTION] / 1e12, 1),
        "elementwise MB a block": round(beside / step.passes / 1e6, 1),
        "passes": step.passes,
        "launches a pass": round(sum(each.count for each in works) / step.passes),
        "waits": len(step.waits),
        "waits in": sorted(set(step.waits)),
        "graphs at load": step.graphs_at_load,
        "graphs in jobs": step.graphs_in_jobs,
        "works": [list(astuple(each)) for each in grouped(works)],
    }


def read_works(path: Path) -> dict[tuple[str, int, str, str], list[Work]]:
    """What the record in `path` has: by kind, size, contender and precision, the kernels of a step."""
    return {key_of(row): works_of(row) for row in recorded(path)}


def recorded(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def key_of(row: dict) -> tuple[str, int, str, str]:
    return row["kind"], row["size"], row["contender"], row["precision"]


def works_of(row: dict) -> list[Work]:
    return [Work(*each) for each in row["works"]]
