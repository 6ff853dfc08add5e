"""Holds one worker process: `python -m qwen_local.leash COMMAND ...` ends the worker whenever its own input is closed.

However the server ends, even by SIGKILL, its end of the pipe is closed then, so that no worker outlives it. And when a
worker ends, by itself or by SIGKILL, the heartbeat process that the SDK has started beside it ends too. Exits with the
worker's own status, or 128 and the number of the signal that ended it. Knows nothing of jobs.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main() -> None:
    early: list[int] = []  # signals that came before there was a worker
    signal.signal(signal.SIGTERM, lambda number, _: early.append(number))
    # In a session, and so a process group, of its own: the group can be killed whole.
    worker = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda number, _: worker.send_signal(number))
    for number in early:
        worker.send_signal(number)
    threading.Thread(target=kill_at_end_of_input, args=(worker.pid,), daemon=True).start()
    status = worker.wait()
    kill_group(worker.pid)
    sys.exit(status if status >= 0 else 128 - status)


def kill_at_end_of_input(group: int) -> None:
    while os.read(0, 4096):
        pass
    kill_group(group)


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
