"""What a card would be given: every kernel with its bytes and FLOPs, every wait of the host, every graph.

Operators that reach the dispatcher one by one are a kernel each, but for views. A compiled graph's kernels are those
that Inductor's scheduler has chosen. A kernel's bytes are those of its inputs and outputs, each once: what it reads
again is in a cache, or it is a product or attention, which arithmetic bounds. Knows nothing of pipelines.
"""

# Inductor's scheduler and its sizes have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false, reportUnknownMemberType=false

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch._guards import TracingContext
from torch._inductor import ir
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .roofline import ATTENTION, ELEMENTWISE, PRODUCT

aten = torch.ops.aten
# That wait for what was queued before: copies between host and card, and numbers that the host asks for.
COPIES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten._unique2.default)
# That start no kernel although they are no views: memory that nothing is written to.
FREE = (
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.detach.default, aten.lift_fresh.default, aten._local_scalar_dense.default,
    aten.equal.default, aten._unsafe_view.default, aten._reshape_alias.default,
)  # fmt: skip
EIGHT_BITS = (torch.float8_e4m3fn, torch.int8)
COUNTED_WITHOUT_REGISTRY = ("_scaled_mm", "_int_mm")  # products that torch's flop counter may not know


@dataclass(frozen=True)
class Kernel:
    """`bytes`: read and written; `flops`: of a product or of attention; `eight_bits`: whether its factors are."""

    name: str
    kind: str
    bytes: int
    flops: int = 0
    eight_bits: bool = False
    masked: bool = False


@dataclass
class Account:
    """What was seen. `kernels`: by where they were started, "block" or "outside"; `waits`: what, and in which line."""

    kernels: dict[str, list[Kernel]] = field(default_factory=lambda: {"block": [], "outside": []})
    waits: list[str] = field(default_factory=list[str])


class Recorder(TorchDispatchMode):
    """Notes in `account` what is started within, in `place`. It takes no part in what torch compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.account, self.place, self.is_silent = Account(), "outside", False
        self.compiled_graphs = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.is_silent and TracingContext.try_get() is None:
            self.note(func, args, kwargs or {}, result)
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if "cuda" not in devices or func.namespace == "prim":
            return
        crosses = func in COPIES and len(devices) > 1 and not kwargs.get("non_blocking")
        if func in READS or crosses:
            self.account.waits.append(f"{func} in {source_line()}")
        if func not in FREE and not func.is_view and not (func in COPIES and len(devices) > 1):
            self.account.kernels[self.place].append(kernel_of(func, args, kwargs, result))

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Within, nothing is noted."""
        before, self.is_silent = self.is_silent, True
        try:
            yield
        finally:
            self.is_silent = before

    def compiled(self, graph: Any) -> Callable[[list[Any]], Any]:
        """What stands for the code of one of Inductor's graphs: notes its kernels and computes its operators."""
        self.compiled_graphs += 1

        def call(args: list[Any]) -> Any:
            with self.silent():
                with FlopsByOperator() as counted:
                    result = graph.module(*args)
                result = [as_buffer(one) for one in result]
            if not self.is_silent:
                self.account.kernels[self.place] += graph_kernels(graph, args, counted)
            args.clear()
            return result

        return call


def as_buffer(result: Any) -> Any:
    """A graph's result as its code gives it: a tensor by itself, and no view of another."""
    if not isinstance(result, torch.Tensor):
        return result
    return torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=result.device)


