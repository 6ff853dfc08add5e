"""What torch's allocators are asked for, by every torch that the worker runs on."""

import pytest
import torch

from qwen_worker.memory import cuda

GETTER, SETTER = "_accelerator_getAllocatorSettings", "_accelerator_setAllocatorSettings"
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture
def allocators(monkeypatch):
    """The settings in torch's place: `allocators[0]` is what they are, and changes when they are set."""
    settings = [""]
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch._C, GETTER, lambda: settings[0], raising=False)
    monkeypatch.setattr(torch._C, SETTER, lambda text: settings.__setitem__(0, text), raising=False)
    cuda.report_refused_settings.cache_clear()
    yield settings
    cuda.report_refused_settings.cache_clear()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "pinned_max_round_threshold_mb:1"),
        ("max_split_size_mb:64", "max_split_size_mb:64,pinned_max_round_threshold_mb:1"),
        ("pinned_max_round_threshold_mb:8", "pinned_max_round_threshold_mb:8"),
    ],
)
@pytest.mark.parametrize("says_settings", [True, False])
def test_host_memory_is_pinned_to_the_byte_and_what_else_is_set_of_torch_s_allocators_stays(
    allocators, monkeypatch, before, after, says_settings
):
    allocators[0] = before
    if not says_settings:  # torch 2.11: what it was started with is all that can be known
        monkeypatch.delattr(torch._C, GETTER)
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", before)
    cuda.pin_exactly()
    cuda.pin_exactly()
    assert allocators[0] == after


def test_torch_reads_the_newer_variable_first(allocators, monkeypatch):
    monkeypatch.delattr(torch._C, GETTER)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:32")
    cuda.pin_exactly()
    assert allocators[0] == "max_split_size_mb:64,pinned_max_round_threshold_mb:1"


def test_settings_that_torch_lacks_are_done_without_and_logged_once(allocators, monkeypatch, capsys):
    monkeypatch.delattr(torch._C, SETTER)
    cuda.pin_exactly()
    cuda.pin_exactly()
    assert capsys.readouterr().out.count("torch does not take pinned_max_round_threshold_mb:1") == 1


@pytest.fixture
def real_allocators():
    """torch's own, left as they were."""
    read = getattr(torch._C, GETTER, lambda: "")
    before = read()
    cuda.report_refused_settings.cache_clear()
    yield read
    torch._C._accelerator_setAllocatorSettings(before)
    cuda.report_refused_settings.cache_clear()


def test_a_pinned_byte_costs_two_where_this_torch_does_not_take_the_setting(real_allocators, capsys):
    cuda.pin_exactly()
    refused = "torch does not take" in capsys.readouterr().out
    assert cuda.pinned_cost() == (2 if refused else 1)
    assert refused or cuda.PINNED_EXACTLY in real_allocators()


def test_settings_that_this_torch_refuses_are_done_without_and_logged_once(real_allocators, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "PINNED_EXACTLY", "no_such_setting:1")
    cuda.pin_exactly()
    cuda.pin_exactly()
    said = capsys.readouterr().out
    assert said.count("torch does not take no_such_setting:1") == 1 and "'no_such_setting'" in said


def test_pinned_buffers_are_released_where_torch_can(monkeypatch):
    cuda.release_pinned_buffers()
    monkeypatch.delattr(torch._C, "_host_emptyCache", raising=False)
    cuda.release_pinned_buffers()
