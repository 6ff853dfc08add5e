"""Whether the new workers come up: the rollout, their states, and in their logs the crash loops and missing images.

Looks and judges; changes nothing. Knows nothing of what a deployment wants.
"""

import math
import re
import time
from collections.abc import Callable

from ..errors import NotServing
from .api import Api

READY = ("IDLE", "RUNNING")
CRASHES = 3  # starts of one container: the first, and two after it ended
UNHEALTHY_SECONDS = 120
LOG_EVERY_SECONDS = 15
STARTED = re.compile(r"\bstart(?:ed|ing)? container\b", re.I)
NO_IMAGE = re.compile(r"manifest (?:for .* )?(?:unknown|not found)|pull access denied|(?:error|failed)\b.*\bpull", re.I)


class Watch:
    """Follows an endpoint's workers from the moment it is made. `capacity` and `patience` are seconds.

    `before` is the endpoint's version before the change. `show` takes the line of progress.
    """

    def __init__(
        self, api: Api, endpoint_id: str, before: int | None, patience: float, capacity: float,
        show: Callable[[str], None], clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.api, self.endpoint_id, self.before = api, endpoint_id, before
        self.patience, self.capacity, self.show, self.clock = patience, capacity, show, clock
        self.started = clock()
        self.throttled_since: float | None = None
        self.unhealthy_since: dict[str, float] = {}
        self.logs_read_at = -math.inf
        self.stale = 0  # workers of the old version at the last look
        self.old: set[str] = set()  # workers that were of the old version when last seen
        self.seen: set[str] = set()  # new workers that had a card, present or gone
        self.ready: set[str] = set()  # those of them that were ready at some time

    @property
    def left(self) -> float:
        """Seconds of patience left."""
        return self.patience - (self.clock() - self.started)

    def look(self, note: str = "") -> None:
        """One look at the workers. Raises `NotServing` with what the logs say of why they do not come up."""
        answer = self.api.workers(self.endpoint_id)
        rollout = self.api.releases(self.endpoint_id)["rollout"]
        workers, version = answer["workers"], answer.get("endpointVersion")
        fresh = [one for one in workers if not self.is_stale(one, version)]
        self.stale = len(workers) - len(fresh)
        self.old = (self.old | {one["id"] for one in workers}) - {one["id"] for one in fresh}
        self.seen |= {one["id"] for one in fresh if one["status"] != "THROTTLED"}
        self.ready |= {one["id"] for one in fresh if one["status"] in READY}
        self.show(self.line(rollout, answer["summary"], note))
        self.judge_capacity(fresh)
        self.judge_health(fresh)
        if self.clock() - self.logs_read_at >= LOG_EVERY_SECONDS:
            self.logs_read_at = self.clock()
            for one in fresh:
                if one["status"] not in READY:
                    self.judge_logs(one["id"])
        gone = len(self.seen - {one["id"] for one in fresh} - self.ready)
        if gone >= CRASHES:
            raise NotServing(f"{gone} new workers ended before they were ready.")
        if self.left <= 0:
            raise NotServing(f"The new workers do not serve after {self.patience:.0f} s.")

    def is_stale(self, worker: dict, version: int | None) -> bool:
        # Until the platform has counted the change, every worker is of the old version, whatever it says.
        if self.before is not None and version is not None and version <= self.before:
            return True
        return bool(worker["isStale"])

    def line(self, rollout: dict, counts: dict, note: str) -> str:
        states = " ".join(f"{name} {counts[name]}" for name in counts if name != "total" and counts[name])
        seconds = f"{self.clock() - self.started:.0f} s"
        share = f"{rollout['workersOnLatest']} of {rollout['workersTotal']} workers on the new version"
        return " · ".join(part for part in (share, states or "no workers", note, seconds) if part)

    def judge_capacity(self, fresh: list[dict]) -> None:
        waiting = [one for one in fresh if one["status"] == "THROTTLED"]
        if not waiting or len(waiting) < len(fresh):
            self.throttled_since = None
            return
        if self.throttled_since is None:
            self.throttled_since = self.clock()
        if self.clock() - self.throttled_since >= self.capacity:
            raise NotServing(
                f"RunPod has no card for the workers: {len(waiting)} throttled for {self.capacity:.0f} s. "
                "Add pools with --gpu, lift --data-centers, or try later."
            )

    def judge_health(self, fresh: list[dict]) -> None:
        ill = {one["id"] for one in fresh if one["status"] == "UNHEALTHY"}
        self.unhealthy_since = {one: self.unhealthy_since.get(one, self.clock()) for one in ill}
        for one, since in self.unhealthy_since.items():
            if self.clock() - since >= UNHEALTHY_SECONDS:
                raise NotServing(f"Worker {one} is unhealthy for {UNHEALTHY_SECONDS} s.{self.last_words(one)}")

    def judge_logs(self, worker_id: str) -> None:
        lines = [one["line"] for one in self.api.logs(self.endpoint_id, worker_id, "system")]
        starts = sum(1 for line in lines if STARTED.search(line))
        # One that was ready is started again after each rest, which its log tells in the same words.
        if starts >= (2 * CRASHES if worker_id in self.ready else CRASHES):
            raise NotServing(
                f"Crash loop: worker {worker_id} started its container {starts} times.{self.last_words(worker_id)}"
            )
        missing = [line for line in lines if NO_IMAGE.search(line)]
        if len(missing) > 1:  # the platform tries again by itself once
            raise NotServing(f"The image cannot be pulled: {missing[-1].strip()[:300]}")

    def last_words(self, worker_id: str) -> str:
        """The last lines that the worker's own process wrote."""
        lines = [one["line"].strip() for one in self.api.logs(self.endpoint_id, worker_id, "container", tail=50)]
        lines = [line[:300] for line in lines if line][-3:]
        return f" It wrote last: {' | '.join(lines)}" if lines else " It wrote nothing."
