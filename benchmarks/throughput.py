"""Jobs per minute with the next job's pictures fetched during a drawing, without, and by a plain synchronous handler.

Edits of a picture by URL on the tiny checkpoint, through the SDK's own loop, with a delay on the picture and on the
result as a network has it. Each worker has drawn one job of each kind before the clock starts.
"""

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from .soak import closing_server, scene

TINY = Path(__file__).parents[1] / "models/tiny-qwen-image"
WORKERS = {
    "ours, two jobs held": (("runpod_handler.py",), "2"),
    "ours, one job held": (("runpod_handler.py",), "1"),
    "plain synchronous handler": (("-m", "benchmarks.plain_worker"), "1"),
}


def add_options(parser) -> None:
    parser.add_argument("--jobs", type=int, default=12, help="a worker (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of each job (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds each way (default: %(default)s)")


def run(options) -> tuple[list[dict], dict]:
    rates = {name: jobs_a_minute(options, *how) for name, how in WORKERS.items()}
    plain = list(rates.values())[-1]
    rows = [
        {"worker": name, "jobs a minute": round(rate, 1), "ratio": round(rate / plain, 2)}
        for name, rate in rates.items()
    ]
    return rows, {"jobs": options.jobs, "steps": options.steps, "delay seconds": options.delay}


def jobs_a_minute(options, command: tuple[str, ...], concurrency: str) -> float:
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
            "QWEN_EDIT_MODEL": str(TINY / "edit"), "QWEN_CONCURRENCY": concurrency, "QWEN_PROGRESS_SECONDS": "0",
            "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "RUNPOD_DEBUG_LEVEL": "ERROR",
            "HOME": stack.enter_context(tempfile.TemporaryDirectory()), "NO_PROXY": "*", "PYTHONPATH": ".",
        }  # fmt: skip
        fields = {"prompt": "make it green", "width": 256, "height": 256, "num_inference_steps": options.steps}
        fields["image_url"] = f"http://127.0.0.1:{images}/scene.png"
        stack.enter_context(WorkerProcess(env, command))
        for name in ("warm-1", "warm-2"):
            plane.put(name, {**fields, "seed": 1})
            plane.result(name)
        started = time.monotonic()
        for number in range(options.jobs):
            plane.put(f"job-{number}", {**fields, "seed": number})
        plane.wait(lambda: len(plane.bodies) == options.jobs + 2)
        wrong = [body for bodies in plane.bodies.values() for body in bodies if "error" in body]
        if wrong:
            raise RuntimeError(f"a job failed: {str(wrong[0])[:300]}")
        return 60 * options.jobs / (time.monotonic() - started)
