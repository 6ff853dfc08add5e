"""A model of diffusers or transformers put together from stored tensors, as its own library would have loaded it.

diffusers: the class is made from its config without memory, and each tensor put in its place as it arrives.
transformers: `from_pretrained` is given a state dict whose tensors arrive when they are asked for, so that its renaming
of keys, its casts and its quantization stay the library's own. What will be dropped after loading is never read: a
single number, expanded to the shape, stands for it.

Imports torch: import it inside functions. Knows nothing of plans.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.files import StoredTensor, stored_tensors
from ..errors import LoadError
from ..stopwatch import Stopwatch
from . import quantized as quantized_weights
from .reader import WeightReader

BLOCK = 512  # bytes: what the card's allocator rounds to


@dataclass(frozen=True)
class Target:
    """Where a model goes and how it gets there. `pinned`: host memory that a card will fetch from."""

    device: str
    dtype: torch.dtype
    threads: int
    pinned: bool = False
    stages: Stopwatch = field(default_factory=Stopwatch)

    def reader(self, wanted: list[StoredTensor]) -> WeightReader:
        return WeightReader(wanted, self.device, self.threads, self.pinned)

    def wait(self) -> None:
        """Until what was copied is there."""
        if self.device == "cuda":
            with self.stages("copy"):
                torch.cuda.synchronize()


def diffusers_model(
    kind: Any, folder: Path, target: Target, quantize: Callable[[torch.nn.Module, str], None] | None = None
) -> Any:
    """The model in `folder`. `quantize(model, name)` is called for every parameter that has got its value.

    Raises `LoadError` where the stored tensors are not those of the class, by their names.
    """
    with target.stages("build"), without_memory(target.dtype):
        model = kind.from_config(kind.load_config(folder, local_files_only=True))
    tensors, quantized = stored_tensors(folder.parent, folder.name), quantized_weights.entries(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    require(folder.name, shapes, tensors, quantized)
    parts = {part for entry in quantized.values() for part in entry["tensors"]}
    wanted = [one for one in tensors.values() if one.name in shapes or one.name in parts]
    if not quantize:
        reserve(wanted, target.device)
    with target.reader(wanted) as reader:
        for name in (one.name for one in wanted if one.name in shapes and one.name not in quantized):
            with target.stages("read"):
                tensor = reader.take(name)
            put(model, name, cast(kind, name, tensor, target.dtype))
            if quantize:
                with target.stages("quantize"):
                    quantize(model, name)
        put_quantized(model, quantized, reader, target)
        with target.stages("read"):
            reader.verify()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(target.device)
    target.wait()
    return model.eval()


def transformers_model(
    kind: Any, folder: Path, target: Target, dropped: Callable[[str], bool], quantization_config: Any = None
) -> tuple[Any, dict]:
    """The model in `folder`, and its library's report on the keys. `dropped(name)`: whether a tensor is not needed."""
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    quantized = quantized_weights.entries(folder)
    with target.stages("build"), torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind(copy.deepcopy(config)).state_dict().items()}
    stand_ins = {
        name: torch.zeros(1, dtype=target.dtype, device=target.device).expand(shape)
        for name, shape in shapes.items()
        if dropped(name) or name in quantized
    }
    parts = {part for entry in quantized.values() for part in entry["tensors"]}
    # In the order in which the library asks for them.
    wanted = sorted(stored_tensors(folder.parent, folder.name).values(), key=lambda one: natural(one.name))
    wanted = [one for one in wanted if not dropped(one.name)]
    options = {"quantization_config": quantization_config} if quantization_config else {}
    with target.reader(wanted) as reader:
        awaited = {one.name: Awaited(reader, one, target.stages) for one in wanted if one.name not in parts}
        with target.stages("quantize" if quantization_config else "read"):
            model, report = kind.from_pretrained(
                None, config=config, state_dict={**awaited, **stand_ins}, dtype=target.dtype, device_map=target.device,
                output_loading_info=True, **options,
            )  # fmt: skip
        put_quantized(model, quantized, reader, target)
        with target.stages("read"):
            reader.verify()
    target.wait()
    return model, report


class Awaited:
    """Stands in a state dict for a tensor that is read when the library slices it, as it slices safetensors files."""

    def __init__(self, reader: WeightReader, one: StoredTensor, stages: Stopwatch):
        self.reader, self.name, self.stages = reader, one.name, stages

    def __getitem__(self, index: Any) -> torch.Tensor:
        with self.stages("read"):
            return self.reader.take(self.name)[index]


def require(
    component: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
    quantized: Mapping[str, dict],
) -> None:
    """Refuse what lacks a tensor of the class or has one of another shape."""
    missing = sorted(name for name in shapes if name not in tensors and name not in quantized)
    missing += sorted(part for entry in quantized.values() for part in entry["tensors"] if part not in tensors)
    if missing:
        raise LoadError(f"{component}/ lacks {len(missing)} of its weights, {missing[0]} among them")
    for name, shape in shapes.items():
        if name not in quantized and tensors[name].shape != shape:
            have, need = ("x".join(map(str, one)) for one in (tensors[name].shape, shape))
            raise LoadError(f"{component}/ has {name} in the shape {have} where its config asks for {need}")


@contextmanager
def without_memory(dtype: torch.dtype) -> Iterator[None]:
    """Within, models are made in this dtype with parameters that take no memory, as `from_pretrained` makes them."""
    from accelerate import init_empty_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights():
            yield
    finally:
        torch.set_default_dtype(before)


def reserve(wanted: list[StoredTensor], device: str) -> None:
    """Have the card's allocator take the room of all at once: a call to the driver for each is slow."""
    if device == "cuda":
        torch.empty(sum(-(-one.size // BLOCK) * BLOCK for one in wanted), dtype=torch.uint8, device=device)


def cast(kind: Any, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the dtype of the model, but for whole numbers and what its class keeps in float32."""
    if not tensor.is_floating_point():
        return tensor
    kept = getattr(kind, "_keep_in_fp32_modules", None) or ()
    return tensor.to(torch.float32 if set(kept) & set(name.split(".")) else dtype)


def put(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    elif isinstance(tensor, torch.nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        wanted = module._parameters[leaf].requires_grad and tensor.is_floating_point()
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=wanted)


def put_quantized(model: torch.nn.Module, quantized: Mapping[str, dict], reader: WeightReader, target: Target) -> None:
    """The weights that are stored quantized, each from several tensors."""
    for name, entry in quantized.items():
        with target.stages("read"):
            tensors = {part: reader.take(part) for part in entry["tensors"]}
        put(model, name, quantized_weights.assembled(model, name, entry, tensors))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts names by their parts, numbers by value: layers.2 before layers.10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
