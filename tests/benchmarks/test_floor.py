"""The floor: FLOPs as torch counts them, over the rate of a large product."""

import pytest
import torch

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


def test_the_rate_of_a_product_is_the_median_of_its_times(monkeypatch):
    seconds = iter([9.0] * floor.RATE_SETS + [0.5, 0.1] * floor.RATE_REPEATS)
    monkeypatch.setattr(floor, "timed_product", lambda left, right, device: next(seconds))
    assert floor.matmul_rate("cpu", "float32") == pytest.approx(2 * 1024**3 / 0.3)
