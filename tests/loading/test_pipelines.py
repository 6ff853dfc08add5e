"""Every pipeline class loads and draws; equal components are one in memory; diffusers takes what we send."""

import asyncio
import inspect
import json
import shutil

import pytest
import torch
from PIL import Image

from qwen_worker.checkpoints.classes import PIPELINE_CLASSES
from qwen_worker.drawing.pipeline_call import call_arguments
from qwen_worker.errors import LoadError
from qwen_worker.jobs.deadline import Kind
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.loading.pipelines import Pipelines
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.pictures.canvas import Canvas
from qwen_worker.settings import Settings

from ..conftest import as_text, only_proved, picture_of, place_by, run

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 1, "seed": 1}


@pytest.fixture
def edit_plus(tiny, tmp_path):
    """The tiny edit checkpoint as the class that takes several pictures: a change of name."""
    folder = shutil.copytree(tiny / "edit", tmp_path / "edit-plus")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "QwenImageEditPlusPipeline"}))
    return folder


@pytest.fixture(scope="session")
def random_21(tmp_path_factory):
    from ..support.random_21 import build

    folder = tmp_path_factory.mktemp("qwen-image-2.1")
    build(folder)
    return folder


NAMED = {"prompt": "a", "num_inference_steps": 1, "guidance_scale": 1}  # and a size by its name


def succeeded(worker, **fields):
    as_asked = {"draw_size": "asked"} if {"image", "images"} & set(fields) else {}
    body = run(worker, {**SMALL, "background": "opaque", **as_asked, **fields})
    assert "error" not in body, body["error"]
    facts = body["output"]["metadata"]
    assert facts["backend"] == "qwen-image"
    picture = picture_of(body["output"]["image"])
    assert (picture.size, picture.mode) == ((256, 256), "RGB")
    return facts


def parameters(worker):
    """Parameters in memory over all loaded pipelines, each tensor once."""
    found = {}
    for one in worker.pipelines.loaded.values():
        for component in one.pipe.components.values():
            if isinstance(component, torch.nn.Module):
                found |= {id(parameter): parameter.numel() for parameter in component.parameters()}
    return sum(found.values())


def test_generate_and_edit_of_one_family_share_all_but_the_transformer(warm_worker, scene):
    succeeded(warm_worker)
    succeeded(warm_worker, image=as_text(scene))
    generate, edit = (
        warm_worker.pipelines.loaded[name]
        for name in (warm_worker.settings.QWEN_IMAGE_MODEL, warm_worker.settings.QWEN_EDIT_MODEL)
    )
    sizes, parts = generate.checkpoint.parameters, generate.checkpoint.parts
    kept = sum(sizes.values()) - parts["lm_head"] - parts["temporal"]
    assert parameters(warm_worker) == kept + edit.checkpoint.parameters["transformer"]
    assert generate.plan.weight_bytes == 4 * parameters(warm_worker)
    assert generate.pipe.text_encoder is edit.pipe.text_encoder and generate.pipe.vae is edit.pipe.vae
    assert generate.pipe.transformer is not edit.pipe.transformer


def test_the_plan_is_what_was_loaded(warm_worker):
    succeeded(warm_worker)
    loaded = warm_worker.pipelines.loaded[warm_worker.settings.QWEN_IMAGE_MODEL]
    assert (loaded.plan.device, loaded.plan.dtype) == ("cpu", "float32")
    assert {parameter.dtype for parameter in loaded.pipe.transformer.parameters()} == {torch.float32}


def test_edit_plus_takes_several_pictures(cold_worker, edit_plus, scene):
    worker = cold_worker(QWEN_EDIT_MODEL=str(edit_plus))
    facts = succeeded(worker, images=[as_text(scene), as_text(scene.rotate(90))])
    assert facts["model"].endswith("/edit-plus")
    assert type(worker.pipelines.loaded[str(edit_plus)].pipe).__name__ == "QwenImageEditPlusPipeline"
    succeeded(worker, image=as_text(scene), strength=0.5, num_inference_steps=2)


