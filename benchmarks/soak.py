"""Many mixed jobs through the real worker process and the SDK's loop, under faults: each ends once, and rightly.

The control plane of the tests drops, delays and refuses connections, hands jobs out twice and cancels some; a bucket is
down for a while; one worker is killed by SIGKILL, one ended by SIGTERM. Jobs that a dead worker had taken are handed
out again, as the platform does it.
"""

import argparse
import base64
import io
import logging
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import HTTPServer
from typing import Any

import psutil

from .measure.full_size import TINY

SMALL = {"width": 256, "height": 256, "num_inference_steps": 3}
REDELIVER_SECONDS = 8  # a job that no ping has named for so long is handed out again
PATIENCE = 300  # seconds without any answer, after which the run counts as stuck


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the mix and the faults (default: %(default)s)")
    parser.add_argument("--stand-ins", action="store_true", help="no model: the serving alone, faster")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    started = time.monotonic()
    with ExitStack() as stack:
        soak = Soak(options, stack)
        soak.run_workers()
    rows, facts = soak.results()
    return rows, {"jobs": options.jobs, "seed": options.seed, "seconds": round(time.monotonic() - started), **facts}


class Soak:
    """One run: the control plane, the bucket, the jobs, and how each ended. `stack` closes what it opens."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack):
        from moto.server import ThreadedMotoServer

        from tests.conftest import respond, serve
        from tests.support.control_plane import ControlPlane

        self.options, self.stack, self.rng = options, stack, random.Random(options.seed)
        self.plane = ControlPlane(hold=0.3, fault=self.fault)
        self.port = stack.enter_context(closing_server(serve(self.plane)))
        picture = scene()
        self.images = stack.enter_context(closing_server(serve(lambda handler: respond(handler, picture))))
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.bucket = ThreadedMotoServer(port=0, verbose=False)
        self.bucket.start()
        stack.callback(lambda: self.bucket.stop())
        self.bucket_port = self.bucket.get_host_and_port()[1]
        self.make_bucket()
        self.jobs = {f"job-{n:04d}": self.job(picture) for n in range(options.jobs)}
        self.stopped, self.memory, self.restarts = set(), [], Counter()
        self.bucket_down = False

    def fault(self, kind: str, number: int) -> Any:
        """What the control plane does wrong with this request, if anything: its word, a status, or seconds to wait."""
        draw = self.rng.random()
        if kind == "job-done":
            faults = ((0.05, 500), (0.07, "lose"), (0.09, "drop"), (0.2, draw))
            return next((fault for bound, fault in faults if draw < bound), None)
        return "drop" if draw < 0.02 else draw * 5 if draw < 0.1 and kind == "job-stop" else None

    def job(self, picture: bytes) -> tuple[str, dict]:
        """(the kind of the job, by which its end is judged, and its input)."""
        kind = self.rng.choices(
            ("generate", "url", "edit", "background", "health", "bad", "stop"), (40, 15, 10, 10, 10, 5, 10)
        )[0]
        image = {"image": base64.b64encode(picture).decode()}
        by_url = {"image_url": f"http://127.0.0.1:{self.images}/scene.png"}
        fields = {
            "generate": {"prompt": "a red circle", **SMALL},
            "url": {"prompt": "a blue square", "delivery": "url", **SMALL},
            "edit": {"prompt": "make it green", **by_url, **SMALL, "draw_size": "asked"},
            "background": {
                "task": "background_replacement",
                "prompt": "a wall",
                **image,
                **SMALL,
                "draw_size": "asked",
            },
            "health": {"task": "health"},
            "bad": {"prompt": "a", "width": self.rng.choice((1, 257, 10_000))},
            "stop": {"prompt": "a red circle", **SMALL, "num_inference_steps": 100, "num_images": 4},
        }[kind]
        return kind, fields

    def make_bucket(self) -> None:
        import boto3

        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.bucket_port}", **keys).create_bucket(Bucket="pictures")

    def environment(self) -> dict[str, str]:
        home = self.stack.enter_context(tempfile.TemporaryDirectory())
        return worker_environment(self.port, home) | {
            "QWEN_FALLBACK": "force" if self.options.stand_ins else "forbid",
            "QWEN_CONCURRENCY": "2", "QWEN_PROGRESS_SECONDS": "0.2", "QWEN_SHUTDOWN_SECONDS": "5",
            "BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{self.bucket_port}", "BUCKET_NAME": "pictures",
            "BUCKET_ACCESS_KEY_ID": "x", "BUCKET_SECRET_ACCESS_KEY": "secret-of-the-soak",
        }  # fmt: skip

    def run_workers(self) -> None:
        """Run three workers in turn: the first is killed, the second ended, each after a third of the jobs."""
        from tests.support.control_plane import WorkerProcess

        for job_id, (_, fields) in self.jobs.items():
            for _ in range(2 if self.rng.random() < 0.03 else 1):
                self.plane.put(job_id, fields)
        self.answered_at = time.monotonic()
        over = threading.Event()
        platform = threading.Thread(target=self.play_platform, args=(over,), daemon=True)
        platform.start()
        for third in (1, 2, 3):
            with WorkerProcess(self.environment()) as worker:
                self.watch(worker, self.options.jobs * third // 3)
                if third == 2:
                    self.restarts[f"SIGTERM, exit {worker.terminate()}"] += 1
                if third == 1:
                    self.restarts["SIGKILL"] += 1
            if third == 1:
                self.bucket.stop()  # for the first half of the second worker's jobs
                self.bucket_down = True
        over.set()
        platform.join()

    def watch(self, worker: Any, count: int) -> None:
        """Wait until so many jobs have ended, and note the worker's memory meanwhile."""
        process = psutil.Process(worker.process.pid)
        while len(self.ended_jobs()) < count:
            assert worker.process.poll() is None, f"the worker ended by itself: {worker.lines[-20:]}"
            assert time.monotonic() - self.answered_at < PATIENCE, f"stuck: {set(self.jobs) - self.ended_jobs()}"
            self.memory.append((worker.process.pid, time.monotonic(), process.memory_info().rss))
            if self.bucket_down and len(self.ended_jobs()) >= self.options.jobs // 2:
                self.raise_bucket()
            time.sleep(0.25)

    def raise_bucket(self) -> None:
        from moto.server import ThreadedMotoServer

        self.bucket, self.bucket_down = ThreadedMotoServer(port=self.bucket_port, verbose=False), False
        self.bucket.start()
        self.make_bucket()

    def ended_jobs(self) -> set[str]:
        with self.plane.changed:
            return set(self.plane.bodies) | self.stopped

    def play_platform(self, over: threading.Event) -> None:
        """Stop jobs that are to be stopped once they are taken, and hand out again those that no ping names."""
        seen, due, again = 0, {}, Counter()
        while not over.wait(0.2):
            now = time.monotonic()
            with self.plane.changed:
                taken, bodies = dict(self.plane.taken), set(self.plane.bodies)
                recent = [ids for at, ids in self.plane.pings[-10:] if now - at < REDELIVER_SECONDS]
            pinged = {job_id for ids in recent for job_id in ids}
            if len(bodies | self.stopped) > seen:
                seen, self.answered_at = len(bodies | self.stopped), now
            for job_id, times in taken.items():
                if self.jobs[job_id][0] == "stop" and job_id not in due:
                    due[job_id] = now + self.rng.random() * 2
                if now > due.get(job_id, now) and job_id not in self.stopped:
                    self.stopped.add(job_id)
                    self.plane.stop(job_id)
                quiet = now - times[-1] > REDELIVER_SECONDS and job_id not in pinged
                if quiet and len(times) > again[job_id] and job_id not in bodies and job_id not in self.stopped:
                    again[job_id] = len(times)  # once, until it is taken again
                    self.plane.put(job_id, self.jobs[job_id][1])
                    self.restarts["handed out again"] += 1

    def results(self) -> tuple[list[dict], dict]:
        """The rows, how many jobs of a kind ended how, and the facts of the run."""
        ends = Counter()
        for job_id, (kind, _) in self.jobs.items():
            bodies = self.plane.bodies.get(job_id, [])
            ends[kind, judge(kind, bodies)] += 1
        rows = [{"job": kind, "end": end, "count": count} for (kind, end), count in sorted(ends.items())]
        late = sum(progress_is_late(self.plane.kinds(job_id)) for job_id in self.plane.bodies)
        return rows, {
            "wrong": sum(row["count"] for row in rows if row["end"].startswith("WRONG")) + late,
            "memory growth MB": growth(self.memory),
            "posted more than once": sum(len(bodies) > 1 for bodies in self.plane.bodies.values()),
            **self.restarts,
            "requests": dict(self.plane.counts),
        }


