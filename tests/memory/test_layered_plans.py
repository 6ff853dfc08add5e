"""Where a layered model goes, alone and beside the two others: what it shares with them, and what it keeps."""

from dataclasses import replace

import pytest

from qwen_worker.checkpoints import checkpoint
from qwen_worker.checkpoints.controlnet import ControlNet
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.drawing.job_plan import plan_for
from qwen_worker.drawing.layers import planned_size, require_layers_fit
from qwen_worker.drawing.queue import DrawingJob
from qwen_worker.errors import JobError
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.tasks import Layers
from qwen_worker.loading.controlnets import LARGEST_LAYERS, ControlNets
from qwen_worker.memory import placement
from qwen_worker.memory.footprint import CONTEXT_BYTES, GB, GIB, UNALLOCATED_BYTES, WORKING
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.pictures.canvas import Canvas

NAMES = ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Layered")
HEAD_BYTES = 2 * 544_997_376


def planned(gb, *names, capability=(9, 0)):
    found = [checkpoint.released(name) for name in names]
    models = [as_model(one, found[:number]) for number, one in enumerate(found)]
    card = Gpu("card", capability, round(gb * GB), round(gb * GB))
    return placement.plan(models, Machine(card, round(300 * GB), round(280 * GB)))


def request(**fields):
    return Layers(prompt="", images=("https://example.com/1.png",), **fields)


def drawing(asked):
    return DrawingJob(Job("one", asked), Canvas([], None, (1024, 1024)))


def test_three_models_share_a_text_encoder_that_can_write():
    two, three = planned(180, *NAMES[:2]), planned(180, *NAMES)
    transformer = 2 * checkpoint.released(NAMES[2]).parameters["transformer"]
    vae = three.vae_bytes(three.models[2])
    assert three.weight_bytes - two.weight_bytes == transformer + vae + HEAD_BYTES
    assert not two.language_head and three.language_head and vae > 0


@pytest.mark.parametrize(("gb", "swapped", "streamed"), [(24, True, True), (48, True, True), (80, True, False)])
def test_on_smaller_cards_the_three_transformers_take_turns(gb, swapped, streamed):
    plan = planned(gb, *NAMES, capability=(8, 9))
    assert plan.swapped is swapped and (plan.text_encoder == "streamed") is streamed and plan.table


def test_layers_are_planned_by_how_many_there_are():
    plan = planned(24, NAMES[2], capability=(8, 9))
    few, many = (planned_size(request(num_layers=count, resolution=1024), (1024, 1024)) for count in (2, 10))
    assert plan.peak_bytes(*many) - plan.peak_bytes(*few) > 4 * GB
    assert plan.needs_tiles(*many) and not plan.needs_tiles(*few)


def test_too_many_layers_are_refused_with_what_would_fit():
    plan = planned(24, NAMES[2], capability=(8, 9))
    full = planned(24, NAMES[2], capability=(8, 9)).weight_bytes + 2_500_000_000
    with pytest.raises(JobError, match="10 layers of 1024x1024 need .* ask for resolution 640 or fewer num_layers"):
        require_layers_fit(replace(plan, limit_bytes=full), "M", request(num_layers=10, resolution=1024), (1024, 1024))


def test_layers_are_planned_by_the_model_that_draws_them_and_not_by_another_one_beside_it():
    """2.1's VAE takes five times as much of a megapixel, and has a prefix cache besides."""
    plan = planned(141, "Qwen/Qwen-Image-2.1", NAMES[2])
    size = planned_size(request(num_layers=10, resolution=1024), (1024, 1024))
    layers = plan_for(drawing(request(num_layers=10, resolution=1024)), plan, None)
    assert not layers.needs_tiles(*size) and layers.prefix_cache
    decoding = round(WORKING.decode * 10 * GIB)  # 2.1 leaves an endpoint no savings
    assert layers.peak_bytes(*size) - layers.weight_bytes == CONTEXT_BYTES + UNALLOCATED_BYTES + decoding


def test_a_controlnet_stays_on_the_card_only_where_layers_have_room_beside_it():
    net = ControlNets("org/net", ())
    net.located = ControlNet("org/net", {"num_layers": 5}, 1_768_000_000)
    plan = planned(180, *NAMES)
    size = planned_size(request(num_layers=10, resolution=1024), (1024, 1024))
    assert size == LARGEST_LAYERS and net.is_kept_on_card(plan)
    tight = replace(plan, limit_bytes=plan.peak_bytes(*size))
    assert not net.planned(tight).needs_tiles(2048, 2048, 1) and not net.is_kept_on_card(tight)
