"""The jobs that are under way, each followed by one thread, so that a job goes on without any page that watches it.

A page that is closed loses nothing: the picture is in the history when the page is opened again. Two pages of one
browser watch the same job.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .endpoint import Endpoint
from .errors import PlayError
from .following import Moment, follow
from .form import Form, base64_text, job_input
from .history import Entry, History
from .result import read_result

MOST_JOBS = 50  # that are remembered; the oldest is forgotten first
LOOK_SECONDS = 1.0  # how often a page that watches is given the chance to leave


class FollowedJob:
    """`entry` is what came of the job, once its last moment is there and it has not failed."""

    def __init__(self, job_id: str, form: Form | None):
        self.job_id, self.form = job_id, form
        self.latest = Moment("IN_QUEUE", "Waiting for a worker")
        self.entry: Entry | None = None
        self.changed = threading.Condition()

    def publish(self, moment: Moment) -> None:
        with self.changed:
            self.latest = moment
            self.changed.notify_all()

    def moments(self) -> Iterator[Moment]:
        """From the present one to the last; a page that is slow misses some."""
        shown: Moment | None = None
        while shown is None or not shown.over:
            with self.changed:
                if self.latest is shown:
                    self.changed.wait(LOOK_SECONDS)
                moment = self.latest
            if moment is not shown:
                shown = moment
                yield moment


class Jobs:
    """`folder` is where pictures are kept; `dollars_an_hour` is the price of a worker, where it is known."""

    def __init__(self, endpoint: Endpoint, history: History, folder: Path, dollars_an_hour: float | None = None):
        self.endpoint, self.history, self.folder, self.dollars_an_hour = endpoint, history, folder, dollars_an_hour
        self.lock = threading.Lock()
        self.known: OrderedDict[str, FollowedJob] = OrderedDict()

    def begin(self, visitor: str, form: Form) -> FollowedJob:
        """Hands the job in. Raises `PlayError` where it is not accepted."""
        return self.follow(visitor, self.endpoint.submit(job_input(form, base64_text)), form)

    def pick_up(self, visitor: str, job_id: str) -> FollowedJob | None:
        """A job that a page of this browser has begun; None where it is over or nobody knows it."""
        with self.lock:
            known = self.known.get(job_id)
        if known:
            return None if known.latest.over else known
        try:
            status = self.endpoint.status(job_id)
        except PlayError:
            return None
        return None if status.over else self.follow(visitor, job_id, None)

    def follow(self, visitor: str, job_id: str, form: Form | None) -> FollowedJob:
        job = FollowedJob(job_id, form)
        with self.lock:
            self.known[job_id] = job
            while len(self.known) > MOST_JOBS:
                self.known.popitem(last=False)
        threading.Thread(target=self.run, args=(visitor, job), daemon=True).start()
        return job

    def run(self, visitor: str, job: FollowedJob) -> None:
        try:
            for moment in follow(self.endpoint, job.job_id):
                if moment.reply is not None:
                    self.keep(visitor, job, moment)
                job.publish(moment)
        except PlayError as error:
            job.publish(replace(job.latest, text="Failed.", failure=str(error), reply=None))

    def keep(self, visitor: str, job: FollowedJob, moment: Moment) -> None:
        result = read_result(moment.reply or {}, self.endpoint.fetch, moment.seconds, self.dollars_an_hour)
        file = self.folder / f"{''.join(filter(str.isalnum, job.job_id))}{result.suffix}"
        file.write_bytes(result.data)
        job.entry = Entry(job.job_id, job.form, result, file)
        self.history.add(visitor, job.entry)
