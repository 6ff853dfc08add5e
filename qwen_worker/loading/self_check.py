"""The self-check: whether each optimisation of a loaded pipeline gives what the plain way gives, on this very card.

Nothing else would notice a kernel that computes wrong numbers without an error. It takes a second or two when a model
is first loaded on a kind of card; its findings are kept beside the compiled blocks, and later starts of the same
versions, layout and weights take them from there. `comparisons.py` says what is compared. Imports torch inside
functions. Knows nothing of what follows from a finding.
"""

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CudaSpoiledError, JobError, LoadError, describe_error
from ..log import log_line
from ..memory import cuda
from ..memory.failures import Failure, attempt
from ..memory.footprint import LOSSY, Plan
from ..model_settings import Saving, SelfCheck, Speedup
from ..settings import Settings
from ..speed import compile_store
from ..whole_file import write_whole
from .subject import Subject

if TYPE_CHECKING:
    from ..speed.compiled import BlockResults, Comparison
    from .comparisons import Result

SUFFIX = ".checked.json"
MAX_KEPT = 50  # subjects in a file, the latest

Check = Callable[[Subject], "Result | None"]  # None where there is nothing to compare with


@dataclass(frozen=True)
class Finding:
    """One optimisation beside the plain way. `distance`: NaN where a result holds NaN, or where there is none.

    `name`: the value of a `Speedup`, `Saving` or `Precision`, or `streamed`, `swapped`, `lora`; `reason`: in words, why
    the comparison could not be made.
    """

    name: str
    distance: float
    tolerance: float
    seconds: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason and self.distance <= self.tolerance

    def report(self) -> dict[str, Any]:
        """As JSON, which has no NaN: null stands for it."""
        distance = self.distance if math.isfinite(self.distance) else None
        figures = {"distance": distance, "tolerance": self.tolerance, "seconds": round(self.seconds, 3)}
        return {"name": self.name, "passed": self.passed, **figures, "words": str(self)}

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name} could not be compared: {self.reason}"
        if math.isnan(self.distance):
            return f"{self.name} gives NaN"
        return f"{self.name} is {self.distance:.2g} from the plain way, where {self.tolerance:.2g} may be"


def check(subject: Subject, settings: Settings, card: str | None) -> list[Finding]:
    """The findings on a loaded pipeline, kept ones where an earlier start has made them; none where it is turned off.

    `card`: its name, None for a CPU. Raises `CudaSpoiledError`, with a note of what was compared.
    """
    if not is_wanted(settings, subject.plan):
        return []
    file, key = kept_file(settings, card), f"{settings.QWEN_WORKER_VERSION}: {subject.description()}"
    if kept := read_kept(file).get(key):
        return [Finding(**finding) for finding in kept]
    findings = compare_all(subject)
    log_findings(subject.checkpoint.name, findings)
    # What could not be compared may be at the next start: memory was short, or a file could not be read.
    if not any(finding.reason for finding in findings):
        keep(file, key, findings)
    return findings


def is_wanted(settings: Settings, plan: Plan) -> bool:
    wanted = settings.QWEN_SELF_CHECK
    return wanted is SelfCheck.ON or wanted is SelfCheck.AUTO and plan.device != "cpu"


def block_comparison(name: str, subject: Subject, settings: Settings) -> "Comparison | None":
    """Tells why a compiled block's results are wrong, as it compares them; None where no self-check is wanted.

    `name`: of what is compiled.
    """
    if not is_wanted(settings, subject.plan):
        return None
    from .comparisons import joined
    from .tolerances import distance, pass_tolerance

    def reason_of(ours: "BlockResults", plain: "BlockResults") -> str:
        apart = distance(joined(ours), joined(plain))
        finding = Finding(name, apart, pass_tolerance(subject.plan), 0.0)
        return "" if finding.passed else str(finding)

    return reason_of


def compare_all(subject: Subject) -> list[Finding]:
    """Every comparison that the plan and the speed-ups call for. Raises `CudaSpoiledError`."""
    import torch

    with torch.no_grad():
        found = [make(name, comparison, subject) for name, comparison in comparisons_of(subject).items()]
    cuda.release_unused(subject.plan.device)
    if subject.plan.device == "cuda":
        cuda.release_pinned_buffers()
    return [finding for finding in found if finding]


