"""A ControlNet is counted: for its jobs alone, and by layouts that leave room for it where that costs no precision."""

import pytest

from qwen_worker.checkpoints.controlnet import ControlNet
from qwen_worker.errors import JobError
from qwen_worker.loading.controlnets import ControlNets
from qwen_worker.memory.footprint import GIB
from qwen_worker.memory.placement import plan

from .test_placement import ADA, AMPERE, BLACKWELL, BOTH, GB, GENERATE, HOPPER, card

UNION = "InstantX/Qwen-Image-ControlNet-Union"


@pytest.fixture
def union():
    """The published union, as its files say how large it is: five blocks of the 20B transformer's."""
    found = ControlNets(UNION, ())
    found.located = ControlNet(UNION, {"num_layers": 5}, 1_768_000_000)
    return found


def test_a_job_with_a_control_picture_is_counted_with_its_weights_and_what_they_add(union):
    layout = plan([GENERATE], card(141))
    job = union.planned(layout)
    more = job.peak_bytes(1024, 1024) - layout.peak_bytes(1024, 1024)
    assert more == pytest.approx(3.54 * GB, rel=0.01)  # what is added fits below what decoding takes
    residuals = 2 * 5 * 4096 * 3072 * 2  # of two control pictures, in bfloat16
    assert job.residual_bytes == residuals and layout.residual_bytes == layout.control_bytes == 0
    # The control picture is encoded: in tiles that takes no more than decoding in tiles does.
    assert job.peak_bytes(2048, 2048) - layout.peak_bytes(2048, 2048) == more
    denoising = max(0, 0.36 * GIB + residuals - 0.25 * GIB) - max(0, 0.36 * GIB - 0.25 * GIB)
    tiled = job.peak_bytes(1024, 1024, tiled=True) - layout.peak_bytes(1024, 1024, tiled=True)
    assert tiled == pytest.approx(more + denoising, rel=0.01)


# (GB, capability), models, RAM -> precision, text encoder, swapped, whether a control job of 1024 x 1024 has room
@pytest.mark.parametrize(
    ("gpu", "models", "ram", "expected", "has_room"),
    [
        ((24, ADA), [GENERATE], 64, ("fp8", "streamed", False), True),
        ((24, ADA), BOTH, 64, ("fp8", "streamed", True), True),
        ((32, BLACKWELL), [GENERATE], 64, ("bf16", "streamed", False), False),  # only in fp8 there would be room
        ((48, ADA), [GENERATE], 64, ("bf16", "streamed", False), True),  # resident without a ControlNet
        ((48, ADA), BOTH, 48, ("fp8", "streamed", False), True),
        ((80, AMPERE), [GENERATE], 64, ("bf16", "resident", False), True),
        ((80, HOPPER), BOTH, 64, ("bf16", "resident", False), True),
    ],
)
def test_a_layout_leaves_room_for_it_where_that_costs_no_precision(union, gpu, models, ram, expected, has_room):
    layout = plan(models, card(*gpu, ram=ram), control=True)
    assert (layout.precision.value, layout.text_encoder, layout.swapped) == expected
    assert layout.control_bytes == 0 and union.planned(layout).fits(1024, 1024) is has_room


def test_a_job_without_room_is_refused_with_the_figures(union):
    layout = plan([GENERATE], card(32, BLACKWELL, ram=64), control=True)
    with pytest.raises(JobError, match=r"out_of_memory.*1024x1024 needs 34\.\d GB with .* and 31\.0 GB may be used; "):
        union.planned(layout).require_fits(f"Qwen/Qwen-Image and {UNION}", 16, 1024, 1024, 0)


def test_it_stays_on_the_card_where_the_largest_picture_has_room_beside_it(union):
    assert union.is_kept_on_card(plan([GENERATE], card(80)))
    assert union.is_kept_on_card(plan(BOTH, card(141)))
    assert not union.is_kept_on_card(plan([GENERATE], card(24, ADA)))
    assert not union.is_kept_on_card(plan(BOTH, card(80)))


def test_endpoints_without_one_are_planned_as_before():
    for gpu, models in (((48, ADA), [GENERATE]), ((80, HOPPER), BOTH)):
        assert plan(models, card(*gpu, ram=64)) == plan(models, card(*gpu, ram=64), control=False)
    assert plan([GENERATE], card(48, ADA, ram=64)).text_encoder == "resident"
