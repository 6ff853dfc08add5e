"""What is quantized, by which library, and what never is.

The matrices of the blocks' attention and MLPs only. The modulation, the input and output projections, the timestep
embedder and the last norm stay in bfloat16 (quantized they cost most of the quality,
https://github.com/sgl-project/sglang, docs/diffusion/quantization.md), and so do the text encoder's vision tower, token
embedding and norms. Weights are quantized as they arrive, a tensor at a time. Lossy: the figures are in
docs/speed.md. Imports torch: import it inside functions; the quantization libraries it imports there too.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..settings import Precision

LEAST_ROWS = 17  # of torch._int_mm on CUDA
KEPT = {
    "transformer": ["img_in", "txt_in", "time_text_embed", "norm_out", "proj_out", "img_mod", "txt_mod"],
    "text_encoder": ["model.visual", "lm_head"],
}


def configuration(component: str, precision: Precision, device: str) -> Any:
    """The `quantization_config` for a component's `from_pretrained`.

    `component`: transformer (diffusers) or text_encoder (transformers). On a CPU fp8 is storage only, there being no
    fp8 product, and every other form computes as on a card.
    """
    library = importlib.import_module("diffusers" if component == "transformer" else "transformers")
    kept = KEPT[component]
    if precision is Precision.NF4:
        return library.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=kept,
        )
    return library.TorchAoConfig(torchao_type(precision, device), modules_to_not_convert=kept)


def torchao_type(precision: Precision, device: str) -> Any:
    from torchao import quantization

    # torchao would have torch's compiler try each kernel's variants, for all of this process and minutes at each start.
    plain = {"set_inductor_config": False}
    if precision is Precision.INT8:
        return quantization.Int8DynamicActivationInt8WeightConfig(**plain)
    if device == "cpu":
        return quantization.Float8WeightOnlyConfig(**plain)
    return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow(), **plain)


def weight_quantizer(component: str, precision: Precision, device: str) -> Callable[[torch.nn.Module, str], None]:
    """quantize(model, name): if `name` is a matrix to be quantized, it is from then on, where it lies."""
    config = None if precision is Precision.NF4 else torchao_type(precision, device)

    def quantize(model: torch.nn.Module, name: str) -> None:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf != "weight" or not is_matrix(component, path, module):
            return
        if precision is Precision.NF4:
            as_nf4(model, path)
        else:
            from torchao.quantization import quantize_

            quantize_(module, config)

    return quantize


def is_matrix(component: str, path: str, module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear and not any(kept in path for kept in KEPT[component])


def as_nf4(model: torch.nn.Module, path: str) -> None:
    """Put the NF4 form of a linear layer in its place, on the layer's device."""
    import bitsandbytes

    weight = model.get_submodule(path).weight
    module = nf4_layer(model, path)
    quantized = bitsandbytes.nn.Params4bit(
        weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=module
    )
    module.weight = quantized.to(weight.device)


def nf4_layer(model: torch.nn.Module, path: str) -> torch.nn.Module:
    """Put a 4-bit layer without its weight in a linear layer's place; the bias stays."""
    import bitsandbytes

    old = model.get_submodule(path)
    new = bitsandbytes.nn.Linear4bit(
        old.in_features, old.out_features, old.bias is not None, torch.bfloat16, True, "nf4", device="meta"
    )
    new.bias = old.bias
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return new


def nf4_in_place(model: torch.nn.Module, component: str) -> None:
    """Quantize a loaded model's matrices to NF4 where it lies: the libraries' own integration asks for a GPU."""
    for path, module in list(model.named_modules()):
        if is_matrix(component, path, module):
            as_nf4(model, path)


def pad_few_rows() -> None:
    """From now on torchao's INT8 products have enough rows; doing it twice is doing it once.

    The text stream of a short prompt has few rows, and CUDA's product asks for more than 16. torchao's own way out (a
    product in float32) is for calls that are not compiled; compiled ones fail when they run.
    """
    from torchao.kernel import intmm

    if not hasattr(intmm.safe_int_mm, "__wrapped__"):
        intmm.safe_int_mm = padded(intmm.safe_int_mm)


def padded(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable:
    """product(rows, matrix), (M, K) and (K, N) to (M, N), that is never given fewer than `LEAST_ROWS`."""

    @functools.wraps(product)
    def call(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        count = rows.shape[0]
        if count >= LEAST_ROWS:  # compiled, a question of which graph
            return product(rows, matrix)
        return product(torch.nn.functional.pad(rows, (0, 0, 0, LEAST_ROWS - count)), matrix)[:count]

    return call
