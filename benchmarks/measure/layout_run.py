"""One part of `fit`, in its own process: a layout loaded, its jobs timed, the card's memory watched.

Knows nothing of which parts there are, nor of records.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwen_worker.errors import LoadError
from qwen_worker.memory.footprint import GB, Plan
from qwen_worker.memory.machine import Machine

from ..report.resumable import Send
from ..report.rows import FAILED, MEASURED
from . import raw_read, stock
from .card_memory import Card, gb
from .contenders import Failed, Ours, Stock, time_job, time_load
from .layouts import Case
from .stage_times import stage_fields

WARM_UP_STEPS = 2
SLOW_STEPS = 1  # of a pipeline that fetches every layer anew: a step takes many seconds


def serve_ours(
    send: Send, todo: list[dict], case: Case, folder: Path, steps: int, cold: bool, machine: Machine, precision: str
) -> None:
    """Measure our worker's jobs and send their rows: every task is loaded first, as on an endpoint that serves them."""
    card, imports = open_card(case)
    settings = {"QWEN_PRECISION": precision} | ({"QWEN_VRAM_GB": case.cap} if case.cap else {})
    ours = Ours(folder, case.tasks, (lambda: machine) if case.cap else None, **settings)
    loads = {}
    for task in case.tasks:
        try:
            _, loads[task] = load_timed(card, partial(ours.load, task), folder / task, cold, partial(ours.shared, task))
        except LoadError as refused:
            send_failures(send, [row for row in todo if row["task"] == task], refused.reason)
    card.set_cap()
    weights = card.weights_gb([ours.pipe(task) for task in loads])
    for row in [row for row in todo if row["task"] in loads]:
        loaded = ours.loaded(row["task"])
        side = drawable_side(row["size"], loaded.checkpoint.size_multiple)
        facts = prediction(loaded.plan, side, row["task"]) | {"weights GB": weights} | imports | loads[row["task"]]
        send(with_ratio(row | facts | job_fields(card, ours, row["task"], side, steps)))


def serve_stock(send: Send, todo: list[dict], case: Case, folder: Path, steps: int, cold: bool, way: str) -> None:
    """Measure stock diffusers' jobs of the case's one task and send their rows. `way`: how `stock` loads it."""
    (card, imports), (task,) = open_card(case), case.tasks
    card.set_cap()
    try:
        pipe, facts = load_timed(card, partial(stock.load, folder / task, card.device, way), folder / task, cold)
    except LoadError as refused:
        return send_failures(send, todo, refused.reason)
    facts |= imports | {"weights GB": card.weights_gb([pipe])}
    contender = Stock(pipe)
    for row in todo:
        side = drawable_side(row["size"], 2 * pipe.vae_scale_factor)
        times = SLOW_STEPS if way == stock.BY_LAYER else steps
        send(with_ratio(row | facts | job_fields(card, contender, task, side, times)))


def open_card(case: Case) -> tuple[Card, dict]:
    """The card with its context, and for the rows how long opening it took."""
    os.environ["RUNPOD_DEBUG_LEVEL"] = "WARN"  # the worker logs what goes wrong, not a line for every job
    card = Card(case.cap)
    return card, {"import s": round(card.open_context(), 2)}


def load_timed(
    card: Card, load: Callable[[], Any], folder: Path, cold: bool, shared: Callable[[], Iterable[str]] = tuple
) -> tuple[Any, dict]:
    """What `load` returns, and a row's fields of how fast it was, beside a plain read of the same files.

    `cold`: the files' pages are dropped from the page cache before. `shared`: components whose files were not read.
    Raises `LoadError`.
    """
    if cold:
        raw_read.drop_from_cache(raw_read.weight_files(folder))
    card.reset_peaks()
    loaded, seconds = time_load(load)
    peaks = card.peaks()
    files = raw_read.weight_files(folder, shared())
    size = sum(file.stat().st_size for file in files)
    if cold:
        raw_read.drop_from_cache(files)
    return loaded, ({"load peak GB": peaks["peak GB"]} if peaks else {}) | {
        "load s": round(seconds, 2),
        "load GB": round(size / GB, 3),
        "load GB/s": gb(size / seconds),
        "read GB/s": gb(raw_read.read_rate(files)),
        "page cache": cache_state(files, cold),
    }


def cache_state(files: Sequence[Path], cold: bool) -> str:
    """What a row says of the page cache before a load of the files. `cold`: they were dropped from it."""
    if any(map(raw_read.is_on_ram_disk, files)):
        return "files on a RAM disk"
    return "dropped" if cold else "as it was"


def job_fields(card: Card, contender: Ours | Stock, task: str, side: int, steps: int) -> dict:
    """The fields of a timed job. Its peaks are also those of the job before it, which warms up."""
    card.reset_peaks()
    try:
        time_job(contender, card.device, task, side, num_inference_steps=min(steps, WARM_UP_STEPS))
        swap = {"swap s": contender.timings["swap"]} if "swap" in contender.timings else {}
        call = time_job(contender, card.device, task, side, num_inference_steps=steps)
    except Failed as failure:
        return {"measured": f"{FAILED}: {failure}", "side": side}
    return {"measured": MEASURED, "side": side, "steps": steps} | stage_fields(call) | swap | card.peaks()


def with_ratio(row: dict) -> dict:
    """The row with its peak over the predicted one, where both are known."""
    if "peak GB" not in row or "predicted peak GB" not in row:
        return row
    return row | {"of predicted": round(row["peak GB"] / row["predicted peak GB"], 3)}


def prediction(plan: Plan, side: int, task: str) -> dict:
    """What the plan says ahead of a job, for a row: its memory, of which a CPU has the weights alone."""
    images = int(task == "edit")
    facts = {"plan": str(plan), "predicted weights GB": round(plan.weight_bytes / GB, 6)}
    if plan.device == "cpu":
        return facts
    return facts | {"predicted peak GB": gb(plan.peak_bytes(side, side, images, plan.needs_tiles(side, side, images)))}


def send_failures(send: Send, rows: list[dict], why: str) -> None:
    """Send the rows as failed for this reason."""
    for row in rows:
        send(row | {"measured": f"{FAILED}: {why}"})


def drawable_side(size: int, multiple: int) -> int:
    """The largest side that the checkpoint draws of about this size."""
    return size // multiple * multiple
