"""Training goes on where it was stopped, and its optimiser is the one that it says it is."""

import contextlib

import pytest
import torch

from qwen_tiny.training import fitting

STEPS = 8


class Stopped(Exception):
    pass


def fitted(folder, stop=None):
    """Fit a small network, cut off before step `stop`; returns its parameters and the steps that were made."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    made = []

    def loss(step):
        if step == stop:
            raise Stopped
        made.append(step)
        asked = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        value = (network(asked) - asked[:, :3]).square().mean()
        return value, value.item()

    matrices = [network[0].weight, network[2].weight]
    with contextlib.suppress(Stopped):
        fitting.fit("network", {"network": network}, loss, STEPS, folder, 1e-2, matrices=matrices, warmup=2)
    return [parameter.detach() for parameter in network.parameters()], made


def test_stopped_training_comes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    whole, _ = fitted(tmp_path / "whole")
    fitted(tmp_path / "stopped", stop=5)
    resumed, made = fitted(tmp_path / "stopped")
    assert made == [5, 6, 7]
    for one, other in zip(whole, resumed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_finished_stage_is_loaded_and_not_repeated(tmp_path):
    whole, _ = fitted(tmp_path)
    assert fitting.is_finished(tmp_path / "network.pt", STEPS)
    loaded, made = fitted(tmp_path)
    assert made == []
    for one, other in zip(whole, loaded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_is_left_is_the_average_of_the_way_and_not_its_end(tmp_path):
    left, _ = fitted(tmp_path)
    end = torch.load(tmp_path / "network.pt", weights_only=True)["modules"]["network"].values()
    assert all(not torch.equal(one, other) for one, other in zip(left, end, strict=True))


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
def test_orthogonal_matrices_keep_their_singular_vectors(shape):
    """By the polynomial of singular values, in float64: rounding would hide what the iteration does."""
    matrices = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values /= values.norm(dim=1, keepdim=True)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(fitting.orthogonal(matrices), left @ values.diag_embed() @ right, rtol=0, atol=1e-12)


def test_muon_is_that_of_torch():
    """Matrices taken together go the way of those taken one by one.

    Rows and columns, which have one singular value: of more, bfloat16 alone loses three per cent.
    """
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in ((1, 12), (12, 1)) for _ in range(3)]
    ours, theirs = ([torch.nn.Parameter(one.clone()) for one in start] for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.1}
    optimisers = (fitting.Muon(ours, **options), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options))
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert (other - first).norm() > 0.1
        assert (one - other).norm() < 0.02 * (other - first).norm()