@pytest.mark.parametrize(("folder", "count"), [("edit", 1), ("edit_plus", 2), ("random_21", 2)])
def test_a_picture_s_tokens_lie_in_rows_and_columns_for_the_text_encoder(
    cold_worker, tiny, scene, request, monkeypatch, folder, count
):
    """transformers' own positions for what the processor returned; in one long row they would be equal three times."""
    checkpoint = tiny / "edit" if folder == "edit" else request.getfixturevalue(folder)
    worker = cold_worker(QWEN_IMAGE_MODEL=str(checkpoint), QWEN_EDIT_MODEL=str(checkpoint))
    pipe = worker.pipelines.load("edit").pipe
    model, processor = pipe.text_encoder.model, type(pipe.processor)
    read, process, returned, positions = model.language_model.rotary_emb.forward, processor.__call__, [], []

    def recorded(self, *args, **kwargs):
        returned.append(process(self, *args, **kwargs))
        return returned[-1]

    def rotary(x, position_ids):
        positions.append(position_ids)
        return read(x, position_ids)

    monkeypatch.setattr(processor, "__call__", recorded)
    monkeypatch.setattr(model.language_model.rotary_emb, "forward", rotary)
    wide = scene.resize((384, 256))
    succeeded(
        worker,
        images=[as_text(wide), as_text(wide.rotate(90, expand=True))][:count],
        negative_prompt="a cat",
        guidance_scale=4,
    )
    fields = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    expected = [model.get_rope_index(**{name: batch[name] for name in fields})[0] for batch in returned]
    assert len(positions) == len(expected) == 2 and all(map(torch.equal, positions, expected))
    assert all((ids[1] != ids[2]).any() and (ids[0] != ids[1]).any() for ids in positions)


def test_the_edit_class_takes_one_picture(ask, scene):
    error = ask(**SMALL, images=[as_text(scene)] * 2)["error"]
    assert error == "invalid_input: images must hold at most 1 for this checkpoint, not 2"


def test_one_2_1_checkpoint_serves_both_tasks_loaded_once(cold_worker, random_21, scene):
    worker = cold_worker(QWEN_IMAGE_MODEL=str(random_21), QWEN_EDIT_MODEL=str(random_21))
    succeeded(worker)
    scene = scene.resize((256, 256))
    succeeded(worker, image=as_text(scene))
    succeeded(worker, image=as_text(scene), mask_image=as_text(scene.convert("L").point(lambda v: 255 * (v > 50))))
    succeeded(worker, image=as_text(scene), strength=0.5, num_inference_steps=2)
    assert len(worker.pipelines.loaded) == 1
    assert "multiple of 32 for this checkpoint" in run(worker, SMALL | {"width": 272})["error"]
    metadata = run(worker, {**NAMED, "size": "272x256"})["output"]["metadata"]
    assert metadata["dimensions"] == "288x256" and "brought to 288x256" in metadata["warnings"][0]


@only_proved
def test_2_1_draws_the_widest_size_of_its_makers(cold_worker, random_21):
    worker = cold_worker(QWEN_IMAGE_MODEL=str(random_21), QWEN_EDIT_MODEL=str(random_21))
    drawn = run(worker, {**NAMED, "aspect_ratio": "16:9", "output_format": "jpeg"})["output"]
    assert picture_of(drawn["image"]).size == (2752, 1536) and "warnings" not in drawn["metadata"]


