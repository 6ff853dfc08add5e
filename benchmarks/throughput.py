"""Jobs a minute: with the next job's pictures fetched during a drawing, without, and by a plain synchronous handler;
and with small pictures that share calls of the pipeline, and without.

Edits of a picture by URL, then small pictures of different prompts, on the tiny checkpoint through the SDK's own loop,
with a delay on the input picture and on the result as a network has it. All jobs are there from the start. Each worker
has drawn two jobs of the kind before the clock starts. What sharing calls is worth depends on how much of the machine
one picture leaves idle: a figure from a CPU and a tiny model says nothing of a GPU and the 20B model.
"""

import os
import statistics
import tempfile
import time
from contextlib import ExitStack

from .measure.full_size import TINY
from .soak import closing_server, scene

OURS, PLAIN = ("runpod_handler.py",), ("-m", "benchmarks.measure.plain_worker")
# The last worker of each kind of job is what the others are held against.
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


def add_options(parser) -> None:
    parser.add_argument("--jobs", type=int, default=12, help="a worker (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of an edit (default: %(default)s)")
    parser.add_argument("--small-steps", type=int, default=20, help="of a small picture (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of a small picture (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds each way (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(WORKERS), default=list(WORKERS))


def run(options) -> tuple[list[dict], dict]:
    from qwen_worker.machine import read_gpu

    rows = []
    for kind in options.kinds:
        measured = {name: measure(options, kind, *how) for name, how in WORKERS[kind].items()}
        last = list(measured.values())[-1][0]
        rows += [
            {"job": kind, "worker": name, "jobs a minute": round(rate, 1), "ratio": round(rate / last, 2)}
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


def measure(options, kind: str, command: tuple[str, ...], settings: dict[str, str]) -> tuple[float, float]:
    """Jobs a minute, and the mean of the pictures that shared a job's call."""
    from tests.conftest import respond, serve
    from tests.control_plane import ControlPlane, WorkerProcess, addresses

    data = scene()

    def picture(handler) -> None:
        time.sleep(options.delay)
        respond(handler, data)

    plane = ControlPlane(fault=lambda kind, number: options.delay if kind == "job-done" else None)
    with ExitStack() as stack:
        port, images = (stack.enter_context(closing_server(serve(one))) for one in (plane, picture))
        steering = ("RUNPOD_", "QWEN_", "SERVER_", "BUCKET_", "STREAM")
        env = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
        env |= addresses(f"http://127.0.0.1:{port}") | {
            "QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit"),
            "QWEN_PROGRESS_SECONDS": "0",
            "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "RUNPOD_DEBUG_LEVEL": "ERROR",
            "HOME": stack.enter_context(tempfile.TemporaryDirectory()), "NO_PROXY": "*", "PYTHONPATH": ".",
        } | settings  # fmt: skip
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
        return rate, round(statistics.mean(one.get("batch", 1) for one in facts), 1)


def job(options, kind: str, number: int, images: int) -> dict:
    """The input of one job. `images`: the port of the server of input pictures."""
    if kind == "small picture":
        fields = {"prompt": PROMPTS[number % len(PROMPTS)], "width": options.size, "height": options.size}
        return fields | {"seed": number, "num_inference_steps": options.small_steps}
    fields = {"prompt": "make it green", "image_url": f"http://127.0.0.1:{images}/scene.png"}
    return fields | {"width": 256, "height": 256, "seed": number, "num_inference_steps": options.steps}
