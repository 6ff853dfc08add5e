"""What a job's own LoRAs find of room on each card: on the card, or in host memory and there by turns."""

import dataclasses
from types import SimpleNamespace

import pytest
from PIL import Image

from qwen_worker.drawing.job_plan import plan_for
from qwen_worker.drawing.queue import DrawingJob
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.lora.architectures import BLOCK_LAYERS
from qwen_worker.lora.file import LoraFile, LoraUse
from qwen_worker.memory.footprint import LORA_BYTES
from qwen_worker.memory.placement import plan
from qwen_worker.model_settings import Precision, Speedup
from qwen_worker.pictures.canvas import Canvas
from qwen_worker.speed.compile_ahead import CompiledLoras
from qwen_worker.speed.speedups import COMPILED_LORAS, Speed

from ..conftest import as_text
from ..memory.test_placement import ADA, AMPERE_PRO, BOTH, GB, PLANS, card
from ..support.lora_files import lora_layer

WIDTH, MLP = 3072, 12288  # of the 20B transformer's 60 blocks


def lora(rank, modulation=False):
    """One of every matrix of the 20B transformer's blocks."""
    layers = {}
    for name in (name for name in BLOCK_LAYERS if modulation or "_mod." not in name):
        inputs = MLP if "net.2" in name else WIDTH
        outputs = 6 * WIDTH if "_mod." in name else MLP if "net.0" in name else WIDTH
        for block in range(60):
            layers[f"transformer_blocks.{block}.{name}"] = lora_layer(rank, inputs, outputs)
    return LoraFile(f"rank {rank}", layers, None)


def job_plan(planned, edits, *files, size=1024, steps=50, loaded=None, from_settings=False):
    """The plan of a job that brings these LoRAs, with one input picture if it edits."""
    source = as_text(Image.new("RGB", (64, 64)))
    fields = {"task": "edit", "image": source} if edits else {"task": "generate", "width": size, "height": size}
    request = parse(fields | {"prompt": "a fox", "num_inference_steps": steps}, "one")
    uses = tuple(LoraUse(file, 1.0, f"loras[{n}]", from_settings=from_settings) for n, file in enumerate(files))
    canvas = Canvas([Image.new("RGB", (64, 64))] * edits, None, (size, size))
    return plan_for(DrawingJob(Job("one", request), canvas, uses), planned, loaded)


@pytest.mark.parametrize(("gpu", "models", "ram", "expected"), PLANS)
def test_a_lora_takes_no_job_s_room_on_any_card(gpu, models, ram, expected):
    """Rank 64 on every matrix, 0.85 GB: more than many plans leave of the card beside a picture."""
    planned = plan(models, card(*gpu, ram=ram))
    for edits in {int(model.edits) for model in models}:
        with_lora = job_plan(planned, edits, lora(64))
        assert with_lora.compiled is (expected[0] in ("fp8", "int8"))
        plain = planned.needs_tiles(1024, 1024, edits)
        if ram > 31:  # such a host holds the LoRA
            assert with_lora.fits(1024, 1024, edits) and with_lora.needs_tiles(1024, 1024, edits) == plain


def test_loras_are_streamed_where_the_card_lacks_their_room_and_the_host_has_it():
    tight, roomy = plan(BOTH, card(47.7, ADA, ram=128)), plan(BOTH, card(80, ram=64))
    streamed, whole = job_plan(tight, 0, lora(64)), job_plan(roomy, 0, lora(64))
    assert streamed.streamed_loras and not whole.streamed_loras
    block_bytes = lora(64).parameters * 2 // 60
    assert streamed.lora_bytes == lora(64).parameters_at_once * 2 == block_bytes
    assert whole.lora_bytes == lora(64).parameters * 2 == pytest.approx(0.85 * GB, rel=0.01)
    with_rows = lora(16, modulation=True)  # a table has the modulation's rows for all blocks
    assert with_rows.parameters_at_once == lora(16).parameters // 60 + 120 * 16 * 7 * WIDTH
    poor = dataclasses.replace(tight, spare_bytes=GB)  # for two models
    assert not job_plan(poor, 0, lora(64)).streamed_loras
    larger = plan(BOTH, card(47.7, ADA, ram=128), own_loras=1)
    assert job_plan(larger, 0, lora(16)).lora_bytes == larger.lora_bytes + lora(16).parameters * 2


