"""What fits gets a plan, what does not gets a refusal with what is needed and what is there."""

import dataclasses

import pytest

from qwen_worker.checkpoint import SIZE_2_1, SIZE_20B
from qwen_worker.errors import LoadError
from qwen_worker.machine import Gpu, Machine, container_limit, disk_free, read_gpu, read_machine
from qwen_worker.placement import plan, require_disk
from qwen_worker.settings import Precision

GB = 1_000_000_000
LAPTOP = Machine(None, 16 * GB, 12 * GB)
TINY = {"transformer": 3_000_000, "text_encoder": 1_000_000, "vae": 2_000_000}


def card(gb, capability=(9, 0), free=None):
    return Machine(Gpu("NVIDIA Test", capability, gb * GB, (free or gb) * GB), 200 * GB, 180 * GB)


def test_the_20b_model_fits_an_80_gb_card_in_bfloat16():
    found = plan("Qwen/Qwen-Image", SIZE_20B, card(80))
    assert (found.device, found.precision, found.dtype) == ("cuda", Precision.BF16, "bfloat16")
    assert found.weights == pytest.approx(57.7 * GB, rel=0.001)  # 40.86 + 16.58 + 0.25
    assert found.peak == pytest.approx(62.3 * GB, rel=0.001)


def test_the_2_1_model_fits_a_48_gb_card():
    assert plan("Qwen/Qwen-Image-2.1", SIZE_2_1, card(48, (8, 6))).weights == 2 * 16_219_988_836


def test_a_second_pipeline_needs_its_transformer_alone():
    second = {"transformer": SIZE_20B["transformer"]}
    resident = round(57.7 * GB)
    found = plan("Qwen/Qwen-Image-Edit", second, card(141, free=141 - 58), resident=resident)
    assert found.peak == pytest.approx(resident + 40.86 * GB + 3.63 * GB, rel=0.001)
    with pytest.raises(LoadError, match=r"57\.7 GB are taken by a model already loaded"):
        plan("Qwen/Qwen-Image-Edit", second, card(80, free=80 - 58), resident=resident)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            card(24),
            "needs 62.3 GB of GPU memory in bfloat16 (transformer 40.9, text_encoder 16.6, vae 0.3, 4.6 to work)",
        ),
        (card(24), "NVIDIA Test (compute capability 9.0, 24.0 GB) has 24.0 GB free"),
        (card(80, free=20), "80.0 GB) has 20.0 GB free"),
        (card(80, (7, 5)), "needs bfloat16 (compute capability 8.0 or later), not NVIDIA Test (compute capability 7.5"),
        (LAPTOP, "needs a CUDA GPU with 62.3 GB free in bfloat16"),
        (LAPTOP, "this machine has no CUDA GPU and 12.0 GB of RAM free, where 115.4 GB in float32 would be needed"),
        (Machine(None, 512 * GB, 500 * GB), "a CPU serves at most 2 billion parameters, not 28.8"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_figures(machine, words):
    with pytest.raises(LoadError) as caught:
        plan("Qwen/Qwen-Image", SIZE_20B, machine)
    assert words in caught.value.reason and not caught.value.passing


def test_a_cap_counts_as_the_card_s_size():
    with pytest.raises(LoadError, match="has 24.0 GB free under QWEN_VRAM_GB=24"):
        plan("Qwen/Qwen-Image", SIZE_20B, card(141), vram_cap=24 * GB)


def test_a_cap_holds_the_context_of_the_first_model_too():
    second, resident = {"transformer": SIZE_20B["transformer"]}, round(57.7 * GB)
    with pytest.raises(LoadError, match="under QWEN_VRAM_GB=103"):
        plan("m", second, card(141, free=80), vram_cap=103 * GB, resident=resident)
    assert plan("m", second, card(141, free=80), vram_cap=104 * GB, resident=resident).peak <= 103 * GB


def test_a_tiny_model_runs_on_the_cpu_in_float32_unless_told_otherwise():
    found = plan("tiny", TINY, LAPTOP)
    assert (found.device, found.dtype, found.weights) == ("cpu", "float32", 24_000_000)
    assert plan("tiny", TINY, LAPTOP, Precision.BF16).dtype == "bfloat16"
    with pytest.raises(LoadError, match="0.0 GB of RAM free"):
        plan("tiny", TINY, dataclasses.replace(LAPTOP, ram_available=1000))


def test_a_download_that_would_fill_the_disk_is_refused():
    require_disk("m", 10 * GB, 11 * GB)
    with pytest.raises(LoadError, match="m needs 57.7 GB of disk to download; 20.0 GB are free"):
        require_disk("m", 57_700_000_000, 20 * GB)


def test_this_machine_is_read(tmp_path):
    machine = read_machine()
    assert 0 < machine.ram_available <= machine.ram_total
    assert disk_free(tmp_path / "not" / "there") > 0


def test_no_gpu_is_seen_when_cuda_may_see_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_gpu() is None


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("2000000000\n")
    monkeypatch.setattr("qwen_worker.machine.CGROUP_LIMITS", (str(limit),))
    assert container_limit() == 2 * GB
    assert read_machine().ram_total == 2 * GB
    limit.write_text("max\n")
    assert container_limit() is None
