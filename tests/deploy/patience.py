"""Waiting for a process as long as it moves, however slow the machine is."""

import time

import psutil

QUIET_SECONDS = 60


class Patience:
    """With one process: it ends when the process has used no processor for a minute."""

    def __init__(self, pid):
        self.process = psutil.Process(pid)
        self.used, self.quiet_since = 0.0, time.monotonic()

    def check(self):
        """Raises `AssertionError` where the process is stuck."""
        times = self.process.cpu_times()
        if (used := times.user + times.system) != self.used:
            self.used, self.quiet_since = used, time.monotonic()
        assert time.monotonic() - self.quiet_since < QUIET_SECONDS, f"process {self.process.pid} is stuck"
