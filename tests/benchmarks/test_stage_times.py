"""The stages of a call, told apart by the host's clock and by events on a card."""

import types

import pytest
import torch

from benchmarks.measure import stage_times
from benchmarks.measure.stage_times import Stopwatch


class FakeBlock(torch.nn.Module):
    def forward(self, hidden_states, encoder_hidden_states):
        return hidden_states * 2


class FakeTransformer(torch.nn.Module):
    def __init__(self, wait):
        super().__init__()
        self.wait = wait
        self.transformer_blocks = torch.nn.ModuleList([FakeBlock()])

    def forward(self, **states):
        self.wait(0.02)
        self.transformer_blocks[0](**states)


class FakePipe:
    """Two passes a step, 20 ms each, 10 ms between steps; text 30 ms twice, decode 50 ms, by its own clock."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.transformer, self.vae = FakeTransformer(self.wait), self
        self.decode = lambda: self.wait(0.05)
        monkeypatch.setattr(stage_times, "time", types.SimpleNamespace(perf_counter=lambda: self.now))

    def wait(self, seconds):
        self.now += seconds

    def encode_prompt(self):
        self.wait(0.03)

    def encode(self):
        raise AssertionError

    def draw(self, steps):
        for _ in range(2):
            self.encode_prompt()
        for _ in range(steps):
            for text in (7, 3):
                self.transformer(hidden_states=torch.zeros(1, 256, 4), encoder_hidden_states=torch.zeros(1, text, 4))
            self.wait(0.01)
        self.decode()


@pytest.fixture
def pipe(monkeypatch):
    return FakePipe(monkeypatch)


def test_a_stopwatch_tells_the_stages_apart_and_leaves_the_pipeline_as_it_was(pipe):
    decode = pipe.decode
    with Stopwatch("cpu").on(pipe) as watch:
        pipe.draw(3)
    stages = watch.stages(3)
    assert (stages.text, stages.encode, stages.decode) == pytest.approx((0.06, 0, 0.05))
    assert stages.steps == pytest.approx((0.05, 0.05, 0.04)) and stages.step == pytest.approx(0.05)
    assert stages.whole == pytest.approx(0.26) and stages.rest == pytest.approx(0.01)
    assert stages.forwards == ((1, 256, 7), (1, 256, 3)) * 3
    assert "encode_prompt" not in vars(pipe) and pipe.decode is decode and not pipe.transformer._forward_hooks
    assert "forward" not in vars(pipe.transformer.transformer_blocks[0])
    assert watch.stages(4).steps == pytest.approx((0.035,) * 4)  # six passes in four steps


def test_a_job_of_more_steps_is_computed_from_the_stages_of_a_row(pipe):
    with Stopwatch("cpu").on(pipe) as watch:
        pipe.draw(1)
    row = stage_times.stage_fields(watch.stages(1))
    assert stage_times.job_seconds(row, 1) == pytest.approx(row["job s"]) == 0.16
    assert stage_times.job_seconds(row, 3) == pytest.approx(0.16 + 2 * 0.04)


def test_passes_through_blocks_that_were_compiled_before_are_noted_too(pipe):
    block = pipe.transformer.transformer_blocks[0]
    block.forward = compiled = types.MethodType(torch.compile(FakeBlock.forward, backend="eager"), block)
    pipe.draw(1)
    with Stopwatch("cpu").on(pipe) as watch:
        pipe.draw(1)
    assert watch.stages(1).forwards == ((1, 256, 7), (1, 256, 3)) and block.forward is compiled


def test_on_a_card_stages_are_timed_by_events(fake_card, pipe):
    with Stopwatch("cuda").on(pipe) as watch:
        pipe.draw(2)
    stages = watch.stages(2)
    # Every stage begins and ends with an event, 10 ms apart; a step's first pass begins 40 ms before the next one's.
    assert stages.text == pytest.approx(0.02) and stages.decode == pytest.approx(0.01)
    assert stages.steps == pytest.approx((0.04, 0.03)) and stages.whole == pytest.approx(0.21)  # the host's clock
