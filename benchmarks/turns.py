"""One part of `speed`, in its own process: ours and stock on the same weights, job after job in turns.

Imports torch inside functions. Knows nothing of which parts there are, nor of records.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from qwen_worker.errors import LoadError
from qwen_worker.jobs.presets import FAST_LORAS
from qwen_worker.jobs.request import Drawing
from qwen_worker.memory.footprint import LOSSY, Plan
from qwen_worker.memory.machine import read_gpu

from . import cases, flops, stock
from .cases import Case
from .contenders import Failed, Ours, Stock, timed_job, timed_load
from .few_step import lora_for
from .parts import Send
from .record import FAILED, MEASURED
from .served import begin, fail, fitting
from .stopwatch import Stages, in_seconds, job_seconds

WARM_UP_STEPS = 2
GROUP = ("size", "preset", "whole")  # rows that are measured in turns
FULL_STEPS = Drawing.model_fields["num_inference_steps"].default


def take(send: Send, todo: list[dict], folder: Path, task: str, settings: dict[str, str], repeats: int) -> None:
    """Measure the rows, group by group."""
    card, _ = begin(Case("ours", None))
    few_step = dict.fromkeys(FAST_LORAS.values(), str(lora_for(folder)))
    ours = Ours(folder, cases.TASKS, **few_step | settings)
    try:
        ours.load(task)
    except LoadError as refused:
        return fail(send, todo, refused.reason)
    card.forget()
    loaded, config = ours.loaded(task), ours.pipe(task).transformer.config
    other, how = stock_for(ours, folder / task, task, max(row["size"] for row in todo), card.device)
    contenders = {"ours": ours, "stock": other}
    rate = flops.matmul_rate(card.device, loaded.plan.dtype)
    facts = {
        "plan": str(loaded.plan),
        "speed-ups": str(loaded.speed),
        "stock": how,
        "matmul TFLOP/s": round(rate / 1e12, 3),
    }
    for (size, *_), group in itertools.groupby(todo, lambda row: [row[name] for name in GROUP]):
        side = fitting(size, loaded.checkpoint.size_multiple)
        rows = [row | facts | {"side": side} for row in group]
        draws = [partial(draw, contenders[row["contender"]] or how, card.device, task, row) for row in rows]
        # A whole job of many steps is long, and even.
        outcomes = in_turns(draws, 1 if rows[0]["steps asked"] == FULL_STEPS else repeats)
        rows = [row | outcome_of(outcome, config, rate) for row, outcome in zip(rows, outcomes, strict=True)]
        for row in rows:
            send(row | against_stock(row, rows))


def draw(contender: Ours | Stock | str, device: str, task: str, row: dict, warm_up: bool) -> Stages:
    """One job of the row. Raises `Failed`; for a contender that is not there, with the words why."""
    if isinstance(contender, str):
        raise Failed(contender)
    fields = {"preset": row["preset"]} if contender.name == "ours" else {}
    if row["steps asked"]:
        fields["num_inference_steps"] = min(row["steps asked"], WARM_UP_STEPS) if warm_up else row["steps asked"]
    return timed_job(contender, device, task, row["side"], **fields)


def in_turns(draws: Sequence[Callable[[bool], Stages]], times: int) -> list[list[Stages] | str]:
    """Of each its timed calls, after one to warm up; or why it failed, after which it has no more turns."""
    outcomes: list[list[Stages] | str] = [[] for _ in draws]
    for turn in range(times + 1):
        for number, one in enumerate(draws):
            if isinstance(outcomes[number], str):
                continue
            try:
                call = one(turn == 0)
            except Failed as failure:
                outcomes[number] = str(failure)
            else:
                outcomes[number] += [call] if turn else []
    return outcomes


def outcome_of(outcome: list[Stages] | str, config: Mapping, rate: float) -> dict:
    """The fields of a row that was drawn. The floor is of the passes as they were called."""
    if isinstance(outcome, str):
        return {"measured": f"{FAILED}: {outcome}"}
    call, row = outcome[0], in_seconds(*outcome)
    floor = flops.passes_flops(config, call.forwards) / rate
    return row | {
        "measured": MEASURED,
        "steps": len(call.steps),
        "passes": len(call.forwards),
        "floor step s": round(floor / len(call.steps), 6),
        "of floor": round(row["step s"] * len(call.steps) / floor, 2),
    }


def against_stock(row: dict, rows: list[dict]) -> dict:
    """Our time over stock's: of whole jobs as they were, else of full ones by their stages."""
    other = next((one for one in rows if one["contender"] == "stock"), None)
    if row["contender"] == "stock" or other is None or {row["measured"], other["measured"]} != {MEASURED}:
        return {}
    if row["whole"]:
        return {"of stock": round(row["job s"] / other["job s"], 3)}
    return {"of stock": round(job_seconds(row, FULL_STEPS) / job_seconds(other, FULL_STEPS), 3)}


def stock_for(ours: Ours, folder: Path, task: str, side: int, device: str) -> tuple[Stock | None, str]:
    """Stock diffusers beside ours, and in words how: on the same weights where both then fit; or None, and why not."""
    way = stock.RESIDENT if device == "cpu" else way_beside(ours.loaded(task).plan, task, side)
    try:
        if way == stock.RESIDENT:
            pipe, _ = timed_load(partial(stock.beside, ours.pipe(task), folder, device))
            return Stock(pipe), "on the same weights"
        pipe, _ = timed_load(partial(stock.load, folder, device, way))
        return Stock(pipe), way
    except LoadError as refused:
        return None, refused.reason


def way_beside(plan: Plan, task: str, side: int) -> str:
    """The fastest way of stock that fits the room that our plan leaves, less what it can share with it."""
    (model,) = cases.models_of((task,))
    shared = 0 if plan.precision in LOSSY else plan.transformer_bytes(model)
    shared += plan.text_encoder_bytes(model) if plan.text_encoder == "resident" else 0
    room, peaks = read_gpu().free_bytes, cases.stock_peaks(task, side)
    peaks[stock.RESIDENT] -= shared
    return next((way for way, peak in peaks.items() if peak <= room), stock.BY_LAYER)
