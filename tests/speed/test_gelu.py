"""The MLP's first product with its activation: by one kernel on a card, and stock's own way wherever there is none."""

import types

import pytest
import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchao.quantization import quantize_

from qwen_worker.model.quantization import torchao_config
from qwen_worker.model_settings import Precision
from qwen_worker.speed import gelu

WIDTH = 24
ONE_KERNEL = "aten::_addmm_activation"


class Operators(TorchDispatchMode):
    """Notes the names of all operators within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **kwargs or {})


def transformer(width=WIDTH):
    """A block's two MLPs, as the released architecture has them."""
    torch.manual_seed(0)
    block = torch.nn.Module()
    for name in gelu.MLPS:
        setattr(block, name, FeedForward(dim=width, dim_out=width, activation_fn="gelu-approximate"))
    return types.SimpleNamespace(transformer_blocks=[block])


def first_layer(made):
    return made.transformer_blocks[0].img_mlp.net[0]


def on_card(layer, width=WIDTH):
    """The operators of the layer on a card that is none, and the shape of what it gives for (2, 5, width)."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for part in layer.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                fake = torch.empty(parameter.shape, device="cuda")
                part.register_parameter(name, torch.nn.Parameter(fake, requires_grad=False))
        with Operators() as seen:
            shape = layer(torch.empty(2, 5, width, device="cuda")).shape
    return seen.names, tuple(shape)


def test_a_card_activates_within_the_product():
    made = transformer()
    assert ONE_KERNEL not in on_card(first_layer(made))[0]
    gelu.use_activated_products(made)
    names, shape = on_card(first_layer(made))
    assert ONE_KERNEL in names and "aten::gelu" not in names and shape == (2, 5, 4 * WIDTH)
    gelu.use_stock_products(made)
    assert type(first_layer(made)) is GELU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_s_mlp_is_stock_s(dtype):
    made = transformer()
    mlp, x = made.transformer_blocks[0].txt_mlp.to(dtype), torch.randn(2, 5, WIDTH).to(dtype)
    plain = mlp(x)
    gelu.use_activated_products(made)
    assert torch.equal(mlp(x), plain)


class Wrapped(torch.nn.Linear):
    """A matrix with something beside it, as a LoRA's."""


def test_a_layer_that_gets_a_lora_is_computed_as_before():
    made = transformer()
    gelu.use_activated_products(made)
    layer = first_layer(made)
    layer.proj.__class__ = Wrapped
    names, _ = on_card(layer)
    assert ONE_KERNEL not in names and "aten::gelu" in names


@pytest.mark.filterwarnings("ignore")  # torchao's own, of what it will no longer take
def test_a_quantized_matrix_is_left_alone():
    made = transformer()
    quantize_(first_layer(made).proj, torchao_config(Precision.INT8, "cpu"))
    gelu.use_activated_products(made)
    assert type(first_layer(made)) is GELU


def test_another_activation_is_left_alone():
    made = transformer()
    made.transformer_blocks[0].img_mlp.net[0] = GELU(WIDTH, 4 * WIDTH, approximate="none")
    gelu.use_activated_products(made)
    assert type(first_layer(made)) is GELU and type(made.transformer_blocks[0].txt_mlp.net[0]) is gelu.ActivatedProduct


def test_a_torch_without_the_product_says_so(monkeypatch):
    assert gelu.obstacle() == ""
    monkeypatch.delattr(torch, "_addmm_activation")
    assert "no product with an activation" in gelu.obstacle()