def test_a_schedule_that_the_checkpoint_brings_is_drawn_in_its_steps_or_in_the_job_s(cold_worker, random_21, tmp_path):
    folder = shutil.copytree(random_21, tmp_path / "turbo")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sample_sigmas": [1.0, 0.7, 0.4]}))
    worker = cold_worker(QWEN_IMAGE_MODEL=str(folder), QWEN_FALLBACK="forbid")
    own = {"prompt": "a", "width": 256, "height": 256, "seed": 5}

    def answered(fields, side=256):
        fields = {**own, "width": side, "height": side, **fields}
        return asyncio.run(worker.answer({"id": "a", "input": fields, "policy": {"executionTimeout": 4_500_000}}))

    def kind(side, guided=False):
        return Kind("generate", (side, side), 0, guided, "quality")

    first = answered({})["metadata"]
    assert (first["steps"], first["guidance_scale"]) == (3, 1.0) and set(worker.paces.step_seconds) == {kind(256)}
    pipe, used = worker.pipelines.get("generate").pipe, []
    pipe.transformer.img_in.register_forward_pre_hook(lambda *_: used.append(pipe.scheduler.sigmas.tolist()))
    answered({})
    answered({"num_inference_steps": 6})
    assert [len(one) for one in used] == [4] * 3 + [7] * 6  # with the last 0
    assert used[0][0] == used[-1][0] == 1.0 and len(set(map(tuple, used))) == 2
    stretched = answered({"num_inference_steps": 6})["metadata"]
    assert (
        stretched["steps"] == 6
        and "made for 3 steps at guidance_scale 1; num_inference_steps is 6" in (stretched["warnings"][0])
    )
    assert "warnings" not in first and first["defaults"] == {
        "num_inference_steps": 3, "guidance_scale": 1.0,
        "source": f"{folder.parent.name}/turbo: sample_sigmas in its model_index.json",
    }  # fmt: skip
    worker.paces.record(kind(288), 1000.0, 1, 3, 3000.0)
    assert answered({}, 288)["metadata"]["steps"] == 3
    worker.paces.record(kind(320), 2000.0, 1, 3, 6000.0)
    error = answered({}, 320)["error"]
    assert "3 steps take about 6000.0 seconds" in error and "num_inference_steps of at most 2 would make it" in error


def test_a_checkpoint_is_asked_only_for_what_its_class_does(cold_worker, tiny):
    worker = cold_worker(QWEN_IMAGE_MODEL=str(tiny / "edit"))
    reason = run(worker, SMALL)["output"]["metadata"]["fallback_reason"]
    assert reason.endswith("/edit is a QwenImageEditPipeline, which does not serve generate")


@pytest.fixture
def endpoint(settings):
    """endpoint(card in GB, RAM in GB): the pipelines of an endpoint of the two 20B models, nothing of them here."""
    GB = 1_000_000_000

    def on(card, ram=200, **overrides):
        gpu = Gpu("NVIDIA Test", (9, 0), card * GB, card * GB)
        models = {"QWEN_IMAGE_MODEL": "Qwen/Qwen-Image", "QWEN_EDIT_MODEL": "Qwen/Qwen-Image-Edit"}
        chosen = settings(**models | overrides)
        machine = Machine(gpu, ram * GB, ram * GB)
        return Pipelines(chosen, Catalogue(chosen), machine=lambda: machine)

    return on


def test_both_models_of_an_endpoint_are_placed_together(endpoint):
    """The first must not take the room of the second: on 80 GB generate alone would leave out the table."""
    pipelines = endpoint(80)
    plan = pipelines.place("generate")
    assert (
        plan.table
        and not plan.swapped
        and [model.name for model in plan.models]
        == [
            "Qwen/Qwen-Image",
            "Qwen/Qwen-Image-Edit",
        ]
    )
    assert plan.models[1].shared == ("text_encoder", "vae")
    assert pipelines.place("edit") is plan is pipelines.place("background_replacement")


def test_a_model_that_only_fits_alone_is_placed_alone(endpoint, monkeypatch):
    pipelines = endpoint(48, ram=20, QWEN_PRECISION="bf16", QWEN_SAVINGS="table,trim")
    plan = pipelines.place("generate")
    assert [model.name for model in plan.models] == ["Qwen/Qwen-Image"] and not plan.vision
    with pytest.raises(LoadError, match=r"21.0 GB of RAM would be pinned and (15.0|7.5) GB can be"):
        endpoint(40, ram=20, QWEN_PRECISION="bf16").place("edit")