def comparisons_of(subject: Subject) -> dict[str, Check]:
    """By name, what is compared of this subject, weights before what computes with them."""
    from . import comparisons as transformer
    from . import component_comparisons as components

    plan, speed = subject.plan, subject.speed
    own_vae = subject.is_20b and "vae" not in subject.shared
    stored_quantized = "transformer" in subject.checkpoint.packed
    chosen: list[tuple[str, bool, Check]] = [
        ("swapped", plan.swapped, transformer.compare_swapped),
        (plan.precision.value, plan.precision in LOSSY and not stored_quantized, transformer.compare_quantized),
        (Saving.TABLE.value, subject.table is not None, transformer.compare_table),
        (Speedup.ROTARY.value, speed.has(Speedup.ROTARY), transformer.compare_rotary),
        (Speedup.ATTENTION.value, speed.has(Speedup.ATTENTION), transformer.compare_attention),
        (Speedup.GELU.value, speed.has(Speedup.GELU), transformer.compare_gelu),
        (Speedup.GUIDANCE.value, speed.has(Speedup.GUIDANCE), transformer.compare_guidance),
        (Speedup.COMPILE.value, speed.has(Speedup.COMPILE), transformer.compare_compiled),
        ("lora", subject.is_20b, transformer.compare_lora),
        (Saving.TRIM.value, projects_patches(subject), components.compare_patches),
        ("streamed", plan.text_encoder == "streamed", components.compare_streamed),
    ]
    for saving in (Saving.SINGLE_FRAME, Saving.CONV2D):
        compare = functools.partial(components.compare_vae, saving=saving)
        chosen.append((saving.value, own_vae and saving in plan.savings, compare))
    return {name: comparison for name, applies, comparison in chosen if applies}


def projects_patches(subject: Subject) -> bool:
    """Whether the vision tower may have been given a matrix in place of its convolution."""
    plan = subject.plan
    return subject.is_20b and plan.vision and Saving.TRIM in plan.savings and "text_encoder" not in subject.shared


def make(name: str, comparison: Check, subject: Subject) -> Finding | None:
    """The finding of one comparison; None where there is nothing to compare with. Raises `CudaSpoiledError`."""
    started = time.perf_counter()
    try:
        result = attempt(lambda: comparison(subject))
    except (JobError, LoadError) as error:
        result = Failure(describe_error(error))
    except CudaSpoiledError as error:
        error.add_note(f"in the self-check of {name}")
        raise
    seconds = time.perf_counter() - started
    if isinstance(result, Failure):
        return Finding(name, math.nan, 0.0, seconds, result.reason)
    return result and Finding(name, *result, seconds)


def log_findings(name: str, findings: list[Finding]) -> None:
    for finding in findings:
        if not finding.passed:
            log_line(None, "WARN", f"{name}: {finding}")
    passed = sum(finding.passed for finding in findings)
    seconds = sum(finding.seconds for finding in findings)
    words = f"{passed} of {len(findings)} optimisations give what the plain way gives"
    log_line(None, "INFO", f"{name} self-check: {words}, {seconds:.1f} s")


def kept_file(settings: Settings, card: str | None) -> Path:
    """Where the findings of this kind of machine are kept."""
    return compile_store.folder(settings) / f"{compile_store.machine_kind(card)}{SUFFIX}"


def read_kept(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The kept findings, by what they are of. A file that cannot be read, or holds something else, holds none."""
    try:
        kept = json.loads(file.read_text())
        for findings in kept.values():
            for finding in findings:
                Finding(**finding)
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return kept


def keep(file: Path, key: str, findings: list[Finding]) -> None:
    """Add findings to the file, in one move. A disk that does not take them is no failure, and the log says so."""
    kept = {**read_kept(file), key: [asdict(finding) for finding in findings]}
    latest = dict(list(kept.items())[-MAX_KEPT:])
    try:
        write_whole(file, json.dumps(latest, indent=1).encode())
    except OSError as error:
        log_line(None, "WARN", f"the self-check's findings are not kept: {error.strerror}")
