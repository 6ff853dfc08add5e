"""The endpoint's models, ControlNet and transformers from elsewhere as they are together: who has what of whom."""

import pytest

from qwen_worker.checkpoints import checkpoint as checkpoints
from qwen_worker.checkpoints import composed
from qwen_worker.checkpoints.architecture import CLASS_2_1, weight_shapes
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.checkpoints.transformer_source import Place, TransformerSource
from qwen_worker.errors import InvalidInput, JobError
from qwen_worker.jobs.deadline import Paces, kind_of
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.loading.loaded import LoadedPipeline
from qwen_worker.loading.planner import Planner
from qwen_worker.lora.file import LoraFile, LoraUse
from qwen_worker.lora.made_for import require_made_for
from qwen_worker.memory import placement
from qwen_worker.settings import Settings

from ..memory.test_placement import card
from ..support.lora_files import lora_layer

LAYERED = "Qwen/Qwen-Image-Layered"


@pytest.mark.parametrize("other", [{}, {"QWEN_EDIT_MODEL": "Qwen/Qwen-Image"}])
@pytest.mark.parametrize("transformer", [None, "ORG/NAME/file.safetensors"])
def test_a_layered_model_keeps_its_own_transformer_whatever_stands_for_the_others(other, transformer):
    settings = Settings(QWEN_LAYERED_MODEL=LAYERED, QWEN_IMAGE_TRANSFORMER=transformer, **other)
    catalogue = Catalogue(settings)
    assert catalogue.transformer_for("generate") == transformer
    assert catalogue.transformer_for("layers") is None
    assert catalogue.locate("layers").name == LAYERED


@pytest.mark.parametrize(("base", "is_20b"), [("Qwen/Qwen-Image", True), ("Qwen/Qwen-Image-2.1", False)])
def test_another_transformer_leaves_a_checkpoint_of_the_architecture_that_it_is(base, is_20b, tmp_path):
    checkpoint = checkpoints.released(base)
    shapes = weight_shapes({} if is_20b else {"_class_name": CLASS_2_1})
    stored = composed.StoredTransformer("bf16", composed.count(shapes), {}, composed.parts_of(shapes))
    source = TransformerSource(Place("ORG/file.safetensors"), "file-1", 1, tmp_path, None)
    swapped = composed.with_transformer(checkpoint, stored, source)
    assert swapped.parameters == checkpoint.parameters and swapped.parts == checkpoint.parts
    assert as_model(swapped, []).is_20b is is_20b


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("Qwen-Image-Lightning-4steps-fp8.safetensors", (4, 1.0)),
        ("Qwen-Image-Q4_K_M.gguf", (50, 4.0)),
    ],
)
def test_a_file_whose_name_says_its_steps_is_drawn_in_them_whatever_its_base(file, values, tmp_path):
    source = TransformerSource(Place(f"ORG/NAME/{file}"), "file-1", 1, tmp_path, None)
    stored = composed.StoredTransformer("bf16", 1, {})
    swapped = composed.with_transformer(checkpoints.released("Qwen/Qwen-Image-2512"), stored, source)
    presets = Presets(Settings(QWEN_TASKS="generate"), located=lambda role: swapped)
    request = parse({"prompt": "a fox"}, "one", presets)
    assert (request.num_inference_steps, request.guidance_scale) == values
    said = "the name of its transformer, which says 4 steps"
    assert (presets.explain(request).get("source", "").endswith(said)) is (values[0] == 4)
    balanced = parse({"prompt": "a fox", "preset": "balanced"}, "one", presets)
    assert balanced.num_inference_steps == (4 if values[0] == 4 else 30)


@pytest.mark.parametrize(
    ("model", "later"), [("Qwen/Qwen-Image", LAYERED), ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit")]
)
def test_a_text_encoder_without_what_a_later_model_needs_is_not_counted_for_it(model, later):
    settings = Settings(QWEN_LAYERED_MODEL=LAYERED)
    planner = Planner(settings, Catalogue(settings), lambda: card(141, ram=300))
    first, second = checkpoints.released(model), checkpoints.released(later)
    alone, together = planner.plan({model: first}, ()), planner.plan({model: first, later: second}, ())
    for plan, brings_its_own in ((alone, True), (together, False)):
        beside = planner.plan({later: second}, [loaded_by(plan, first)])
        assert (beside.text_encoder_bytes(beside.models[0]) > 0) is brings_its_own
        assert beside.vae_bytes(beside.models[0]) == together.vae_bytes(together.models[1])


def loaded_by(plan, checkpoint):
    nothing = dict.fromkeys(("pipe", "table", "adapters", "speed", "prepared"))
    return LoadedPipeline(
        checkpoint.name, checkpoint, plan, shared=(), load_seconds=0, stage_seconds={}, loaded_without={}, **nothing
    )


@pytest.mark.parametrize(
    ("settings", "has_room_kept"),
    [({}, True), ({"QWEN_TASKS": "edit"}, False), ({"QWEN_IMAGE_MODEL": "Qwen/Qwen-Image-2.1"}, False)],
)
def test_room_for_a_controlnet_is_kept_where_a_job_could_be_followed_by_one(settings, has_room_kept, monkeypatch):
    asked = Settings(QWEN_CONTROLNET="InstantX/Qwen-Image-ControlNet-Union", **settings)
    kept = []
    monkeypatch.setattr(placement, "plan", lambda *arguments: kept.append(arguments[-1]))
    Planner(asked, Catalogue(asked), lambda: card(141)).place("edit", ())
    assert kept == [has_room_kept]


def test_a_lora_of_another_architecture_is_refused_for_layers_before_their_model_is_there():
    use = LoraUse(
        LoraFile("one", {"transformer_blocks.0.img_mlp.gate_layer": lora_layer(4, 4096, 12288)}, None), 1.0, "L"
    )
    with pytest.raises(InvalidInput, match="L is not made for Qwen/Qwen-Image-Layered: it is one for Qwen-Image-2.1"):
        require_made_for(checkpoints.released(LAYERED), [use])


def test_the_steps_of_a_controlled_job_say_nothing_of_how_long_a_plain_one_takes():
    settings = Settings(QWEN_CONTROLNET="org/net")
    plain, controlled = (
        parse({"prompt": "a fox", **more}, "one", Presets(settings)) for more in ({}, {"control_image": "aGVsbG8="})
    )
    paces = Paces()
    paces.record(kind_of(controlled, (1024, 1024), 0), 10.0, 1, 50, 510.0)
    paces.require_time(kind_of(plain, (1024, 1024), 0), 1, 50, 100.0)
    with pytest.raises(JobError, match="deadline_exceeded"):
        paces.require_time(kind_of(controlled, (1024, 1024), 0), 1, 50, 100.0)
