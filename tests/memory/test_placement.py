"""What fits gets a plan, what does not gets a refusal with what is needed and what is there."""

import dataclasses

import pytest

from qwen_worker.checkpoints.classes import PARTS_20B, SIZE_2_1, SIZE_20B
from qwen_worker.errors import LoadError
from qwen_worker.memory.footprint import GIB, UNALLOCATED_BYTES, WORKING_2_1, Model
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.memory.placement import pinnable, plan, require_disk
from qwen_worker.model_settings import Precision, Saving

GB = 1_000_000_000
LAPTOP = Machine(None, 16 * GB, 12 * GB)
TINY = {"transformer": 3_000_000, "text_encoder": 1_000_000, "vae": 2_000_000}
GENERATE = Model("Qwen/Qwen-Image", False, SIZE_20B, PARTS_20B)
EDIT = Model("Qwen/Qwen-Image-Edit", True, SIZE_20B, PARTS_20B)
BOTH = (GENERATE, dataclasses.replace(EDIT, shared=("text_encoder", "vae")))
TURING, AMPERE, AMPERE_PRO, ADA, HOPPER, BLACKWELL = (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)


def card(gb, capability=HOPPER, free=None, ram=200):
    return Machine(Gpu("NVIDIA Test", capability, round(gb * GB), round((free or gb) * GB)), ram * GB, ram * GB)


# (GB, capability), models, RAM -> precision, table, text encoder, swapped
PLANS = [
    ((16, ADA), [GENERATE], 64, ("nf4", True, "streamed", False)),
    ((16, ADA), [EDIT], 64, ("nf4", True, "streamed", False)),
    ((16, AMPERE_PRO), BOTH, 64, ("nf4", True, "streamed", True)),
    ((16, AMPERE_PRO), BOTH, 31, ("nf4", True, "quantized", True)),
    ((16.9, AMPERE_PRO), BOTH, 31, ("nf4", True, "quantized", True)),  # what CUDA has of an RTX A4000
    ((24, ADA), [GENERATE], 64, ("fp8", True, "streamed", False)),
    ((24, ADA), [EDIT], 64, ("fp8", True, "streamed", False)),
    ((24, ADA), BOTH, 64, ("fp8", True, "streamed", True)),
    ((24, AMPERE_PRO), [GENERATE], 64, ("int8", True, "streamed", False)),
    ((24, ADA), [GENERATE], 16, ("nf4", True, "quantized", False)),  # no room in RAM for the text encoder
    ((32, BLACKWELL), [GENERATE], 64, ("bf16", True, "streamed", False)),
    ((32, BLACKWELL), BOTH, 128, ("bf16", True, "streamed", True)),
    ((32, BLACKWELL), BOTH, 64, ("fp8", True, "streamed", False)),
    ((48, ADA), [GENERATE], 64, ("bf16", True, "resident", False)),
    ((48, ADA), BOTH, 128, ("bf16", True, "resident", True)),
    ((48, ADA), BOTH, 48, ("fp8", True, "resident", False)),
    ((48, AMPERE_PRO), BOTH, 48, ("int8", True, "resident", False)),
    ((47.7, ADA), BOTH, 62, ("fp8", True, "resident", False)),  # what CUDA has of an L40S
    ((47.7, ADA), BOTH, 128, ("bf16", True, "resident", True)),
    ((80, AMPERE), [GENERATE], 64, ("bf16", False, "resident", False)),
    ((80, HOPPER), BOTH, 64, ("bf16", True, "resident", False)),
    ((96, BLACKWELL), BOTH, 64, ("bf16", True, "resident", False)),
    ((141, HOPPER), BOTH, 64, ("bf16", False, "resident", False)),
]