class FlopsByOperator(TorchDispatchMode):
    """Notes the kernel of each product and of each attention within, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kernel = kernel_of(func, args, kwargs or {}, result)
        if kernel.kind != ELEMENTWISE:
            self.kernels.append(kernel)
        return result


def kernel_of(func: Any, args: Any, kwargs: Any, result: Any) -> Kernel:
    """The kernel of one operator."""
    name = func.name().removeprefix("aten::")
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    distinct = {(id(tensor)): tensor for tensor in [*inputs, *outputs]}  # what is written in place is both
    size = sum(map(touched_bytes, distinct.values()))
    if "attention" in name:
        flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return Kernel(name, ATTENTION, size, flops, masked=len(inputs) > 3)
    if flops := product_flops(func, args, kwargs, result):
        return Kernel(name, PRODUCT, size, flops, eight_bits=any(tensor.dtype in EIGHT_BITS for tensor in inputs))
    return Kernel(name, ELEMENTWISE, size)


def product_flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """FLOPs of a product or a convolution, 0 of any other operator."""
    if func.overloadpacket in flop_registry:
        return int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=result))
    if any(name in func.name() for name in COUNTED_WITHOUT_REGISTRY):
        return 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
    matrices = [x for x in args if isinstance(x, torch.Tensor) and x.dim() == 2]
    if "addmm" in func.name() and len(matrices) >= 2:
        left, right = matrices[-2:]
        return 2 * left.shape[0] * left.shape[1] * right.shape[1]
    return 0


def touched_bytes(tensor: torch.Tensor) -> int:
    """Of a tensor that a kernel reads or writes: what is repeated by a stride of 0 counts once."""
    numbers = 1
    for side, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= int(side) if stride else 1
    return numbers * tensor.element_size()


def graph_kernels(graph: Any, args: list[Any], counted: FlopsByOperator) -> list[Kernel]:
    """The kernels that one call of a compiled graph starts, in order."""
    sizes = input_sizes(graph, args)
    products = iter(counted.kernels)
    kernels: list[Kernel] = []
    with V.set_graph_handler(graph), sizes_of(graph, sizes):
        for node in graph.scheduler.nodes:
            inner = getattr(node, "node", None)
            if type(node).__name__ == "NopKernelSchedulerNode" or isinstance(inner, ir.MultiOutput):
                continue
            size = node.get_read_write_buffers_sizes_impl(include_reads=True, include_writes=True)
            if isinstance(inner, ir.ExternKernel):
                kernels.append(next_product(products, inner, size))
            else:
                kernels.append(Kernel(node.get_name(), ELEMENTWISE, size))
    return kernels


def next_product(products: Iterator[Kernel], inner: Any, size: int) -> Kernel:
    """The kernel of an extern call. Products come in the scheduler's order, others by their bytes alone."""
    name = str(getattr(inner, "python_kernel_name", "") or type(inner).__name__)
    is_product = any(word in name for word in ("mm", "attention", "convolution"))
    if not is_product:
        return Kernel(name, ELEMENTWISE, size)
    return next(products)


def input_sizes(graph: Any, args: list[Any]) -> dict[sympy.Symbol, int]:
    """What the symbols in a graph's sizes are in a call with these inputs."""
    sizes: dict[sympy.Symbol, int] = {}
    for given, value in zip(graph.graph_inputs.values(), args, strict=True):
        if isinstance(given, sympy.Symbol):
            sizes[given] = int(value)
        elif isinstance(value, torch.Tensor):
            symbols = zip(given.get_size(), value.shape, strict=True)
            sizes |= {symbol: int(side) for symbol, side in symbols if isinstance(symbol, sympy.Symbol)}
    return sizes


@contextlib.contextmanager
def sizes_of(graph: Any, sizes: dict[sympy.Symbol, int]) -> Iterator[None]:
    """Within, sizes in the graph are those of one call, and not those with which it was compiled."""
    sizevars = graph.sizevars

    def size(expression: Any, fallback: int | None = None) -> int:
        whole = sympy.sympify(expression).subs(sizevars.inv_precomputed_replacements).subs(sizes)
        return int(whole)

    sizevars.optimization_hint = size
    try:
        yield
    finally:
        del sizevars.optimization_hint


def source_line() -> str:
    """The innermost line outside torch that is at work, as `file:line (function)`."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and not frame.filename.endswith(("kernels.py", "fake_card.py")):
            parts = frame.filename.split("site-packages/")[-1].split("/")
            return f"{'/'.join(parts[-2:])}:{frame.lineno} ({frame.name})"
    return "torch"
