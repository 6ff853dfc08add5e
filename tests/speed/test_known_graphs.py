"""Calls of compiled blocks that torch does not check, and that each is what it would be if torch had checked it."""

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch._dynamo import eval_frame

from qwen_worker.lora.adapters import Adapters
from qwen_worker.model_settings import Precision, Speedup
from qwen_worker.speed import gelu, known_graphs, speedups

from .test_speedups import (
    ATTENTION,
    TEXT,
    lora,  # noqa: F401  a fixture
    pass_of,
    quantized_transformer,
    traced,  # noqa: F401  a fixture
)

# Passes of a picture: rows, tokens of text, and what else. The short text has a graph of its own in int8.
PASSES = [(1, 9, {}), (1, 9, {"seed": 1}), (2, 9, {}), (1, 14, {}), (2, 12, {}), (1, 4, {}), (1, 9, {"timestep": 0.25})]


class Drawn:
    """A transformer whose passes are computed once with every call checked by torch, and once within a drawing.

    `checked`: how many calls torch has checked.
    """

    def __init__(self, transformer, blocks, task="generate"):
        self.transformer, self.task, self.checked = transformer, task, 0
        self.blocks, self.known = blocks, blocks.compiled
        self.speed = speedups.Speed({Speedup.COMPILE: "on"}, transformer=transformer, blocks=blocks)
        compiled = self.known.compiled

        def counted(*args, **kwargs):
            self.checked += 1
            return compiled(*args, **kwargs)

        self.known.compiled = counted

    def __call__(self, *passes):
        return [pass_of(self.transformer, self.task, rows, tokens, **more) for rows, tokens, more in passes]

    def in_blocks(self):
        """How many passes torch has checked since it was asked last."""
        checked, self.checked = self.checked, 0
        return checked / len(self.transformer.transformer_blocks)


@pytest.fixture
def drawn(traced):  # noqa: F811
    def of(transformer, task="generate"):
        blocks, counts, told = traced(transformer)
        return Drawn(transformer, blocks, task), counts, told

    return of


def tiny_transformer(tiny, task="generate", **changes):
    model = QwenImageTransformer2DModel.from_pretrained(tiny / task / "transformer", **changes)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_torch_checks_the_first_pass_of_each_kind_and_the_others_are_the_same_to_the_bit(drawn, precision):
    draw, counts, told = drawn(quantized_transformer(precision))
    plain = draw(*PASSES)
    assert draw.in_blocks() == len(PASSES)
    graphs = counts["graphs"]
    for _ in range(2):  # a picture knows nothing of the one before
        with draw.speed.drawing():
            first, again = draw(*PASSES), draw(*reversed(PASSES))
        assert draw.in_blocks() == 5  # without seed and timestep, which are no kinds of calls
        assert all(map(torch.equal, first, plain)) and all(map(torch.equal, reversed(again), plain))
    assert counts["graphs"] == graphs and not told and draw.known.found is None


def test_the_rows_of_input_pictures_and_two_of_them_are_kinds_of_their_own(drawn, tiny):
    """Edit-2511's blocks are given which tokens are an input picture's."""
    draw, _, told = drawn(tiny_transformer(tiny, "edit", zero_cond_t=True), "edit")
    two = {"img_shapes": [[(1, 8, 6), (1, 10, 10), (1, 6, 4)]], "hidden_states": torch.randn(1, 172, 64)}
    passes = [(1, 9, {}), (1, 9, two), (2, 9, {}), (1, 9, {"timestep": 0.25}), (1, 9, two)]
    plain = draw(*passes)
    draw.in_blocks()
    with draw.speed.drawing():
        ours = draw(*passes)
    assert draw.in_blocks() == 3 and not told
    assert all(map(torch.equal, ours, plain)) and not torch.equal(plain[0], plain[3])


def test_what_changes_between_pictures_is_checked_anew(drawn, lora, tiny):  # noqa: F811
    transformer = tiny_transformer(tiny)
    adapters = Adapters(transformer, None, torch.float32, "cpu", "tiny")
    jobs = [([], 0), ([lora(transformer, ATTENTION, 4)], 16), ([lora(transformer, ["img_mlp.net.0.proj"], 7)], 0)]
    draw, _, told = drawn(transformer)
    each, plain, ours = PASSES[0], {}, []
    for repeat in range(3):
        for number, (uses, rank) in enumerate(jobs):
            with adapters.apply(uses, rank=rank):
                if not repeat:
                    (plain[number],) = draw(each)
                    continue
                with draw.speed.drawing(lora_rank=rank):
                    ours += [(number, result) for result in draw(each, each)]
    assert len(ours) == 12 and all(torch.equal(result, plain[number]) for number, result in ours)
    assert not torch.equal(plain[0], plain[1]) and not torch.equal(plain[1], plain[2]) and not told