def judge(kind: str, bodies: list[dict]) -> str:
    """How a job ended, beginning with WRONG where it must not."""
    if kind == "stop" and not bodies:
        return "stopped"
    if not bodies:
        return "WRONG: lost"
    first = bodies[0]
    pictures = {body["output"].get("image") or (body["output"].get("image_url") or "").split("?")[0] for body in bodies}
    deliveries = {body["output"].get("metadata", {}).get("delivery") for body in bodies}
    if len(pictures) > 1 and len(deliveries) == 1:
        return "WRONG: answered with different pictures"
    if kind == "bad":
        return "refused" if first.get("error", "").startswith("invalid_input: width") else "WRONG: not refused"
    if "error" in first:
        return f"WRONG: {first['error'][:80]}"
    if kind == "health":
        return "healthy" if first["output"]["status"] == "healthy" else "WRONG: unhealthy"
    facts = first["output"]["metadata"]
    if facts["backend"] == "pil-fallback" and kind == "url":
        return "a stand-in, in the reply" if facts["delivery"] == "inline" else "WRONG: a stand-in by URL"
    if facts["delivery"] == "inline" and kind == "url":
        return "drawn, in the reply for a bucket that was down" if "delivery_note" in facts else "WRONG: not by URL"
    return "drawn before the stop" if kind == "stop" else "drawn"


