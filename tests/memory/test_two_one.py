"""What Qwen-Image-2.1 takes of each card, by arithmetic: pictures, ten references and the widest size. docs/models.md
has the same table.
"""

import re

import pytest

from qwen_worker.checkpoints.classes import PARTS_2_1, SIZE_2_1
from qwen_worker.errors import JobError
from qwen_worker.memory.footprint import GIB, WORKING_2_1, Model
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.memory.placement import plan
from qwen_worker.pictures.sizes import LEAST_SIDE, MOST_SIDE

from ..conftest import ROOT

GB = 1_000_000_000
MODEL = Model("Qwen/Qwen-Image-2.1", True, SIZE_2_1, PARTS_2_1, working=WORKING_2_1)
WIDE = 2752, 1536
# Width, height, references and guidance, in the order of the table's columns.
JOBS = {
    "1024x1024": (1024, 1024, 0, False),
    "2752x1536": (*WIDE, 0, False),
    "edit of one": (1024, 1024, 1, False),
    "edit of one, with guidance": (1024, 1024, 1, True),
    "edit of ten": (1024, 1024, 10, False),
    "edit of ten, with guidance": (1024, 1024, 10, True),
    "2752x1536 edit of one": (*WIDE, 1, False),
    "2752x1536 edit of ten": (*WIDE, 10, False),
}
# Card in GB: where the text encoder is, and of each job what it takes: T in tiles, A with references computed anew in
# each step, or the largest size of the aspect that fits.
CARDS = {
    24: ("streamed", "23.0", "18.4 T", "23.0", "23.0", "23.0 A", "23.0 A", "20.0 TA", "1504x832"),
    32: ("streamed", "23.0", "18.4 T", "23.0", "23.0", "23.0 A", "23.0 A", "28.8 T", "2400x1344"),
    40: ("streamed", "23.0", "18.4 T", "23.0", "23.0", "23.0 A", "23.0 A", "28.8 T", "34.9 TA"),
    48: ("resident", "39.3", "34.7 T", "39.3", "39.3", "39.3 A", "39.3 A", "45.1 T", "2400x1344"),
    80: ("resident", "39.3", "59.8", "39.3", "39.3", "59.1", "39.3 A", "59.8", "59.8 A"),
    141: ("resident", "39.3", "59.8", "39.3", "39.3", "59.1", "81.2", "59.8", "59.8 A"),
}


def planned(gigabytes):
    total = gigabytes * GB
    return plan([MODEL], Machine(Gpu("NVIDIA Test", (8, 9), total, total), 64 * GB, 64 * GB))


def outcome(found, width, height, references, is_guided):
    one = found.for_guidance(is_guided, width, height, references)
    size = width, height, references
    if not one.fits(*size):
        with pytest.raises(JobError, match="2752x1536 needs") as caught:
            one.require_fits(MODEL.name, 32, *size)
        return re.search(r"the largest of this aspect is (\d+x\d+)", caught.value.sentence)[1]
    tiles = one.needs_tiles(*size)
    peak = one.peak_bytes(*size, tiles) / GB
    assert peak <= one.limit_bytes / GB
    return " ".join(filter(None, [f"{peak:.1f}", "T" * tiles + "A" * (not one.prefix_cache)]))


@pytest.mark.parametrize("gigabytes", CARDS)
def test_each_card_has_its_plan(gigabytes):
    found = planned(gigabytes)
    assert (found.precision.value, found.device) == ("bf16", "cuda")
    text_encoder, *expected = CARDS[gigabytes]
    assert found.text_encoder == text_encoder
    assert [outcome(found, *job) for job in JOBS.values()] == expected


def test_the_page_has_the_same_table():
    rows = [line for line in (ROOT / "docs/models.md").read_text().splitlines() if re.match(r"\| \d+ GB \|", line)]
    cells = {int(row[1].split()[0]): tuple(row[2:-1]) for row in (re.split(r" ?\| ?", line) for line in rows)}
    assert cells == CARDS


def test_a_megapixel_of_references_takes_two_gib_of_the_prefix_cache_for_each_pass():
    found = planned(141)
    peaks = [found.for_guidance(is_guided, 1024, 1024, 10).peak_bytes(1024, 1024, 10) for is_guided in (False, True)]
    assert (peaks[1] - peaks[0]) / GIB == pytest.approx(2 * (10 + 1100 / 4096), rel=1e-6)


def test_references_have_the_picture_s_size_within_the_same_bounds_as_where_they_are_drawn():
    bounds = [WORKING_2_1.reference_pixels(pixels) * 1024**2 for pixels in (0.01, 100)]
    assert bounds == [LEAST_SIDE**2, MOST_SIDE**2]


def test_other_models_have_no_prefix_cache_and_the_same_plan_whatever_the_guidance():
    other = plan(
        [Model("Qwen/Qwen-Image", False, {"transformer": 10**9})],
        Machine(Gpu("a", (8, 9), 24 * GB, 24 * GB), 64 * GB, 64 * GB),
    )
    assert other.for_guidance(True, 1024, 1024, 0) is other