def test_a_class_that_changes_between_pictures_changes_what_is_computed(drawn, tiny, monkeypatch):
    def doubled(layer, x):
        return 2 * torch.nn.functional.gelu(layer.proj(x), approximate="tanh")

    monkeypatch.setattr(gelu.ActivatedProduct, "forward", doubled)
    draw, _, _ = drawn(tiny_transformer(tiny))
    results = []
    for change in (gelu.use_stock_products, gelu.use_activated_products, gelu.use_stock_products):
        change(draw.transformer)
        with draw.speed.drawing():
            results.append(draw(PASSES[0], PASSES[0])[1])
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_weights_that_are_brought_anew_are_those_that_are_multiplied(drawn, tiny):
    """As transformers that take turns on a card are, and LoRAs that are there during their block's pass alone."""
    draw, _, _ = drawn(tiny_transformer(tiny))
    parameters = list(draw.transformer.transformer_blocks.parameters())
    with draw.speed.drawing():
        before, _ = draw(PASSES[0], PASSES[0])
        for parameter in parameters:
            parameter.data = parameter.data * 1.5
        (after,) = draw(PASSES[0])
        assert draw.in_blocks() == 1
    assert torch.equal(after, draw(PASSES[0])[0]) and not torch.equal(after, before)


def test_another_dtype_in_the_middle_of_a_picture_is_torch_s_to_check(drawn, tiny):
    draw, _, _ = drawn(tiny_transformer(tiny))
    block = draw.transformer.transformer_blocks[0]
    given = {}
    hook = block.register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
    with draw.speed.drawing(), torch.no_grad():
        draw(PASSES[0])
        hook.remove()
        wide = {name: value.double() if name == TEXT else value for name, value in given.items()}
        # A matrix does not take text of another dtype: stock's error, and no graph's result.
        with pytest.raises(Exception, match="dtype"):
            block(**wide)
        assert draw.known.found is not None
        turned = {**given, TEXT: given[TEXT].transpose(1, 2).contiguous().transpose(1, 2).detach()}
        assert all(map(torch.equal, block(**turned), block(**given)))


def test_arguments_that_are_alike_are_a_kind_and_an_unknown_object_is_none():
    owner, one, other = torch.nn.Identity(), torch.ones(2, 3), torch.zeros(2, 3)
    kind = known_graphs.kind_of
    same = [{"x": one, "y": (one, [other]), "z": {"scale": 1.0}, "w": None}, {"x": other, "y": (other, [one])}]
    assert kind(owner, same[0]) == kind(owner, same[1] | {"z": {"scale": 1.0}, "w": None})
    for changed in (
        {"x": other},  # no longer the same tensor as the other
        {"x": one.double()}, {"x": torch.ones(3, 2)}, {"x": torch.ones(3, 2).t()}, {"x": torch.nn.Parameter(one)},
        {"x": torch.ones(2, 3, requires_grad=True)}, {"x": torch.ones(2, 3, device="meta")}, {"z": {"scale": 1}},
        {"z": {}}, {"w": 0}, {"y": [one, [other]]}, {"z": {"scale": object()}},
    ):  # fmt: skip
        assert kind(owner, same[0]) != kind(owner, same[0] | changed), changed
    assert kind(owner, same[0]) != kind(torch.nn.Identity(), same[0])
    with torch.no_grad():
        without = kind(owner, same[0])
    assert without != kind(owner, same[0])
    assert kind(owner, {"x": object()}) != kind(owner, {"x": object()})


def removed(monkeypatch):
    monkeypatch.delattr(eval_frame, "_debug_get_cache_entry_list")


def other_fields(monkeypatch):
    monkeypatch.setattr(eval_frame, "_debug_get_cache_entry_list", lambda code: [object()])


@pytest.mark.parametrize(
    ("change", "reason"), [(removed, "does not tell which graph"), (other_fields, "no attribute 'guard_manager'")]
)
def test_a_torch_that_does_not_tell_its_graphs_checks_every_call(drawn, tiny, monkeypatch, change, reason):
    change(monkeypatch)
    draw, _, _ = drawn(tiny_transformer(tiny))
    told = []
    draw.known = draw.blocks.compiled = known_graphs.KnownGraphs(draw.known.compiled, draw.known.plain, told.append)
    (plain,) = draw(PASSES[0])
    draw.in_blocks()
    with draw.speed.drawing():
        ours = draw(*PASSES[:1] * 3)
    assert draw.in_blocks() == 3 and all(torch.equal(each, plain) for each in ours)
    assert len(told) == 1 and reason in told[0]


def test_a_graph_that_torch_has_not_used_last_is_never_taken(drawn, tiny, monkeypatch):
    draw, _, _ = drawn(tiny_transformer(tiny))
    plain, _ = draw(PASSES[0], PASSES[2])
    in_order = eval_frame._debug_get_cache_entry_list
    monkeypatch.setattr(eval_frame, "_debug_get_cache_entry_list", lambda code: in_order(code)[::-1])
    draw.in_blocks()
    with draw.speed.drawing():
        ours = draw(*PASSES[:1] * 2)
    assert draw.in_blocks() == 2 and all(torch.equal(each, plain) for each in ours)
