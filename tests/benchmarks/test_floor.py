"""The floor: FLOPs as torch counts them, over the rate of a large product."""

import pytest
import torch

from benchmarks import computed
from benchmarks.measure import floor


@pytest.fixture(scope="module")
def transformer(tiny):
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")


@pytest.mark.parametrize(("batch", "height", "width", "text"), [(1, 16, 16, 7), (2, 8, 12, 33)])
def test_the_flops_of_a_pass_are_what_torch_counts(transformer, batch, height, width, text):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    latents, config = height * width, transformer.config
    # torch counts the attention of a CPU only where it is made of plain products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(
            hidden_states=torch.randn(batch, latents, config.in_channels),
            encoder_hidden_states=torch.randn(batch, text, config.joint_attention_dim),
            timestep=torch.full((batch,), 0.5),
            img_shapes=[[(1, height, width)]] * batch,
        )
    assert floor.forward_flops(config, batch, latents, text) == counter.get_total_flops()
    assert floor.passes_flops(config, [(batch, latents, text)] * 2) == 2 * counter.get_total_flops()


@pytest.mark.parametrize(
    ("kind", "latents", "text"), [("generate", 4096, 58), ("edit", 2 * 4096, 1379), ("edit plus", 2 * 4096, 209)]
)
def test_passes_of_the_released_models_take_what_costs_are_computed_with(released_models, kind, latents, text):
    """Tokens of text: as the processors make them of a prompt, and of the pictures that an edit's text has in it."""
    counted, tokens = computed.PASSES[kind], latents + text
    config = released_models["transformer"].config
    tflop = floor.forward_flops(config, 1, latents, text) / 1e12
    assert counted["tokens"] == tokens
    assert counted["linear"] + counted["attention"] == pytest.approx(tflop, rel=0.015)
    # Queries times keys, and their shares times values: 4 operations for each pair of tokens, dimension and block.
    dimensions = config.num_layers * config.num_attention_heads * config.attention_head_dim
    assert counted["attention"] == pytest.approx(4 * tokens**2 * dimensions / 1e12, rel=0.01)


def test_the_rate_of_a_product_is_the_median_of_its_times(monkeypatch):
    seconds = iter([9.0] * floor.RATE_SETS + [0.5, 0.1] * floor.RATE_REPEATS)
    monkeypatch.setattr(floor, "timed_product", lambda left, right, device: next(seconds))
    assert floor.matmul_rate("cpu", "float32") == pytest.approx(2 * 1024**3 / 0.3)
