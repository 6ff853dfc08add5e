"""Work beside the work that is tested: copies to a device and products on it, each on a stream of its own.

Imports torch inside functions. Knows nothing of what it races with.
"""

import threading
import traceback
from contextlib import nullcontext
from typing import Any

SIDE = {"cuda": 2048, "cpu": 64}  # of the matrices


class Racing:
    """Races from its beginning to its end, which raises what a thread has met. A context manager."""

    def __init__(self, device: str):
        self.device, self.side = device, SIDE[device]
        self.over, self.rounds = threading.Event(), 0
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self.race, args=(work,)) for work in (self.copy, self.multiply)]

    def __enter__(self) -> "Racing":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()
        assert not self.failures, self.failures

    def race(self, work: Any) -> None:
        import torch

        stream = torch.cuda.Stream() if self.device == "cuda" else None
        try:
            with torch.no_grad(), torch.cuda.stream(stream) if stream else nullcontext():
                while not self.over.is_set():
                    work(torch)
                    if stream:
                        stream.synchronize()  # the queue stays short, and the end is soon
                    self.rounds += 1
        except Exception:  # noqa: BLE001  told by the test's own thread
            self.failures.append(traceback.format_exc())

    def copy(self, torch: Any) -> None:
        host = torch.full((self.side, self.side), 3.0, pin_memory=self.device == "cuda")
        there = host.to(self.device, non_blocking=True, copy=True)
        back = there.to("cpu", non_blocking=True, copy=True)
        if self.device == "cuda":
            torch.cuda.current_stream().synchronize()
        assert bool((back == 3).all())

    def multiply(self, torch: Any) -> None:
        ones = torch.ones(self.side, self.side, device=self.device)
        assert float((ones @ ones)[0, 0]) == self.side
