"""Whether and how the models fit this machine: the choice before any byte is downloaded or allocated.

Pure: sizes in, a plan or a refusal with its figures out. Knows nothing of torch, files or pipelines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from ..errors import LoadError
from ..settings import Precision, Saving
from .footprint import GB, LORA_BYTES, LOSSY, Model, Plan
from .machine import Machine

# A forward of the 20B transformer is some 70 TFLOP, a hundred of them make an image: hours on a CPU. Beyond this many
# parameters a CPU is a mistake, whatever its memory.
CPU_MAX_PARAMETERS = 2_000_000_000
MIN_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16 in hardware
FP8_CAPABILITY = (8, 9)  # Ada, the first with fp8 matrix products
USABLE = 0.97  # of the free memory: the allocator's blocks never fill a card, and near its end drivers page or hang
RAM_SHARE = 0.9  # of the free RAM that pinned memory may take


def plan(
    models: Sequence[Model],
    machine: Machine,
    precision: Precision = Precision.AUTO,
    vram_cap: int | None = None,
    savings: frozenset[Saving] = frozenset(Saving),
    loras: int = 0,
) -> Plan:
    """The first layout that fits, exact ones first, or a `LoadError` that says what is needed and what is there.

    `vram_cap`: bytes that may be used of the card; `loras`: how many the endpoint has of its own. Raises before
    anything is allocated.
    """
    if precision in LOSSY and not all(model.parts for model in models):
        names = " and ".join(model.name for model in models)
        raise LoadError(f"QWEN_PRECISION={precision.value} is for the 20B architecture, not for {names}")
    if machine.gpu is None:
        return plan_on_cpu(models, machine, precision, savings)
    require_capability(models, machine, precision)
    limit = round(machine.gpu.free * USABLE)
    if vram_cap is not None:
        limit = min(limit, vram_cap)
    ram = round(machine.ram_available * RAM_SHARE)
    found = layouts(models, precisions(models, machine, precision), savings)
    candidates = [replace(one, limit=limit, loras=loras * LORA_BYTES) for one in found]
    edits = int(any(model.edits for model in models))
    for tiled in (False, True):
        for one in candidates:
            if one.peak(1024, 1024, edits, tiled) <= limit and one.ram <= ram:
                return one
    raise LoadError(refusal(candidates, machine, edits, ram, vram_cap))


def layouts(models: Sequence[Model], precisions: Sequence[Precision], savings: frozenset[Saving]) -> Iterator[Plan]:
    """Everything worth trying, best first: exact before lossy, resident before streamed, streamed before swapped."""
    savable = all(model.parts for model in models)
    chosen = savings if savable else frozenset()
    for precision in precisions:
        # In float32 timesteps are too many to list: the modulation's weights would stay.
        table = Saving.TABLE in chosen and precision is not Precision.FP32
        base = Plan("cuda", precision, tuple(models), chosen)
        if precision not in LOSSY:
            yield base
        texts = ("resident", "streamed", "quantized") if precision in LOSSY else ("resident", "streamed")
        for swapped, text in product((False, True) if len(models) > 1 else (False,), texts):
            yield replace(base, table=table, text_encoder=text, swapped=swapped)


def precisions(models: Sequence[Model], machine: Machine, asked: Precision) -> list[Precision]:
    if asked is not Precision.AUTO:
        return [asked]
    if not all(model.parts for model in models):
        return [Precision.BF16]  # what may be quantized is known of the 20B architecture only
    fast = Precision.FP8 if machine.gpu.capability >= FP8_CAPABILITY else Precision.INT8
    return [Precision.BF16, fast, Precision.NF4]


def require_capability(models: Sequence[Model], machine: Machine, precision: Precision) -> None:
    names = " and ".join(model.name for model in models)
    if machine.gpu.capability < MIN_CAPABILITY:
        raise LoadError(f"{names} needs bfloat16 (compute capability 8.0 or later), not {describe(machine)}")
    if precision is Precision.FP8 and machine.gpu.capability < FP8_CAPABILITY:
        raise LoadError(f"QWEN_PRECISION=fp8 needs compute capability 8.9 or later, not {describe(machine)}")


def refusal(candidates: list[Plan], machine: Machine, edits: int, ram: int, vram_cap: int | None) -> str:
    """The least that would do, against what is there."""
    limit = candidates[0].limit
    short_of_ram = [one for one in candidates if one.peak(1024, 1024, edits, True) <= limit]
    least = min(short_of_ram or candidates, key=lambda one: one.ram if short_of_ram else one.peak(1024, 1024, edits))
    names = " and ".join(model.name for model in least.models)
    cap = f" under QWEN_VRAM_GB={vram_cap / GB:g}" if vram_cap is not None else ""
    need = least.peak(1024, 1024, edits, True)
    text = (
        f"{names} needs {need / GB:.1f} GB of GPU memory at the least ({least.precision.value}: weights "
        f"{least.weights / GB:.1f}, {(need - least.weights) / GB:.1f} to work); {describe(machine)} has "
        f"{limit / GB:.1f} GB to use{cap}"
    )
    if least.ram > ram:
        text += f"; {least.ram / GB:.1f} GB of RAM would be needed and {machine.ram_available / GB:.1f} GB are free"
    return text


def plan_on_cpu(models: Sequence[Model], machine: Machine, precision: Precision, savings: frozenset[Saving]) -> Plan:
    precision = Precision.FP32 if precision is Precision.AUTO else precision
    chosen = (savings if all(model.parts for model in models) else frozenset()) - {Saving.TABLE}
    found = Plan("cpu", precision, tuple(models), chosen)
    count = sum(model.size(component) for model in models for component in model.parameters)
    if count > CPU_MAX_PARAMETERS or found.weights > machine.ram_available:
        names = " and ".join(model.name for model in models)
        on_gpu = min(one.peak(1024, 1024) for one in layouts(models[:1], [Precision.BF16], savings))
        raise LoadError(
            f"{names} needs a CUDA GPU (from {on_gpu / GB:.1f} GB free in bfloat16); this machine has no CUDA GPU and "
            f"{machine.ram_available / GB:.1f} GB of RAM free, where {found.weights / GB:.1f} GB in "
            f"{found.dtype} would be needed and a CPU serves at most {CPU_MAX_PARAMETERS / 1e9:g} billion "
            f"parameters, not {count / 1e9:.1f}"
        )
    return found


def require_disk(name: str, needed: int, free: int) -> None:
    """Refuse what would fill the disk."""
    if needed > free:
        raise LoadError(f"{name} needs {needed / GB:.1f} GB of disk; {free / GB:.1f} GB are free")


def describe(machine: Machine) -> str:
    gpu = machine.gpu
    return f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.total / GB:.1f} GB)"
