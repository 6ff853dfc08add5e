"""A card that torch cannot compute on is refused before weights are read, in words; what others hold of it counts.

torch's own calls answer as on a card; the products and copies that the worker tries it with are real, on the CPU.
"""

import functools
from types import SimpleNamespace

import pytest
import torch

from qwen_worker.errors import LoadError
from qwen_worker.loading.loaded import LoadedPipeline
from qwen_worker.loading.pipelines import Pipelines
from qwen_worker.loading.planner import Planner
from qwen_worker.memory import card, cuda, footprint, machine
from qwen_worker.memory.footprint import CONTEXT_BYTES
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.settings import Settings

GB = 1_000_000_000
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


@pytest.fixture
def on_card(monkeypatch):
    """A card of 50 GB with a context of 0.4, as torch tells of it; its fields say otherwise. `.shares`: caps set."""
    fake = SimpleNamespace(open=False, free=50 * GB, total=50 * GB, held=0, shares=[], error=None, nvml=True)
    fake.capability, fake.architectures, fake.name = (9, 0), CU130, "NVIDIA Test"

    def init():
        if fake.error:
            raise fake.error
        fake.open = True

    def mem_get_info(device=None):
        fake.free -= 0 if fake.context else 400_000_000
        fake.context = True
        return fake.free, fake.total

    def read_card():
        if not fake.nvml:
            raise card.Unreadable("NVML says: nothing")
        return Gpu(fake.name, fake.capability, fake.total, fake.free)

    fake.context = False
    fakes = {
        "init": init,
        "is_initialized": lambda: fake.open,
        "mem_get_info": mem_get_info,
        "memory_reserved": lambda: fake.held,
        "get_device_capability": lambda: fake.capability,
        "get_device_name": lambda: fake.name,
        "get_arch_list": lambda: fake.architectures,
        "set_per_process_memory_fraction": fake.shares.append,
        "synchronize": lambda: None,
    }
    for name, call in fakes.items():
        monkeypatch.setattr(torch.cuda, name, call)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(card, "read_card", read_card)
    monkeypatch.setattr(card, "driver_version", lambda: "550.54.15")
    monkeypatch.setattr(card, "driver_cuda", lambda: (12, 4))
    card.open_context.cache_clear()
    yield fake
    card.open_context.cache_clear()


def refusal(call):
    with pytest.raises(LoadError) as caught:
        call()
    return caught.value


def test_torch_may_have_what_the_plan_counts_beside_what_it_holds(on_card):
    cuda.cap_memory(20 * GB, beside_others=False)
    on_card.held, on_card.free = 25 * GB, on_card.free - 25 * GB
    cuda.cap_memory(20 * GB, beside_others=True)
    context = footprint.CONTEXT_BYTES
    assert on_card.shares == [(20 * GB - context) / (50 * GB), (45 * GB - context) / (50 * GB)]


def test_a_driver_that_is_too_old_is_named_with_both_versions(on_card):
    on_card.error = RuntimeError(TOO_OLD)
    failure = refusal(functools.partial(cuda.cap_memory, 20 * GB, False))
    assert failure.reason == (
        "the driver 550.54.15 runs CUDA up to 12.4 and is too old for torch's CUDA 13.0: a host with a newer driver "
        "is needed, or an image with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126"
    )
    assert not failure.transient and not on_card.shares


@pytest.mark.parametrize(
    ("cuda_version", "error", "words"),
    [
        (
            "12.6",
            RuntimeError(TOO_OLD),
            "torch cannot use the GPU: The NVIDIA driver on your system is too old (found v",
        ),
        (
            "12.6",
            RuntimeError("No CUDA GPUs are available"),
            "torch cannot use the GPU: No CUDA GPUs are available (driv",
        ),
        (
            "12.6",
            torch.cuda.DeferredCudaCallError("it failed\n\nFile /a/b"),
            "torch cannot use the GPU: it failed (driver",
        ),
        ("12.6", RuntimeError("CUDA unknown error"), "(driver 550.54.15, torch's CUDA 12.6)"),
        (
            None,
            AssertionError("Torch not compiled with CUDA enabled"),
            f"torch {torch.__version__} is a build for CPUs",
        ),
    ],
)
def test_why_torch_cannot_use_a_gpu_is_said_in_its_own_words(on_card, monkeypatch, cuda_version, error, words):
    monkeypatch.setattr(torch.version, "cuda", cuda_version)
    on_card.error = error
    reason = refusal(card.try_out).reason
    assert words in reason and "\n" not in reason and "/a/b" not in reason


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (CU126, (8, 0), True),
        (CU126, (8, 9), True),  # code for 8.6 and 8.0 runs on it
        (CU126, (9, 0), True),
        (CU126, (10, 0), False),
        (CU126, (12, 0), False),
        (CU130, (12, 0), True),
        (CU130, (12, 1), True),
        (CU130, (10, 3), True),
        (CU130, (11, 0), False),
        (["sm_86"], (8, 0), False),  # of the same major version, but later
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["sm_80", "compute_80"], (12, 0), True),  # PTX is compiled for any later card
        (["compute_90"], (8, 9), False),
        ([], (12, 0), True),  # a build that names none
    ],
)
def test_a_card_that_torch_has_no_kernels_for_is_refused(on_card, architectures, capability, runs):
    on_card.architectures, on_card.capability = architectures, capability
    if runs:
        cuda.cap_memory(20 * GB, beside_others=False)
    else:
        reason = refusal(functools.partial(cuda.cap_memory, 20 * GB, False)).reason
        assert "has no kernels for NVIDIA Test" in reason and "build" not in reason  # this is the newest


