"""What a job's own LoRAs find of room on each card: on the card, or in host memory and there by turns."""

import dataclasses

import pytest
from PIL import Image

from qwen_worker.drawing import inference
from qwen_worker.drawing.queue import DrawingJob
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.lora.file import LoraFile, LoraLayer, LoraUse
from qwen_worker.lora.names import BLOCK_LAYERS, TensorNames
from qwen_worker.memory.placement import plan
from qwen_worker.pictures.inputs import Canvas

from ..conftest import as_text
from ..memory.test_placement import ADA, BOTH, GB, PLANS, card

WIDTH, MLP = 3072, 12288  # of the 20B transformer's 60 blocks


def lora(rank, modulation=False):
    """One of every matrix of the 20B transformer's blocks."""
    layers = {}
    for name in (name for name in BLOCK_LAYERS if modulation or "_mod." not in name):
        inputs = MLP if "net.2" in name else WIDTH
        outputs = 6 * WIDTH if "_mod." in name else MLP if "net.0" in name else WIDTH
        for block in range(60):
            layers[f"transformer_blocks.{block}.{name}"] = LoraLayer(TensorNames(), rank, inputs, outputs, 1.0)
    return LoraFile(f"rank {rank}", layers, None)


def job_plan(planned, edits, *files, size=1024, steps=50):
    """The plan of a job that brings these LoRAs, with one input picture if it edits."""
    source = as_text(Image.new("RGB", (64, 64)))
    fields = {"task": "edit", "image": source} if edits else {"task": "generate", "width": size, "height": size}
    request = parse(fields | {"prompt": "a fox", "num_inference_steps": steps}, "one")
    uses = tuple(LoraUse(file, 1.0, f"loras[{number}]") for number, file in enumerate(files))
    canvas = Canvas([Image.new("RGB", (64, 64))] * edits, None, (size, size))
    return inference.plan_for(DrawingJob(Job("one", request), canvas, uses), planned, None)


@pytest.mark.parametrize(("gpu", "models", "ram", "expected"), PLANS)
def test_a_lora_takes_no_job_s_room_on_any_card(gpu, models, ram, expected):
    """Rank 64 on every matrix, 0.85 GB: more than many plans leave of the card beside a picture."""
    planned = plan(models, card(*gpu, ram=ram))
    for edits in {int(model.edits) for model in models}:
        if expected[0] == "fp8" and edits:
            continue  # a pass that is not compiled may lack room even without a LoRA
        with_lora = job_plan(planned, edits, lora(64))
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