@pytest.mark.parametrize(("gpu", "models", "ram", "expected"), PLANS)
def test_every_card_has_its_plan(gpu, models, ram, expected):
    found = plan(models, card(*gpu, ram=ram))
    assert (found.precision.value, found.table, found.text_encoder, found.swapped) == expected
    assert found.device == "cuda" and found.dtype == "bfloat16"
    edits = int(any(model.edits for model in models))
    assert found.fits(1024, 1024, edits) and found.peak_bytes(1024, 1024, edits, tiled=True) <= gpu[0] * GB
    assert found.pinned_bytes <= (ram - 5) * GB


# The arithmetic that the savings rest on, in GB of weights and for the whole peak at 1024 x 1024, to be met within 5 %.
@pytest.mark.parametrize(
    ("gpu", "models", "weights", "peak"),
    [
        ((141, HOPPER), [GENERATE], 57.7 - 1.09 - 1.35, 57.7 - 2.44 + 1.42 + 1.0),  # without lm_head and vision
        ((141, HOPPER), BOTH, 98.5 - 1.09, 98.5 - 1.09 + 1.42 + 1.0),
        ((80, HOPPER), BOTH, 71.4 - 1.09, 71.4 - 1.09 + 0.44 + 1.42 + 1.0),
        ((24, ADA), [GENERATE], 13.6 + 0.25, 16.5),
    ],
)
def test_the_prediction_is_the_arithmetic_of_the_parts(gpu, models, weights, peak):
    found = plan(models, card(*gpu))
    assert found.weight_bytes / GB == pytest.approx(weights, rel=0.05)
    assert found.peak_bytes(1024, 1024) / GB == pytest.approx(peak, rel=0.05)


def test_the_peak_without_savings_is_stock_diffusers():
    found = plan([GENERATE], card(80), savings=frozenset())
    assert found.weight_bytes == 2 * sum(SIZE_20B.values())  # 57.7 GB
    assert found.peak_bytes(1024, 1024) == pytest.approx(57.7 * GB + GB + 0.4 * GB + 3.38 * GIB, rel=0.001)
    assert found.peak_bytes(2048, 2048) - found.weight_bytes == pytest.approx(1.4 * GB + 4 * 3.38 * GIB, rel=0.001)


def test_each_saving_can_be_switched_off():
    every = frozenset(Saving)
    whole = plan([GENERATE], card(141), savings=every)
    for saving, more in ((Saving.TRIM, 2 * (544_997_376 + 676_550_144)), (Saving.CONV2D, 2 * 82_292_928)):
        assert plan([GENERATE], card(141), savings=every - {saving}).weight_bytes == whole.weight_bytes + more
    stock = plan([GENERATE], card(141), savings=every - {Saving.SINGLE_FRAME})
    assert stock.peak_bytes(1024, 1024) - whole.peak_bytes(1024, 1024) == pytest.approx((3.38 - 1.32) * GIB, rel=0.001)
    with pytest.raises(LoadError, match="GPU memory"):
        plan(BOTH, card(80, ram=20), Precision.BF16, savings=every - {Saving.TABLE})


def test_an_editing_worker_keeps_its_text_encoder_s_sight():
    alone, both = plan([GENERATE], card(141)), plan(BOTH, card(141))
    assert (alone.vision, both.vision) == (False, True)
    assert both.text_encoder_bytes(BOTH[0]) - alone.text_encoder_bytes(GENERATE) == 2 * PARTS_20B["vision"]


def test_a_named_precision_is_kept_to():
    assert plan([GENERATE], card(141), Precision.NF4).precision is Precision.NF4
    assert plan([GENERATE], card(24, ram=64), Precision.FP8).precision is Precision.FP8
    with pytest.raises(LoadError, match="fp8 needs compute capability 8.9 or later, not NVIDIA Test"):
        plan([GENERATE], card(80, AMPERE), Precision.FP8)
    with pytest.raises(LoadError, match=r"needs 30\.\d GB of GPU memory at the least \(bf16: weights 27\.4"):
        plan([GENERATE], card(24), Precision.BF16)


