"""A model of diffusers or transformers put together from stored tensors, as its own library would have loaded it.

diffusers: the class is made from its config without memory, and each tensor put in its place as it arrives.
transformers: `from_pretrained` gets a state dict whose tensors are read when the library asks for them, so that its
renaming of keys, its casts and its quantization stay the library's own. A tensor that will be dropped after loading is
never read: a single number, expanded to the shape, stands for it.

Imports torch: import it inside functions. Knows nothing of plans.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.encoded import EncodedWeight
from ..checkpoints.files import StoredTensor, stored_tensors
from ..checkpoints.single_file import weights_of
from ..errors import LoadError
from ..model.quantization import keep_fp8
from ..stopwatch import Stopwatch
from . import decoding
from . import quantized as quantized_weights
from .known import require_known
from .quantized import QuantizedEntry
from .reader import PlainReader, WeightReader

ALLOCATOR_BLOCK = 512  # bytes, to which the card's allocator rounds up


@dataclass(frozen=True)
class Target:
    """Where a model goes and how it gets there. `pinned`: into host memory that a card will fetch from.

    `threads`: 0 for one read after another in the calling thread.
    """

    device: str
    dtype: torch.dtype
    threads: int
    pinned: bool = False
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def reader(self, wanted: list[StoredTensor]) -> WeightReader | PlainReader:
        if not self.threads:
            return PlainReader(wanted, self.device)
        return WeightReader(wanted, self.device, self.threads, self.pinned)

    def wait(self) -> None:
        """Wait until the card has everything that is being copied to it."""
        if self.device == "cuda":
            with self.stopwatch("copy"):
                torch.cuda.synchronize()


def diffusers_model(
    kind: Any, folder: Path, target: Target, quantize: Callable[[torch.nn.Module, str], None] | None = None
) -> Any:
    """The model of class `kind` in `folder`.

    `quantize(model, name)` is called for every parameter once it has its value.
    Raises `LoadError` where the stored tensors are not those of the class, by their names.
    """
    with target.stopwatch("build"), make_empty(target.dtype):
        model = kind.from_config(kind.load_config(folder, local_files_only=True))
    weights = weights_of(folder.parent, folder.name)
    quantized = quantized_weights.read_entries(folder) or quantized_weights.entries_of(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    require_tensors(folder.name, shapes, weights, quantized)
    parts = {part for entry in quantized.values() for part in entry["tensors"]}
    require_known(folder.name, kind, (name for name in weights if name not in shapes and name not in parts))
    wanted = [weight for weight in weights.values() if weight.name in shapes or weight.name in parts]
    stored = [tensor for weight in wanted for tensor in weight.tensors]
    if not quantize and all(weight.is_plain for weight in wanted):
        reserve_memory(stored, target.device)
    with target.reader(stored) as reader:
        for weight in wanted:
            if weight.name in shapes and weight.name not in quantized:
                with target.stopwatch("read"):
                    tensors = decoding.pop(reader, weight)
                set_weight(model, kind, weight, tensors, target, quantize)
        set_quantized(model, quantized, reader, target)
        with target.stopwatch("read"):
            reader.verify()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(target.device)
    target.wait()
    return model.eval()


def set_weight(
    model: torch.nn.Module,
    kind: Any,
    weight: EncodedWeight,
    tensors: Sequence[torch.Tensor],
    target: Target,
    quantize: Callable[[torch.nn.Module, str], None] | None,
) -> None:
    """Give a weight its value, in the target's dtype and perhaps quantized. `tensors`: as `decoding.pop` gives them."""
    with target.stopwatch("read"):
        value = cast_for(kind, weight.name, decoding.decode(weight, tensors), target.dtype)
        set_tensor(model, weight.name, value)
    if quantize:
        with target.stopwatch("quantize"):
            quantize(model, weight.name)
            if weight.encoding == "F8_E4M3":
                keep_fp8(model, weight.name, tensors[0], decoding.scales_of(weight, tensors))


