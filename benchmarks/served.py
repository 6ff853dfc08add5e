"""One part of `fit`, in its own process: a layout loaded, its jobs timed, the card's memory watched.

Knows nothing of which parts there are, nor of records.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from qwen_worker.errors import LoadError
from qwen_worker.memory.footprint import GB, Plan
from qwen_worker.memory.machine import Machine

from . import reading, stock
from .card import Card, gb
from .cases import Case
from .contenders import Failed, Ours, Stock, timed_job, timed_load
from .parts import Send
from .record import FAILED, MEASURED
from .stopwatch import in_seconds

WARM_UP_STEPS = 2
SLOW_STEPS = 1  # of a pipeline that fetches every layer anew: a step takes many seconds


def serve_ours(
    send: Send, todo: list[dict], case: Case, folder: Path, steps: int, cold: bool, machine: Machine, precision: str
) -> None:
    """Our worker's jobs: every task is loaded first, as on an endpoint that serves them."""
    card, imports = begin(case)
    settings = {"QWEN_PRECISION": precision} | ({"QWEN_VRAM_GB": case.cap} if case.cap else {})
    ours = Ours(folder, case.tasks, (lambda: machine) if case.cap else None, **settings)
    loads = {}
    for task in case.tasks:
        try:
            _, loads[task] = loading(card, partial(ours.load, task), folder / task, cold, partial(ours.shared, task))
        except LoadError as refused:
            fail(send, [row for row in todo if row["task"] == task], refused.reason)
    card.limit()
    weights = card.weights([ours.pipe(task) for task in loads])
    for row in [row for row in todo if row["task"] in loads]:
        loaded = ours.loaded(row["task"])
        side = fitting(row["size"], loaded.checkpoint.size_multiple)
        known = predicted(loaded.plan, side, row["task"]) | {"weights GB": weights} | imports | loads[row["task"]]
        send(beside_prediction(row | known | measured(card, ours, row["task"], side, steps)))


def serve_stock(send: Send, todo: list[dict], case: Case, folder: Path, steps: int, cold: bool, way: str) -> None:
    """Stock diffusers' jobs of one task."""
    (card, imports), (task,) = begin(case), case.tasks
    card.limit()
    try:
        pipe, known = loading(card, partial(stock.load, folder / task, card.device, way), folder / task, cold)
    except LoadError as refused:
        return fail(send, todo, refused.reason)
    known |= imports | {"weights GB": card.weights([pipe])}
    contender = Stock(pipe)
    for row in todo:
        side = fitting(row["size"], 2 * pipe.vae_scale_factor)
        times = SLOW_STEPS if way == stock.BY_LAYER else steps
        send(beside_prediction(row | known | measured(card, contender, task, side, times)))


def begin(case: Case) -> tuple[Card, dict]:
    """The card, and how long opening it took, for the rows."""
    os.environ["RUNPOD_DEBUG_LEVEL"] = "WARN"  # what goes wrong, not a line for every job
    card = Card(case.cap)
    return card, {"import s": round(card.open(), 2)}


def loading(
    card: Card, load: Callable[[], Any], folder: Path, cold: bool, shared: Callable[[], Iterable[str]] = tuple
) -> tuple[Any, dict]:
    """What it loads, and how fast, beside a plain read of the same files, less those of shared components.

    Raises `LoadError`.
    """
    if cold:
        reading.drop_from_cache(reading.weight_files(folder))
    card.forget()
    loaded, seconds = timed_load(load)
    peaks = card.peaks()
    files = reading.weight_files(folder, shared())
    size = reading.size_of(files)
    if cold:
        reading.drop_from_cache(files)
    return loaded, ({"load peak GB": peaks["peak GB"]} if peaks else {}) | {
        "load s": round(seconds, 2),
        "load GB": round(size / GB, 3),
        "load GB/s": gb(size / seconds),
        "read GB/s": gb(reading.read_rate(files)),
        "page cache": "dropped" if cold else "as it was",
    }


def measured(card: Card, contender: Ours | Stock, task: str, side: int, steps: int) -> dict:
    """A job to warm up, which meets the peak, and a timed one."""
    card.forget()
    try:
        timed_job(contender, card.device, task, side, num_inference_steps=min(steps, WARM_UP_STEPS))
        swap = {"swap s": contender.timings["swap"]} if "swap" in contender.timings else {}
        call = timed_job(contender, card.device, task, side, num_inference_steps=steps)
    except Failed as failure:
        return {"measured": f"{FAILED}: {failure}", "side": side}
    return {"measured": MEASURED, "side": side, "steps": steps} | in_seconds(call) | swap | card.peaks()


def beside_prediction(row: dict) -> dict:
    if "peak GB" not in row or "predicted peak GB" not in row:
        return row
    return row | {"of predicted": round(row["peak GB"] / row["predicted peak GB"], 3)}


def predicted(plan: Plan, side: int, task: str) -> dict:
    """What the plan that is served says ahead."""
    images = int(task == "edit")
    known = {"plan": str(plan), "predicted weights GB": round(plan.weight_bytes / GB, 6)}
    if plan.device == "cpu":
        return known
    return known | {"predicted peak GB": gb(plan.peak_bytes(side, side, images, plan.needs_tiles(side, side, images)))}


def fail(send: Send, rows: list[dict], why: str) -> None:
    for row in rows:
        send(row | {"measured": f"{FAILED}: {why}"})


def fitting(size: int, multiple: int) -> int:
    """The largest side that the checkpoint draws of about this size."""
    return size // multiple * multiple
