"""As much of the platform on loopback as the SDK's loop speaks to, and a worker process that speaks to it.

Hands out jobs one by one or in batches, holds polls, hears results, progress, streamed chunks and pings, stops jobs,
and refuses a body above the limit with a 400 as the platform does. Faults are set by the test.
"""

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

from ..conftest import ROOT, respond
from .patience import Patience, exit_status

LIMIT = 10_000_000  # bytes of a result


class ControlPlane:
    """`hold`: seconds that a poll is held. `fault(kind, number)` of the nth request of a kind: seconds to wait,
    a status, 'drop' (unheard), 'lose' (heard, and the answer lost), or None. `sync`: seconds that /runsync waits."""

    def __init__(self, hold=0.5, fault=lambda kind, number: None, sync=90):
        self.hold, self.fault, self.sync = hold, fault, sync
        self.jobs, self.stops = queue.Queue(), queue.Queue()
        self.taken, self.bodies, self.refused, self.pings = {}, {}, {}, []
        self.log = []  # (kind, job id, body) as they came
        self.counts: dict[str, int] = {}
        self.changed = threading.Condition()
        self.lost = threading.local()
        self.numbers, self.cancelled = itertools.count(), set()
        self.polls = 0  # for jobs, that are held at this moment
        self.streamed: dict[str, int] = {}  # by job, how many chunks its client has

    def __call__(self, handler):
        address = urlsplit(handler.path)
        parts, options = address.path.split("/")[2:], parse_qs(address.query)
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        if not self.survives(parts[0], handler):
            return None
        self.lost.value = getattr(self.lost, "fault", None) == "lose"
        if parts[0] in ("job-take", "job-take-batch"):
            with self.changed:
                self.polls += 1
                self.changed.notify_all()
            jobs = self.held(self.jobs, int(options.get("batch_size", ["1"])[0]))
            self.polls -= 1
            return self.hand_out(handler, jobs, single=parts[0] == "job-take")
        if parts[0] == "job-stop":
            ids = self.held(self.stops, 10)
            return answer(handler, {"jobsToStop": ids}) if ids else respond(handler, b"", 204)
        if parts[0] == "client":
            return answer(handler, self.serve_client(parts[1:], body))
        if parts[0] in ("job-done", "job-stream"):
            return self.hear(handler, parts[0], parts[2], body)
        self.pings.append((time.monotonic(), options.get("job_id", [""])[0].split(",")))
        return answer(handler, {})

    def serve_client(self, parts, body):
        """What a client of the endpoint `client` gets: run, runsync, status, stream, cancel."""
        if parts[0] in ("run", "runsync"):
            job_id = f"{parts[0]}-{next(self.numbers)}"
            self.jobs.put({"id": job_id, **json.loads(body)})
            if parts[0] == "run":
                return {"id": job_id, "status": "IN_QUEUE"}
            with self.changed:
                self.changed.wait_for(lambda: job_id in self.bodies, self.sync)
            return {"id": job_id, **self.state(job_id)}
        job_id = parts[1]
        if parts[0] == "cancel" and job_id not in self.bodies:
            self.cancelled.add(job_id)
            self.stops.put(job_id)
        if parts[0] == "stream":
            state = self.state(job_id)["status"]  # before the chunks: all of a job that is over are there
            return {"id": job_id, "status": state, "stream": self.unread_chunks(job_id)}
        return {"id": job_id, **self.state(job_id)}

    def unread_chunks(self, job_id):
        with self.changed:
            chunks = [{"output": data["output"]} for kind, one, data in self.log if (kind, one) == ("chunk", job_id)]
            read = self.streamed.get(job_id, 0)
            self.streamed[job_id] = len(chunks)
            return chunks[read:]

    def state(self, job_id):
        with self.changed:
            if job_id in self.cancelled:
                return {"status": "CANCELLED"}
            for kind, one, data in reversed(self.log):
                if one == job_id and kind != "chunk":
                    state = "IN_PROGRESS" if kind == "progress" else "FAILED" if "error" in data else "COMPLETED"
                    return {"status": state, **{name: data[name] for name in ("output", "error") if name in data}}
            return {"status": "IN_PROGRESS" if job_id in self.taken else "IN_QUEUE"}

    def survives(self, kind, handler):
        with self.changed:
            self.counts[kind] = number = self.counts.get(kind, 0) + 1
            self.changed.notify_all()
        fault = self.fault(kind, number)
        self.lost.fault = fault
        if fault == "lose":
            return True
        if fault == "drop":
            handler.close_connection = True
            return False
        if isinstance(fault, int):
            respond(handler, b"", fault)
            return False
        if fault:
            time.sleep(fault)
        return True

    def held(self, items, most):
        try:
            found = [items.get(timeout=self.hold)]
        except queue.Empty:
            return []
        while len(found) < most and not items.empty():
            found.append(items.get_nowait())
        return found

    def hand_out(self, handler, jobs, single):
        if not jobs:
            return respond(handler, b"", 204)
        with self.changed:
            for job in jobs:
                self.taken.setdefault(job["id"], []).append(time.monotonic())
            self.changed.notify_all()
        try:
            return answer(handler, jobs[0] if single else jobs)
        except OSError:
            for job in jobs:  # the worker is gone: the platform hands the job to another
                self.jobs.put(job)
            raise

    def hear(self, handler, kind, job_id, body):
        data = json.loads(body)
        if len(body) > LIMIT:
            self.refused[job_id] = len(body)
            return respond(handler, b"", 400)
        if kind == "job-stream":
            kind = "chunk"
        elif data.get("status") == "IN_PROGRESS":
            kind = "progress"
        else:
            kind = "result"
        with self.changed:
            self.log.append((kind, job_id, data))
            if kind == "result":
                self.bodies.setdefault(job_id, []).append(data)
            self.changed.notify_all()
        if self.lost.value:
            handler.close_connection = True
            return None
        return answer(handler, {})

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

    def put(self, job_id, fields, **more):
        self.jobs.put({"id": job_id, "input": fields, **more})

    def steps(self, job_id):
        """How far the job is by its own progress."""
        return self.state(job_id).get("output", {}).get("step", 0)

    def kinds(self, job_id):
        with self.changed:
            return [kind for kind, one, _ in self.log if one == job_id]


def answer(handler, data, status=200):
    respond(handler, json.dumps(data).encode(), status, Content_Type="application/json")


def addresses(address):
    """The environment by which the SDK's loop finds the plane."""
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{address}/v2/job-take/$ID?gpu=A40",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{address}/v2/job-done/$RUNPOD_POD_ID/$ID?gpu=A40",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{address}/v2/job-stream/$RUNPOD_POD_ID/$ID?gpu=A40",
        "RUNPOD_WEBHOOK_PING": f"{address}/v2/ping/$RUNPOD_POD_ID?gpu=A40",
        "RUNPOD_POD_ID": "pod", "RUNPOD_AI_API_KEY": "key", "RUNPOD_ENDPOINT_ID": "endpoint",
        "RUNPOD_PING_INTERVAL": "1000", "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true",
    }  # fmt: skip


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
