"""What is quantized, by which library, and what never is: configurations for `from_pretrained`.

The matrices of the blocks' attention and MLPs only. The modulation, the input and output projections, the timestep
embedder and the last norm stay in bfloat16 (quantized they cost most of the quality,
https://github.com/sgl-project/sglang, docs/diffusion/quantization.md), and so do the text encoder's vision tower, token
embedding and norms. Weights are quantized as they arrive, a tensor at a time. Lossy: the figures are in
QWEN_IMPLEMENTATION.md. Imports the libraries inside functions.
"""

import importlib
from typing import Any

from .settings import Precision

KEPT = {
    "transformer": ["img_in", "txt_in", "time_text_embed", "norm_out", "proj_out", "img_mod", "txt_mod"],
    "text_encoder": ["model.visual", "lm_head"],
}


def configuration(component: str, precision: Precision, device: str) -> Any:
    """The `quantization_config` for a component's `from_pretrained`.

    `component`: transformer (diffusers) or text_encoder (transformers). On a CPU fp8 is storage only, there being no
    fp8 product, and every other form computes as on a card.
    """
    import torch

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

    if precision is Precision.INT8:
        return quantization.Int8DynamicActivationInt8WeightConfig()
    if device == "cpu":
        return quantization.Float8WeightOnlyConfig()
    return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())


def nf4_in_place(model: Any, component: str) -> None:
    """Quantize a loaded model's matrices to NF4 where it lies: diffusers' own integration asks for a GPU."""
    import bitsandbytes
    import torch

    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or any(kept in name for kept in KEPT[component]):
            continue
        quantized = bitsandbytes.nn.Linear4bit(
            module.in_features, module.out_features, module.bias is not None, torch.bfloat16, True, "nf4"
        )
        quantized.weight = bitsandbytes.nn.Params4bit(
            module.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        quantized.bias = module.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized.to(module.weight.device))
