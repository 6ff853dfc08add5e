"""What Qwen-Image-2.1 takes of each card, by arithmetic: pictures, ten references and the widest size. docs/models.md
has the same table.
"""

import re
import weakref
from dataclasses import replace

import pytest

from qwen_worker.checkpoints.classes import PARTS_2_1, SIZE_2_1
from qwen_worker.errors import JobError
from qwen_worker.jobs.request import MAX_REFERENCE_SIDE, MIN_REFERENCE_SIDE
from qwen_worker.memory.footprint import GIB, WORKING_2_1, Model
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.memory.placement import plan

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
    24: ("streamed", "23.0", "20.8 T", "23.0", "23.0 A", "896x896", "896x896", "23.0 TA", "1184x672"),
    32: ("streamed", "23.0", "20.8 T", "23.0", "23.4", "25.4 A", "25.4 A", "23.0 TA", "1760x960"),
    40: ("streamed", "23.0", "20.8 T", "23.0", "23.4", "25.4 A", "25.4 A", "32.2 T", "2144x1184"),
    48: ("resident", "39.3", "37.1 T", "39.3", "39.7", "41.7 A", "41.7 A", "39.3 TA", "1664x928"),
    80: ("resident", "39.3", "59.8", "39.3", "39.7", "63.7", "41.7 A", "59.8", "69.3 A"),
    141: ("resident", "39.3", "59.8", "39.3", "39.7", "63.7", "85.8", "59.8", "69.3 A"),
}


def planned(gigabytes):
    total = gigabytes * GB
    return plan([MODEL], Machine(Gpu("NVIDIA Test", (8, 9), total, total), 64 * GB, 64 * GB))


def outcome(found, width, height, references, is_guided):
    one = found.for_guidance(is_guided, width, height, references)
    size = width, height, references
    if not one.fits(*size):
        with pytest.raises(JobError, match=f"{width}x{height} needs") as caught:
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
    assert bounds == [MIN_REFERENCE_SIDE**2, MAX_REFERENCE_SIDE**2]


def test_a_job_that_caps_its_references_is_planned_with_the_cap():
    whole = replace(planned(141), passes=2)
    capped = replace(whole, reference_pixels=0.25)
    saved = whole.peak_bytes(2048, 2048, 10) - capped.peak_bytes(2048, 2048, 10)
    assert saved / GIB > 10 * (4 - 0.25) * 2 * 2  # of the prefix cache alone
    assert capped.peak_bytes(512, 512, 10) == whole.peak_bytes(512, 512, 10)


def test_other_models_have_no_prefix_cache_and_the_same_plan_whatever_the_guidance():
    other = plan(
        [Model("Qwen/Qwen-Image", False, {"transformer": 10**9})],
        Machine(Gpu("a", (8, 9), 24 * GB, 24 * GB), 64 * GB, 64 * GB),
    )
    assert other.for_guidance(True, 1024, 1024, 0) is other


class Peak:
    """Within, the most bytes of tensors that were alive at a time, on any device, those of views once."""

    def __init__(self):
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_iter

        peak = self
        self.now = self.most = 0
        self.alive = set()

        class Counting(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                for tensor in tree_iter(result):
                    if isinstance(tensor, torch.Tensor):
                        peak.add(tensor.untyped_storage())
                return result

        self.mode = Counting()

    def add(self, storage):
        if storage._cdata not in self.alive:
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())

    def drop(self, key, size):
        self.alive.remove(key)
        self.now -= size


@pytest.mark.parametrize("references", [0, 1, 3, 10])
def test_a_block_of_full_size_has_at_work_what_is_planned(monkeypatch, references):
    """Its own operators on tensors without memory; attention makes its result alone, as its kernels for a card do."""
    import torch
    from diffusers.models.transformers.transformer_qwenimage21 import (
        QwenImage21KVLayerCache,
        QwenImage21TransformerBlock,
    )

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda query, **_: torch.empty_like(query))
    text, prefix = 64, 64 + 4096 * references
    tokens = prefix + 4096
    with torch.device("meta"):
        block = QwenImage21TransformerBlock(4096, 32, 128).to(torch.bfloat16)
        peak, cache = Peak(), QwenImage21KVLayerCache()
        with torch.no_grad(), peak.mode:
            hidden, modulation = (
                torch.empty(*size, dtype=torch.bfloat16) for size in ((1, tokens, 4096), (2, 4 * 4096))
            )
            rotary, mask = torch.empty(tokens, 64, dtype=torch.complex64), torch.empty(tokens, dtype=torch.bool)
            segments = [(0, text, True)] + [(text, prefix, False)] * bool(references)
            block(hidden, modulation, rotary, None, mask, cache, "extract", slice(0, prefix), segments, None)
    kept = WORKING_2_1.prefix / 32 * prefix / 4096  # of one block's prefix cache
    rate = WORKING_2_1.denoise_edit if references else WORKING_2_1.denoise
    at_work = peak.most / GIB - kept
    assert 0.7 * rate * (1 + references) < at_work < rate * (1 + references)
