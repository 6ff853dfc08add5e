"""Weights on their way to a card while it computes: what arrives is whole, each of twenty times."""

import copy

import pytest
import torch

from qwen_worker import check_card
from qwen_worker.checkpoints.files import stored_tensors
from qwen_worker.model import residency
from qwen_worker.model_settings import LOAD_THREADS
from qwen_worker.weights.reader import WeightReader

ROUNDS = 20
WIDTH = {"cuda": (3584, 18_944), "cpu": (64, 128)}  # of the released text encoder's layers: what passes by leaves
LAYERS = 4


def layers(device):
    """Linear layers with random weights in host memory, as many bytes each as one of the released text encoder."""
    narrow, wide = WIDTH[device]
    torch.manual_seed(0)
    pairs = [(torch.nn.Linear(narrow, wide), torch.nn.SiLU(), torch.nn.Linear(wide, narrow)) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*(layer for pair in pairs for layer in pair))
    return model.bfloat16().eval().requires_grad_(False)


def rows(device, seed=1):
    return torch.randn(64, WIDTH[device][0], generator=torch.Generator().manual_seed(seed)).to(device, torch.bfloat16)


def test_streamed_layers_give_what_resident_ones_give(device, racing):
    resident, streamed = layers(device), layers(device)
    resident.to(device)
    residency.stream(streamed, device)
    for number in range(ROUNDS):
        given = rows(device, number)
        assert torch.equal(streamed(given), resident(given)), f"pass {number}"


def test_transformers_that_take_turns_are_whole_each_time(device, racing):
    first, second = layers(device), layers(device)
    for parameter in second.parameters():
        parameter.mul_(0.5)
    models = {"first": first, "second": second}
    given = rows(device)
    plain = {name: copy.deepcopy(model).to(device)(given) for name, model in models.items()}
    swap = residency.Swap(device)
    for name, model in models.items():
        swap.add(name, model)
    assert not torch.equal(plain["first"], plain["second"])
    for number in range(ROUNDS):
        for name, model in models.items():
            swap.activate(name)
            assert torch.equal(model(given), plain[name]), f"{name}, turn {number}"


def test_weights_are_read_whole_while_the_device_computes(device, racing, tmp_path, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(check_card, "WIDE", {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
                                                 "axes_dims_rope": (4, 6, 6)})  # fmt: skip
    folder = check_card.one_block(tmp_path / "generate", "cpu")
    stored = list(stored_tensors(folder, "transformer").values())
    plain = {}
    with WeightReader(stored, "cpu", 1) as reader:
        for tensor in stored:
            plain[tensor.name] = reader.pop(tensor.name).clone()
    for number in range(3):
        with WeightReader(stored, device, LOAD_THREADS) as reader:
            for tensor in stored:
                arrived = reader.pop(tensor.name)
                assert torch.equal(arrived.cpu(), plain[tensor.name]), f"{tensor.name}, read {number}"


def test_a_race_that_fails_is_told(device):
    from .racing import Racing

    with pytest.raises(AssertionError, match="a wrong product"):
        with Racing(device) as race:

            def fail(*_):
                raise ArithmeticError("a wrong product")

            race.race(fail)
