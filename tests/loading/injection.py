"""A fault planted where it would arise, and what the jobs around it are answered: a first job, `health`, the next job.

The worker is the real one on the tiny checkpoint: on this machine's processor or, for faults of CUDA itself, on a card
without arithmetic in a process of its own. `faults` lists the faults. Knows nothing of which of them must be survived.
"""

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_worker.errors import describe_error
from qwen_worker.memory import placement
from qwen_worker.model_settings import Saving

from ..null_card.card import Card
from ..support import tiny_worker
from ..support.tiny_worker import JOB

LOAD, DRAW = "while the model is loaded", "while a job is drawn"
SPOILED = "CUDA error: an illegal memory access was encountered"


@dataclass(frozen=True)
class Fault:
    """What goes wrong, where, and what must come of it.

    `seams`: functions that raise `error`, as module:name, in the first `times` calls after `phase` has begun; without
    an error `change` is applied to what they return, or they are gone if there is no change either.
    `settings`: the worker's; `layout`: fields of the plan, which it has unless it must do without; `job`: its fields;
    `loads`: the tasks whose models are loaded before a phase of drawing; `constants`: of modules, by module:name.
    `card`: a null card to live on; `fields`: of it, set when `phase` begins. `spoils`: CUDA works no more afterwards.
    `off`: what `health` says stands down. `code`: of the first reply, empty if it is a picture; `stock`: why stock
    diffusers cannot run either, empty if it can.
    """

    name: str
    where: str
    error: BaseException | None = None
    seams: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    phase: str = LOAD
    times: float = math.inf
    change: Callable[[Any], Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    loads: tuple[str, ...] = ("generate",)
    constants: Mapping[str, Any] = field(default_factory=dict)
    card: Card | None = None
    fields: Mapping[str, float] = field(default_factory=dict)
    spoils: bool = False
    code: str = ""
    stock: str = ""


class Planted:
    """The fault in its seams for as long as `patch` lasts; `armed` once its phase has begun."""

    def __init__(self, fault: Fault, patch: pytest.MonkeyPatch):
        self.fault, self.left, self.armed, self.met = fault, fault.times, False, 0
        if fault.phase == LOAD:
            self.arm()
        for seam in fault.seams:
            self.plant(seam, patch)
        for place, value in fault.constants.items():
            patch.setattr(place.replace(":", "."), value)

    def arm(self) -> None:
        self.armed = True
        if self.fault.fields:
            from ..null_card import fields

            # Launches are counted from the process's first, and a fault says how many more go well.
            after = self.fault.fields.get("launch_error_after", 0)
            fields.put(**{**self.fault.fields, "launch_error_after": fields.read("launches") + after})

    def plant(self, seam: str, patch: pytest.MonkeyPatch) -> None:
        fault, (module, _, path) = self.fault, seam.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        if fault.error is None and fault.change is None:
            patch.delattr(owner, name)
            return
        real = getattr(owner, name)

        @functools.wraps(real)
        def planted(*arguments: Any, **options: Any) -> Any:
            if not self.armed or self.left <= 0:
                return real(*arguments, **options)
            self.met, self.left = self.met + 1, self.left - 1
            if fault.error is not None:
                raise fresh(fault.error)
            return fault.change(real(*arguments, **options))

        patch.setattr(owner, name, planted)


def fresh(error: BaseException) -> BaseException:
    """The error as one that was never raised: a traceback would hold the frames of an earlier job."""
    if isinstance(error, OSError):
        return type(error)(error.errno, error.strerror, error.filename)
    return type(error)(*error.args)


def run_block(block: Any, **inputs: Any) -> Any:
    """What stands for compiled code: the block's own. Compiling takes half a minute and is not what fails here."""
    return type(block).forward(block, **inputs)


@contextmanager
def surroundings(fault: Fault) -> Iterator[Planted]:
    """Within, the fault is planted, blocks are not really compiled, and plans have the fault's layout."""
    with pytest.MonkeyPatch.context() as patch:
        if fault.settings.get("QWEN_SPEEDUPS"):
            from qwen_worker.speed import compiled

            patch.setattr(compiled, "compiled_forward", lambda _: lambda block, **inputs: run_block(block, **inputs))
        plan = placement.plan

        def plan_with_layout(*arguments: Any, **options: Any) -> Any:
            made = plan(*arguments, **options)
            without, savings = arguments[6], arguments[4]  # as the planner passes them
            left_out = {*without, *(saving.value for saving in Saving if saving not in savings)}
            wanted = {name: value for name, value in fault.layout.items() if not {name, value} & left_out}
            return replace(made, **wanted)

        patch.setattr(placement, "plan", plan_with_layout)
        yield Planted(fault, patch)


@contextmanager
def spoiled_context(fault: Fault) -> Iterator[None]:
    """Within, the worker finds a context that has failed, if the fault spoils it and this machine has no such card."""
    with pytest.MonkeyPatch.context() as patch:
        if fault.spoils and fault.card is None:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "synchronize", raise_spoiled)
            patch.setattr("qwen_worker.memory.card.room_bytes", lambda beside_others: None)
        yield


