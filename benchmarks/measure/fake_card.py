"""A card that is none: torch, Inductor and the pipelines take its tensors for a real card's, and nothing is computed.

Tensors have a shape, a dtype and a device, and no memory (torch's FakeTensorMode), so that the released architecture is
traced at full size on any machine. What asks the driver is answered from a table. Inductor chooses its kernels and does
not write them: what it compiled is computed as torch's operators, on tensors without memory again.

Torch chooses a kernel of attention below Python, by asking the card. `attention_kernel` chooses as torch 2.14 does
(`select_sdp_backend` and the checks that it calls), and stands in its place. Numbers that the host asks a tensor for
are made up. Reaches far into torch, by names that are none of its public ones: for measuring alone. Knows nothing of
models.
"""

# Answers in the driver's place are given to private functions of torch.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false, reportUnknownMemberType=false

import contextlib
import itertools
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch._inductor.config
import torch._inductor.graph
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _triton

Capability = tuple[int, int]
aten = torch.ops.aten
FLASH_CHANNELS = 256  # of a head that FlashAttention and cuDNN compute, at most
CUDNN_ALIGNMENT = 8  # channels of a head
BIAS_ALIGNMENT = 8  # tokens that the memory-efficient kernel wants a mask padded to
# Of a GH100; Inductor asks for them to choose the shapes of blocks, and none changes what a kernel reads or writes.
PROCESSORS, THREADS, BLOCK_THREADS, REGISTERS, WARP, SHARED_BYTES = 132, 2048, 1024, 65536, 32, 232_448
# Folding constants makes tensors on a real card.
CONFIG = {"force_disable_caches": True, "shape_padding": False, "joint_graph_constant_folding": False}


class FakeCard(FakeTensorMode):
    """Tensors without memory. What the host asks of their values is made up: True, 1, or a number after another."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.numbers = itertools.count(1)

    @property
    def avoid_device_init(self) -> bool:
        """Whether torch is kept from a driver: also where it has been told that there is one."""
        return True

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and not is_known(args[0]):
            dtype = args[0].dtype
            return True if dtype is torch.bool else 1 / next(self.numbers) if dtype.is_floating_point else 1
        if func is aten.equal.default:
            return True
        if func is aten.nonzero.default:  # as if nothing were 0
            with self:
                return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is aten.is_pinned.default:
            return False
        if func is aten._pin_memory.default:
            return args[0]
        return super().dispatch(func, types, args, kwargs or {})


class HostGenerator(torch.Generator):
    """Stands where a card's generator of random numbers would: none are drawn."""

    def __new__(cls, device: Any = "cpu") -> "HostGenerator":
        return super().__new__(cls, "cpu")


def is_known(tensor: Any) -> bool:
    """Whether the number in a fake tensor is known, as that of one made from a number of Python's."""
    return getattr(tensor, "constant", None) is not None


@contextlib.contextmanager
def fake_card(capability: Capability, name: str, compiled: Callable[[Any], Any]) -> Iterator[FakeCard]:
    """Within, torch has a card of this compute capability.

    `compiled(graph)` is called with each of Inductor's graphs (`GraphLowering`) once its kernels are chosen, and
    returns what is called in place of its code, with a list of inputs.
    """

    def compile_to_module(graph: Any) -> Any:
        # The first half of `GraphLowering.codegen`: which kernels there are. Their code would be the second.
        graph.init_wrapper_code()
        graph._update_scheduler()
        return types.SimpleNamespace(call=compiled(graph), key=name, __file__=__file__)

    torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        # Of caches that are off, and of tensors whose address somebody asks for.
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        for target, attribute, value in answers(capability, name):
            stack.enter_context(mock.patch.object(target, attribute, value))
        stack.enter_context(
            mock.patch.object(torch._inductor.graph.GraphLowering, "compile_to_module", compile_to_module)
        )
        # Patterns of attention written out in products, and products with padded sides: here are neither.
        for pattern in ("fuse_attention._sfdp_init", "pad_mm._pad_mm_init"):
            stack.enter_context(mock.patch(f"torch._inductor.fx_passes.{pattern}", answer(None)))
        stack.enter_context(torch._inductor.config.patch(CONFIG))
        # What torch has found out about the machine before, and what it finds out about the card, is asked anew.
        for cached in (_triton.has_triton, DeviceProperties.create):
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        stack.callback(torch._dynamo.reset)
        stack.enter_context(attention_of(capability))
        stack.enter_context(torch.no_grad())
        yield stack.enter_context(FakeCard())


