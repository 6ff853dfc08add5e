"""Waiting as long as something moves, however slow the machine is. Knows nothing of what is waited for."""

import asyncio
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil

from ..conftest import ROOT

QUIET_SECONDS = 60
IDLE_SECONDS = 2  # of processor time in QUIET_SECONDS: a worker that only polls for jobs takes half a second
LITTLE_SECONDS = 30  # of the processor: what takes one or two on a slow machine, and hours where it is done wrongly
LOOK_SECONDS = 5  # from one look at the processes to the next: a look itself takes milliseconds


class Patience:
    """Ends when for a minute a process and its children have hardly computed and nothing more was heard of them.

    `pid`: the process, this one by default; `heard()`: how much has been heard so far, as a number that grows.
    """

    def __init__(self, pid=None, heard=lambda: 0):
        self.process, self.heard = psutil.Process(pid), heard
        self.seconds, self.amount = self.processor_seconds(), heard()
        self.moved_at = self.looked_at = time.monotonic()

    def check(self):
        """Raises `AssertionError` where nothing moves."""
        now = time.monotonic()
        if now - self.looked_at < LOOK_SECONDS:
            return
        self.looked_at = now
        seconds, amount = self.processor_seconds(), self.heard()
        if seconds - self.seconds >= IDLE_SECONDS or amount != self.amount:
            self.seconds, self.amount, self.moved_at = seconds, amount, now
        assert now - self.moved_at < QUIET_SECONDS, f"nothing moves in process {self.process.pid}"

    def processor_seconds(self):
        """Of the process and its children, those that have ended included."""
        total = 0.0
        try:
            for one in (self.process, *self.process.children(recursive=True)):
                total += sum(one.cpu_times()[:4])  # of itself, and of its children that have ended
        except psutil.NoSuchProcess:  # one has ended meanwhile: the next look counts it with its parent
            pass
        return total


def wait_until(true, pid=None, heard=lambda: 0):
    """Raises `AssertionError` where `true()` is not yet so and nothing moves."""
    patience = Patience(pid, heard)
    while not true():
        patience.check()
        time.sleep(0.01)


async def until(true):
    """The same in an event loop, which runs on meanwhile."""
    patience = Patience()
    while not true():
        patience.check()
        await asyncio.sleep(0.005)


@contextmanager
def little_work(seconds=LITTLE_SECONDS):
    """Raises `AssertionError` where the body keeps the processor busy for as long, whatever else the machine does."""
    started = time.process_time()
    yield
    taken = time.process_time() - started
    assert taken < seconds, f"{taken:.1f} seconds of the processor"


def exit_status(process, heard=lambda: 0):
    """Of a `Popen`, when it has ended. Raises `AssertionError` where it has not and nothing in it moves."""
    wait_until(lambda: process.poll() is not None, process.pid, heard)
    return process.returncode


def outcome(process, work):
    """What `work()` returns, which waits for the process: where nothing moves there, it is killed and so both end."""
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(work)
        try:
            wait_until(working.done, process.pid)
        except AssertionError:
            process.kill()
            raise
    return working.result()


def run_to_its_end(command, **options):
    """`subprocess.run` in the repository, its output as text. Raises `AssertionError` where nothing in it moves."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        with subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=error, **options) as process:
            try:
                status = exit_status(process)
            except AssertionError:
                process.kill()
                raise
        for stream in (out, error):
            stream.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), error.read())
