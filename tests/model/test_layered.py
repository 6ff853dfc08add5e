"""The optimisations on a layered transformer, whose modulation has a second input."""

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from qwen_tiny import architecture
from qwen_worker.model import modulation
from qwen_worker.speed import attention


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(**architecture.TRANSFORMER | architecture.LAYERED_TRANSFORMER)
    torch.nn.init.normal_(model.time_text_embed.addition_t_embedding.weight)
    return model.to(torch.bfloat16).eval()


def forward(model, timestep=0.5):
    generator = torch.Generator().manual_seed(1)
    noise, text = (torch.randn(1, count, dim, generator=generator).bfloat16() for count, dim in ((64, 64), (7, 128)))
    with torch.no_grad():
        return model(
            hidden_states=noise, encoder_hidden_states=text, timestep=torch.tensor([timestep]).bfloat16(),
            img_shapes=[[(1, 4, 4)] * 4], additional_t_cond=torch.zeros(1, dtype=torch.long), return_dict=False,
        )[0]  # fmt: skip


def test_the_modulation_table_of_a_layered_model_is_exact(transformer):
    stock = [forward(transformer, timestep) for timestep in (1.0, 0.5)]
    modulation.computed_table(transformer)
    assert all(torch.equal(forward(transformer, at), one) for at, one in zip((1.0, 0.5), stock, strict=True))


def test_the_real_rotary_embedding_of_a_layered_model_is_exact(transformer):
    stock = forward(transformer)
    attention.use_real_rotary(transformer)
    assert torch.equal(forward(transformer), stock)