def answer(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def answers(capability: Capability, name: str) -> Iterator[tuple[Any, str, Any]]:
    """(object, its attribute, what stands there) for what torch asks of a driver."""
    major, minor = capability
    properties = types.SimpleNamespace(
        name=name, major=major, minor=minor, multi_processor_count=PROCESSORS, warp_size=WARP, gcnArchName="",
        max_threads_per_multi_processor=THREADS, max_threads_per_block=BLOCK_THREADS,
        regs_per_multiprocessor=REGISTERS, shared_memory_per_block_optin=SHARED_BYTES,
        shared_memory_per_block=SHARED_BYTES, shared_memory_per_multiprocessor=SHARED_BYTES,
    )  # fmt: skip
    asked = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_capability": capability,
        "get_device_properties": properties, "get_device_name": name, "_lazy_init": None, "synchronize": None,
        "is_current_stream_capturing": False, "_exchange_device": 0, "_maybe_exchange_device": 0, "set_device": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None, "empty_cache": None,
    }  # fmt: skip
    for attribute, value in asked.items():
        yield torch.cuda, attribute, answer(value)
    yield torch, "Generator", HostGenerator
    yield torch.cuda.graphs, "_cuda_isCurrentStreamCapturing", answer(False)
    interface = {
        "is_available": True, "get_device_properties": properties, "get_compute_capability": 10 * major + minor,
        "raise_if_triton_unavailable": None,
    }  # fmt: skip
    for attribute, value in interface.items():
        yield CudaInterface, attribute, staticmethod(answer(value))
    yield CudaInterface.Worker, "get_device_properties", staticmethod(answer(properties))
    yield _triton, "triton_hash_with_backend", answer(name)


def attention_kernel(capability: Capability, masked: bool, channels: int) -> str:
    """Which kernel torch for CUDA 13 chooses for bfloat16, as the worker has it on any CUDA.

    "cudnn", "flash" or "efficient"; `channels`: of a head.
    """
    if capability in ((9, 0), (10, 0)) and channels <= FLASH_CHANNELS and channels % CUDNN_ALIGNMENT == 0:
        return "cudnn"
    return "efficient" if masked or channels > FLASH_CHANNELS else "flash"


@contextlib.contextmanager
def attention_of(capability: Capability) -> Iterator[None]:
    """Within, `scaled_dot_product_attention` is computed by the kernel that torch chooses on such a card."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """(B, heads, tokens, channels) each."""
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        kernel = attention_kernel(capability, attn_mask is not None, query.shape[-1])
        if kernel == "flash":
            return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        bias = None if attn_mask is None else as_bias(attn_mask, query, key, kernel)
        if kernel == "cudnn":
            operator = aten._scaled_dot_product_cudnn_attention
            return operator(query, key, value, bias, False, dropout_p, is_causal, False, scale=scale)[0]
        operator = aten._scaled_dot_product_efficient_attention
        return operator(query, key, value, bias, False, dropout_p, is_causal, scale=scale)[0]

    library = torch.library.Library("aten", "IMPL")  # noqa: TOR901  ended below
    try:
        for key in ("AutogradCUDA", "CUDA"):
            library.impl("scaled_dot_product_attention", attend, key, allow_override=True)
        yield
    finally:
        library._destroy()


def as_bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, kernel: str) -> torch.Tensor:
    """A mask (B, 1, 1, tokens) as it reaches a kernel, which adds it to the scores.

    The memory-efficient one gets it padded, and repeated for every head and row by strides of 0.
    """
    if mask.dtype is torch.bool:
        mask = torch.where(mask, 0.0, -float("inf")).to(query.dtype)
    if kernel != "efficient":
        return mask
    tokens = mask.shape[-1]
    if tokens % BIAS_ALIGNMENT:
        mask = torch.nn.functional.pad(mask, (0, -tokens % BIAS_ALIGNMENT))[..., :tokens]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