def test_an_endpoint_whose_other_model_cannot_be_found_places_the_one(endpoint):
    pipelines = endpoint(80, QWEN_EDIT_MODEL="/nowhere")
    assert len(pipelines.place("generate").models) == 1
    with pytest.raises(LoadError, match="nowhere is not a folder"):
        pipelines.place("edit")


def test_a_model_is_placed_as_its_blocks_will_be_drawn(endpoint, monkeypatch):
    monkeypatch.setenv("CC", "gcc")
    assert endpoint(80).place("generate").compiled and endpoint(80, QWEN_SPEEDUPS="compile").place("edit").compiled
    assert not endpoint(80, QWEN_SPEEDUPS="rotary,guidance").place("generate").compiled
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "/nowhere")
    assert not endpoint(80).place("generate").compiled


@pytest.mark.parametrize("class_name", list(PIPELINE_CLASSES))
def test_diffusers_accepts_every_argument_we_send(class_name):
    import diffusers

    pipeline_class = getattr(diffusers, class_name)
    accepted = set(inspect.signature(pipeline_class.__call__).parameters)

    class Bare:
        __call__, config = pipeline_class.__call__, {}

    sent = set()
    layers = {"task": "layers", "prompt": "a red circle", "image": "aGk="}
    for fields, sources in (
        (SMALL, []),
        ({**SMALL, "image": "aGk="}, ["picture"]),
        (layers, [Image.new("RGB", (64, 64))]),
    ):
        request = parse(fields, "job", Presets(Settings(QWEN_LAYERED_MODEL="Qwen/Qwen-Image-Layered")))
        if request.task in PIPELINE_CLASSES[class_name].tasks:
            sent |= set(call_arguments(Bare(), Job("job", request), Canvas(sources, None, (256, 256))))
    sent |= {"generator", "callback_on_step_end", "latents", "sigmas"}
    assert sent <= accepted
    assert {"true_cfg_scale", "negative_prompt"} <= sent and "guidance_scale" not in sent


@pytest.mark.parametrize("class_name", [name for name, one in PIPELINE_CLASSES.items() if "edit" in one.tasks])
def test_diffusers_has_what_strength_and_masks_stand_on(class_name):
    import diffusers

    pipeline_class = getattr(diffusers, class_name)
    assert list(inspect.signature(pipeline_class._pack_latents).parameters) == [
        "latents", "batch_size", "num_channels_latents", "height", "width"
    ]  # fmt: skip
    assert {"image", "generator"} <= set(inspect.signature(pipeline_class._encode_vae_image).parameters)
    assert "latents" in pipeline_class._callback_tensor_inputs


def test_models_that_take_turns_draw_what_resident_ones_draw(cold_worker, ask, scene):
    import dataclasses

    worker = cold_worker()
    plan = dataclasses.replace(worker.pipelines.place("generate"), swapped=True)
    place_by(worker, plan)
    fields = SMALL | {"num_inference_steps": 2}
    jobs = [fields, fields | {"image": as_text(scene), "draw_size": "asked"}, fields]
    swaps = []
    for job in jobs:
        output = run(worker, job)["output"]
        assert output["image"] == ask(**job)["output"]["image"]
        swaps.append("swap" in output["metadata"]["timings"])
    assert swaps == [False, False, True]  # the edit model was loaded into its turn
    assert set(worker.pipelines.builder.swap.modules) == set(worker.pipelines.loaded)


def test_a_job_by_the_modulation_table_is_bit_equal_to_one_without(cold_worker):
    import dataclasses

    fields = SMALL | {"num_inference_steps": 3}
    images = []
    for table in (False, True):
        worker = cold_worker(QWEN_PRECISION="bf16", QWEN_EDIT_MODEL="/none")
        plan = dataclasses.replace(worker.pipelines.place("generate"), table=table)
        place_by(worker, plan)
        images.append(run(worker, fields)["output"]["image"])
        assert (next(iter(worker.pipelines.loaded.values())).table is not None) == table
    assert images[0] == images[1]