def test_float32_keeps_its_modulation():
    """Its timesteps are too many for a table, so nothing may be planned without the weights."""
    assert not plan([GENERATE], card(96), Precision.FP32).table
    with pytest.raises(LoadError, match="needs 8"):
        plan([GENERATE], card(80), Precision.FP32)


def test_2_1_is_planned_in_bfloat16_alone():
    model = Model("Qwen/Qwen-Image-2.1", True, SIZE_2_1, working=WORKING_2_1)
    assert plan([model], card(48, AMPERE_PRO)).weight_bytes == 2 * 16_219_988_836
    assert plan([model], card(32, BLACKWELL)).text_encoder == "streamed"
    for machine in (card(48), LAPTOP):
        with pytest.raises(LoadError, match="fp8 is for the 20B architecture, not for Qwen/Qwen-Image-2.1"):
            plan([model], machine, Precision.FP8)


# GiB that torch's allocator gave one pass at 1024 x 1024 on the null card, beside the weights.
@pytest.mark.parametrize(
    ("capability", "images", "allocated"),
    [
        (ADA, 0, 0.881),
        (ADA, 1, 1.782),
        (ADA, 3, 3.505),
        (AMPERE_PRO, 0, 0.647),
        (AMPERE_PRO, 1, 1.313),
        (AMPERE_PRO, 3, 2.567),
    ],
)
def test_quantized_activations_take_room_where_blocks_are_not_compiled(capability, images, allocated):
    found = plan(BOTH, card(24, capability, ram=64))
    uncompiled = plan(BOTH, card(24, capability, ram=64), compiled=False)
    assert uncompiled == dataclasses.replace(found, compiled=False)
    assert uncompiled.denoise_rate(EDIT.working, images) * (1 + images) == pytest.approx(allocated, rel=0.05)
    if images == 3:
        more = uncompiled.peak_bytes(1024, 1024, images) - found.peak_bytes(1024, 1024, images)
        assert more == pytest.approx((allocated - 4 * EDIT.working.denoise_edit) * GIB, rel=0.05)
        assert found.with_loras(10**6).peak_bytes(1024, 1024, 3) == uncompiled.peak_bytes(1024, 1024, 3) + 2 * 10**6


# GiB that torch's allocator gave a pass of an edit on the null card, beside the weights, in bfloat16.
@pytest.mark.parametrize(
    ("side", "images", "allocated"), [(1024, 1, 0.752), (1024, 2, 1.084), (1024, 3, 1.442), (1328, 1, 0.992)]
)
def test_an_edit_s_room_is_what_it_takes_and_little_more(side, images, allocated):
    planned = EDIT.working.denoise_edit * ((side / 1024) ** 2 + images)
    assert allocated < planned < 1.06 * allocated


@pytest.mark.parametrize("machine", [card(16, ADA, ram=64), card(80)])
def test_what_is_not_quantized_takes_the_same_compiled_or_not(machine):
    compiled, uncompiled = plan(BOTH, machine), plan(BOTH, machine, compiled=False)
    assert compiled.peak_bytes(1024, 1024, 3) == uncompiled.peak_bytes(1024, 1024, 3)


def test_a_plan_leaves_room_for_what_is_reserved_and_not_allocated():
    tight = plan(BOTH, card(47.7, ADA, ram=62))
    assert tight.text_encoder == "resident" and tight.limit_bytes - tight.peak_bytes(1024, 1024, 1) >= 0
    smaller = plan(BOTH, card(47.7, ADA, ram=62), vram_cap_bytes=tight.peak_bytes(1024, 1024, 1) - UNALLOCATED_BYTES)
    assert smaller.text_encoder == "streamed"
    uncompiled = plan(BOTH, card(47.7, ADA, ram=62), compiled=False)  # an edit's activations have no room beside both
    assert (uncompiled.precision, uncompiled.text_encoder) == (Precision.FP8, "streamed")


