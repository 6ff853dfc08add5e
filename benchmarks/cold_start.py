"""Seconds from a worker's start to its first step, stage by stage, of one tree of the code or of several in turns.

Each start is a process of its own that takes a job from the tests' control plane; its progress messages say which stage
it is at. Beside the clock stand the seconds that the processor has worked for the process until then, which other
programs on the machine alter less. Two checkpoints are started: the tiny one, and one whose transformer has the
released architecture's blocks, as many as `--blocks`, with random weights, written to `--folder` where it is missing:

    git worktree add /tmp/before v0.1.0
    python -m benchmarks cold_start --tree before=/tmp/before --tree after=.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from .measure.full_size import TINY
from .soak import closing_server, worker_environment

HERE = Path(__file__).parents[1]
EVENTS = ("job taken", "reading weights", "drawing", "first step")
PICTURE = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 1}
MESSAGE_SECONDS = 0.05  # between two of a job's progress messages
WIDTH = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]}  # as released


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tree", action="append", metavar="NAME=FOLDER", help="what to start (default: this tree)")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=4, help="of the large transformer; 0: only the tiny checkpoint")
    parser.add_argument("--folder", type=Path, help="of the large checkpoint (default: a temporary one)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the worker")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    trees = dict(text.split("=", 1) for text in options.tree or [f"this={HERE}"])
    with ExitStack() as stack:
        models = {"tiny": TINY / "generate"}
        if options.blocks:
            folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models[f"{options.blocks} full-size blocks"] = large_checkpoint(folder, options.blocks)
        starts: dict[tuple[str, str], list[dict[str, tuple[float, float]]]] = {}
        for _ in range(options.rounds):
            for name, model in models.items():
                for tree, place in trees.items():
                    found = start(Path(place).resolve(), model, dict(text.split("=", 1) for text in options.set))
                    starts.setdefault((name, tree), []).append(found)
                    print(f"{name}, {tree}: {found}", file=sys.stderr, flush=True)
    rows = [row_of(name, tree, event, each) for (name, tree), each in starts.items() for event in EVENTS]
    facts = {"rounds": options.rounds, "settings": options.set, "processors": len(os.sched_getaffinity(0))}
    return rows, facts


def row_of(name: str, tree: str, event: str, starts: list[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """The medians, and the least, of the starts' seconds until the event."""
    walls, processors = zip(*(one[event] for one in starts), strict=True)
    return {
        "checkpoint": name, "tree": tree, "until": event,
        "processor seconds (median)": round(statistics.median(processors), 2), "lowest": round(min(processors), 2),
        "seconds (median)": round(statistics.median(walls), 2), "quickest": round(min(walls), 2),
    }  # fmt: skip


def start(tree: Path, model: Path, settings: dict[str, str]) -> dict[str, tuple[float, float]]:
    """By event, the seconds since the worker's start and those that the processor has worked for it.

    Raises `RuntimeError` where the job fails.
    """
    from tests.conftest import serve
    from tests.support.control_plane import ControlPlane, WorkerProcess

    process: psutil.Process | None = None
    found: dict[str, tuple[float, float]] = {}

    def record(event: str) -> None:
        if process and event not in found:
            times = process.cpu_times()
            found[event] = round(time.time() - process.create_time(), 2), round(times.user + times.system, 2)

    class Plane(ControlPlane):
        def on_taken(self, job: Any) -> None:
            record("job taken")
            super().on_taken(job)

        def on_posted(self, kind: str, job: Any, body: Any) -> None:
            message = body.get("output") if isinstance(body, dict) else None
            if isinstance(message, dict) and "stage" in message:
                if message.get("load", {}).get("stage") in ("build", "read"):
                    record("reading weights")
                if message["stage"] == "drawing":
                    record("drawing")
                if message["step"]:
                    record("first step")
            super().on_posted(kind, job, body)

    plane = Plane()
    with ExitStack() as stack:
        port = stack.enter_context(closing_server(serve(plane)))
        home = stack.enter_context(tempfile.TemporaryDirectory())
        env = (
            worker_environment(port, home)
            | settings
            | {"QWEN_IMAGE_MODEL": str(model), "QWEN_TASKS": "generate", "PYTHONPATH": str(tree)}
        )
        env["QWEN_PROGRESS_SECONDS"] = str(MESSAGE_SECONDS)
        plane.put("job", PICTURE)
        worker = stack.enter_context(WorkerProcess(env, (str(tree / "runpod_handler.py"),)))
        process = psutil.Process(worker.process.pid)
        body = plane.result("job")
        reason = body.get("error") or body["output"]["metadata"].get("fallback_reason")
        if reason:
            raise RuntimeError(f"the job failed: {reason[:300]}")
    if missing := set(EVENTS) - set(found):
        raise RuntimeError(f"no message said of {', '.join(sorted(missing))}: {found}")
    return found


def large_checkpoint(folder: Path, blocks: int) -> Path:
    """`folder`/generate, written where it is missing: the tiny checkpoint with a transformer of full-size blocks."""
    from .load import write

    model = folder / f"generate-{blocks}"
    if not (model / "transformer").exists():
        shutil.copytree(TINY / "generate", model, ignore=shutil.ignore_patterns("transformer"), dirs_exist_ok=True)
        config = json.loads((TINY / "generate/transformer/config.json").read_text())
        names = ("in_channels", "out_channels", "joint_attention_dim", "patch_size")
        write(model, blocks, **WIDTH, **{name: config[name] for name in names})
    return model
