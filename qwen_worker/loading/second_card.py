"""The second card's process as the worker sees it: started, loaded beside the first card, asked for passes, and heard.

It computes passes of transformers and decides nothing. It is told what comes before any tensor is sent, and says what
it will send before the worker waits for that: a stop, a deadline or a failure of either rank leaves nobody waiting.
Where it cannot be had, the first card draws alone, and the reason stands in the log and in `health`. Once pictures are
drawn by it, its end is the worker's: the platform starts another, and hands the jobs out again.

Imports torch inside functions. Knows nothing of what the passes are for.
"""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import LoadError
from ..log import log_line
from ..memory import cuda, two_cards
from ..memory.failures import absorb_failure
from ..memory.footprint import GB, Plan
from ..memory.machine import Machine, read_second_gpu
from ..memory.nvml import Gpu
from ..model_settings import Gpus
from ..ranks.channel import Answer, Channel, RankEnded, progress_of
from ..ranks.link import second_device, working_environment
from ..serving.job_loop import end_process
from ..settings import Settings
from ..speed.compile_ahead import CompiledLoras
from ..speed.speedups import Speed
from .rank_messages import TransformerLoad

if TYPE_CHECKING:
    from ..ranks.shared_rows import SharedHandle

COMMAND = (sys.executable, "-m", "qwen_worker.second_rank")
PROCESS = "the second card's process: "  # before the words of what fails between the ranks
# Within which the ranks meet, both of which are loaded by then. NCCL computes while it waits, and shows no standstill.
JOIN_SECONDS = 300.0
END_SECONDS = 5.0  # that a process may take to be gone once its end of the channel is closed


@dataclass
class Counts:
    """What the second card has done. `waited_seconds`: of the worker, for predictions that were not there yet."""

    passes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    waited_seconds: float = 0.0
    used_bytes: int = 0  # of the second card, or of RAM on a CPU, when it was last heard of


