"""Seconds a step with guidance's passes on two ranks, against one rank that computes both, in turns in one run.

On the tiny checkpoint, each rank with one thread: on two idle cores the two ranks compute beside each other as two
cards do. A machine that is busy otherwise shows in the seconds; the processor seconds of the rank that has more to do,
against those of one rank alone, hardly change by that. It says nothing of how cards exchange tensors.
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil

PROMPT = "a large red circle in the center, on a blue background"
FEW_STEPS = 4  # whose seconds are taken off, and with them all that is not a step


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=512, help="side of the picture (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=24, help="of the longer job (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each pair of jobs (default: %(default)s)")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    import torch

    from tests.support.tiny_worker import start

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        workers = {ranks: start(None, Path(folder), QWEN_GPUS=str(ranks)) for ranks in (1, 2)}
        for worker in workers.values():
            draw(worker, options.size, FEW_STEPS)
        measured: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for _ in range(options.repeats):
            for ranks, worker in workers.items():
                measured[ranks].append(step_seconds(worker, options))
        sent = exchanged_bytes(workers[2], options)
        workers[2].pipelines.second_card.close()
    best = {ranks: [min(values) for values in zip(*pairs, strict=True)] for ranks, pairs in measured.items()}
    rows = [
        {
            "ranks of one thread": ranks,
            "seconds a step (least)": round(best[ranks][0], 4),
            "seconds a step (median)": round(statistics.median(wall for wall, _ in measured[ranks]), 4),
            "busier rank's processor seconds a step (least)": round(best[ranks][1], 4),
            "ratio": round(best[ranks][0] / best[1][0], 3),
            "ratio of processor seconds": round(best[ranks][1] / best[1][1], 3),
        }
        for ranks in (1, 2)
    ]
    facts = {"checkpoint": "tiny", "size": options.size, "steps": options.steps, "cores": psutil.cpu_count()}
    return rows, facts | {"bytes a step": sent, "load average": round(psutil.getloadavg()[0], 1)}


def draw(worker: Any, size: int, steps: int) -> float:
    """The seconds in which a picture is drawn. Raises `RuntimeError` where it is not."""
    fields = {"prompt": PROMPT, "width": size, "height": size, "num_inference_steps": steps, "seed": 1}
    reply = asyncio.run(worker.answer({"id": "job", "input": fields}))
    if "error" in reply:
        raise RuntimeError(reply["error"])
    return reply["metadata"]["timings"]["inference"]


def step_seconds(worker: Any, options: argparse.Namespace) -> tuple[float, float]:
    """Of a step: the seconds, and the processor seconds of the rank that has more of them."""
    second = worker.pipelines.second_card.process
    ranks = [psutil.Process(), *([psutil.Process(second.pid)] if second else [])]
    walls, processors = [], []
    for steps in (FEW_STEPS, options.steps):
        before = [sum(rank.cpu_times()[:2]) for rank in ranks]
        walls.append(draw(worker, options.size, steps))
        used = (sum(rank.cpu_times()[:2]) - start for rank, start in zip(ranks, before, strict=True))
        processors.append(max(used))
    more = options.steps - FEW_STEPS
    return (walls[1] - walls[0]) / more, (processors[1] - processors[0]) / more


def exchanged_bytes(worker: Any, options: argparse.Namespace) -> float:
    """That a step sends to the second rank and takes from it."""
    counts = worker.pipelines.second_card.counts

    def bytes_of(steps: int) -> int:
        before = counts.sent_bytes + counts.received_bytes
        draw(worker, options.size, steps)
        return counts.sent_bytes + counts.received_bytes - before

    return (bytes_of(options.steps) - bytes_of(FEW_STEPS)) / (options.steps - FEW_STEPS)
