"""Whether the new workers come up: the rollout, their states, and in their logs the crash loops and missing images.

Looks and judges; changes nothing. Knows nothing of what a deployment wants.
"""

from collections.abc import Callable, Sequence

from ..errors import NotServing
from .api import Api
from .schemas import JobStatus, Rollout, Worker
from .start_log import CRASHES, count_starts, missing_image
from .waiting import READY, Waiting

UNHEALTHY_SECONDS = 120
PRIVATE = ". For a private image: `registry add`, and --registry-credential."


class Watch:
    """Follows an endpoint's workers from the moment it is made. `capacity` and `patience` are seconds.

    `version_before` is the endpoint's version before the change; None where no worker is replaced. `show` takes the
    line of progress.
    """

    def __init__(
        self, api: Api, endpoint_id: str, version_before: int | None, patience: float, capacity: float,
        show: Callable[[str], None],
    ):  # fmt: skip
        self.api, self.endpoint_id, self.version_before = api, endpoint_id, version_before
        self.patience, self.capacity, self.show = patience, capacity, show
        self.clock, self.waiting = api.client.clock, Waiting(api, endpoint_id)
        self.started = self.clock.now()
        self.throttled_since: float | None = None
        self.unhealthy_since: dict[str, float] = {}
        self.stale_count = 0  # workers of the old version at the last look
        self.old_ids: set[str] = set()  # workers that were of the old version when they were last seen
        self.seen_ids: set[str] = set()  # new workers that had a card, present or gone
        self.ready_ids: set[str] = set()  # those of them that were ready at some time

    @property
    def seconds_left(self) -> float:
        return self.patience - (self.clock.now() - self.started)

    def look(self, note: str = "", status: JobStatus | None = None) -> None:
        """One look at the workers. Raises `NotServing` with what the logs say of why they do not come up.

        `note` goes into the line of progress, with how far the job of `status` is.
        """
        answer = self.api.workers(self.endpoint_id)
        rollout = self.api.releases(self.endpoint_id)["rollout"]
        workers, version = answer["workers"], answer.get("endpointVersion")
        fresh = [worker for worker in workers if not self.is_stale(worker, version)]
        fresh_ids = {worker["id"] for worker in fresh}
        self.stale_count = len(workers) - len(fresh)
        self.old_ids = (self.old_ids | {worker["id"] for worker in workers}) - fresh_ids
        self.seen_ids |= {worker["id"] for worker in fresh if worker["status"] != "THROTTLED"}
        self.ready_ids |= {worker["id"] for worker in fresh if worker["status"] in READY}
        logs = self.waiting.read_logs(fresh)
        self.show(self.progress_line(rollout, fresh, note, status))
        self.judge_capacity(fresh)
        self.judge_health(fresh)
        for worker_id, lines in logs.items():
            self.judge_log(worker_id, lines)
        gone = len(self.seen_ids - fresh_ids - self.ready_ids)
        if gone >= CRASHES:
            raise NotServing(f"{gone} new workers ended before they were ready.")
        if self.seconds_left <= 0:
            raise NotServing(f"The new workers do not serve after {self.patience:.0f} s.")

    def is_stale(self, worker: Worker, version: int | None) -> bool:
        # Until the platform has counted the change, every worker is of the old version, whatever `isStale` says.
        if self.version_before is not None and version is not None and version <= self.version_before:
            return True
        return worker["isStale"]

    def progress_line(self, rollout: Rollout, fresh: list[Worker], note: str, status: JobStatus | None) -> str:
        share = f"{rollout['workersOnLatest']} of {rollout['workersTotal']} workers on the new version"
        if status and status.get("status") != "IN_QUEUE":
            reason = self.waiting.describe_running_job(status)
        else:
            reason = self.waiting.describe_workers(fresh)
        seconds = f"{self.clock.now() - self.started:.0f} s in all"
        return " · ".join(part for part in (share, note, reason, seconds) if part)

    def judge_capacity(self, fresh: list[Worker]) -> None:
        throttled = [worker for worker in fresh if worker["status"] == "THROTTLED"]
        if not throttled or len(throttled) < len(fresh):
            self.throttled_since = None
            return
        if self.throttled_since is None:
            self.throttled_since = self.clock.now()
        if self.clock.now() - self.throttled_since >= self.capacity:
            raise NotServing(
                f"RunPod has no card for the workers: {len(throttled)} throttled for {self.capacity:.0f} s. "
                "Add pools with --gpu, lift --data-centers, or try later."
            )

    def judge_health(self, fresh: list[Worker]) -> None:
        unhealthy = {worker["id"] for worker in fresh if worker["status"] == "UNHEALTHY"}
        self.unhealthy_since = {
            worker_id: self.unhealthy_since.get(worker_id, self.clock.now()) for worker_id in unhealthy
        }
        for worker_id, since in self.unhealthy_since.items():
            if self.clock.now() - since >= UNHEALTHY_SECONDS:
                raise NotServing(
                    f"Worker {worker_id} is unhealthy for {UNHEALTHY_SECONDS} s."
                    f"{last_words(self.api, self.endpoint_id, worker_id)}"
                )

    def judge_log(self, worker_id: str, lines: Sequence[str]) -> None:
        """`lines`: the worker's system log so far."""
        starts = count_starts(lines)
        # The platform starts a worker that was ready again after each rest, and the log says so in the same words.
        if starts >= (2 * CRASHES if worker_id in self.ready_ids else CRASHES):
            raise NotServing(
                f"Crash loop: worker {worker_id} started its container {starts} times."
                f"{last_words(self.api, self.endpoint_id, worker_id)}"
            )
        if words := missing_image(lines):
            raise NotServing(f"The image cannot be pulled: {words}{PRIVATE}")


def last_words(api: Api, endpoint_id: str, worker_id: str) -> str:
    """The last lines that the worker's own process wrote, as a sentence after another one."""
    entries = api.logs(endpoint_id, worker_id, "container", tail=50)
    lines = [line[:300] for entry in entries if (line := entry["line"].strip())][-3:]
    return f" It wrote last: {' | '.join(lines)}" if lines else " It wrote nothing."
