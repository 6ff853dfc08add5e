"""The endpoint's worker processes: started, replaced when they end, and ended with the server.

A worker is `runpod_handler.py` in the SDK's own job loop, as on the platform. Knows nothing of jobs.
"""

import asyncio
import itertools
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .plane import Plane, PlaneObserver

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "runpod_handler.py")
LONGEST_PAUSE_SECONDS = 60.0
SETTLED_SECONDS = 60.0  # a worker that has lived so long after it was ready ended for a reason of its own
END_SECONDS = 15.0  # that a worker gets to end by itself
LAST_LINES = 5  # of a worker's log, which are shown where it ends before it is ready


class Workers(PlaneObserver):
    """`environment(name)`: a worker's variables. `say`: prints a line. `log_folder`: None where workers may print."""

    def __init__(
        self,
        plane: Plane,
        environment: Callable[[str], Mapping[str, str]],
        say: Callable[[str], None],
        log_folder: Path | None = None,
        command: Sequence[str] = COMMAND,
    ):
        self.plane, self.environment, self.say = plane, environment, say
        self.log_folder, self.command = log_folder, command
        self.numbers = itertools.count(1)
        self.processes: dict[str, asyncio.subprocess.Process] = {}  # the leashes, by the worker's name
        self.ready_at: dict[str, float] = {}
        self.started_at: dict[str, float] = {}
        self.unfit: dict[str, str] = {}  # why a worker takes no jobs, in its own words
        self.ending = False
        plane.observers.append(self)

    def on_ready(self, worker: str) -> None:
        if worker in self.started_at:
            self.ready_at[worker] = time.monotonic()
            self.say(f"{worker} ready after {self.ready_at[worker] - self.started_at[worker]:.1f} s")

    def on_unfit(self, worker: str, reason: str) -> None:
        self.unfit[worker] = reason

    def on_refresh(self, worker: str) -> None:
        """The platform ends a worker that asks for a fresh one."""
        if worker in self.processes:
            self.say(f"{worker} asks to be replaced, which happens now")
            self.processes[worker].send_signal(signal.SIGTERM)

    async def keep(self, count: int) -> None:
        """Have so many workers at all times; returns once `end` has ended the last of them."""
        await asyncio.gather(*(self.keep_one() for _ in range(count)))

    async def keep_one(self) -> None:
        failures = 0
        while not self.ending:
            name = f"worker-{next(self.numbers)}"
            status = await self.run(name)
            if self.ending:
                return
            ready_at = self.ready_at.pop(name, None)
            if ready_at is not None and time.monotonic() - ready_at > SETTLED_SECONDS:
                failures = 0
            pause = min(LONGEST_PAUSE_SECONDS, float(2**failures - 1))
            failures += 1
            self.say(self.obituary(name, status, ready_at is not None, failures, pause))
            await self.pause(pause)

    async def run(self, name: str) -> int:
        """Start a worker; its exit status, once it has ended."""
        log = None
        if self.log_folder:
            self.log_folder.mkdir(parents=True, exist_ok=True)
            log = self.log_file(name).open("wb")
        self.plane.expect(name)
        self.started_at[name] = time.monotonic()
        leash = (sys.executable, "-m", "qwen_local.leash", *self.command)
        try:
            self.processes[name] = process = await asyncio.create_subprocess_exec(
                *leash, cwd=ROOT, env={**self.environment(name)}, stdin=asyncio.subprocess.PIPE, stdout=log,
                stderr=asyncio.subprocess.STDOUT if log else None, start_new_session=True,
            )  # fmt: skip
        finally:
            if log:
                log.close()
        if self.ending and process.stdin:  # the end came while this one was being started
            process.stdin.close()
        status = await process.wait()
        status = status if status >= 0 else 128 - status  # the leash itself was ended before it could hear a signal
        del self.processes[name], self.started_at[name]
        self.plane.lose(name)
        return status

    def obituary(self, name: str, status: int, was_ready: bool, failures: int, pause: float) -> str:
        cause = f"was ended by signal {status - 128}" if status > 128 else f"ended with exit status {status}"
        text = f"{name} {cause}{'' if was_ready else ' before it was ready'}; "
        reason = self.unfit.pop(name, None)
        if reason:
            text = f"{name} takes no jobs: {reason}; "
        again = "the next one starts " + (f"in {pause:.0f} s" if pause else "now")
        if failures > 2:
            again = f"{failures} workers in a row have ended, so that {again}"
        lines = "" if was_ready or reason or not self.log_folder else self.last_lines(name)
        return text + again + lines

    def last_lines(self, name: str) -> str:
        file = self.log_file(name)
        with file.open(errors="replace") as log:
            lines = deque(log, LAST_LINES)
        place = os.path.relpath(file)
        return f". The last lines of {place}:\n" + "".join(f"    {line.rstrip()[:300]}\n" for line in lines).rstrip()

    def log_file(self, name: str) -> Path:
        return Path(self.log_folder or ".") / f"{name}.log"

    async def pause(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while not self.ending and time.monotonic() < ends:
            await asyncio.sleep(0.1)

    async def end(self, at_once: asyncio.Event) -> None:
        """End all workers, by SIGKILL those that need too long, or all as soon as `at_once` is set."""
        self.ending = True
        processes = list(self.processes.values())
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        waiting = asyncio.ensure_future(asyncio.gather(*(process.wait() for process in processes)))
        hurry = asyncio.ensure_future(at_once.wait())
        await asyncio.wait({waiting, hurry}, timeout=END_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for process in processes:
            if process.returncode is None and process.stdin:
                process.stdin.close()  # the leash kills its worker then
        await waiting