@dataclass
class SecondCard:
    """For the inference thread; `report` is for any.

    `end`: of the worker, where the second process has ended; `try_link`: the variables with which the cards reach each
    other, or a `LoadError`.
    """

    settings: Settings
    end: Callable[[int], None] = end_process
    second_gpu: Callable[[], Gpu | None] = read_second_gpu
    try_link: Callable[[], dict[str, str]] = working_environment
    failure: str = ""  # why the first card draws alone for good: no plan is made with the second any more
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.device = "cpu"
        self.link: dict[str, str] | None = None  # the variables with which the cards reach each other, once it is known
        self.has_joined = False  # whether tensors can be sent
        self.refusals: dict[str, str] = {}  # by model, why the first card draws it alone by its present plan
        self.asked = 0
        self.loading: dict[str, tuple[int, ...]] = {}  # by model, the numbers of its load's questions
        self.models: dict[str, str] = {}  # that it has, by their settings, and where
        self.is_paused = False

    # Whether there is one

    def extend(self, plan: Plan, machine: Machine, models: Collection[str]) -> Plan:
        """The plan of these models for both cards; as it is, where there is to be one or the second cannot be used."""
        asked = self.settings.QWEN_GPUS
        if asked is Gpus.ONE or self.failure:
            return plan
        on_cpu, cap_gb = plan.device == "cpu", self.settings.QWEN_VRAM_GB
        second = None if on_cpu else self.second_gpu()
        if second is None and asked is Gpus.AUTO:
            self.refusals |= dict.fromkeys(models, "this worker has one card")
            return plan
        cost, cap_bytes = 1 if on_cpu else cuda.pinned_cost(), round(cap_gb * GB) if cap_gb else None
        try:
            extended = two_cards.on_two_cards(plan, machine, second, cap_bytes, cost)
        except LoadError as error:
            self.refuse(error.reason, models)
            return plan
        if not on_cpu and self.link is None:
            # Cards that do not reach each other would hang in the worker's own process: two others try it first, before
            # the card is full.
            with self.costing_no_model():
                self.link = self.try_link()
            if self.link is None:
                return plan
            os.environ.update(self.link)
        for model in models:
            self.refusals.pop(model, None)
        return extended

    def serves(self, model: str) -> bool:
        return model in self.models and not self.is_paused

    @contextmanager
    def pause(self) -> Generator[None]:
        """Within, the first card draws alone."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def refuse(self, reason: str, models: Collection[str]) -> None:
        """Have the first card draw these models alone, by their present plan."""
        if any(self.refusals.get(model) != reason for model in models):
            log_line(None, "WARN", f"one card draws alone: {reason}")
        self.refusals |= dict.fromkeys(models, reason)

    def stand_down(self, reason: str) -> None:
        """Have the first card draw alone from now on."""
        if not self.failure:
            log_line(None, "WARN", f"one card draws alone: {reason}")
            self.failure = reason
        self.close()

    @contextmanager
    def costing_no_model(self, where: str = "") -> Generator[None]:
        """Within, whatever fails costs the second card, and not the model; `where` is said before its words.

        Raises `CudaSpoiledError` where the first card's CUDA is spoiled.
        """
        reason = ""
        with absorb_failure() as failures:
            try:
                yield
            except (LoadError, RankEnded) as failure:
                reason = str(failure)
        if reason or failures:
            self.stand_down(where + (reason or failures[0].reason))

    def report(self, model: str) -> dict[str, Any] | None:
        """What `health` tells of it beside this model; None where one card was asked for."""
        if self.settings.QWEN_GPUS is Gpus.ONE:
            return None
        if model not in self.models:
            return {"state": self.failure or self.refusals.get(model, "not loaded")}
        counts = self.counts
        return {
            "state": "on",
            "plan": self.models[model],
            "used_gb": round(counts.used_bytes / GB, 3),
            "passes": counts.passes,
            "sent_mb": round(counts.sent_bytes / 1e6, 3),
            "received_mb": round(counts.received_bytes / 1e6, 3),
            "exchange_seconds": round(counts.waited_seconds, 3),
        }

    # Loading

    def begin_load(self, load: TransformerLoad) -> None:
        """Have it read the transformer, while the worker reads its own. Not waited for."""
        if load.plan.cards == 1 or self.failure:
            return
        with self.costing_no_model(PROCESS):
            if self.channel is None:
                self.start(load.plan.device)
            self.loading[load.model] = (self.post("load", load),)

    def complete_load(self, model: str, rows: "SharedHandle | None", wanted: CompiledLoras) -> None:
        """Have it take the table's rows, and compile, also for the `wanted` LoRAs. Not waited for."""
        if model in self.loading:
            import torch

            with self.costing_no_model(PROCESS):
                self.loading[model] += (self.post("complete", model, rows, torch.get_num_threads(), wanted),)

    def await_load(self, model: str, speed: Speed) -> bool:
        """Whether it has the model, once it has loaded that. A speed-up that it lacks stands down here too."""
        if model not in self.loading:
            return False
        with self.costing_no_model(PROCESS):
            answers = [self.answer(number) for number in self.loading[model]]
            if failed := next((answer for answer in answers if answer.failure), None):
                self.stand_down(f"the second card cannot load {model.rpartition('/')[2]}: {failed.failure}")
                return False
            self.join()
            del self.loading[model]
            self.models[model], report = answers[-1].value
            report.apply(speed)
        return model in self.models

    def release(self, model: str) -> None:
        """Have it forget a model that the worker has let go of, or whose load has failed.

        Waited for: the next plan counts with what is free on both cards.
        """
        self.models.pop(model, None)
        self.loading.pop(model, None)
        if self.channel:
            with suppress(RankEnded):
                self.ask("release", model)

    def start(self, device: str) -> None:
        """Start the process, which imports its libraries while the worker does.

        Raises `OSError`, or `RuntimeError` where the system starts no more threads.
        """
        ours, theirs = multiprocessing.Pipe()
        variables = os.environ | (second_device() if device == "cuda" else {})
        arguments = [*COMMAND, str(theirs.fileno()), str(os.getpid())]
        self.process = process = subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), env=variables)
        theirs.close()
        self.channel = Channel(ours, lambda: process.poll() is None, self.on_end)
        self.device = device

    def join(self) -> None:
        """Have tensors sent from now on.

        Raises `LoadError` where either rank fails or both take too long, `RankEnded`, and `RuntimeError` where no store
        can be opened.
        """
        if self.has_joined:
            return
        from ..ranks import group

        assert self.process
        store, progress, began = group.open_store(), progress_of(self.process.pid), time.monotonic()
        if failure := self.ask("reach", store.port).failure:
            raise LoadError(failure)
        # The other rank can fail or end now as well, and this one's part in the meeting would wait on.
        number, meeting = self.post("join"), group.Meeting(store, self.device)

        def look() -> object:
            if meeting.failure or time.monotonic() - began > JOIN_SECONDS:
                raise LoadError(meeting.failure or f"it has not met the first within {JOIN_SECONDS:.0f} seconds")
            return progress()

        failure = self.answer(number, look).failure
        meeting.join(0 if failure else JOIN_SECONDS)
        if failure or meeting.failure or meeting.is_alive():
            raise LoadError(meeting.failure or failure or "the first card has not met it")
        self.has_joined = True

    # Questions

    def post(self, question: str, *arguments: Any) -> int:
        """Ask without waiting; the question's number. Raises `RankEnded`."""
        assert self.channel
        self.asked += 1
        # The arguments apart: what cannot be read of them, such as a LoRA's damaged file, is the question's failure.
        self.channel.send((self.asked, question, pickle.dumps(arguments)))
        return self.asked

    def answer(self, number: int, progress: Callable[[], object] | None = None) -> Answer:
        """The answer to that question; those to earlier ones that nobody has taken are dropped.

        `progress`: changes as long as the answer may come. Raises `RankEnded`, and what `progress` raises.
        """
        assert self.channel and self.process
        progress = progress or progress_of(self.process.pid)
        try:
            while True:
                answer, used_bytes = self.channel.receive(progress)
                self.counts.used_bytes = used_bytes
                if answer.number == number:
                    return answer
        except RankEnded as failure:
            if self.is_needed:
                self.end_worker(str(failure))
            raise

    @property
    def is_needed(self) -> bool:
        """Whether its end is the worker's. One that loads may fail."""
        return bool(self.models) and not self.loading

    def ask(self, question: str, *arguments: Any) -> Answer:
        """Raises `RankEnded`."""
        return self.answer(self.post(question, *arguments))

    @contextmanager
    def activating(self, model: str) -> Generator[None]:
        """Have a swapped transformer brought to its card, if it has that, while the worker brings its own."""
        if model not in self.models:
            yield
            return
        number = self.post("activate", model)
        yield
        if failure := self.answer(number).failure:
            self.stand_down(f"{model.rpartition('/')[2]} could not be brought to the second card: {failure}")

    # Its end

    def on_end(self) -> None:
        """On the channel's thread: the process has ended, or closed its end."""
        if self.is_needed:
            self.end_worker("it has ended")

    def end_worker(self, reason: str) -> None:
        process = self.process
        if process:
            with suppress(subprocess.TimeoutExpired):
                reason += f" with status {process.wait(0.5)}"
            process.kill()
        log_line(None, "ERROR", f"the worker ends, because the second card's process is gone: {reason}")
        self.end(1)

    def close(self) -> None:
        """End the process, and wait for that."""
        from ..ranks import group

        self.models.clear()
        self.loading.clear()
        if self.process:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
            # NCCL leaves a group with all of its ranks together, and would wait for the one that has ended.
            if self.device == "cpu":
                group.leave()
        self.process = self.channel = None
        self.has_joined = False