def raise_spoiled(*_: Any) -> None:
    raise RuntimeError(SPOILED)


def worker_for(fault: Fault, folder: Path) -> Any:
    return tiny_worker.start(fault.card, folder, **{"QWEN_FALLBACK": "allow"} | dict(fault.settings))


def ask(worker: Any, job: Mapping[str, Any], name: str) -> dict[str, Any]:
    return tiny_worker.ask(worker, name, **job)


def meet(fault: Fault, folder: Path) -> dict[str, Any]:
    """The row of the fault: what the first job, `health` and the next job were answered.

    After what spoils CUDA the next job comes to a new worker, where the fault is as it was.
    """
    with surroundings(fault) as planted:
        with spoiled_context(fault):
            row, worker = first_start(fault, folder, planted)
        if fault.spoils:
            worker = worker_for(fault, folder)
        row["next reply"] = words_of(ask(worker, JOB | fault.job, "next"))
        if fault.spoils:
            row["health"] = health_of(worker)
    return row


def first_start(fault: Fault, folder: Path, planted: Planted) -> tuple[dict[str, Any], Any]:
    """The row up to `health`, and the worker."""
    worker, job = worker_for(fault, folder), JOB | fault.job
    if not planted.armed:
        for task in fault.loads:
            if failure := worker.loader.why_not_loaded(task):
                raise AssertionError(f"{fault.name}: {task} is not loaded before the fault: {failure.reason}")
        worker.inference_thread.submit(planted.arm).result()
    reply = ask(worker, job, "first")
    if fault.seams and (fault.error or fault.change) and not planted.met:
        raise AssertionError(f"{fault.name}: nothing called {', '.join(fault.seams)}")
    return {
        "fault": fault.name,
        "where": fault.where,
        "when": fault.phase,
        "on": f"a card without arithmetic, {fault.card.gigabytes:g} GB" if fault.card else "a processor",
        "raised": describe_error(fault.error) if fault.error else "",
        "first reply": words_of(reply),
        "health": health_of(worker),
    }, worker


def words_of(reply: Mapping[str, Any]) -> str:
    """What a caller is told, in a line."""
    if "error" in reply:
        return reply["error"] + "; a fresh worker is asked for" * bool(reply.get("refresh_worker"))
    facts = reply["metadata"]
    if facts["backend"] != "qwen-image":
        return f"a stand-in: {facts['fallback_reason']}"
    without = ", ".join(facts.get("stood_down", ()))
    return "a picture" + f", without {without}" * bool(without)


def health_of(worker: Any) -> dict[str, str]:
    """What `health` says is off because it failed, by name, and why a model could not be loaded."""
    told = ask(worker, {"task": "health"}, "health")
    off = {name: why for model in told["models"] for name, why in model["stood_down"].items()}
    return off | {f"{role} model": why for role, why in told["fallback"]["reasons"].items()}


# What is called in a process with a null card


def meet_on_card(card: Card, name: str, folder: str) -> dict[str, Any]:
    """The row of a fault of this name, up to `health`; to the next job if CUDA goes on working."""
    fault = fault_named(name)
    with surroundings(fault) as planted:
        row, worker = first_start(fault, Path(folder), planted)
        if not fault.spoils:
            row["next reply"] = words_of(ask(worker, JOB | fault.job, "next"))
    return row


def start_again_on_card(card: Card, name: str, folder: str) -> dict[str, Any]:
    """What a fresh worker, in whose process nothing goes wrong, says after the fault."""
    fault = replace(fault_named(name), error=None, seams=(), fields={})
    with surroundings(fault):
        worker = worker_for(fault, Path(folder))
        return {"next reply": words_of(ask(worker, JOB | fault.job, "next")), "health": health_of(worker)}


def fault_named(name: str) -> Fault:
    from .faults import FAULTS

    return next(fault for fault in FAULTS if fault.name == name)


def meet_by_process(call: Callable[..., Any], fault: Fault, folder: Path) -> dict[str, Any]:
    """The same row as `meet` gives, by `call(function, card, *arguments)` of `null_card.card.Processes`."""
    row = call(meet_on_card, fault.card, fault.name, str(folder))
    if fault.spoils:
        row |= call(start_again_on_card, fault.card, fault.name, str(folder))
    return row