def progress_is_late(kinds: list[str]) -> bool:
    """Whether progress came after the only result: of a job that was handed out twice it may."""
    return kinds.count("result") == 1 and kinds[-1] != "result"


def growth(samples: list[tuple[int, float, int]]) -> float:
    """MB by which the memory of the worker that lived longest grew from its second quarter to its last, by medians.

    `samples`: process, time and bytes.
    """
    longest = Counter(pid for pid, _, _ in samples).most_common(1)[0][0]
    sizes = [size for pid, _, size in samples if pid == longest]
    quarter = max(1, len(sizes) // 4)
    return round((statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter])) / 1e6, 1)


def worker_environment(port: int, home: str) -> dict[str, str]:
    """The shell's variables, less those that steer the worker or the SDK, for a worker of the tiny checkpoint.

    `port`: the control plane's. `home`: an empty folder, since the SDK prefers the credentials in ~/.runpod.
    """
    from tests.support.control_plane import addresses

    steering = ("RUNPOD_", "QWEN_", "SERVER_", "BUCKET_", "STREAM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return kept | addresses(f"http://127.0.0.1:{port}") | {
        "QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit"),
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "RUNPOD_DEBUG_LEVEL": "ERROR", "HOME": home, "NO_PROXY": "*",
    }  # fmt: skip


def scene() -> bytes:
    """A red disc on blue as a PNG file, an edit's input."""
    from PIL import Image, ImageDraw

    picture, buffer = Image.new("RGB", (256, 256), "blue"), io.BytesIO()
    ImageDraw.Draw(picture).ellipse((78, 78, 178, 178), fill="red")
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@contextmanager
def closing_server(server: HTTPServer) -> Iterator[int]:
    """The port of a server, which is closed at the end."""
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