def test_the_refusal_names_the_build_argument(on_card, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    on_card.architectures, on_card.capability = CU126, (12, 0)
    assert refusal(card.try_out).reason == (
        "torch for CUDA 12.6 has no kernels for NVIDIA Test (compute capability 12.0), only sm_50 sm_60 sm_70 sm_75 "
        "sm_80 sm_86 sm_90: build the image with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130"
    )


# What the worker tries a card with.


@pytest.fixture
def tried(on_card, monkeypatch):
    """The tensors of the trial lie on the CPU; `tried.broken` raises in the place of what it names, or returns."""
    broken = {}
    ones, empty = torch.ones, torch.empty

    def fake_ones(*size, dtype, device):
        return broken["product"]() if "product" in broken else ones(*size, dtype=dtype)

    def fake_empty(size, dtype, pin_memory=False):
        return broken["pin"]() if "pin" in broken and pin_memory else empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "ones", fake_ones)
    monkeypatch.setattr(torch, "empty", fake_empty)
    return broken


def fail(words):
    def call():
        raise RuntimeError(words)

    return call


def test_a_card_that_computes_passes(tried):
    card.try_out()


@pytest.mark.parametrize(
    ("part", "broken", "words"),
    [
        ("product", fail("CUDA error: no kernel image"), "a product in bfloat16 fails: CUDA error: no kernel image"),
        (
            "pin",
            fail("CUDA error: an illegal memory access\nadvice"),
            "a copy from the card fails: CUDA error: an illegal memory access",
        ),
        ("pin", lambda: torch.zeros(3, dtype=torch.uint8), "a copy from the card fails: "),
        ("product", lambda: torch.eye(card.SIDE, dtype=torch.bfloat16), "a product in bfloat16 is wrong"),
    ],
)
def test_what_a_card_cannot_do_is_named(tried, part, broken, words):
    tried[part] = broken
    reason = refusal(card.try_out).reason
    assert reason.startswith("NVIDIA Test cannot be used: ") and words in reason and "advice" not in reason


def test_memory_that_cannot_be_pinned_does_not_end_a_worker(tried):
    def refuse():
        error = RuntimeError("CUDA error: out of memory")
        error.error_code = 2
        raise error

    tried["pin"] = refuse
    card.try_out()


# What others hold of the card.


def test_a_card_that_something_else_holds_is_refused_with_the_figures(on_card):
    cuda.cap_memory(48 * GB, beside_others=False)
    on_card.free -= 10 * GB
    failure = refusal(functools.partial(cuda.cap_memory, 48 * GB, False))
    assert "40.0 GB of the card can be had and 48.0 GB were planned with" in failure.reason and failure.transient
    cuda.cap_memory(39 * GB, beside_others=False)
    on_card.held = 5 * GB  # torch's own, which new tensors may use again
    cuda.cap_memory(45 * GB, beside_others=False)
    assert refusal(functools.partial(cuda.cap_memory, 45 * GB, True)).transient


def test_the_context_counts_once(on_card):
    """A plan counts a gigabyte for it; what is taken of the card by then is not taken again."""
    assert card.room_bytes(beside_others=False) is None
    card.start()
    assert on_card.free == 50 * GB - 400_000_000 and card.room_bytes(beside_others=False) == 50 * GB
    card.open_context.cache_clear()
    on_card.nvml = on_card.context = False
    assert card.room_bytes(beside_others=False) < 50 * GB  # nobody says what the context took


