"""What rank 0 asks of rank 1 and is answered, over a pair of sockets that the child has inherited.

Whichever process ends, for whatever reason, the system closes its end, and the other hears that at once. Nothing here
waits for a fixed time: an answer is waited for as long as the other process computes or reads. Tensors go another way
(`group.py`). Knows nothing of what is asked.
"""

import ctypes
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

LOOK_SECONDS = 1.0  # between looks at whether the other process still lives, beside what the pair of sockets says
STILL_SECONDS = 30.0  # that a process may neither compute nor read before it counts as stuck
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a child gets when its parent ends


@dataclass(frozen=True)
class Answer:
    """To the question of this number: its `value`, or in words why there is none."""

    number: int
    value: Any = None
    failure: str = ""
    out_of_memory: bool = False


class RankEnded(Exception):
    """The other process has ended or is stuck; its words say which."""


class Connection(Protocol):
    """What is used here of an end of `multiprocessing.Pipe`."""

    def poll(self, timeout: float) -> bool: ...
    def recv_bytes(self) -> bytes: ...
    def send_bytes(self, buf: bytes) -> None: ...


class Channel:
    """One end. `lives`: whether the other process does; `on_end` is called once, on a thread of the channel's own."""

    def __init__(self, connection: Connection, lives: Callable[[], bool], on_end: Callable[[], None]):
        self.connection, self.lives, self.on_end = connection, lives, on_end
        self.arrived: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None once the other end is closed
        self.lock = threading.Lock()
        threading.Thread(target=self.listen, name="other rank", daemon=True).start()

    def listen(self) -> None:
        """The life of the channel's thread."""
        try:
            while True:
                # A process that was forked beside this one may hold the other end open.
                while not self.connection.poll(LOOK_SECONDS):
                    if not self.lives():
                        raise EOFError
                self.arrived.put(self.connection.recv_bytes())
        except (EOFError, OSError):
            self.arrived.put(None)
            self.on_end()

    def send(self, message: Any) -> None:
        """Raises `RankEnded` where nobody hears it any more."""
        try:
            with self.lock:
                self.connection.send_bytes(pickle.dumps(message))
        except OSError:
            raise RankEnded("it has ended") from None

    def receive(self, progress: Callable[[], object] | None = None, still_seconds: float = STILL_SECONDS) -> Any:
        """The next message. Raises `RankEnded`, also where what `progress` says has not changed for so long."""
        before, since = None, time.monotonic()
        while True:
            try:
                arrived = self.arrived.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                now = progress() if progress else time.monotonic()
                if now != before:
                    before, since = now, time.monotonic()
                elif time.monotonic() - since > still_seconds:
                    raise RankEnded(f"it has neither computed nor read for {still_seconds:.0f} seconds") from None
                continue
            if arrived is None:
                self.arrived.put(None)
                raise RankEnded("it has ended")
            return pickle.loads(arrived)


def progress_of(process: int) -> Callable[[], object]:
    """What changes as long as the process of this number, or one that it has started, computes or reads."""

    def look() -> object:
        try:
            own = psutil.Process(process)
            every = [own, *own.children(recursive=True)]
            return round(sum(sum(one.cpu_times()[:2]) for one in every), 1), sum(map(bytes_read, every))
        except psutil.Error:
            return None

    return look


def bytes_read(process: psutil.Process) -> int:
    """From files, 0 where the system does not say."""
    try:
        return int(getattr(process.io_counters(), "read_chars", 0))
    except (psutil.Error, AttributeError):
        return 0


def die_with(parent: int) -> None:
    """Have this process end when its parent does, also where that is killed. The parent may have ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
