"""Every speed-up against stock diffusers on the tiny checkpoint: passes of the transformer each, pictures together."""

import functools
import itertools

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

from qwen_worker import rotary, speedups
from qwen_worker.settings import Saving, Settings, Speedup

from .conftest import ROOT
from .test_savings import DTYPES, pipeline, plan_for

# What a pass reads: the picture, and in an edit the picture it starts from; text of two lengths.
SHAPES = {"generate": [(1, 8, 6)], "edit": [(1, 8, 6), (1, 10, 10)]}
CASES = pytest.mark.parametrize(("task", "precision", "batch"), list(itertools.product(SHAPES, DTYPES, (1, 2))))


@functools.cache
def transformer_of(task, precision):
    """Stock's, to be left as it is."""
    folder = ROOT / "models/tiny-qwen-image" / task / "transformer"
    return QwenImageTransformer2DModel.from_pretrained(folder, dtype=DTYPES[precision])


def pass_of(transformer, task, batch, tokens=9, seed=0, timestep=0.5, **changes):
    """What the transformer makes of noise and of text of which one row ends early, if there are two."""
    generator, shapes = torch.Generator().manual_seed(seed), SHAPES[task]
    length = sum(frames * rows * columns for frames, rows, columns in shapes)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[1:, -3:] = 0
    given = {
        "hidden_states": torch.randn(batch, length, 64, generator=generator).to(transformer.dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 128, generator=generator).to(transformer.dtype),
        "encoder_hidden_states_mask": mask if batch > 1 else None,
        "timestep": torch.full((batch,), timestep).to(transformer.dtype),
        "img_shapes": [shapes] * batch,
        "attention_kwargs": {},
        "return_dict": False,
    }
    with torch.no_grad():
        return transformer(**given | changes)[0].float()


@pytest.fixture(scope="module")
def built():
    """built(task, precision, *asked): what the worker builds with these speed-ups, its pipeline and the speed-ups."""

    @functools.cache
    def build(task, precision, *asked, savings=frozenset(Saving), table=False):
        folder = ROOT / "models/tiny-qwen-image" / task
        pipe, rows = pipeline(Settings, folder, precision, savings, table=table)
        plan = plan_for(folder, precision, savings, table=table)
        speed = speedups.apply(pipe, plan, Settings(QWEN_SPEEDUPS=frozenset(asked)), None, rows)
        assert all(speed.has(one) for one in asked), speed.states
        return pipe, speed

    return build


def difference(transformer, task, precision, batch, **inputs):
    """The largest from stock's pass, of its largest number."""
    theirs = pass_of(transformer_of(task, precision), task, batch, **inputs)
    return ((pass_of(transformer, task, batch, **inputs) - theirs).abs().max() / theirs.abs().max()).item()


@CASES
def test_the_real_rotary_embedding_is_bit_equal(built, task, precision, batch):
    pipe, _ = built(task, precision, Speedup.ROTARY)
    assert difference(pipe.transformer, task, precision, batch) == 0


def test_the_real_rotary_embedding_turns_as_complex_numbers_do():
    """A CPU contracts the last few products of a row to fused multiply-adds: a unit in the last place of float32."""
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(0))
    frequencies = torch.polar(torch.ones(7, 4), torch.arange(28.0).view(7, 4))
    angles = rotary.table(frequencies)
    for dtype, tolerance in ((torch.float32, 5e-7), (torch.bfloat16, 0)):
        theirs = apply_rotary_emb_qwen(x.to(dtype), frequencies, use_real=False)
        assert (rotary.rotate(x.to(dtype), angles) - theirs).abs().max() <= tolerance
    assert not any(one.is_complex() for one in angles)
