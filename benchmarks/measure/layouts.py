"""Which layouts are measured on which cards: the cases of `fit` in order of worth, and what keeps one from it.

Pure: plans and predictions come from the worker's own placement. Knows nothing of how anything is measured.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qwen_worker.checkpoints import checkpoint
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.memory import placement
from qwen_worker.memory.footprint import GB, Model, Plan
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.model_settings import Precision

from . import stock

TASKS = ("generate", "edit")
RELEASED = {"generate": "Qwen/Qwen-Image", "edit": "Qwen/Qwen-Image-Edit"}
# Compute capabilities of the cards that a larger one can stand in for.
ARCHITECTURES = {"ampere": (8, 0), "ada": (8, 9), "hopper": (9, 0), "blackwell": (12, 0)}
USUAL = {16: "ada", 24: "ada", 32: "blackwell", 48: "ada", 80: "hopper", 96: "blackwell", 141: "hopper"}
USUAL_RAM = 128 * GB  # of a machine that is not there
# The least compute capability that a precision's matrix products run on, and the package that has them.
CAPABILITY = {Precision.FP8: placement.FP8_CAPABILITY}
PACKAGE = {Precision.FP8: "torchao", Precision.INT8: "torchao", Precision.NF4: "bitsandbytes"}


@dataclass(frozen=True)
class Case:
    """A contender that serves these tasks on a card of `cap` GB (1e9); None for all of this machine."""

    contender: str
    cap: float | None
    tasks: tuple[str, ...] = TASKS

    @property
    def name(self) -> str:
        tasks = "both" if len(self.tasks) > 1 else self.tasks[0]
        return f"{self.contender}-{self.cap:g}-{tasks}" if self.cap else f"{self.contender}-{tasks}"


GENERATE, EDIT = ("generate",), ("edit",)
# First our worker on the cards that the docs promise, then stock on the same cards, then the rest. Stock has a case for
# each task: no card below 141 GB holds both of its pipelines.
CASES = (
    Case("ours", 24, GENERATE), Case("ours", 24, EDIT), Case("ours", 80),
    Case("stock", 80, GENERATE), Case("stock", 80, EDIT),
    Case("ours", 48), Case("stock", 48, GENERATE), Case("stock", 48, EDIT),
    Case("ours", 32, GENERATE), Case("ours", 32), Case("ours", 24), Case("stock", 24, GENERATE),
    Case("ours", 16, GENERATE), Case("ours", 16, EDIT), Case("ours", 16), Case("stock", 32, GENERATE),
    Case("ours", 96), Case("ours", 141), Case("stock", 141, GENERATE), Case("stock", 141, EDIT),
)  # fmt: skip
HERE = (Case("ours", None), Case("stock", None, GENERATE), Case("stock", None, EDIT))


def cases_for_caps(caps: Sequence[float] | None) -> list[Case]:
    """The cases of these caps (GB) in order of worth, and our worker with both tasks under caps that no case has."""
    if not caps:
        return list(CASES)
    others = [Case("ours", cap) for cap in caps if cap not in {case.cap for case in CASES}]
    return [case for case in CASES if case.cap in caps] + others


def layout_of(plan: str) -> str:
    """A plan's words without its figures of memory."""
    return re.sub(r" on cuda|, peak .*", "", plan)


def models_of(tasks: tuple[str, ...]) -> list[Model]:
    """The released models, as placement counts them."""
    checkpoints = [checkpoint.released(RELEASED[task]) for task in tasks]
    return [as_model(held, checkpoints[:number]) for number, held in enumerate(checkpoints)]


def architecture_of(case: Case, asked: str | None) -> str | None:
    """The architecture that the case's card is taken to have: `asked`, else the usual one of its size."""
    return (asked or USUAL.get(int(case.cap), "hopper")) if case.cap else None


def machine_for(case: Case, real: Machine, architecture: str | None = None, ram_gb: float | None = None) -> Machine:
    """The machine that the case is planned for: the real one with that architecture, or one made up without a GPU.

    `ram_gb`: RAM to plan with in place of what is free.
    """
    if case.cap is None:
        return real
    ram = round(ram_gb * GB) if ram_gb else real.ram_available_bytes if real.gpu else round(USUAL_RAM)
    size = round(case.cap * GB)
    capability = ARCHITECTURES[architecture_of(case, architecture)]
    gpu = real.gpu or Gpu("no card", capability, size, size)
    name = f"{gpu.name} as a card of {case.cap:g} GB"
    return Machine(
        replace(gpu, name=name, capability=capability), max(ram, real.ram_total_bytes if real.gpu else 0), ram
    )


def plan_for(case: Case, machine: Machine, precision: str = "auto") -> tuple[Plan | None, str]:
    """(our plan for the case, empty) or (None, why there is none)."""
    cap = round(case.cap * GB) if case.cap else None
    try:
        return placement.plan(models_of(case.tasks), machine, Precision(precision), cap), ""
    except LoadError as refused:
        return None, f"refused: {refused.reason}"


def stock_peaks(task: str, side: int) -> dict[str, int]:
    """Bytes by stock's way, the fastest first, of one job of `side` pixels square."""
    (model,) = models_of((task,))
    return stock.peaks(model, side, int(task == "edit"))


def way_of(case: Case, side: int) -> str:
    """The fastest way of stock that fits the cap at this size; the one with the least memory where none does."""
    if case.cap is None:
        return stock.RESIDENT
    fitting = [way for way, peak in stock_peaks(case.tasks[0], side).items() if peak <= case.cap * GB]
    return fitting[0] if fitting else stock.BY_LAYER


def obstacle(case: Case, real: Gpu | None, plan: Plan | None, installed: Callable[[str], object]) -> str:
    """Why the case cannot be measured on this machine, empty if it can. `plan`: ours, None for stock."""
    if case.cap is None:
        return ""
    if real is None:
        return "there is no GPU here"
    if case.cap * GB > real.total_bytes:
        return f"{real.name} has {real.total_bytes / GB:.1f} GB"
    if real.capability < placement.MIN_CAPABILITY:
        return f"{real.name} does not compute in bfloat16"
    if plan is None:
        return ""
    needed = CAPABILITY.get(plan.precision)
    if needed and real.capability < needed:
        return f"{real.name} does not run {plan.precision.value} products"
    package = PACKAGE.get(plan.precision)
    return f"{package} is not installed" if package and not installed(package) else ""
