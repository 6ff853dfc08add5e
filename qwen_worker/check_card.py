"""Check a machine: whether the worker's optimisations give on its card what the plain way gives.

    python -m qwen_worker.check_card --output report.json

Loads the tiny checkpoint in the layouts that the card can have, and one block of the released width with random
weights, and makes the self-check of each. Needs no 20B weights and takes up to two minutes: a layout that would take
longer is left out, and the table says so. Ends with 1 where a finding has not passed or nothing could be checked. The
report has the card, its driver, the versions of packages and every finding, to be attached to a report of a fault. On a
CPU nothing is compiled by itself, and the kernels of cards are not seen.
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .checkpoints.checkpoint import inspect
from .checkpoints.sharing import as_model
from .errors import CudaSpoiledError, LoadError
from .loading import self_check
from .loading.builder import Builder
from .loading.self_check import Finding
from .loading.subject import Subject
from .memory import cuda, placement
from .memory.failures import Failure, attempt
from .memory.footprint import LOSSY
from .memory.machine import Machine, read_machine
from .memory.nvml import Gpu, driver_version
from .model_settings import LOAD_THREADS, Precision, SelfCheck, Speedup
from .serving.health import PACKAGES, installed_version
from .settings import read_settings
from .speed import speedups

TINY = Path(__file__).parents[1] / "models/tiny-qwen-image/generate"
LAST_START_SECONDS = 70  # after which no further case begins, so that all end within two minutes
WIDE: dict[str, Any] = {
    "num_layers": 1
}  # a transformer as diffusers makes it by itself, the released one, but for this
COLUMNS = "{:34} {:13} {:>9} {:>9} {:>8}  {}"


class Options(argparse.Namespace):
    """What the command line holds."""

    output: Path | None
    device: str | None
    compile: bool | None


@dataclass(frozen=True)
class Case:
    """One layout of one checkpoint. `layout`: what differs from the plan that the machine would have."""

    name: str
    precision: Precision
    is_tiny: bool
    compiled: bool = False
    layout: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Outcome:
    """A case's findings, or why it has none: it was left out, or it failed before anything could be compared."""

    case: str
    findings: Sequence[Finding] = ()
    seconds: float = 0.0
    left_out: str = ""
    failure: str = ""


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments, Options())
    machine = read_machine()
    if options.device == "cpu":
        machine = replace(machine, gpu=None)
    elif options.device and not machine.gpu:
        sys.exit("There is no card here that NVML sees.")
    facts = facts_of(machine.gpu)
    print(f"{facts['card']}, driver {facts['driver']}, torch {facts['torch']}", flush=True)
    print(COLUMNS.format("checked", "optimisation", "distance", "at most", "seconds", ""), flush=True)
    compiled = machine.gpu is not None if options.compile is None else options.compile
    outcomes = run(cases(machine.gpu, compiled), machine)
    passed = is_sound(outcomes)
    if options.output:
        report = facts | {"passed": passed, "cases": [report_of(outcome) for outcome in outcomes]}
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print("All passed." if passed else "Not all passed.")
    sys.exit(0 if passed else 1)


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        "python -m qwen_worker.check_card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--output", type=Path, help="a JSON file for the report")
    command.add_argument("--device", choices=("cuda", "cpu"), help="where to compute (default: on the card, if any)")
    command.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="whether blocks are compiled, which takes most of the time (default: on a card)",
    )
    return command


def facts_of(gpu: Gpu | None) -> dict[str, Any]:
    """What decides how this machine computes."""
    import torch

    return {
        "card": gpu.name if gpu else f"a CPU ({platform.machine()})",
        "capability": list(gpu.capability) if gpu else None,
        "driver": driver_version() if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in (*PACKAGES, "torchao", "bitsandbytes", "triton")},
        "worker_version": read_settings().QWEN_WORKER_VERSION,
    }


def cases(gpu: Gpu | None, compiled: bool) -> list[Case]:
    """What is checked, the most worth first."""
    plain = Precision.BF16 if gpu else Precision.FP32
    lossy = placement.precisions([], gpu, Precision.AUTO)[1:] if gpu else list(LOSSY)
    loaded = {"table": True, "swapped": True, "text_encoder": "streamed"}
    quantized = {"table": True, "text_encoder": "quantized"}
    found = [Case(f"tiny, {plain.value}", plain, True, layout=loaded)]
    found += [Case(f"tiny, {precision.value}", precision, True, layout=quantized) for precision in lossy]
    # A CPU takes minutes for a table of the released width, which has all rows in bfloat16.
    for precision in [plain, *lossy] if gpu else [plain]:
        name, is_compiled = f"released width, {precision.value}", compiled and precision in (plain, *lossy[:1])
        found.append(Case(name, precision, False, is_compiled, {"table": True}))
    return found