def test_sizes_beyond_the_room_are_tiled_or_refused_with_the_largest_that_fits():
    found = plan([GENERATE], card(24, ADA, ram=64))
    assert not found.needs_tiles(1024, 1024) and found.fits(2048, 2048)
    tight = dataclasses.replace(found, limit_bytes=found.peak_bytes(1024, 1024) + 1)
    assert tight.needs_tiles(1536, 1536) and tight.fits(1536, 1536)
    tighter = dataclasses.replace(found, limit_bytes=found.peak_bytes(1024, 1024, tiled=True) - 1)
    assert not tighter.fits(2048, 2048) and not tighter.fits(2048, 1024)
    streaming = plan([GENERATE], card(24, ADA, ram=64), savings=frozenset(Saving))
    big = dataclasses.replace(streaming, text_encoder="resident", limit_bytes=round(34.5 * GB))
    width, height = big.largest_size(2048, 1024, 16)
    assert big.fits(width, height) and width % 16 == height % 16 == 0 and 1.8 < width / height < 2.2
    assert not big.fits(2048, 1024) or (width, height) < (2048, 1024)
    assert dataclasses.replace(big, limit_bytes=GB).largest_size(512, 512, 16) is None


@pytest.mark.parametrize(
    ("models", "machine", "words"),
    [
        ([GENERATE], card(8, ADA), "Qwen/Qwen-Image needs 10.2 GB of GPU memory at the least (nf4: weights 7."),
        ([GENERATE], card(8, ADA), "NVIDIA Test (compute capability 8.9, 8.0 GB) has 7.8 GB to use"),
        (BOTH, card(16, ADA, ram=8), "; 25.3 GB of RAM would be pinned and 3.0 GB can be"),
        (BOTH, card(15, ADA, ram=8), "; 40.8 GB of RAM would be pinned and 3.0 GB can be"),
        ([GENERATE], card(16, TURING), "needs bfloat16 (compute capability 8.0 or later), not NVIDIA Test (compute"),
        ([GENERATE], LAPTOP, "needs a CUDA GPU (from 30."),
        ([GENERATE], LAPTOP, "this machine has no CUDA GPU and 12.0 GB of RAM free, where 110."),
        ([GENERATE], Machine(None, 512 * GB, 500 * GB), "a CPU serves at most 2 billion parameters, not 28.8"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_figures(models, machine, words):
    with pytest.raises(LoadError) as caught:
        plan(models, machine)
    assert words in caught.value.reason and not caught.value.transient


def test_what_does_not_fit_beside_what_others_hold_of_the_card_is_tried_again():
    with pytest.raises(LoadError, match=r"80\.0 GB\) has 8\.7 GB to use") as caught:
        plan([GENERATE], card(80, free=9))
    assert caught.value.transient
    with pytest.raises(LoadError) as caught:
        plan([GENERATE], card(80, free=9), vram_cap_bytes=9 * GB)
    assert not caught.value.transient


@pytest.mark.parametrize(("gpu", "models", "ram", "expected"), PLANS)
def test_jobs_loras_take_no_more_host_memory_than_the_plan_leaves(gpu, models, ram, expected):
    machine = card(*gpu, ram=ram)
    found = plan(models, machine)
    kept_bytes = len(models) * found.kept_lora_bytes
    assert found.pinned_bytes + kept_bytes <= pinnable(machine) and 0 <= kept_bytes <= 4 * GB
    assert kept_bytes == 4 * GB or ram < 32
    own = plan(models, card(*gpu), own_loras=1)
    assert own.kept_lora_bytes == own.lora_bytes + 4 * GB // len(models)


def test_pinned_memory_leaves_the_process_its_own_five_gigabytes():
    """Of which it may hold some already: what it will hold in the end is the same."""
    whole, before = card(24, ADA, ram=59), plan(BOTH, card(24, ADA, ram=128))
    assert before.swapped and before.pinned_bytes / GB == pytest.approx(53.9, abs=0.05)
    assert plan(BOTH, whole).pinned_bytes == before.pinned_bytes
    begun = dataclasses.replace(whole, ram_available_bytes=55 * GB, process_bytes=4 * GB)
    assert plan(BOTH, begun).pinned_bytes == before.pinned_bytes
    others_hold_a_little = dataclasses.replace(whole, ram_available_bytes=58 * GB)
    assert plan(BOTH, others_hold_a_little).pinned_bytes < 53 * GB
    assert plan(BOTH, card(141, ram=2)).pinned_bytes == 0
    assert plan(BOTH, card(24, ADA, ram=113), pinned_cost=2).pinned_bytes == before.pinned_bytes
    assert plan(BOTH, card(24, ADA, ram=112), pinned_cost=2).pinned_bytes < before.pinned_bytes


def test_a_driver_that_shows_no_card_is_part_of_the_refusal():
    with pytest.raises(LoadError, match=r"this machine has no CUDA GPU \(NVML says: nothing\) and 12.0 GB of RAM free"):
        plan([GENERATE], dataclasses.replace(LAPTOP, gpu_obstacle="NVML says: nothing"))


def test_a_cap_counts_as_the_card_s_size():
    capped = plan(BOTH, card(141), vram_cap_bytes=80 * GB)
    assert capped.limit_bytes == 80 * GB and capped.table and not capped.swapped
    with pytest.raises(LoadError, match="has 8.0 GB to use under QWEN_VRAM_GB=8"):
        plan([GENERATE], card(141), vram_cap_bytes=8 * GB)


def test_a_plan_is_one_line():
    line = str(plan(BOTH, card(24, ADA, ram=64)))
    assert line == (
        "fp8 on cuda, weights 13.77 GB, modulation table, transformers swapped, text encoder streamed, "
        "peak 17.0 of 23.3 GB, pinned 53.9 GB"
    )


def test_a_tiny_model_runs_on_the_cpu_in_float32_unless_told_otherwise():
    tiny = [Model("tiny", False, TINY)]
    found = plan(tiny, LAPTOP)
    assert (found.device, found.dtype, found.weight_bytes) == ("cpu", "float32", 24_000_000)
    assert found.fits(2048, 2048) and not found.needs_tiles(2048, 2048)
    assert plan(tiny, LAPTOP, Precision.BF16).dtype == "bfloat16"
    with pytest.raises(LoadError, match="0.0 GB of RAM free"):
        plan(tiny, dataclasses.replace(LAPTOP, ram_available_bytes=1000))


def test_a_download_that_would_fill_the_disk_is_refused():
    require_disk("m", 10 * GB, 11 * GB)
    with pytest.raises(LoadError, match="m needs 57.7 GB of disk; 20.0 GB are free"):
        require_disk("m", 57_700_000_000, 20 * GB)


def test_as_many_pictures_share_a_call_as_have_the_pixels_and_need_no_tiles():
    megapixel, found = 1 << 20, plan([GENERATE], card(80))
    counts = {side: found.pictures_per_call(side, side, 8, megapixel) for side in (256, 320, 512, 640, 736, 1024)}
    assert counts == {256: 8, 320: 8, 512: 4, 640: 2, 736: 1, 1024: 1}
    assert found.pictures_per_call(512, 512, 1, megapixel) == 1 and found.pictures_per_call(512, 512, 3, megapixel) == 3
    assert found.pictures_per_call(512, 512, 8, megapixel // 2) == 2
    tight = dataclasses.replace(found, limit_bytes=found.peak_bytes(512, 512 * 3))
    assert tight.pictures_per_call(512, 512, 8, megapixel) == 3
    assert dataclasses.replace(found, limit_bytes=0).pictures_per_call(512, 512, 8, megapixel) == 1