@pytest.mark.parametrize("capability", [ADA, AMPERE_PRO])
def test_what_is_slow_without_compiling_is_compiled_with_a_job_s_loras(capability):
    planned = plan(BOTH, card(24, capability, ram=64))
    assert planned.precision in (Precision.FP8, Precision.INT8)

    def way(*files, planned=planned, **more):
        found = job_plan(planned, 0, *files, **more)
        assert found.compiled is (found.lora_rank > 0)
        return found.lora_rank, found.lora_bytes

    assert way(lora(16)) == (16, lora(16).parameters * 2) and way(lora(17)) == (32, lora(32).parameters * 2)
    assert way(lora(16), lora(40)) == (64, lora(64).parameters * 2)
    assert way(lora(16), steps=8) == (16, lora(16).parameters * 2)
    assert way(lora(129))[0] == way(lora(65), lora(64))[0] == 144
    assert way(lora(16, modulation=True))[0] == 16  # whose rows are the table's
    without_table = dataclasses.replace(planned, table=False)
    assert way(lora(16, modulation=True), planned=without_table)[0] == 0 and way(lora(16), planned=without_table)[0]
    assert way(lora(16), planned=dataclasses.replace(planned, compiled=False))[0] == 0
    bf16 = dataclasses.replace(planned, precision=Precision.BF16)
    assert way(lora(16), planned=bf16)[0] == 0
    # Once the model is loaded, what has been compiled decides, and not the precision.
    for found in (planned, bf16):
        for loras in CompiledLoras:
            rank = 16 if loras is CompiledLoras.JOBS else 0
            assert way(lora(10), planned=found, loaded=loaded_with(loras))[0] == rank
    failed = loaded_with(CompiledLoras.JOBS, {COMPILED_LORAS: "no such instruction"})
    assert way(lora(10), loaded=failed)[0] == 0
    assert way(lora(10), loaded=loaded_with(CompiledLoras.JOBS, own=[lora(16)]))[0] == 32
    # Matrices that the host does not hold are made on the card, beside the padded ones.
    poor = dataclasses.replace(planned, spare_bytes=0)
    assert way(lora(17), planned=poor) == (32, (lora(17).parameters + lora(32).parameters) * 2)


def loaded_with(loras, failures=None, own=()):
    """As much of a loaded pipeline as plans ask for. `own`: the LoRAs of every picture."""
    uses = [LoraUse(file, 1.0, "QWEN_LORAS", from_settings=True) for file in own]
    speed = Speed({Speedup.COMPILE: "on"}, dict(failures or {}), loras=loras)
    return SimpleNamespace(speed=speed, adapters=SimpleNamespace(always_applied=uses))


def test_the_endpoint_s_own_loras_are_padded_in_the_room_that_the_plan_has_for_them():
    planned = plan(BOTH, card(80, ram=64), own_loras=2)
    assert planned.precision is Precision.BF16 and planned.lora_bytes == 2 * LORA_BYTES

    def way(own, *files, **failures):
        loaded = loaded_with(CompiledLoras.JOBS, failures, own)
        return job_plan(planned, 0, *files, loaded=loaded, from_settings=True)

    assert way([]).lora_rank == 0
    every = way([lora(40)])  # of every picture
    assert (every.lora_rank, every.compiled) == (48, True)
    assert every.lora_bytes == planned.lora_bytes
    assert way([lora(16)], lora(64)).lora_rank == 80  # and the preset's
    assert way([lora(128)], lora(64)).lora_bytes == lora(192).parameters * 2 > planned.lora_bytes
    failed = way([lora(16)], **{COMPILED_LORAS: "no such instruction"})
    assert (failed.lora_rank, failed.compiled) == (0, False)
    modulation = way([lora(16, modulation=True)])
    assert planned.table and modulation.lora_rank == 16


def test_a_job_is_drawn_compiled_where_it_has_no_room_otherwise():
    planned = plan(BOTH, card(47.7, ADA, ram=62))
    compiled = job_plan(planned, 1, lora(16))
    assert compiled.compiled and compiled.streamed_loras and not compiled.needs_tiles(1024, 1024, 1)
    assert not dataclasses.replace(compiled, compiled=False).fits(1024, 1024, 1)


def test_own_loras_that_have_no_room_once_they_are_padded_are_drawn_without_compiling():
    """One layer of a high rank pads them all to it."""
    layers = lora(16).layers | {"transformer_blocks.0.attn.to_q": lora_layer(512, WIDTH, WIDTH)}
    uneven = LoraFile("uneven", layers, None)
    planned = plan(BOTH, card(80, ram=64), own_loras=1)
    assert uneven.parameters * 2 < planned.lora_bytes
    loaded, needed = loaded_with(CompiledLoras.JOBS, own=[uneven]), planned.peak_bytes(1024, 1024)
    for limit, rank in ((needed, 0), (needed + lora(512).parameters * 2, 512)):
        way = job_plan(dataclasses.replace(planned, limit_bytes=limit), 0, loaded=loaded, from_settings=True)
        assert (way.lora_rank, way.compiled) == (rank, rank > 0) and not way.needs_tiles(1024, 1024)
