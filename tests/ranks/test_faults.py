"""A worker of two cards under faults: stops, deadlines, either rank out of memory, or killed. Each job ends once.

The platform is the control plane on loopback, which counts what is handed out and answered.
"""

import os
import random
import signal
import time

import psutil
import pytest

from ..support import faulty_ranks
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.patience import wait_until

JOB = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 6, "seed": 1}
LONG = {**JOB, "num_inference_steps": 100, "width": 1024, "height": 1024, "num_images": 4}  # on any machine
HANG_SECONDS = 60  # that nothing may take longer than once it is to end, on a busy machine


class TwoCards:
    """Workers of two cards, one after the other, on one control plane. `folder`: of planted faults."""

    def __init__(self, plane, environment, folder):
        self.plane, self.environment, self.folder = plane, environment, folder
        self.worker, self.count, self.stopped = None, 0, set()
        self.start()

    def start(self):
        self.worker = WorkerProcess(self.environment, ("-m", "tests.support.faulty_ranks", str(self.folder)))
        self.worker.__enter__()
        self.second = None

    def second_rank(self):
        """The process of the second card, once there is one."""
        own = psutil.Process(self.worker.process.pid)

        def find():
            return [one for one in own.children() if str(self.folder) in one.cmdline() and len(one.cmdline()) == 6]

        wait_until(find, own.pid)
        (self.second,) = find()
        return self.second

    def put(self, fields=JOB, **beside):
        self.count += 1
        name = f"job-{self.count}"
        self.plane.put(name, fields, **beside)
        return name

    def drawn(self, fields=JOB, gpus=2):
        """The picture of a job that must succeed, on so many cards."""
        body = self.plane.result(self.put(fields))
        assert "error" not in body, body
        assert body["output"]["metadata"]["gpus"] == gpus
        return body["output"]["image"]

    def stop_in_a_step(self, steps):
        name = self.put(LONG)
        self.plane.wait(lambda: self.plane.steps(name) >= steps)
        self.plane.stop(name)
        self.stopped.add(name)
        picture = self.drawn()
        assert self.plane.steps(name) < LONG["num_inference_steps"] / 2  # the SDK asks for stops about once a second
        return picture

    def out_of_time(self):
        name = self.put(LONG, policy={"executionTimeout": 5_000})
        body = self.plane.result(name)
        assert "deadline_exceeded" in str(body), body

    def fail(self, rank, words, gpus=2):
        """A job within which the rank fails: it is drawn all the same, once more."""
        faulty_ranks.plant(self.folder, rank, words)
        picture = self.drawn(gpus=gpus)
        assert faulty_ranks.is_met(self.folder, rank)
        return picture

    def fail_by_an_error(self, rank, words=faulty_ranks.ERROR):
        """One card draws from then on, and health says why; the next worker has both again."""
        picture = self.fail(rank, words, gpus=1)
        assert self.drawn(gpus=1) == picture
        report = self.plane.result(self.put({"task": "health"}))["output"]["models"][0]
        assert "a planted error" in report["second_card"]["state"]
        assert self.worker.terminate() == 0
        self.end()
        self.start()
        return picture

    def kill(self, rank):
        """A rank is killed within a job: the other ends too, and the next worker draws the job."""
        fields = {**JOB, "num_inference_steps": 40}
        name = self.put(fields)
        self.plane.wait(lambda: self.plane.steps(name) > 1)
        second = self.second_rank()
        killed, other = (self.worker.process.pid, second) if rank == 0 else (second.pid, self.worker.process)
        started = time.monotonic()
        os.kill(killed, signal.SIGKILL)
        if rank == 1:
            assert self.worker.end() == 1
        else:
            self.worker.process.wait()
            wait_until(lambda: not is_alive(other))
        assert time.monotonic() - started < HANG_SECONDS
        assert name not in self.plane.bodies
        said = [one["message"] for one in self.worker.messages()]
        assert rank == 0 or any("the second card's process is gone: it has ended with status -9" in one for one in said)
        self.end()
        self.start()
        self.plane.put(name, fields)  # the platform hands it out again
        assert self.plane.result(name)["output"]["metadata"]["gpus"] == 2

    def end(self):
        self.worker.__exit__()
        assert self.second is None or not is_alive(self.second)


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def two_cards(environment, web, tmp_path):
    plane = ControlPlane()
    folder = tmp_path / "faults"
    folder.mkdir()
    # A stop is heard by a poll, and how far a job is, by its progress.
    settings = {"QWEN_GPUS": "2", "QWEN_FALLBACK": "forbid", "QWEN_PROGRESS_SECONDS": "0.05", "QWEN_TASKS": "generate"}
    cards = TwoCards(plane, environment(**settings, **addresses(web(plane))), folder)
    yield cards
    cards.worker.__exit__()


def test_jobs_end_once_and_draw_the_same_picture_whatever_failed_before(two_cards, sample):
    chance, cards = random.Random(25), two_cards
    picture = cards.drawn()
    faults = [
        lambda: cards.stop_in_a_step(chance.randint(1, 6)),
        cards.out_of_time,
        lambda: cards.fail(1, faulty_ranks.OUT_OF_MEMORY),
        lambda: cards.fail(0, faulty_ranks.OUT_OF_MEMORY),
    ]
    ends = [lambda: cards.kill(1), lambda: cards.fail_by_an_error(1, faulty_ranks.SPOILED)]
    more = [lambda: cards.kill(0), lambda: cards.fail_by_an_error(1), lambda: cards.fail_by_an_error(0)]
    ends += sample([], more)
    rounds = [*faults * sample(1, 6), *ends]
    for number, fault in enumerate(rounds):
        seen = fault()
        assert seen in (None, picture), f"fault {number}"
        assert cards.drawn() == picture, f"after fault {number}"
    assert cards.count >= sample(14, 60)
    assert cards.second_rank()
    assert cards.worker.terminate() == 0
    wait_until(lambda: not is_alive(cards.second))
    answered = {name: len(bodies) for name, bodies in cards.plane.bodies.items()}
    given = {f"job-{number}" for number in range(1, cards.count + 1)}
    assert answered == dict.fromkeys(given - cards.stopped, 1)
