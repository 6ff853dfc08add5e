"""The platform on loopback, with faults, and a worker process that speaks to it.

The platform is that of `qwen_local`. Here are the faults, which a test sets, and what a test wants to know: what was
handed out and heard, in which order. The plane runs on a thread of its own.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time

from starlette.responses import Response

from qwen_local.app import bare_app
from qwen_local.client_api import client_routes
from qwen_local.openai_api import openai_routes
from qwen_local.plane import Plane, PlaneObserver
from qwen_local.request import JobRequest
from qwen_local.server import listen, web_server
from qwen_local.worker_api import environment, worker_routes

from ..conftest import ROOT
from .patience import Patience, exit_status

ENDPOINT = "client"  # its id, in the addresses of clients


class ControlPlane(PlaneObserver):
    """`hold`: seconds that a poll is held. `fault(kind, number)` of the nth request of a kind: seconds to wait,
    a status, 'drop' (unheard), 'lose' (heard, and the answer lost), or None. `sync`: seconds that /runsync waits."""

    def __init__(self, hold=0.5, fault=lambda kind, number: None, sync=90):
        self.fault = fault
        self.plane = Plane([self])
        self.taken, self.bodies, self.refused, self.pings = {}, {}, {}, []
        self.log = []  # (kind, job id, body) as they came
        self.counts: dict[str, int] = {}
        self.changed = threading.Condition()
        self.polls = 0  # for jobs, that have no answer: they are held, or the worker has hung up
        self.app = bare_app(
            ("/v2", worker_routes(self.plane, hold)),
            (f"/v2/{ENDPOINT}", client_routes(self.plane, sync)),
            (f"/v2/{ENDPOINT}/openai", openai_routes(self.plane)),
        )
        self.server = None

    def serve(self):
        """A server, as `tests.conftest.serve` returns one."""
        self.server = PlaneServer(self.plane, self.answer)
        return self.server

    # The faults

    async def answer(self, scope, receive, send):
        """The application, wrapped in faults."""
        kind = scope["path"].split("/")[2]
        with self.changed:
            self.counts[kind] = number = self.counts.get(kind, 0) + 1
            is_poll = kind.startswith("job-take")
            self.polls += is_poll
            self.changed.notify_all()
        gone = False

        async def hear():
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        fault = self.fault(kind, number)
        if fault == "drop":
            await hang_up(receive, send)
        elif fault == "lose":
            await self.app(scope, hear, swallow)
            await hang_up(receive, send)
        elif isinstance(fault, int):
            await Response(status_code=fault)(scope, receive, send)
        else:
            await asyncio.sleep(fault or 0)
            await self.app(scope, hear, send)
        self.polls -= is_poll and not gone

    # What is heard, on the plane's own thread

    def on_taken(self, job):
        with self.changed:
            self.taken.setdefault(job.id, []).append(time.monotonic())
            self.changed.notify_all()

    def on_posted(self, kind, job, body):
        with self.changed:
            self.log.append((kind, job.id, body))
            if kind == "result":
                self.bodies.setdefault(job.id, []).append(body)
            self.changed.notify_all()

    def on_refused(self, job, size):
        self.refused[job.id] = size

    def on_pinged(self, worker, job_ids):
        self.pings.append((time.monotonic(), job_ids))

    # What a test does and asks

    def put(self, job_id, fields, **beside):
        """Queue a job; the same id once more hands the job out once more, as the platform may."""
        known = self.plane.jobs.get(job_id)
        if known:
            self.on_plane(lambda: (self.plane.queue.append(known), self.plane.notify()))
        else:
            self.on_plane(lambda: self.plane.submit(JobRequest(fields, beside), job_id=job_id))

    def stop(self, job_id):
        """Have the worker stop the job, or a job of this id that it does not have."""

        def stop():
            self.plane.stops[job_id] = None
            self.plane.notify()

        self.on_plane(stop)

    def on_plane(self, work):
        """Do it on the plane's thread, where there is one already, and wait until it is done."""
        if self.server is None:
            work()
            return

        async def run():
            work()

        asyncio.run_coroutine_threadsafe(run(), self.server.loop).result()

    def wait(self, true):
        """Until it is so, as long as anything is heard of the workers or they compute."""
        patience = Patience(heard=lambda: len(self.log))
        with self.changed:
            while not self.changed.wait_for(true, 1):
                try:
                    patience.check()
                except AssertionError as error:
                    raise AssertionError(f"{error}: taken {list(self.taken)}, answered {list(self.bodies)}") from error

    def result(self, job_id):
        """The one body posted for the job."""
        self.wait(lambda: job_id in self.bodies)
        assert len(self.bodies[job_id]) == 1
        return self.bodies[job_id][0]

    def steps(self, job_id):
        """How far the job is by its own progress."""
        output = self.plane.jobs[job_id].output
        return output.get("step", 0) if isinstance(output, dict) else 0

    def kinds(self, job_id):
        with self.changed:
            return [kind for kind, one, _ in self.log if one == job_id]


async def hang_up(receive, send):
    """End the connection without an answer. `send` is a method of uvicorn's, whose object has the connection."""
    send.__self__.transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def swallow(message):
    """In place of `send`: the answer goes nowhere."""


class PlaneServer:
    """An application on a port of loopback and a thread of its own, until `server_close`."""

    def __init__(self, plane, app):
        self.plane, self.listener = plane, listen("127.0.0.1", 0)
        self.server_port = self.listener.getsockname()[1]
        self.server, self.loop = web_server(app), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        self.loop.run_until_complete(self.server.serve(sockets=[self.listener]))
        self.loop.close()

    def shutdown(self):
        self.loop.call_soon_threadsafe(self.plane.close)
        self.server.should_exit = True
        self.thread.join()

    def server_close(self):
        self.listener.close()


def addresses(address):
    """The environment by which the SDK's loop finds the plane."""
    return environment(f"{address}/v2", "pod", "key") | {"RUNPOD_PING_INTERVAL": "1000"}


class WorkerProcess:
    """`with WorkerProcess(environment): ...`: `runpod_handler.py` in the SDK's loop; `lines` is what it prints."""

    def __init__(self, env, command=("runpod_handler.py",)):
        self.env, self.command, self.lines = env, command, []

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, *self.command], cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()
        return self

    def terminate(self):
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self):
        """The exit status, once the process has ended by itself."""
        return exit_status(self.process, lambda: len(self.lines))

    def messages(self):
        """The log's objects; two that were printed at once may share a line."""
        pieces = (part for line in self.lines for part in line.replace("}{", "}\n{").splitlines())
        return [json.loads(part) for part in pieces if part.startswith("{")]

    def __exit__(self, *_):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # the SDK's ping process outlives a worker that is killed
        except ProcessLookupError:
            pass
        self.process.wait()
        self.reader.join(10)
        self.process.stdout.close()