def transformers_model(
    kind: Any, folder: Path, target: Target, dropped: Callable[[str], bool], quantization_config: Any = None
) -> tuple[Any, dict[str, Any]]:
    """The model of class `kind` in `folder`, and its library's report on missing and unexpected keys.

    `dropped(name)`: whether a tensor is not needed. Raises `LoadError` where a stored tensor is damaged.
    """
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    quantized = quantized_weights.read_entries(folder)
    with target.stopwatch("build"), torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind(copy.deepcopy(config)).state_dict().items()}
    stand_ins = {
        name: torch.zeros(1, dtype=target.dtype, device=target.device).expand(shape)
        for name, shape in shapes.items()
        if dropped(name) or name in quantized
    }
    parts = {part for entry in quantized.values() for part in entry["tensors"]}
    needed = (tensor for tensor in stored_tensors(folder.parent, folder.name).values() if not dropped(tensor.name))
    wanted = sorted(needed, key=lambda tensor: natural_order(tensor.name))  # in which the library asks for them
    options = {"quantization_config": quantization_config} if quantization_config else {}
    with target.reader(wanted) as reader:
        unread = {
            tensor.name: UnreadTensor(reader, tensor.name, target.stopwatch)
            for tensor in wanted
            if tensor.name not in parts
        }
        with target.stopwatch("quantize" if quantization_config else "read"):
            model, report = kind.from_pretrained(
                None, config=config, state_dict={**unread, **stand_ins}, dtype=target.dtype, device_map=target.device,
                output_loading_info=True, **options,
            )  # fmt: skip
        set_quantized(model, quantized, reader, target)
        with target.stopwatch("read"):
            reader.verify()
    target.wait()
    require_known(folder.name, kind, report["unexpected_keys"])
    return model, report


class UnreadTensor:
    """Stands in a state dict for a tensor that is read when the library slices it, as it slices safetensors files."""

    def __init__(self, reader: WeightReader | PlainReader, name: str, stopwatch: Stopwatch):
        self.reader, self.name, self.stopwatch = reader, name, stopwatch

    def __getitem__(self, index: Any) -> torch.Tensor:
        with self.stopwatch("read"):
            return self.reader.pop(self.name)[index]


def require_tensors(
    component: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor | EncodedWeight],
    quantized: Mapping[str, QuantizedEntry],
) -> None:
    """Raises `LoadError` where `tensors` lack one of the class's `shapes`, or have it in another shape."""
    missing = sorted(name for name in shapes if name not in tensors and name not in quantized)
    missing += sorted(part for entry in quantized.values() for part in entry["tensors"] if part not in tensors)
    if missing:
        raise LoadError(f"{component}/ lacks {len(missing)} of its weights, {missing[0]} among them")
    for name, shape in shapes.items():
        if name not in quantized and tensors[name].shape != shape:
            have, need = ("x".join(map(str, sizes)) for sizes in (tensors[name].shape, shape))
            raise LoadError(f"{component}/ has {name} in the shape {have} where its config asks for {need}")


@contextmanager
def make_empty(dtype: torch.dtype) -> Iterator[None]:
    """Within, models are made in this dtype with parameters that take no memory, as `from_pretrained` makes them."""
    from accelerate import init_empty_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights():
            yield
    finally:
        torch.set_default_dtype(before)


def reserve_memory(wanted: list[StoredTensor], device: str) -> None:
    """Have the card's allocator get the memory of all tensors at once: one call to the driver for each is slow."""
    if device == "cuda":
        blocks = sum(-(-tensor.size // ALLOCATOR_BLOCK) for tensor in wanted)
        torch.empty(blocks * ALLOCATOR_BLOCK, dtype=torch.uint8, device=device)


def cast_for(kind: Any, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in the model's dtype. Whole numbers stay, and what the class keeps in float32 becomes that."""
    if not tensor.is_floating_point():
        return tensor
    kept = getattr(kind, "_keep_in_fp32_modules", None) or ()
    return tensor.to(torch.float32 if set(kept) & set(name.split(".")) else dtype)


def set_tensor(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make a tensor the model's parameter or buffer of that name."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    elif isinstance(tensor, torch.nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        before = module._parameters[leaf]
        requires_grad = before is not None and before.requires_grad and tensor.is_floating_point()
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=requires_grad)


def set_quantized(
    model: torch.nn.Module, quantized: Mapping[str, QuantizedEntry], reader: WeightReader | PlainReader, target: Target
) -> None:
    """Set the weights that are stored quantized, each from several tensors."""
    for name, entry in quantized.items():
        with target.stopwatch("read"):
            tensors = {part: reader.pop(part) for part in entry["tensors"]}
        set_tensor(model, name, quantized_weights.assemble(model, name, entry, tensors))


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names by their parts, and numbers by value: layers.2 before layers.10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
