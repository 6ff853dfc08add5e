"""What torch's allocators are asked for, by every torch that the worker runs on."""

import pytest
import torch

from qwen_worker.memory import cuda

GETTER, SETTER = "_accelerator_getAllocatorSettings", "_accelerator_setAllocatorSettings"
EXACTLY, EXPANDABLE = "pinned_max_round_threshold_mb:1", "expandable_segments:True"
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture
def allocators(monkeypatch):
    """The settings in torch's place: `allocators[0]` is what they are, and changes when they are set."""
    settings = [""]
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch._C, GETTER, lambda: settings[0], raising=False)
    monkeypatch.setattr(torch._C, SETTER, lambda text: settings.__setitem__(0, text), raising=False)
    cuda.report_refused_setting.cache_clear()
    yield settings
    cuda.report_refused_setting.cache_clear()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"{EXACTLY},{EXPANDABLE}"),
        ("max_split_size_mb:64", f"max_split_size_mb:64,{EXACTLY},{EXPANDABLE}"),
        ("pinned_max_round_threshold_mb:8", f"pinned_max_round_threshold_mb:8,{EXPANDABLE}"),
        ("expandable_segments:False", f"expandable_segments:False,{EXACTLY}"),
    ],
)
@pytest.mark.parametrize("says_settings", [True, False])
def test_torch_s_allocators_take_what_they_are_asked_for_and_what_else_is_set_of_them_stays(
    allocators, monkeypatch, before, after, says_settings
):
    allocators[0] = before
    if not says_settings:  # torch 2.11: what it was started with is all that can be known
        monkeypatch.delattr(torch._C, GETTER)
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", before)
    cuda.configure_allocators()
    cuda.configure_allocators()
    assert allocators[0] == after


def test_torch_reads_the_newer_variable_first(allocators, monkeypatch):
    monkeypatch.delattr(torch._C, GETTER)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:32")
    cuda.configure_allocators()
    assert allocators[0] == f"max_split_size_mb:64,{EXACTLY},{EXPANDABLE}"


def test_settings_that_torch_lacks_are_done_without_and_logged_once(allocators, monkeypatch, capsys):
    monkeypatch.delattr(torch._C, SETTER)
    cuda.configure_allocators()
    cuda.configure_allocators()
    said = capsys.readouterr().out
    assert [said.count(f"torch does not take {setting}") for setting in (EXACTLY, EXPANDABLE)] == [1, 1]


@pytest.fixture
def real_allocators():
    """torch's own, left as they were."""
    read = getattr(torch._C, GETTER, lambda: "")
    before = read()
    cuda.report_refused_setting.cache_clear()
    yield read
    torch._C._accelerator_setAllocatorSettings(before)
    cuda.report_refused_setting.cache_clear()


def test_a_pinned_byte_costs_two_where_this_torch_does_not_take_the_setting(real_allocators, capsys):
    cuda.configure_allocators()
    refused = f"torch does not take {EXACTLY}" in capsys.readouterr().out
    assert cuda.pinned_cost() == (2 if refused else 1)
    assert refused or EXACTLY in real_allocators()


def test_settings_that_this_torch_refuses_are_done_without_and_logged_once(real_allocators, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "ALLOCATOR_SETTINGS", ("no_such_setting:1", EXPANDABLE))
    cuda.configure_allocators()
    cuda.configure_allocators()
    said = capsys.readouterr().out
    assert said.count("torch does not take no_such_setting:1") == 1 and "'no_such_setting'" in said
    assert EXPANDABLE in (real_allocators() or EXPANDABLE)  # torch 2.11 does not say


def test_pinned_buffers_are_released_where_torch_can(monkeypatch):
    cuda.release_pinned_buffers()
    monkeypatch.delattr(torch._C, "_host_emptyCache", raising=False)
    cuda.release_pinned_buffers()
