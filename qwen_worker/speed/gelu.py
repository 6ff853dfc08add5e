"""The MLP's first product and its GELU by one kernel: what lies between them is never written.

The blocks' MLPs widen a token to four times its channels: at 1024 x 1024 the product is 100 MB in bfloat16, which a
kernel of its own reads, activates and writes again, in each of 60 blocks. cuBLASLt's product can apply the tanh form of
GELU, which these models use, before it writes. `torch._addmm_activation` asks it for that.

Equal up to rounding: the sum is activated in float32, and no longer rounded to bfloat16 before. Not for what has no
such kernel: a CPU, for which torch computes another form of GELU, quantized matrices, and layers with LoRAs beside
their own matrix; they are computed as before. Imports torch and diffusers: import it inside functions. Knows nothing
of when it pays.
"""

from typing import Any

import torch
from diffusers.models.activations import GELU

MLPS = ("img_mlp", "txt_mlp")


class ActivatedProduct(GELU):
    """diffusers' product and GELU, by one kernel where a card has one.

    A subclass, because diffusers and peft know layers by their classes and names.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, tokens, in) -> (B, tokens, out)"""
        if not hidden_states.is_cuda or type(self.proj) is not torch.nn.Linear:  # peft wraps a layer with a LoRA
            return super().forward(hidden_states)
        rows = hidden_states.flatten(0, -2)
        weight, bias = self.proj.weight, self.proj.bias
        # No public name: docs/patches.md has it.
        activated = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)  # pyright: ignore[reportPrivateImportUsage]
        return activated.unflatten(0, hidden_states.shape[:-1])


def obstacle() -> str:
    """Why this torch cannot, empty if it can."""
    return "" if hasattr(torch, "_addmm_activation") else "this torch has no product with an activation"


def use_activated_products(transformer: Any) -> str:
    """Have the MLPs of all blocks widen and activate by one kernel. Returns why none can, empty if any can."""
    found = layers(transformer)
    for layer in found:
        change_class(layer, ActivatedProduct)
    if found:
        return ""
    has_loras = any(hasattr(getattr(layer, "proj", None), "base_layer") for layer in first_layers(transformer))
    return "every picture has LoRAs (QWEN_LORAS) beside all of these matrices" if has_loras else "no matrix allows it"


def use_stock_products(transformer: Any) -> None:
    """Undo `use_activated_products`."""
    for layer in layers(transformer):
        change_class(layer, GELU)


def change_class(layer: GELU, new: type[GELU]) -> None:
    """Have the layer be one of the class, also to blocks that are compiled.

    The guards of torch 2.11 see no class that changes, but they see that an attribute does.
    """
    layer.__class__ = new
    vars(layer)["is_activated"] = new is ActivatedProduct


def layers(transformer: Any) -> list[GELU]:
    """Those layers whose activation is the tanh form, after a matrix that is not quantized."""
    return [
        layer
        for layer in first_layers(transformer)
        if isinstance(layer, GELU) and layer.approximate == "tanh" and is_plain(layer.proj)
    ]


def first_layers(transformer: Any) -> list[Any]:
    """Those of all MLPs that widen and activate."""
    return [getattr(block, name).net[0] for block in transformer.transformer_blocks for name in MLPS]


def is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer is a matrix and a bias of plain numbers: torchao's tensors are made of several."""
    return type(layer) is torch.nn.Linear and layer.bias is not None and not hasattr(layer.weight, "__tensor_flatten__")
