"""Jobs a minute of our worker, with and without what it does to draw more of them, and of a plain synchronous handler.

Edits of a picture by URL, with the next job's picture fetched during a drawing and without; then small pictures of
different prompts, which share calls of the pipeline or do not. They run on the tiny checkpoint through the SDK's own
loop, with a delay on the input picture and on the result as a network has it. All jobs are there from the start. Each
worker has drawn two jobs of the kind before the clock starts. The worth of shared calls depends on how much of the
machine one picture leaves idle: a figure from a CPU and a tiny model says nothing of a GPU and the 20B model.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler

from .soak import closing_server, scene, worker_environment

OURS, PLAIN = ("runpod_handler.py",), ("-m", "benchmarks.measure.plain_worker")
# The ratios of a kind of job are to its last worker.
WORKERS = {
    "edit by URL": {
        "ours, two jobs held": (OURS, {"QWEN_CONCURRENCY": "2"}),
        "ours, one job held": (OURS, {}),
        "plain synchronous handler": (PLAIN, {}),
    },
    "small picture": {
        "ours, four pictures a call": (OURS, {"QWEN_BATCH": "4", "QWEN_CONCURRENCY": "2"}),
        "ours, two pictures a call": (OURS, {"QWEN_BATCH": "2", "QWEN_CONCURRENCY": "2"}),
        "ours, one picture a call": (OURS, {"QWEN_CONCURRENCY": "4"}),
    },
}
PROMPTS = ("a red circle", "a large blue square in the center, on a green background", "a green triangle on the left")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=12, help="a worker (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of an edit (default: %(default)s)")
    parser.add_argument("--small-steps", type=int, default=20, help="of a small picture (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of a small picture (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds each way (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(WORKERS), default=list(WORKERS))


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    from qwen_worker.memory.machine import read_gpu

    rows = []
    for kind in options.kinds:
        measured = {name: measure(options, kind, *worker) for name, worker in WORKERS[kind].items()}
        last_rate = list(measured.values())[-1][0]
        rows += [
            {"job": kind, "worker": name, "jobs a minute": round(rate, 1), "ratio": round(rate / last_rate, 2)}
            | {"pictures a call (mean)": batch}
            for name, (rate, batch) in measured.items()
        ]
    gpu = read_gpu()
    return rows, {
        "gpu": gpu.name if gpu else None,
        "checkpoint": "tiny",
        "jobs": options.jobs,
        "steps": options.steps,
        "small steps": options.small_steps,
        "size": options.size,
        "delay seconds": options.delay,
    }


def measure(
    options: argparse.Namespace, kind: str, command: tuple[str, ...], settings: dict[str, str]
) -> tuple[float, float]:
    """Jobs a minute of one worker process, and how many pictures shared a job's call on average.

    `command`: what Python runs. Raises `RuntimeError` where a job fails.
    """
    from tests.conftest import respond, serve
    from tests.support.control_plane import ControlPlane, WorkerProcess

    data = scene()

    def send_picture(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(options.delay)
        respond(handler, data)

    plane = ControlPlane(fault=lambda kind, number: options.delay if kind == "job-done" else None)
    with ExitStack() as stack:
        port, images = (stack.enter_context(closing_server(serve(answer))) for answer in (plane, send_picture))
        home = stack.enter_context(tempfile.TemporaryDirectory())
        env = worker_environment(port, home) | {"QWEN_PROGRESS_SECONDS": "0", "PYTHONPATH": "."} | settings
        stack.enter_context(WorkerProcess(env, command))
        for name in ("warm-1", "warm-2"):
            plane.put(name, job(options, kind, 1, images))
            plane.result(name)
        started = time.monotonic()
        for number in range(options.jobs):
            plane.put(f"job-{number}", job(options, kind, number, images))
        plane.wait(lambda: len(plane.bodies) == options.jobs + 2)
        wrong = [body for bodies in plane.bodies.values() for body in bodies if "error" in body]
        if wrong:
            raise RuntimeError(f"a job failed: {str(wrong[0])[:300]}")
        rate = 60 * options.jobs / (time.monotonic() - started)
        facts = [plane.bodies[f"job-{number}"][0]["output"].get("metadata", {}) for number in range(options.jobs)]
        return rate, round(statistics.mean(metadata.get("batch", 1) for metadata in facts), 1)


def job(options: argparse.Namespace, kind: str, number: int, images: int) -> dict:
    """The input of one job. `images`: the port of the server of input pictures."""
    if kind == "small picture":
        fields = {"prompt": PROMPTS[number % len(PROMPTS)], "width": options.size, "height": options.size}
        return fields | {"seed": number, "num_inference_steps": options.small_steps}
    fields = {"prompt": "make it green", "image_url": f"http://127.0.0.1:{images}/scene.png"}
    return fields | {"width": 256, "height": 256, "seed": number, "num_inference_steps": options.steps}
