"""Why a job or a deployment waits: for a card, a worker's start, its model, its turn; and for how many seconds already.

From the states of the workers, the log of one that starts, and a running job's own progress messages. Decides nothing.
"""

import math
from collections.abc import Sequence
from typing import cast

from .api import Api
from .jobs import last_item
from .schemas import JobStatus, JsonObject, Worker
from .start_log import Start, describe_bytes

READY = ("IDLE", "RUNNING")
LOOK_SECONDS = 10  # between two looks at the workers of a job that waits
LOG_SECONDS = 15  # between two looks at the log of a worker that starts
# What the worker does in the stages of a job, as its progress messages name them.
STAGES = {
    "opening": "pictures and LoRAs of the job are fetched",
    "checking": "pictures go through the safety check",
    "rewriting": "the prompt is rewritten",
    "waiting": "the worker is busy with another job",
    "loading": "the model is loaded",
    "drawing": "drawing",
    "delivering": "pictures are encoded and sent",
}


class Waiting:
    """Follows one endpoint. Each reason is told with the seconds since it began."""

    def __init__(self, api: Api, endpoint_id: str):
        self.api, self.endpoint_id = api, endpoint_id
        self.clock = api.client.clock
        self.starts: dict[str, Start] = {}  # by worker
        self.logs_read_at = -math.inf
        self.looked_at = -math.inf
        self.workers: list[Worker] = []
        self.reason = ""
        self.reason_since = self.clock.now()
        self.load_before: tuple[float, float] | None = None  # (bytes, seconds) of the download at the look before

    def describe_job(self, status: JobStatus) -> str:
        """A job's state and the reason for it."""
        state = status.get("status", "")
        if state != "IN_QUEUE":
            return self.describe_running_job(status)
        if self.clock.now() - self.looked_at >= LOOK_SECONDS:
            self.looked_at = self.clock.now()
            self.workers = self.api.workers(self.endpoint_id)["workers"]
            self.read_logs(self.workers)
        return f"in queue · {self.describe_workers(self.workers)}"

    def describe_running_job(self, status: JobStatus) -> str:
        """By the worker's progress message; before the first one, the bare state."""
        state = status.get("status", "").lower().replace("_", " ")
        output = last_item(status.get("output"))
        if not isinstance(output, dict) or "stage" not in output:
            return self.with_seconds(state, state)
        message = cast(JsonObject, output)
        stage = str(message["stage"])
        words = [STAGES.get(stage, stage)]
        if stage == "drawing" and message.get("total"):
            words.append(f"step {message.get('step', 0)}/{message['total']}")
        if stage == "loading":
            words += self.describe_load(message)
        seconds_left = message.get("seconds_left")
        if isinstance(seconds_left, int | float):
            words.append(f"{seconds_left:.0f} s left")
        return self.with_seconds(stage, f"{state} · {', '.join(words)}")

    def describe_load(self, message: JsonObject) -> list[str]:
        """The step of the load, and of a download its bytes and their rate, where the worker tells them."""
        load = message.get("load")
        if not isinstance(load, dict):
            return []
        facts = cast(JsonObject, load)
        done, total = facts.get("bytes"), facts.get("total_bytes")
        if not isinstance(done, int | float) or not isinstance(total, int | float) or not total:
            self.load_before = None
            return [str(facts.get("stage", ""))]
        now, rate = self.clock.now(), None
        if self.load_before and now > self.load_before[1]:
            rate = (done - self.load_before[0]) / (now - self.load_before[1])
        self.load_before = (done, now)
        return [f"{facts.get('stage')} {describe_bytes(done, total, rate)}"]

    def describe_workers(self, workers: Sequence[Worker]) -> str:
        """Why none of these workers takes a job."""
        by_state = {state: [one for one in workers if one["status"] == state] for state in (*READY, "THROTTLED")}
        starting = [worker for worker in workers if worker["status"] == "INITIALIZING"]
        if not workers:
            return self.with_seconds("none", "no worker yet: RunPod looks for a host")
        if by_state["IDLE"]:
            return self.with_seconds("ready", "a worker is ready")
        if by_state["RUNNING"]:
            return self.with_seconds("busy", f"the workers that are ready are busy ({len(by_state['RUNNING'])})")
        if starting:
            start = self.starts.get(starting[0]["id"], Start())
            return self.with_seconds(start.phase, f"a worker starts: {start.describe()}")
        if by_state["THROTTLED"]:
            return self.with_seconds("throttled", f"throttled: no card is free for {count_workers(workers)}")
        return self.with_seconds("unhealthy", f"unhealthy: {count_workers(workers)}; see `logs`")

    def read_logs(self, workers: Sequence[Worker]) -> dict[str, list[str]]:
        """The system logs of the workers that are not ready, at most every `LOG_SECONDS`; none in between."""
        if self.clock.now() - self.logs_read_at < LOG_SECONDS:
            return {}
        self.logs_read_at = self.clock.now()
        logs: dict[str, list[str]] = {}
        for worker in workers:
            if worker["status"] in READY or worker["status"] == "THROTTLED":
                continue
            lines = [entry["line"] for entry in self.api.logs(self.endpoint_id, worker["id"], "system")]
            self.starts.setdefault(worker["id"], Start()).read(lines, self.clock.now())
            logs[worker["id"]] = lines
        return logs

    def with_seconds(self, reason: str, words: str) -> str:
        """`words` and the seconds since `reason` began."""
        if reason != self.reason:
            self.reason, self.reason_since = reason, self.clock.now()
        return f"{words} · {self.clock.now() - self.reason_since:.0f} s"


def count_workers(workers: Sequence[Worker]) -> str:
    return "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
