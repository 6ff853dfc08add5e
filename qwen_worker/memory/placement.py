"""Whether and how the models fit this machine: the choice before any byte is downloaded or allocated.

Pure: sizes in, a plan or a refusal with its figures out. Knows nothing of torch, files or pipelines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from ..errors import LoadError
from ..model_settings import Precision, Saving
from .footprint import GB, LOSSY, Model, Plan, TextEncoder
from .machine import Gpu, Machine

# A forward of the 20B transformer is some 70 TFLOP, a hundred of them make an image: hours on a CPU. Beyond this many
# parameters a CPU is a mistake, whatever its memory.
CPU_MAX_PARAMETERS = 2_000_000_000
MIN_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16 in hardware
FP8_CAPABILITY = (8, 9)  # Ada, the first with fp8 matrix products
USABLE = 0.97  # of the free memory: the allocator's blocks never fill a card, and near its end drivers page or hang
# Of the free RAM, for the process itself where a plan pins: torch with CUDA's and cuDNN's libraries (3 to 4 GB), the
# buffers that weights come through (0.5 GB) and the processes in which torch compiles afterwards (0.45 GB, and about
# 0.1 for each of the four that is at work). Less what the process holds already, which is not free.
PROCESS_BYTES = 5_000_000_000
# Set aside for a ControlNet: the published unions have 3.54 GB, and what they add takes 0.25 GB for each megapixel.
CONTROL_BYTES = 3_800_000_000
OTHER_SAVINGS = frozenset({Saving.TRIM})  # that models of other architectures have


def plan(
    models: Sequence[Model],
    machine: Machine,
    precision: Precision = Precision.AUTO,
    vram_cap_bytes: int | None = None,
    savings: frozenset[Saving] = frozenset(Saving),
    own_loras: int = 0,
    without: frozenset[str] = frozenset(),
    pinned_cost: int = 1,
    compiled: bool = True,
    control: bool = False,
) -> Plan:
    """The first layout that fits, exact ones first.

    `vram_cap_bytes`: that may be used of the card; `own_loras`: how many the endpoint has of its own; `without`:
    precisions that failed on this machine, for which others are taken, also where one of them is asked for, and
    "streamed" and "swapped"; `pinned_cost`: bytes of RAM that a pinned byte takes; `compiled`: whether the
    transformers' blocks will be; `control`: whether the endpoint has a ControlNet, for which room is left where that
    costs no precision. Raises `LoadError`, before anything is allocated, that says what is needed and what is
    there: a transient one where the card would have the room if nothing else held a part of it.
    """
    if precision in LOSSY and not savings_apply_to_all(models):
        raise LoadError(f"QWEN_PRECISION={precision.value} is for the 20B architecture, not for {names_of(models)}")
    precision = Precision.AUTO if precision.value in without else precision
    gpu = machine.gpu
    require_quantization(models, precision)
    if gpu is None:
        return plan_on_cpu(models, machine, precision, savings)
    require_capability(models, gpu, precision)
    limits = [round(room_bytes * USABLE) for room_bytes in (gpu.free_bytes, gpu.total_bytes)]
    limit_bytes, whole_bytes = (limit if vram_cap_bytes is None else min(limit, vram_cap_bytes) for limit in limits)
    pinnable_bytes = pinnable(machine) // pinned_cost
    possible = [candidate for candidate in precisions(models, gpu, precision) if candidate.value not in without]
    lora_bytes = max(model.working.lora_bytes for model in models)
    candidates = [
        replace(layout, limit_bytes=limit_bytes, lora_bytes=own_loras * lora_bytes, compiled=compiled)
        for layout in layouts(models, possible, savings)
        if layout.text_encoder not in without and not (layout.swapped and "swapped" in without)
    ]
    if not candidates:
        raise LoadError(f"{names_of(models)} fits {describe(gpu)} in no layout that works here")
    images = int(any(model.edits for model in models))
    if layout := first_fitting(candidates, images, limit_bytes, pinnable_bytes):
        if control:
            layout = with_room_for_control(layout, candidates, images, limit_bytes, pinnable_bytes)
        return replace(layout, spare_bytes=pinnable_bytes - layout.pinned_bytes)
    fits_whole_card = first_fitting(candidates, images, whole_bytes, pinnable_bytes) is not None
    raise LoadError(refusal(candidates, images, gpu, pinnable_bytes, vram_cap_bytes), transient=fits_whole_card)


def with_room_for_control(
    layout: Plan, candidates: Sequence[Plan], images: int, limit_bytes: int, pinnable_bytes: int
) -> Plan:
    """The first layout that has room for a ControlNet too; the given one, where only a less precise one has.

    A job with a control picture is refused by that one, with the figures; all other jobs keep their precision.
    """
    larger = [candidate.with_control(CONTROL_BYTES, 0) for candidate in candidates]
    found = first_fitting(larger, images, limit_bytes, pinnable_bytes)
    return found.with_control(0, 0) if found and found.precision is layout.precision else layout


def first_fitting(candidates: Sequence[Plan], images: int, limit_bytes: int, pinnable_bytes: int) -> Plan | None:
    """The first layout with room for a picture of 1024 x 1024, whole or at least in tiles."""
    for tiled in (False, True):
        for layout in candidates:
            if layout.peak_bytes(1024, 1024, images, tiled) <= limit_bytes and layout.pinned_bytes <= pinnable_bytes:
                return layout
    return None


def pinnable(machine: Machine) -> int:
    """The bytes of RAM that a plan may pin."""
    return max(0, machine.ram_available_bytes - max(0, PROCESS_BYTES - machine.process_bytes))


def layouts(models: Sequence[Model], precisions: Sequence[Precision], savings: frozenset[Saving]) -> Iterator[Plan]:
    """Everything worth trying, best first: exact before lossy, resident before streamed, streamed before swapped."""
    possible = possible_savings(models, savings)
    packed = {name for model in models for name in model.packed}
    for precision in precisions:
        # In float32 timesteps are too many to list: the modulation's weights would stay.
        table = Saving.TABLE in possible and precision is not Precision.FP32 and "transformer" not in packed
        base = Plan("cuda", precision, tuple(models), possible)
        if precision not in LOSSY:
            yield base
        lossy: tuple[TextEncoder, ...] = ("resident", "streamed", "quantized")
        text_encoders = lossy[:1] if "text_encoder" in packed else lossy if precision in LOSSY else lossy[:2]
        swaps = (False, True) if len(models) > 1 and "transformer" not in packed else (False,)
        for swapped, text_encoder in product(swaps, text_encoders):
            yield replace(base, table=table, text_encoder=text_encoder, swapped=swapped)


def precisions(models: Sequence[Model], gpu: Gpu, asked: Precision) -> list[Precision]:
    """Those worth trying on the card, best first; the one that is asked for alone, unless that is AUTO."""
    if asked is not Precision.AUTO:
        return [asked]
    if not savings_apply_to_all(models):
        return [Precision.BF16]  # which layers bear quantizing is measured for the 20B architecture only
    fast = Precision.FP8 if gpu.capability >= FP8_CAPABILITY else Precision.INT8
    return [Precision.BF16, fast, Precision.NF4]


def require_capability(models: Sequence[Model], gpu: Gpu, precision: Precision) -> None:
    """Refuse a card that lacks bfloat16, or fp8 where that is asked for. Raises `LoadError`."""
    if gpu.capability < MIN_CAPABILITY:
        needs = "needs bfloat16 (compute capability 8.0 or later)"
        raise LoadError(f"{names_of(models)} {needs}, not {describe(gpu)}")
    if precision is Precision.FP8 and gpu.capability < FP8_CAPABILITY:
        raise LoadError(f"QWEN_PRECISION=fp8 needs compute capability 8.9 or later, not {describe(gpu)}")


def require_quantization(models: Sequence[Model], precision: Precision) -> None:
    """Refuse to compute in float32 what is stored quantized: the libraries do so in bfloat16. Raises `LoadError`."""
    if precision is Precision.FP32 and (packed := [model for model in models if model.packed]):
        names = ", ".join(name for name in packed[0].parameters if name in packed[0].packed)
        raise LoadError(f"QWEN_PRECISION=fp32 is not for {packed[0].name}, whose {names} are stored quantized")


def refusal(candidates: Sequence[Plan], images: int, gpu: Gpu, pinnable_bytes: int, vram_cap_bytes: int | None) -> str:
    """The least that would do, against what is there; `candidates`: layouts of which none fits."""

    def tiled_peak(layout: Plan) -> int:
        return layout.peak_bytes(1024, 1024, images, tiled=True)

    limit_bytes = candidates[0].limit_bytes
    if short_of_ram := [layout for layout in candidates if tiled_peak(layout) <= limit_bytes]:
        least = min(short_of_ram, key=lambda layout: layout.pinned_bytes)
    else:
        least = min(candidates, key=lambda layout: layout.peak_bytes(1024, 1024, images))
    cap = f" under QWEN_VRAM_GB={vram_cap_bytes / GB:g}" if vram_cap_bytes is not None else ""
    needed_bytes, weight_bytes = tiled_peak(least), least.weight_bytes
    text = (
        f"{names_of(least.models)} needs {needed_bytes / GB:.1f} GB of GPU memory at the least "
        f"({least.precision.value}: weights {weight_bytes / GB:.1f}, {(needed_bytes - weight_bytes) / GB:.1f} to work)"
        f"; {describe(gpu)} has {limit_bytes / GB:.1f} GB to use{cap}"
    )
    if least.pinned_bytes > pinnable_bytes:
        needed, free = least.pinned_bytes / GB, pinnable_bytes / GB
        text += f"; {needed:.1f} GB of RAM would be pinned and {free:.1f} GB can be, beside the process"
    return text


def plan_on_cpu(models: Sequence[Model], machine: Machine, precision: Precision, savings: frozenset[Saving]) -> Plan:
    """The one layout of a machine without a GPU, for small models only. Raises `LoadError`."""
    if precision is Precision.AUTO:  # what is stored quantized computes in bfloat16
        precision = Precision.BF16 if any(model.packed for model in models) else Precision.FP32
    possible = possible_savings(models, savings) - {Saving.TABLE}
    layout = Plan("cpu", precision, tuple(models), possible)
    count = sum(model.parameters_of(component) for model in models for component in model.parameters)
    count += sum(2 * model.packed[name] for model in models for name in model.parameters if model.is_packed(name))
    if count > CPU_MAX_PARAMETERS or layout.weight_bytes > machine.ram_available_bytes:
        on_gpu = min(each.peak_bytes(1024, 1024) for each in layouts(models[:1], [Precision.BF16], savings))
        obstacle = f" ({machine.gpu_obstacle})" if machine.gpu_obstacle else ""
        raise LoadError(
            f"{names_of(models)} needs a CUDA GPU (from {on_gpu / GB:.1f} GB free in bfloat16); this machine has no "
            f"CUDA GPU{obstacle} and {machine.ram_available_bytes / GB:.1f} GB of RAM free, where "
            f"{layout.weight_bytes / GB:.1f} GB in {layout.dtype} would be needed and a CPU serves at most "
            f"{CPU_MAX_PARAMETERS / 1e9:g} billion parameters, not {count / 1e9:.1f}"
        )
    return replace(layout, spare_bytes=machine.ram_available_bytes - layout.weight_bytes)


def require_disk(name: str, needed_bytes: int, free_bytes: int) -> None:
    """Refuse what would fill the disk. Raises `LoadError`."""
    if needed_bytes > free_bytes:
        raise LoadError(f"{name} needs {needed_bytes / GB:.1f} GB of disk; {free_bytes / GB:.1f} GB are free")


def savings_apply_to_all(models: Sequence[Model]) -> bool:
    """Whether all savings and quantization know all of them, which are for the 20B architecture."""
    return all(model.is_20b for model in models)


def possible_savings(models: Sequence[Model], savings: frozenset[Saving]) -> frozenset[Saving]:
    """Those of the savings that can be had with these models."""
    return savings if savings_apply_to_all(models) else savings & OTHER_SAVINGS


def names_of(models: Sequence[Model]) -> str:
    return " and ".join(model.name for model in models)


def describe(gpu: Gpu) -> str:
    major, minor = gpu.capability
    return f"{gpu.name} (compute capability {major}.{minor}, {gpu.total_bytes / GB:.1f} GB)"
