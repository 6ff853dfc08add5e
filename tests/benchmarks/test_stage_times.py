"""The stages of a call, told apart by the host's clock and by events on a card."""

import time
import types

import pytest
import torch

from benchmarks.measure.stage_times import Stopwatch


class FakeBlock(torch.nn.Module):
    def forward(self, hidden_states, encoder_hidden_states):
        return hidden_states * 2


class FakeTransformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([FakeBlock()])

    def forward(self, **states):
        time.sleep(0.02)
        self.transformer_blocks[0](**states)


class FakePipe:
    """Two passes a step, 20 ms each, 10 ms between steps; text 30 ms twice, decode 50 ms."""

    def __init__(self):
        self.transformer, self.vae = FakeTransformer(), self
        self.decode = lambda: time.sleep(0.05)

    def encode_prompt(self):
        time.sleep(0.03)

    def encode(self):
        raise AssertionError

    def draw(self, steps):
        for _ in range(2):
            self.encode_prompt()
        for _ in range(steps):
            for text in (7, 3):
                self.transformer(hidden_states=torch.zeros(1, 256, 4), encoder_hidden_states=torch.zeros(1, text, 4))
            time.sleep(0.01)
        self.decode()


def test_a_stopwatch_tells_the_stages_apart_and_leaves_the_pipeline_as_it_was():
    pipe = FakePipe()
    decode = pipe.decode
    with Stopwatch("cpu").on(pipe) as watch:
        pipe.draw(3)
    stages = watch.stages(3)
    # A busy machine sleeps longer, never shorter.
    assert 0.06 <= stages.text < 0.12 and 0.05 <= stages.decode < 0.1 and stages.encode == 0
    assert 0.05 <= stages.step < 0.1 and len(stages.steps) == 3
    assert stages.whole >= stages.text + stages.decode + sum(stages.steps) + 0.009
    assert stages.forwards == ((1, 256, 7), (1, 256, 3)) * 3
    assert "encode_prompt" not in vars(pipe) and pipe.decode is decode and not pipe.transformer._forward_hooks
    assert "forward" not in vars(pipe.transformer.transformer_blocks[0])
    uneven = watch.stages(4)  # six passes in four steps
    assert len(uneven.steps) == 4 and sum(uneven.steps) == pytest.approx(sum(stages.steps))


def test_passes_through_blocks_that_were_compiled_before_are_noted_too():
    pipe = FakePipe()
    block = pipe.transformer.transformer_blocks[0]
    block.forward = compiled = types.MethodType(torch.compile(FakeBlock.forward, backend="eager"), block)
    pipe.draw(1)
    with Stopwatch("cpu").on(pipe) as watch:
        pipe.draw(1)
    assert watch.stages(1).forwards == ((1, 256, 7), (1, 256, 3)) and block.forward is compiled


def test_on_a_card_stages_are_timed_by_events(fake_card):
    with Stopwatch("cuda").on(pipe := FakePipe()) as watch:
        pipe.draw(2)
    stages = watch.stages(2)
    # Every stage begins and ends with an event, 10 ms apart; a step's first pass begins 40 ms before the next one's.
    assert stages.text == pytest.approx(0.02) and stages.decode == pytest.approx(0.01)
    assert stages.steps == pytest.approx((0.04, 0.03)) and stages.whole > 0.1