@pytest.fixture
def planner(monkeypatch):
    """A planner for the released models, as on a card of 50 GB by NVML; `.ram`."""

    def plan(model, here):
        return Planner(Settings(QWEN_IMAGE_MODEL=model, QWEN_EDIT_MODEL="/none"), catalogue_of(model), lambda: here)

    return plan


def catalogue_of(model):
    from qwen_worker.checkpoints import checkpoint

    released = checkpoint.released(model)
    return SimpleNamespace(model_for=lambda task: model, locate=lambda task: released)


def test_plans_are_made_by_what_torch_sees_and_anew_when_the_room_is_gone(on_card, planner):
    here = Machine(Gpu("NVIDIA Test", (9, 0), 50 * GB, 50 * GB), 200 * GB, 200 * GB)
    plans = planner("Qwen/Qwen-Image", here)
    assert plans.place("generate", ()).limit_bytes == round(0.97 * 50 * GB)  # CUDA is not open yet
    card.start()
    first = plans.place("generate", ())
    assert first.text_encoder == "resident" and plans.place("generate", ()) is first
    on_card.free -= 15 * GB  # another process, of which NVML in here knows nothing
    loaded = SimpleNamespace(plan=first, checkpoint=None)
    assert not plans.is_outdated("Qwen/Qwen-Image", [loaded])  # what is loaded stays planned
    second = plans.place("generate", ())
    assert second.text_encoder == "streamed" and second.limit_bytes == round(0.97 * 35 * GB)
    assert plans.place("generate", ()) is second
    on_card.free -= 34 * GB
    with pytest.raises(LoadError, match="has 1.0 GB to use"):
        plans.place("generate", ())


def test_a_load_that_finds_less_room_than_planned_goes_on_by_a_plan_for_what_is_left(on_card, monkeypatch):
    """The card is open with the first load alone: before it, nobody tells what the other process holds."""
    here = Machine(Gpu("NVIDIA Test", (9, 0), 50 * GB, 50 * GB), 200 * GB, 200 * GB)
    model, tried = "Qwen/Qwen-Image", []
    pipelines = Pipelines(Settings(QWEN_EDIT_MODEL="/none"), catalogue_of(model), machine=lambda: here)

    def load_once(model, task):
        plan = pipelines.place(task)
        tried.append(plan)
        cuda.cap_memory(plan.limit_bytes, beside_others=False)
        return LoadedPipeline(model, None, plan, *[None] * 9)

    monkeypatch.setattr(pipelines, "load_once", load_once)
    monkeypatch.setattr(pipelines.builder, "release", lambda *_: None)
    on_card.free -= 15 * GB
    loaded = pipelines.load("generate")
    assert [plan.text_encoder for plan in tried] == ["resident", "streamed"] and loaded.plan is tried[1]
    on_card.free -= 33 * GB
    pipelines.loaded.clear()
    assert refusal(lambda: pipelines.load("generate")).reason.startswith("Qwen/Qwen-Image needs")


def test_a_limit_of_the_settings_leaves_room_for_others(on_card, planner):
    here = Machine(Gpu("NVIDIA Test", (9, 0), 50 * GB, 50 * GB), 200 * GB, 200 * GB)
    card.start()
    on_card.free -= CONTEXT_BYTES
    plans = Planner(Settings(QWEN_VRAM_GB=40), catalogue_of("Qwen/Qwen-Image"), lambda: here)
    first = plans.place("generate", ())
    assert first.limit_bytes == 40 * GB and plans.place("generate", ()) is first


def test_the_machine_s_card_is_torch_s_where_nvml_has_none(on_card, monkeypatch):
    on_card.nvml = False
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "has_driver", lambda: True)
    assert machine.read_gpu() == Gpu("NVIDIA Test", (9, 0), 50 * GB, 50 * GB - 400_000_000)
    on_card.error = RuntimeError(TOO_OLD)
    on_card.open = False
    here = machine.read_machine()
    assert here.gpu is None and here.gpu_obstacle.startswith("NVML says: ")
    assert here.gpu_obstacle.endswith("whl/cu126") and "550.54.15" in here.gpu_obstacle


@pytest.mark.parametrize(("release", "text_encoder"), [("2.13.0", "streamed"), ("2.12.1+cu126", "quantized")])
def test_a_torch_that_rounds_what_it_pins_is_planned_with(planner, monkeypatch, release, text_encoder):
    here = Machine(Gpu("NVIDIA Test", (8, 9), 24 * GB, 24 * GB), 64 * GB, 30 * GB)
    monkeypatch.setattr(cuda.metadata, "version", lambda package: release)
    assert planner("Qwen/Qwen-Image", here).place("generate", ()).text_encoder == text_encoder
