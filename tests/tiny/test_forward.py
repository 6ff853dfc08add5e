"""Training's forward pass is the transformer's own, and a choice of tokens stands for all of them."""

import diffusers
import pytest
import torch

from qwen_tiny import architecture
from qwen_tiny.stages import few_step
from qwen_tiny.stages.transformer import choose_tokens, gather_tokens
from qwen_tiny.training import forward

SHAPES = [(1, 6, 4), (1, 6, 4)]


@pytest.fixture(autouse=True)
def as_it_is(monkeypatch):
    """Not compiled: that takes half a minute a shape."""
    monkeypatch.setattr(forward, "compiled", lambda function: function)


@pytest.fixture
def transformer(request):
    torch.manual_seed(0)
    kind = getattr(request, "param", {})
    made = diffusers.QwenImageTransformer2DModel(**architecture.TRANSFORMER | {"num_layers": 2} | kind)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.2 if parameter.ndim == 1 else 0.0, 0.1)
    return made


def asked(count=3, text=5):
    """Latents of two joined pictures, noise levels, a prompt and its mask."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(count, text, dtype=torch.bool)
    mask[0, -2:] = False
    latents, states = torch.randn(count, 48, 64, generator=draw), torch.randn(count, text, 128, generator=draw)
    return latents, torch.rand(count, generator=draw), states, mask


def stock(transformer, latents, sigma, states, mask):
    return transformer(
        hidden_states=latents,
        timestep=sigma,
        encoder_hidden_states=states,
        encoder_hidden_states_mask=mask,
        img_shapes=[SHAPES] * len(latents),
        additional_t_cond=torch.zeros(1, dtype=torch.long) if transformer.config.use_additional_t_cond else None,
        return_dict=False,
    )[0]


def ours(transformer, latents, sigma, states, mask, chosen=None, counts=None):
    chosen = torch.arange(48).expand(len(latents), -1) if chosen is None else chosen
    counts = torch.zeros(chosen.shape) if counts is None else counts
    places = forward.TokenPlaces.build(transformer, SHAPES, states.shape[1], chosen, counts)
    return forward.velocity(transformer, gather_tokens(latents, chosen), sigma, states, mask, places)[0]


@torch.no_grad()
@pytest.mark.parametrize("transformer", [{}, architecture.LAYERED_TRANSFORMER], indirect=True)
def test_it_is_the_transformers_own(transformer):
    given = asked()
    assert torch.allclose(ours(transformer, *given), stock(transformer, *given), atol=1e-4)


@torch.no_grad()
def test_an_adapter_is_added_in(transformer):
    few_step.add_adapter(transformer)
    for name, parameter in transformer.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    given = asked()
    assert torch.allclose(ours(transformer, *given), stock(transformer, *given), atol=1e-4)


@torch.no_grad()
def test_tokens_that_stand_for_their_likes_stand_for_all(transformer):
    """Rotary angles off, tokens that are equal can be counted instead of repeated."""
    latents, *rest = asked()
    latents[:, 20:44] = latents[:, 20:21]
    few = torch.cat([torch.arange(20), torch.tensor([20]), torch.arange(44, 48)]).expand(len(latents), -1)
    counts = torch.zeros(few.shape)
    counts[:, 20] = torch.tensor(24.0).log()
    still = torch.ones(1, dtype=torch.complex64)
    transformer.pos_embed.forward = lambda shapes, max_txt_seq_len, device: (
        still.expand(48, 16),
        still.expand(max_txt_seq_len, 16),
    )
    forward.rotary_table.cache_clear()
    whole = ours(transformer, latents, *rest)
    assert torch.allclose(ours(transformer, latents, *rest, few, counts), gather_tokens(whole, few), atol=1e-5)


def test_a_choice_holds_the_outline_and_some_of_the_rest():
    near = torch.zeros(2, 400, dtype=torch.bool)
    near[0, 100:130] = near[1, :390] = True
    chosen, counts = choose_tokens(near, 64, torch.Generator().manual_seed(0))
    assert all(len(set(row.tolist())) == 64 for row in chosen)
    taken = near.gather(1, chosen)
    assert taken.sum(dim=1).tolist() == [30, 64 - 10]
    assert torch.allclose(counts.exp().sum(dim=1), torch.tensor(400.0))
    assert (counts[0][taken[0]] == 0).all() and (counts[1][~taken[1]] == 0).all()


def test_a_choice_of_all_is_all_in_order():
    chosen, counts = choose_tokens(torch.zeros(2, 64, dtype=torch.bool), 64, None)
    assert torch.equal(chosen, torch.arange(64).expand(2, -1)) and not counts.any()
