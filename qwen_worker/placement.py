"""Whether and how a model fits this machine: the arithmetic before any byte is downloaded or allocated.

Pure: sizes in, a plan or a refusal with its figures out. Knows nothing of torch, files or pipelines. GB is 1e9 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import LoadError
from .machine import Machine
from .settings import Precision

BYTES = {Precision.BF16: 2, Precision.FP32: 4}  # a parameter
TORCH_DTYPE = {Precision.BF16: "bfloat16", Precision.FP32: "float32"}
GB = 1e9

# Beside the weights at 1024 x 1024: the VAE's decode (3.38 GiB, the largest moment; computed from the module's shapes
# in bfloat16) and the CUDA context with cuBLAS and cuDNN.
WORKING_BYTES = round(3.38 * 2**30)
CONTEXT_BYTES = 1_000_000_000
# A forward of the 20B transformer is some 70 TFLOP, a hundred of them make an image: hours on a CPU. Beyond this many
# parameters a CPU is a mistake, whatever its memory.
CPU_MAX_PARAMETERS = 2_000_000_000
MIN_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16 in hardware


@dataclass(frozen=True)
class Plan:
    """Where the weights live and in what precision; sizes in bytes."""

    device: str  # "cuda" or "cpu"
    precision: Precision
    weights: int
    peak: int

    @property
    def dtype(self) -> str:
        """The torch dtype's name."""
        return TORCH_DTYPE[self.precision]

    def __str__(self) -> str:
        return f"{self.dtype} on {self.device}, weights {self.weights / GB:.2f} GB, peak {self.peak / GB:.1f} GB"


def plan(
    name: str,
    parameters: Mapping[str, int],
    machine: Machine,
    precision: Precision = Precision.AUTO,
    vram_cap: int | None = None,
    resident: int = 0,
) -> Plan:
    """A plan for the components still to be loaded, or a `LoadError` that says what is needed and what is there.

    `parameters`: parameter count by component, shared ones left out. `vram_cap`: bytes that may be used of the card.
    `resident`: bytes that this process already holds on it.
    """
    if machine.gpu is None:
        return plan_on_cpu(name, parameters, machine, precision)
    if precision is Precision.AUTO:
        precision = Precision.BF16
    if machine.gpu.capability < MIN_CAPABILITY:
        raise LoadError(f"{name} needs bfloat16 (compute capability 8.0 or later), not {describe(machine)}")
    weights = sum(parameters.values()) * BYTES[precision]
    # Working memory and context are shared by the pipelines on one card: counted once, with the first.
    extra = WORKING_BYTES + (0 if resident else CONTEXT_BYTES)
    free = machine.gpu.free
    if vram_cap is not None:
        free = min(free, vram_cap - resident - (CONTEXT_BYTES if resident else 0))
    if weights + extra > free:
        held = f", of which {resident / GB:.1f} GB are taken by a model already loaded" if resident else ""
        cap = f" under QWEN_VRAM_GB={vram_cap / GB:g}" if vram_cap is not None else ""
        raise LoadError(
            f"{name} needs {(weights + extra) / GB:.1f} GB of GPU memory in {TORCH_DTYPE[precision]} "
            f"({breakdown(parameters, BYTES[precision])}, {extra / GB:.1f} to work); {describe(machine)} "
            f"has {free / GB:.1f} GB free{cap}{held}"
        )
    return Plan("cuda", precision, weights, resident + weights + extra)


def plan_on_cpu(name: str, parameters: Mapping[str, int], machine: Machine, precision: Precision) -> Plan:
    if precision is Precision.AUTO:
        precision = Precision.FP32
    count = sum(parameters.values())
    on_gpu = (count * BYTES[Precision.BF16] + WORKING_BYTES + CONTEXT_BYTES) / GB
    weights = count * BYTES[precision]
    if count > CPU_MAX_PARAMETERS or weights > machine.ram_available:
        raise LoadError(
            f"{name} needs a CUDA GPU with {on_gpu:.1f} GB free in bfloat16 "
            f"({breakdown(parameters, BYTES[Precision.BF16])}); this machine has no CUDA GPU and "
            f"{machine.ram_available / GB:.1f} GB of RAM free, where {weights / GB:.1f} GB in "
            f"{TORCH_DTYPE[precision]} would be needed and a CPU serves at most {CPU_MAX_PARAMETERS / 1e9:g} billion "
            f"parameters, not {count / 1e9:.1f}"
        )
    return Plan("cpu", precision, weights, weights)


def require_disk(name: str, needed: int, free: int) -> None:
    """Refuse a download that would fill the disk."""
    if needed > free:
        raise LoadError(f"{name} needs {needed / GB:.1f} GB of disk to download; {free / GB:.1f} GB are free")


def breakdown(parameters: Mapping[str, int], size: int) -> str:
    return ", ".join(f"{component} {count * size / GB:.1f}" for component, count in parameters.items())


def describe(machine: Machine) -> str:
    gpu = machine.gpu
    return f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.total / GB:.1f} GB)"
