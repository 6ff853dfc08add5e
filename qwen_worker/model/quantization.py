"""What is quantized, by which library, and what never is.

Of the transformer the matrices of the blocks' attention and MLPs are quantized. The modulation, the input and output
projections, the timestep embedder and the last norm stay in bfloat16 (quantized they cost most of the quality,
https://github.com/sgl-project/sglang, docs/diffusion/quantization.md), and so do the text encoder's vision tower, token
embedding and norms. Weights are quantized as they arrive, a tensor at a time. Lossy: the figures are in
docs/speed.md. Imports torch, and the quantization libraries inside functions: import it inside functions. Knows nothing
of where weights come from.
"""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch

from ..model_settings import Precision

if TYPE_CHECKING:
    from bitsandbytes.nn.modules import Linear4bit
    from torchao.core.config import AOBaseConfig

LEAST_ROWS = 17  # that torch._int_mm multiplies on CUDA
KEPT = {  # by component: parts of the names of modules that are never quantized
    "transformer": ["img_in", "txt_in", "time_text_embed", "norm_out", "proj_out", "img_mod", "txt_mod"],
    "text_encoder": ["model.visual", "lm_head"],
}


def configuration(component: str, precision: Precision, device: str) -> Any:
    """The `quantization_config` for a component's `from_pretrained`.

    `component`: transformer (diffusers) or text_encoder (transformers). A CPU has no fp8 product: there fp8 is a way of
    storing only, while the other precisions compute as on a card.
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
    return library.TorchAoConfig(torchao_config(precision, device), modules_to_not_convert=kept)


def torchao_config(precision: Precision, device: str) -> "AOBaseConfig":
    """torchao's own configuration for INT8 or FP8."""
    from torchao import quantization

    # With `set_inductor_config` torchao has torch's compiler try variants of each kernel, in all of this process: that
    # would take minutes at each start.
    if precision is Precision.INT8:
        return quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if device == "cpu":
        return quantization.Float8WeightOnlyConfig(set_inductor_config=False)
    return quantization.Float8DynamicActivationFloat8WeightConfig(
        granularity=quantization.PerRow(), set_inductor_config=False
    )


def weight_quantizer(component: str, precision: Precision, device: str) -> Callable[[torch.nn.Module, str], None]:
    """quantize(model, name): quantizes the parameter where it lies, if it is a matrix that is to be quantized."""
    config = None if precision is Precision.NF4 else torchao_config(precision, device)

    def quantize(model: torch.nn.Module, name: str) -> None:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf != "weight" or not is_matrix(module, component, path):
            return
        if config is None:
            quantize_to_nf4(model, path)
        else:
            from torchao.quantization import quantize_

            quantize_(module, config)

    return quantize


def is_matrix(module: torch.nn.Module, component: str, path: str) -> TypeGuard[torch.nn.Linear]:
    """Whether the module at `path` of a component is a linear layer that is quantized."""
    return type(module) is torch.nn.Linear and not any(kept in path for kept in KEPT[component])


def quantize_to_nf4(model: torch.nn.Module, path: str) -> None:
    """Replace a linear layer by its NF4 form, on the layer's device."""
    from bitsandbytes.nn.modules import Params4bit

    weight = linear_layer(model, path).weight
    layer = insert_nf4_layer(model, path)
    make: Any = Params4bit  # its annotations are those of a plain parameter
    layer.weight = make(
        weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    ).to(weight.device)


def insert_nf4_layer(model: torch.nn.Module, path: str) -> "Linear4bit":
    """Replace a linear layer by a 4-bit layer that has no weight yet; the bias stays. Returns the new layer."""
    from bitsandbytes.nn.modules import Linear4bit

    old = linear_layer(model, path)
    new = Linear4bit(
        old.in_features, old.out_features, old.bias is not None, torch.bfloat16, True, "nf4", device="meta"
    )
    new.bias = old.bias
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return new


def linear_layer(model: torch.nn.Module, path: str) -> torch.nn.Linear:
    return cast(torch.nn.Linear, model.get_submodule(path))  # nothing else is quantized


def quantize_model_to_nf4(model: torch.nn.Module, component: str) -> None:
    """Quantize a loaded model's matrices to NF4 where it lies: the libraries' own integration asks for a GPU."""
    for path, module in list(model.named_modules()):
        if is_matrix(module, component, path):
            quantize_to_nf4(model, path)


def use_own_int8_product() -> None:
    """From now on torchao's INT8 products on a card are CUDA's own, with enough rows. A second call changes nothing.

    The text stream of a short prompt has few rows, and CUDA's product asks for more than 16. torchao itself goes over
    to a product in float32 then, but not in compiled code, which fails when it runs. In code that is not compiled
    torchao prints its rows at every product, to see whether they are fake: numbers come back from the card for that,
    dozens of times, and the host waits for each. It also copies the whole matrix, which CUDA's product takes as it is.
    """
    from torchao.kernel import intmm

    if not hasattr(intmm.safe_int_mm, "__wrapped__"):
        intmm.safe_int_mm = padded_product(direct_product(intmm.safe_int_mm))


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (M, K) and (K, N) -> (M, N)


def direct_product(product: Product) -> Product:
    """torch's own product of int8 rows and a matrix, (M, N) in int32, where a card can do it; else by `product`."""

    @functools.wraps(product)
    def call(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        if rows.is_cuda and not torch.compiler.is_compiling() and all(side % 8 == 0 for side in matrix.shape):
            return torch._int_mm(rows.contiguous(), matrix)  # pyright: ignore[reportPrivateImportUsage]  no public name
        return product(rows, matrix)

    return call


def padded_product(product: Product) -> Product:
    """The same product of rows and a matrix, by a `product` that never gets fewer than `LEAST_ROWS` rows."""

    @functools.wraps(product)
    def call(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        count = rows.shape[0]
        if count >= LEAST_ROWS:  # a compiler makes one graph for each answer
            return product(rows, matrix)
        return product(torch.nn.functional.pad(rows, (0, 0, 0, LEAST_ROWS - count)), matrix)[:count]

    return call