def run(chosen: Sequence[Case], machine: Machine) -> list[Outcome]:
    """The outcomes, each printed as it comes. Nothing is computed after an error of CUDA itself."""
    started, outcomes = time.perf_counter(), list[Outcome]()
    spoiled = ""
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            late = time.perf_counter() - started > LAST_START_SECONDS
            reason = spoiled or ("there was no time for it" if late else "")
            try:
                outcome = Outcome(case.name, left_out=reason) if reason else outcome_of(case, machine, Path(folder))
            except CudaSpoiledError as error:
                outcome = Outcome(case.name, failure=", ".join([error.reason, *getattr(error, "__notes__", ())]))
                spoiled = "CUDA had failed"
            outcomes.append(outcome)
            show(outcome)
    return outcomes


def outcome_of(case: Case, machine: Machine, scratch: Path) -> Outcome:
    """Raises `CudaSpoiledError`."""
    started = time.perf_counter()
    if not TINY.is_dir():
        return Outcome(case.name, left_out="models/tiny-qwen-image is not here")
    try:
        findings = attempt(lambda: self_check.compare_all(load(case, machine, scratch)))
    except LoadError as error:
        return Outcome(case.name, left_out=error.reason)
    cuda.release_unused("cuda" if machine.gpu else "cpu")
    if isinstance(findings, Failure):
        return Outcome(case.name, failure=findings.reason)
    return Outcome(case.name, findings, time.perf_counter() - started)


def load(case: Case, machine: Machine, scratch: Path) -> Subject:
    """The case's pipeline with its speed-ups. `scratch`: for weights. Raises `LoadError`, and what loading raises."""
    folder = TINY if case.is_tiny else one_block(scratch / "generate", "cuda" if machine.gpu else "cpu")
    checkpoint = inspect(folder)
    plan = replace(placement.plan([as_model(checkpoint, [])], machine, case.precision), **case.layout)
    builder = Builder(LOAD_THREADS)
    pipe, table = builder.build("checked", checkpoint, plan, {})
    chosen = frozenset(Speedup) - (frozenset() if case.compiled else {Speedup.COMPILE})
    settings = read_settings().model_copy(update={"QWEN_SPEEDUPS": chosen, "QWEN_SELF_CHECK": SelfCheck.OFF})
    speed = speedups.apply(pipe, plan, settings, machine, table, case.name)
    once = () if case.layout.get("swapped") else ("vae",)  # the VAE is the same in all cases
    return Subject("checked", checkpoint, plan, pipe, table, speed, builder.swap, once)


def one_block(folder: Path, device: str) -> Path:
    """The tiny checkpoint with a transformer of one block of the released width; its random weights are written once.

    The tiny checkpoint's text encoder does not fit to it, and nothing here needs that.
    """
    import torch
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    if not folder.exists():
        shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("transformer"))
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]  not annotated
        with torch.device(device):
            transformer: Any = QwenImageTransformer2DModel(**WIDE)
        transformer.bfloat16().save_pretrained(folder / "transformer")
    return folder


def show(outcome: Outcome) -> None:
    if outcome.left_out or outcome.failure:
        words = f"left out: {outcome.left_out}" if outcome.left_out else f"FAILED: {outcome.failure}"
        print(COLUMNS.format(outcome.case, "", "", "", "", words), flush=True)
    for finding in outcome.findings:
        figures = f"{finding.distance:.2g}", f"{finding.tolerance:.2g}", f"{finding.seconds:.2f}"
        words = "passed" if finding.passed else f"FAILED {finding.reason}"
        print(COLUMNS.format(outcome.case, finding.name, *figures, words), flush=True)


def report_of(outcome: Outcome) -> dict[str, Any]:
    findings = [finding.report() for finding in outcome.findings]
    reasons = {"left_out": outcome.left_out, "failure": outcome.failure}
    return {"name": outcome.case, "seconds": round(outcome.seconds, 3), "findings": findings} | reasons


def is_sound(outcomes: Sequence[Outcome]) -> bool:
    """Whether something was checked and all of it passed."""
    findings = [finding for outcome in outcomes for finding in outcome.findings]
    failures = [outcome for outcome in outcomes if outcome.failure]
    return bool(findings) and not failures and all(finding.passed for finding in findings)


if __name__ == "__main__":
    main()
