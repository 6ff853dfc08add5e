"""Every fault that is injected: what is raised, where, and what must come of it.

    python -m tests.loading.faults [WORDS...]

meets them all, or those whose names hold one of the words, prints what the jobs around each were answered, and keeps it
in benchmarks/results/injected_faults.json. `test_faults.py` holds the worker to the list, and `docs/operating.md` to
the file.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, InternalTorchDynamoError

from ..conftest import ROOT
from ..null_card.card import Card, Processes, why_not
from .injection import DRAW, SPOILED, Fault, meet, meet_by_process

RESULTS = ROOT / "benchmarks/results/injected_faults.json"
PACKAGES = ("torch", "diffusers", "transformers", "torchao", "bitsandbytes")
W = "qwen_worker"
NO_PLAN = RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built.")
STRIDES = AssertionError("expected size 24==24, stride 128==3072 at dim=1")
RESOURCES = RuntimeError("Triton Error [CUDA]: out of resources: shared memory, Required: 147456, limit: 101376")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.5")
DISK = OSError(5, "Input/output error", "/srv/models/secret/model.safetensors")
ILLEGAL = RuntimeError(SPOILED)
READERS = ("reader/text_encoder", "reader/transformer", "reader/vae")

# Reading weights

BY_READER = (
    Fault("a read fails", "the reader of weights", DISK, (f"{W}.weights.staging:PieceReader.read",), READERS),
    Fault("a copy is refused", "the reader of weights", RuntimeError("CUDA error: invalid argument"),
          (f"{W}.weights.staging:PieceReader.read",), READERS),
    Fault("no thread can be started", "the reader of weights", RuntimeError("can't start new thread"),
          (f"{W}.weights.reader:WeightReader.start",), READERS),
    Fault("diffusers has renamed what makes a model", "the reader of weights",
          AttributeError("type object 'QwenImageTransformer2DModel' has no attribute 'load_config'"),
          (f"{W}.weights.assembly:diffusers_model",), READERS[1:]),
    Fault("accelerate has lost what makes a model empty", "the reader of weights",
          ImportError("cannot import name 'init_empty_weights' from 'accelerate'"),
          (f"{W}.weights.assembly:make_empty",), READERS[1:]),
    Fault("a tensor is left without memory", "the reader of weights",
          NotImplementedError("Cannot copy out of meta tensor; no data!"),
          (f"{W}.weights.assembly:set_tensor",), READERS[1:]),
    Fault("transformers takes no state dict any more", "the reader of weights",
          TypeError("from_pretrained() got an unexpected keyword argument 'state_dict'"),
          (f"{W}.weights.assembly:transformers_model",), READERS[:1]),
    Fault("transformers renames keys otherwise", "the reader of weights", KeyError("model.layers.0.self_attn.q_proj"),
          (f"{W}.weights.assembly:transformers_model",), READERS[:1]),
    Fault("no thread can read ahead", "reading ahead", RuntimeError("can't start new thread"),
          (f"{W}.loading.page_cache:ReadAhead.start",),
          constants={f"{W}.loading.libraries:imported": set()}),  # files are read ahead while libraries are imported
    Fault("prepared checkpoints cannot be looked for", "prepared checkpoints", TypeError("'NoneType' is not iterable"),
          (f"{W}.loading.prepared:find",)),
)  # fmt: skip

# The savings of memory

TABLED: dict[str, Any] = {"settings": {"QWEN_PRECISION": "bf16"}, "layout": {"table": True}}
STREAMED: dict[str, Any] = {"layout": {"text_encoder": "streamed"}}
BOTH = ("generate", "edit")
SWAPPED: dict[str, Any] = {"layout": {"swapped": True}}
CHECKED: dict[str, Any] = {"QWEN_SELF_CHECK": "on"}
BY_SAVINGS = (
    Fault("cuBLAS fails in the table", "the modulation table",
          RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
          (f"{W}.weights.modulation_rows:build",), ("table",), **TABLED),
    Fault("the table has other strides", "the modulation table", STRIDES, (f"{W}.weights.modulation_rows:build",),
          ("table",), **TABLED),
    Fault("the host has no memory for the table", "the modulation table",
          RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory"),
          (f"{W}.weights.modulation_rows:build",), ("table",), **TABLED),
    Fault("the feature cache is another one", "savings of the VAE",
          AttributeError("'AutoencoderKLQwenImage' object has no attribute '_decode'"),
          (f"{W}.model.vae:skip_feature_cache",), ("single_frame",)),
    Fault("a convolution has no temporal slice", "savings of the VAE", IndexError("index -1 is out of bounds"),
          (f"{W}.model.vae:use_2d_convolutions",), ("conv2d", "single_frame")),
    Fault("diffusers streams by another call", "a streamed text encoder",
          TypeError("apply_group_offloading() got an unexpected keyword argument 'record_stream'"),
          (f"{W}.model.residency:stream",), ("streamed",), **STREAMED),
    Fault("a parameter cannot be moved to host memory", "transformers that take turns",
          RuntimeError("Cannot swap t1 because it has weakref associated with it"),
          (f"{W}.model.residency:Swap.add",), ("swapped",), **SWAPPED),
    Fault("a turn is short of memory once", "transformers that take turns", NO_MEMORY,
          (f"{W}.model.residency:Home.load",), phase=DRAW, times=1, loads=BOTH, **SWAPPED),
    Fault("a turn is short of memory twice", "transformers that take turns", NO_MEMORY,
          (f"{W}.model.residency:Home.load",), phase=DRAW, times=2, loads=BOTH, code="out_of_memory", **SWAPPED),
)  # fmt: skip

# Quantizing

BY_QUANTIZING = (
    Fault("torchao refuses the card", "quantizing to fp8",
          AssertionError("Float8 dynamic quantization requires CUDA capability 8.9"),
          (f"{W}.model.quantization:weight_quantizer", f"{W}.model.quantization:configuration"),
          ("fp8", "reader/transformer"), settings={"QWEN_PRECISION": "fp8"}),
    Fault("torchao has another name", "quantizing to int8",
          ImportError("cannot import name 'Int8DynamicActivationInt8WeightConfig' from 'torchao.quantization'"),
          (f"{W}.model.quantization:torchao_config",), ("int8", "reader/transformer"),
          settings={"QWEN_PRECISION": "int8"}),
    Fault("bitsandbytes finds no library", "quantizing to NF4",
          RuntimeError("Error named symbol not found at line 449 in file /src/csrc/ops.cu"),
          (f"{W}.model.quantization:quantize_to_nf4",), ("nf4", "reader/transformer"),
          settings={"QWEN_PRECISION": "nf4"}),
    Fault("torchao's product has moved", "the product of int8",
          ModuleNotFoundError("No module named 'torchao.kernel.intmm'"),
          (f"{W}.model.quantization:use_own_int8_product",), ("int8 product",), settings={"QWEN_PRECISION": "int8"}),
)  # fmt: skip

# Speed-ups

FASTER: dict[str, Any] = {"settings": {"QWEN_SPEEDUPS": "rotary,guidance,compile"}}
SPEEDUPS = ("compile", "guidance", "rotary")
WARM = (f"{W}.speed.compiled:CompiledBlocks.warm",)
BALANCED = {"preset": "balanced", "num_inference_steps": 12}
BLOCK = ("tests.loading.injection:run_block",)
BY_COMPILING = tuple(
    Fault(name, "warming up compiled blocks", error, WARM, ("compile",), **FASTER)
    for name, error in {
        "cuDNN has no plan": NO_PLAN,
        "a kernel expects other strides": STRIDES,
        "ptxas is missing": RuntimeError("Cannot find ptxas"),
        "ptxas fails": RuntimeError("PTXAS error: Internal Triton PTX codegen error"),
        "a kernel asks for too much": RESOURCES,
        "the C compiler fails": subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        "Triton does not find the driver": AssertionError("libcuda.so cannot found!"),
        "torch's compiler fails": InternalTorchDynamoError("AttributeError: 'NoneType' object has no attribute 'node'"),
        "memory runs out": NO_MEMORY,
    }.items()
) + (
    Fault("what an earlier start compiled cannot be read", "compiled blocks that are kept",
          AttributeError("module 'torch.compiler' has no attribute 'load_cache_artifacts'"),
          (f"{W}.speed.compile_store:CompileStore.load",), ("compile",), **FASTER),
    Fault("what is compiled cannot be kept", "compiled blocks that are kept", RuntimeError("cannot pickle 'SymInt'"),
          (f"{W}.speed.compile_store:CompileStore.save",), SPEEDUPS, DRAW, times=1, **FASTER),
    Fault("the attention processor has moved", "the real rotary embedding",
          AttributeError("'Attention' object has no attribute 'set_processor'"),
          (f"{W}.speed.attention:use_real_rotary",), ("compile", "rotary"), **FASTER),
)  # fmt: skip
BY_COMPILED = tuple(
    Fault(name, "compiled blocks", error, BLOCK, off, DRAW, **FASTER)
    for name, error, off in (
        ("cuDNN has no plan for a job", NO_PLAN, SPEEDUPS),
        ("a job's strides are others", STRIDES, SPEEDUPS),
        ("a job's kernel asks for too much", RESOURCES, SPEEDUPS),
        ("a graph has a tensor of another device",
         RuntimeError("Expected all tensors to be on the same device, but found at least two devices"), SPEEDUPS),
        ("there are too many graphs", FailOnRecompileLimitHit("recompile_limit reached with fullgraph=True"),
         ("compile",)),
        ("a job's graph does not compile", InternalTorchDynamoError("KeyError: 's17'"), ("compile",)),
    )
) + (
    Fault("attention fails", "the real rotary embedding", NO_PLAN, (f"{W}.speed.attention:JointAttention.__call__",),
          SPEEDUPS, DRAW, **FASTER),
    Fault("the step cache cannot be turned on", "the step cache of preset balanced",
          ValueError("TaylorSeerCache is already enabled"), (f"{W}.speed.step_cache:predict_steps",), ("step cache",),
          DRAW, job=BALANCED),
    Fault("the step cache fails in a step", "the step cache of preset balanced",
          KeyError("taylor_factors"), ("diffusers.hooks.taylorseer_cache:TaylorSeerState.predict",), ("step cache",),
          DRAW, job=BALANCED),
    Fault("two passes in one fail", "guidance in one pass",
          RuntimeError("Sizes of tensors must match except in dimension 0"),
          (f"{W}.speed.guidance:PassSharing.compute_both",), SPEEDUPS, DRAW, **FASTER),
)  # fmt: skip

# The self-check

BY_SELF_CHECK = (
    Fault("rows of the table are NaN", "numbers that the self-check finds wrong", None,
          (f"{W}.weights.modulation_rows:build",), ("table",), change=lambda table: with_nan(table),
          **TABLED | {"settings": TABLED["settings"] | CHECKED}),
    Fault("a convolution is wrong", "numbers that the self-check finds wrong", None,
          (f"{W}.model.vae:SingleFrameConv.forward",), ("conv2d",), change=lambda picture: picture * 1.2,
          settings=CHECKED),
    Fault("attention gives NaN", "numbers that the self-check finds wrong", None,
          (f"{W}.speed.attention:rotate",), ("rotary",), change=lambda heads: heads * torch.nan,
          settings=CHECKED | {"QWEN_SPEEDUPS": "rotary"}),
    Fault("the comparison itself fails", "the self-check", NO_PLAN,
          (f"{W}.loading.component_comparisons:there_and_back",), settings=CHECKED),
    Fault("the self-check cannot be imported", "the self-check",
          ImportError("cannot import name 'QwenDoubleStreamAttnProcessor2_0'"),
          (f"{W}.loading.self_check:comparisons_of",), settings=CHECKED),
)  # fmt: skip

# Memory, and what is beside the model

VAE_DECODE = ("diffusers.models.autoencoders.autoencoder_kl_qwenimage:QwenImageDecoder3d.forward",)
ENCODE = ("diffusers.pipelines.qwenimage.pipeline_qwenimage:QwenImagePipeline.encode_prompt",)
TRANSFORMER = (f"{W}.model.transformer:WaitFreeTransformer.forward",)
IN_ONE_PASS: dict[str, Any] = {"settings": {"QWEN_SPEEDUPS": "guidance"}}
BY_MEMORY = (
    Fault("memory runs out in two passes in one", "memory while a job is drawn", NO_MEMORY,
          (f"{W}.speed.guidance:PassSharing.compute_both",), phase=DRAW, **IN_ONE_PASS),
    Fault("memory runs out in the decoder", "memory while a job is drawn", NO_MEMORY, VAE_DECODE, phase=DRAW, times=1),
    Fault("memory runs out in a step", "memory while a job is drawn", NO_MEMORY, TRANSFORMER, phase=DRAW, times=1),
    Fault("memory runs out in the text encoder", "memory while a job is drawn", NO_MEMORY, ENCODE, phase=DRAW, times=2,
          code="out_of_memory"),
    Fault("memory runs out in every attempt", "memory while a job is drawn", NO_MEMORY, VAE_DECODE, phase=DRAW,
          times=3, code="out_of_memory", **IN_ONE_PASS),
    Fault("an encoding cannot be kept", "the cache of prompts", MemoryError(),
          (f"{W}.drawing.prompt_cache:to_ram",), phase=DRAW),
    Fault("a preview fails", "previews", NO_PLAN, (f"{W}.drawing.preview:Preview.thumbnail",), phase=DRAW,
          job={"preview": True, "num_inference_steps": 16}),
)  # fmt: skip

# CUDA itself, as the worker sees it

BY_CUDA = (
    Fault("a read meets an illegal address", "CUDA fails", ILLEGAL, (f"{W}.weights.assembly:diffusers_model",),
          READERS[1:], spoils=True, code="internal"),
    Fault("the table meets an illegal address", "CUDA fails", ILLEGAL, (f"{W}.weights.modulation_rows:build",),
          ("table",), spoils=True, code="internal", **TABLED),
    Fault("a warm-up meets an illegal address", "CUDA fails", ILLEGAL, WARM, ("attention", "gelu", *SPEEDUPS),
          spoils=True, code="internal", **FASTER),
    Fault("a job meets an illegal address", "CUDA fails", ILLEGAL, BLOCK, SPEEDUPS, DRAW, spoils=True,
          code="internal", **FASTER),
)  # fmt: skip

# On a card without arithmetic, where the errors are torch's own

ON_CARD = {"QWEN_SPEEDUPS": "rotary,guidance,attention"}
ON_CARD_COMPILED = {"QWEN_SPEEDUPS": "auto"}
ILLEGAL_ADDRESS, NO_KERNEL_IMAGE = 700, 209  # cudaError_t
ON_A_CARD = (
    Fault("no memory can be pinned", "pinned memory", None, off=("pinning",), card=Card(fields={"pinned_limit": 0}),
          settings=ON_CARD, **STREAMED),
    Fault("a launch meets an illegal address at the load", "CUDA fails", spoils=True, code="internal", card=Card(),
          settings=ON_CARD, fields={"launch_error": ILLEGAL_ADDRESS, "launch_error_after": 5},
          off=("single_frame",)),
    Fault("a launch meets an illegal address in a job", "CUDA fails", phase=DRAW, spoils=True, code="internal",
          card=Card(), settings=ON_CARD, fields={"launch_error": ILLEGAL_ADDRESS, "launch_error_after": 5},
          off=("guidance", "rotary")),
    Fault("memory runs out while weights are read", "memory while the model is loaded", NO_MEMORY,
          (f"{W}.weights.assembly:diffusers_model",), ("room",), times=1, card=Card(), settings=ON_CARD),
    Fault("memory runs out in the table", "memory while the model is loaded", NO_MEMORY,
          (f"{W}.weights.modulation_rows:build",), ("room",), times=1, card=Card(), settings=ON_CARD,
          layout={"table": True}),
    Fault("memory runs out in a warm-up on a card", "warming up compiled blocks", NO_MEMORY, WARM, ("compile",),
          card=Card(), settings=ON_CARD_COMPILED),
    Fault("cuDNN has no plan on a card", "attention by cuDNN", NO_PLAN, (f"{W}.speed.attention:prefer_cudnn",),
          ("attention", "guidance", "rotary"), DRAW, card=Card(), settings=ON_CARD,
          constants={f"{W}.speed.speedups:CUDNN_FIRST_ABOVE": math.inf}),  # as with torch for CUDA 12
    Fault("the allocators' settings are gone", "settings of the allocators", None,
          ("torch._C:_accelerator_setAllocatorSettings",), card=Card(), settings=ON_CARD),
    Fault("torch cannot be kept to a share of the card", "settings of the allocators",
          RuntimeError("set_per_process_memory_fraction is not supported by this allocator"),
          ("torch.cuda:set_per_process_memory_fraction",), card=Card(), settings=ON_CARD),
)  # fmt: skip

# What stock diffusers cannot run either

BEYOND = (
    Fault("diffusers cannot be imported", "the libraries", code="stand-in",
          error=RuntimeError("Failed to import diffusers.pipelines.qwenimage.pipeline_qwenimage"),
          seams=(f"{W}.loading.libraries:import_up_to",), stock="it is diffusers that fails"),
    Fault("the disk fails", "the libraries", DISK, (f"{W}.loading.builder:load_component",), code="stand-in",
          stock="the files cannot be read by anyone"),
    Fault("the driver is too old", "the machine", card=Card(fields={"driver": 12040}), code="stand-in",
          stock="torch does not open the card"),
    Fault("the card has no kernels", "the machine", card=Card(capability=(13, 0)), code="stand-in",
          fields={"launch_error": NO_KERNEL_IMAGE}, stock="no kernel of torch runs"),
)  # fmt: skip

FAULTS = (
    *BY_READER, *BY_SAVINGS, *BY_QUANTIZING, *BY_COMPILING, *BY_COMPILED, *BY_SELF_CHECK, *BY_MEMORY, *BY_CUDA,
    *ON_A_CARD, *BEYOND,
)  # fmt: skip


def with_nan(table: Any) -> Any:
    table.source.rows[:] = torch.nan
    return table


@contextmanager
def meetings() -> Iterator[Any]:
    """Within, `meet(fault)` gives a fault's row; None for one that needs a card where there can be none."""
    with Processes() as processes, tempfile.TemporaryDirectory() as place:

        def met(fault: Fault) -> dict[str, Any] | None:
            folder = Path(tempfile.mkdtemp(dir=place))
            if fault.card is None:
                return meet(fault, folder)
            return None if why_not() else meet_by_process(processes.call, fault, folder)

        yield met


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.loading.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="the faults whose names hold one of these (default: all)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file to write (default: %(default)s)")
    options = parser.parse_args()
    held = json.loads(options.output.read_text())["faults"] if options.output.exists() else []
    rows = {row["fault"]: row for row in held}
    with meetings() as met:
        for fault in FAULTS:
            if options.words and not any(word in fault.name for word in options.words):
                continue
            if row := met(fault):
                rows[fault.name] = row | {"stock": fault.stock or "runs"}
                print(f"{fault.name} ({fault.where}): {row['first reply']}; then {row['next reply']}", flush=True)
                write(options.output, rows)  # after each, for a run that is cut short


def write(file: Path, rows: dict[str, dict[str, Any]]) -> None:
    versions = {name: metadata.version(name) for name in PACKAGES}
    ordered = [rows[fault.name] for fault in FAULTS if fault.name in rows]
    file.write_text(json.dumps({"versions": versions, "faults": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
