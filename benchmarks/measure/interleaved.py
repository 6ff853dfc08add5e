"""One part of `speed`, in its own process: ours and stock on the same weights, job after job in turns.

Imports torch inside functions. Knows nothing of which parts there are, nor of records.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from qwen_worker.errors import LoadError
from qwen_worker.jobs.presets import FAST_LORAS
from qwen_worker.memory.footprint import LOSSY, Plan
from qwen_worker.memory.machine import read_gpu

from ..report.resumable import Send
from ..report.rows import FAILED, FULL_STEPS, MEASURED
from . import floor, layouts, stock
from .contenders import Failed, Ours, Stock, time_job, time_load
from .full_size import lora_for
from .layout_run import drawable_side, open_card, send_failures
from .layouts import Case
from .stage_times import Stages, job_seconds, stage_fields

WARM_UP_STEPS = 2
GROUP = ("size", "preset", "whole")  # rows that are measured in turns


def measure_in_turns(
    send: Send, todo: list[dict], folder: Path, task: str, settings: dict[str, str], repeats: int
) -> None:
    """Measure the rows of `todo`, those of a group in turns, and send each. `settings`: our worker's."""
    card, _ = open_card(Case("ours", None))
    few_step = dict.fromkeys(FAST_LORAS.values(), str(lora_for(folder)))
    ours = Ours(folder, layouts.TASKS, **few_step | settings)
    try:
        ours.load(task)
    except LoadError as refused:
        return send_failures(send, todo, refused.reason)
    card.reset_peaks()
    loaded, config = ours.loaded(task), ours.pipe(task).transformer.config
    other, how = stock_for(ours, folder / task, task, max(row["size"] for row in todo), card.device)
    contenders = {"ours": ours, "stock": other}
    rate = floor.matmul_rate(card.device, loaded.plan.dtype)
    facts = {
        "plan": str(loaded.plan),
        "speed-ups": str(loaded.speed),
        "stock": how,
        "matmul TFLOP/s": round(rate / 1e12, 3),
    }
    for (size, *_), group in itertools.groupby(todo, lambda row: [row[name] for name in GROUP]):
        side = drawable_side(size, loaded.checkpoint.size_multiple)
        rows = [row | facts | {"side": side} for row in group]
        draws = [partial(draw, contenders[row["contender"]] or how, card.device, task, row) for row in rows]
        # A whole job of many steps is long and its seconds even: one will do.
        outcomes = alternate(draws, 1 if rows[0]["steps asked"] == FULL_STEPS else repeats)
        rows = [row | outcome_fields(outcome, config, rate) for row, outcome in zip(rows, outcomes, strict=True)]
        for row in rows:
            send(row | ratio_to_stock(row, rows))


def draw(contender: Ours | Stock | str, device: str, task: str, row: dict, warm_up: bool) -> Stages:
    """Draw one job of the row. Raises `Failed`, also where the contender is not there and its place has the reason."""
    if isinstance(contender, str):
        raise Failed(contender)
    fields = {"preset": row["preset"]} if contender.name == "ours" else {}
    if row["steps asked"]:
        fields["num_inference_steps"] = min(row["steps asked"], WARM_UP_STEPS) if warm_up else row["steps asked"]
    return time_job(contender, device, task, row["side"], **fields)


def alternate(draws: Sequence[Callable[[bool], Stages]], times: int) -> list[list[Stages] | str]:
    """Draw in turns, once to warm up and then `times`: of each its timed calls, or why it failed.

    What has failed has no more turns.
    """
    outcomes: list[list[Stages] | str] = [[] for _ in draws]
    for turn in range(times + 1):
        for number, draw_job in enumerate(draws):
            if isinstance(outcomes[number], str):
                continue
            try:
                call = draw_job(turn == 0)
            except Failed as failure:
                outcomes[number] = str(failure)
            else:
                outcomes[number] += [call] if turn else []
    return outcomes


def outcome_fields(outcome: list[Stages] | str, config: Mapping, rate: float) -> dict:
    """The fields that a row gains by its outcome; its floor is that of the passes which were computed.

    `rate`: FLOPs a second of a large matrix product.
    """
    if isinstance(outcome, str):
        return {"measured": f"{FAILED}: {outcome}"}
    call, row = outcome[0], stage_fields(*outcome)
    floor_seconds = floor.passes_flops(config, call.forwards) / rate
    return row | {
        "measured": MEASURED,
        "steps": len(call.steps),
        "passes": len(call.forwards),
        "floor step s": round(floor_seconds / len(call.steps), 6),
        "of floor": round(row["step s"] * len(call.steps) / floor_seconds, 2),
    }


def ratio_to_stock(row: dict, rows: list[dict]) -> dict:
    """Our seconds over stock's: of whole jobs as they were drawn, else of jobs of all steps by their stages."""
    other = next((held for held in rows if held["contender"] == "stock"), None)
    if row["contender"] == "stock" or other is None or {row["measured"], other["measured"]} != {MEASURED}:
        return {}
    if row["whole"]:
        return {"of stock": round(row["job s"] / other["job s"], 3)}
    return {"of stock": round(job_seconds(row, FULL_STEPS) / job_seconds(other, FULL_STEPS), 3)}


def stock_for(ours: Ours, folder: Path, task: str, side: int, device: str) -> tuple[Stock | None, str]:
    """(stock diffusers beside ours, in words how) or (None, why it cannot be there).

    Stock takes our weights where both then fit the card, else the fastest way that fits beside ours.
    """
    way = stock.RESIDENT if device == "cpu" else way_beside(ours.loaded(task).plan, task, side)
    try:
        if way == stock.RESIDENT:
            pipe, _ = time_load(partial(stock.load_beside, ours.pipe(task), folder, device))
            return Stock(pipe), "on the same weights"
        pipe, _ = time_load(partial(stock.load, folder, device, way))
        return Stock(pipe), way
    except LoadError as refused:
        return None, refused.reason


def way_beside(plan: Plan, task: str, side: int) -> str:
    """The fastest way of stock that fits what our plan leaves of the card; weights that both share are free."""
    (model,) = layouts.models_of((task,))
    shared = 0 if plan.precision in LOSSY else plan.transformer_bytes(model)
    shared += plan.text_encoder_bytes(model) if plan.text_encoder == "resident" else 0
    room, peaks = read_gpu().free_bytes, layouts.stock_peaks(task, side)
    peaks[stock.RESIDENT] -= shared
    return next((way for way, peak in peaks.items() if peak <= room), stock.BY_LAYER)
