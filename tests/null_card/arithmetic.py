"""What a card without arithmetic must be told, so that the libraries around a model can go on.

Lengths, masks, token ids, timesteps and the places of windows are small tensors, whose values decide the shapes of the
large ones. They are computed here by the CPU, in the card's own memory, which is host memory: no library is patched for
their sake, and each runs its own code. Large tensors stay as no kernel has left them. What is changed of torch:

| what | why |
|---|---|
| operators whose tensors are all small: computed by the CPU | a kernel would leave their values as they were |
| an index by a small mask: by the numbers of its places | torch counts a mask's places by a kernel, below Python |
| an operator whose result's shape is in a large tensor's values: refused | it would be a shape of chance |
| large copies into pinned memory: left out | they would fill address space with gigabytes of zeros |
| cuDNN's convolution: memory of the right shape | cuDNN, which is not faked, asks for a real card |
| cuDNN's attention: the same | the same |

Memory is true for all that: what an operator takes of the card while it runs is torch's own doing. Two things are left
out: cuDNN's workspaces, and what an operator on small tensors takes beside its result, some kilobytes.
"""

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

SMALL = 1 << 16  # bytes of a tensor that the CPU computes
LARGE = 1 << 20  # bytes of a copy that is left out; the card's own copies end there too
aten = torch.ops.aten
PLAIN = (torch.Tensor, torch.nn.Parameter)
COPIES = (aten._to_copy.default, aten.copy_.default)  # operators that may take tensors of two devices
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
EMPTY = (aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default, aten.new_empty_strided.default)
# Indices have that tag too, and are seen to above. A single value is read by habit as well, as to be printed.
SHAPED_BY_VALUES = (
    aten.nonzero.default, aten._unique2.default, aten.unique_consecutive.default, aten.masked_select.default,
    aten.repeat_interleave.Tensor,
)  # fmt: skip
HANDLED = {aten._pin_memory.default, aten.copy_.default, *INDEXING, *SHAPED_BY_VALUES}


class SmallByCpu(TorchDispatchMode):
    """Within, in this thread, operators on the card's small tensors are computed by the CPU."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether torch.compile may compile while the mode is on: no shape of what it compiles is in small tensors."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in HANDLED:
            if func is aten._pin_memory.default and args[0].nbytes > LARGE:
                return torch.empty_like(args[0], pin_memory=True)
            if func is aten.copy_.default and is_large_into_pinned(*args[:2]):
                return args[0]
            if func in INDEXING:
                args = (args[0], by_places(args[1]), *args[2:])
            if func in SHAPED_BY_VALUES and is_of_card(args[0]) and args[0].nbytes > SMALL:
                raise NotImplementedError(f"{func} asks for values that no kernel has computed")
        if not func.is_view and is_small(func, args, kwargs):
            try:
                return computed(func, args, kwargs)
            except NotImplementedError:  # for products of fp8, as an example, the CPU has no kernel
                pass
        return func(*args, **kwargs)


def is_of_card(value: Any) -> bool:
    return type(value) in PLAIN and value.is_cuda


def is_small(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator's tensors are all the card's and small together, or it makes a small one of none.

    Of other devices only scalars may be among them, as torch has it; copies take a tensor from one to the other.
    """
    room, here, elsewhere = SMALL, False, False
    for tensor in tensors_of((*args, *kwargs.values())):
        room -= tensor.nbytes
        if room < 0 or type(tensor) not in PLAIN or tensor.is_meta:
            return False
        here = here or tensor.is_cuda
        elsewhere = elsewhere or bool(not tensor.is_cuda and tensor.dim())
    if func in EMPTY or any(math.prod(size) > SMALL for size in args[:2] if is_size(size)):
        return False
    if func in COPIES or not here and not elsewhere:
        return here or is_for_card(kwargs)
    return here and not elsewhere


def is_size(value: Any) -> bool:
    """Whether an argument is the size of what an operator is to make."""
    return isinstance(value, list | tuple) and all(type(one) is int for one in value)


def tensors_of(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among an operator's arguments, those in lists too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(value)


def is_for_card(kwargs: dict[str, Any]) -> bool:
    """Whether an operator is asked for a result on the card."""
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator's result, computed by the CPU, on the device where the operator would have it."""
    given: dict[int, torch.Tensor] = {}  # the caller's tensors, by the number of what the CPU sees of them
    to_host = func is aten._to_copy.default and kwargs.get("device") is not None and not is_for_card(kwargs)

    def seen(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        made = host_view(value) if value.is_cuda else value
        given[id(made)] = value
        return made

    def returned(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or to_host:
            return value
        if id(value) in given:  # what an operator writes to is what it returns
            return given[id(value)]
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda").copy_(value)

    args = replaced(args, seen)
    kwargs = {name: replaced(value, seen) for name, value in kwargs.items()}
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    return replaced(func(*args, **kwargs), returned)


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value, changed; of a list or a tuple each one."""
    return type(value)(replaced(one, change) for one in value) if type(value) in (list, tuple) else change(value)


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """The card's tensor as the CPU sees it: the same bytes."""
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    held = (ctypes.c_byte * (extent * tensor.element_size())).from_address(tensor.data_ptr())
    return torch.frombuffer(held, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


def is_large_into_pinned(target: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether a copy from host memory would fill much pinned memory."""
    on_host = target.device.type == source.device.type == "cpu"
    return on_host and target.nbytes > LARGE and target.is_pinned()


def by_places(indices: list[Any]) -> list[Any]:
    """The indices with each small mask of the card as the numbers of its places, one a dimension."""
    found: list[Any] = []
    for index in indices:
        if index is None or index.dtype is not torch.bool or not is_of_card(index):
            found.append(index)
            continue
        if index.nbytes > SMALL:
            raise NotImplementedError("an index by a large mask asks for values that no kernel has computed")
        found += [places.to(index.device) for places in host_view(index).nonzero().unbind(1)]
    return found


def convolution(source: Any, weight: Any, padding: Any, stride: Any, dilation: Any, groups: int, *_: bool) -> Any:
    """In place of cuDNN's: a result of the right shape. torch has compared devices and dtypes before."""
    shapes = torch.empty_like(source, device="meta"), torch.empty_like(weight, device="meta")
    still = [0] * len(padding)
    shaped = aten.convolution.default(*shapes, None, stride, padding, dilation, False, still, groups)
    return torch.empty_like(shaped, device=source.device)


def attention(query: Any, key: Any, value: Any, bias: Any, sums: bool, *more: Any, scale: Any = None) -> Any:
    """In place of cuDNN's: results of the right shapes. torch has chosen it before, as it does on a card."""
    shapes = [torch.empty_like(one, device="meta") for one in (query, key, value)]
    operator = aten._scaled_dot_product_cudnn_attention.default
    shaped = operator(*shapes, None, sums, *more, scale=scale)
    return tree_map(lambda one: torch.empty_like(one, device="cuda") if isinstance(one, torch.Tensor) else one, shaped)


def install() -> torch.library.Library:
    """cuDNN's two operators without cuDNN, in every thread, for as long as what is returned is held."""
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("cudnn_convolution", convolution, "CUDA", allow_override=True)
    kernels.impl("_scaled_dot_product_cudnn_attention", attention, "CUDA", allow_override=True)
    return kernels
