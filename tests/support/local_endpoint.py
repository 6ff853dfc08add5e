"""`python -m qwen_local` as a process of its own, with what it prints. Knows nothing of what is asked of it."""

import re
import signal
import subprocess
import sys
import threading

import psutil

from ..conftest import ROOT
from .patience import exit_status, wait_until


def is_alive(process):
    """A process that has ended and that nobody has asked for its status is not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class LocalEndpoint:
    """`with LocalEndpoint(environment, *options) as endpoint`: on a free port; `.address` is where it listens."""

    def __init__(self, env, *options):
        self.env, self.options, self.lines = env, options, []

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qwen_local", "--port", "0", *self.options], cwd=ROOT, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()
        self.wait_for(lambda: self.lines)
        self.address = re.search(r"Listening at (http://\S+?),", self.lines[0])[1]
        return self

    def wait_for(self, true):
        """Until it is so. Raises `AssertionError` where nothing moves or the process has ended."""

        def so():
            assert self.process.poll() is None, self.lines
            return true()

        wait_until(so, self.process.pid, lambda: len(self.lines))

    def said(self, words):
        return any(words in line for line in list(self.lines))

    def workers(self):
        """The worker processes themselves, without the heartbeats beside them."""
        leashes = psutil.Process(self.process.pid).children()
        return [one for one in self.family() if "runpod_handler.py" in one.cmdline() and one.parent() in leashes]

    def family(self):
        """All processes below the server."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number=signal.SIGTERM):
        """Send the signal; the exit status."""
        self.process.send_signal(number)
        return exit_status(self.process, lambda: len(self.lines))

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end()
        self.reader.join(10)
        self.process.stdout.close()
