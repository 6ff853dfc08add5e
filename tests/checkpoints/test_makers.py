"""The table of defaults and licences: held to the installed pipelines, whole for released checkpoints, explained."""

import inspect
import json
import shutil

import pytest

from qwen_worker.checkpoints import checkpoint, makers
from qwen_worker.checkpoints.classes import PIPELINE_CLASSES, RELEASED
from qwen_worker.errors import LoadError
from qwen_worker.jobs.defaults import stretched
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import USUAL, Presets
from qwen_worker.settings import Settings

from ..conftest import ROOT, run, warnings_of

TURBO = "Qwen/Qwen-Image-2.1-Turbo"
# What the makers recommend: steps, guidance, size of a picture from a prompt, whether a negative prompt.
RECOMMENDED = {
    "Qwen/Qwen-Image": (50, 4.0, (1024, 1024), False),
    "Qwen/Qwen-Image-2512": (50, 4.0, (1024, 1024), True),
    "Qwen/Qwen-Image-Edit": (50, 4.0, (1024, 1024), False),
    "Qwen/Qwen-Image-Edit-2509": (40, 4.0, (1024, 1024), False),
    "Qwen/Qwen-Image-Edit-2511": (40, 4.0, (1024, 1024), False),
    "Qwen/Qwen-Image-Layered": (50, 4.0, (1024, 1024), False),
    "Qwen/Qwen-Image-2.1": (40, 1.0, (2048, 2048), False),
    TURBO: (8, 1.0, (1024, 1024), False),
}
SMALL = {"prompt": "a red circle on the left", "width": 256, "height": 256, "seed": 5}


def parsed(model, fields=None, located=None, **settings):
    """The job's request, its warnings and the words of why, on an endpoint of one model for both tasks."""
    both = {"QWEN_IMAGE_MODEL": model, "QWEN_EDIT_MODEL": model, "QWEN_LAYERED_MODEL": model}
    presets, warnings = Presets(Settings(**both | settings), checkpoint.released, located=lambda role: located), []
    request = parse({"prompt": "a"} | (fields or {}), "job", presets, warnings.append)
    return request, warnings, presets.explain(request)


def picture_of(found):
    """The fields of a job that the checkpoint serves, beside its prompt."""
    tasks = found.pipeline_class.tasks
    return {} if "generate" in tasks else {"image": "aGk=", "task": "layers" if "layers" in tasks else "edit"}


def values_of(request):
    return request.num_inference_steps, request.guidance_scale


@pytest.mark.parametrize("class_name", PIPELINE_CLASSES)
def test_a_class_has_the_defaults_of_the_installed_pipeline(class_name):
    import diffusers

    pipeline = getattr(diffusers, class_name)
    parameters = inspect.signature(pipeline.__call__).parameters
    defaults = makers.defaults_of_class(class_name)
    assert parameters["num_inference_steps"].default == defaults.steps
    assert parameters["true_cfg_scale"].default == defaults.guidance
    if "output_resolution" in parameters:
        assert defaults.size == (parameters["output_resolution"].default,) * 2
    assert ("sample_sigmas" in inspect.signature(pipeline.__init__).parameters) == bool(
        makers.read_schedule(class_name, {"sample_sigmas": [1.0, 0.5]})
    )


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_checkpoint_has_its_makers_defaults_and_licence(name):
    steps, guidance, size, has_negative = RECOMMENDED[name]
    found = checkpoint.released(name)
    edits = "generate" not in found.pipeline_class.tasks
    request, warnings, _ = parsed(name, picture_of(found))
    assert values_of(request) == (steps, guidance) and (edits or (request.width, request.height) == size)
    assert bool(request.negative_prompt) is has_negative and not warnings and request.preset == "quality"
    newer = found.class_name == "QwenImage21Pipeline"
    assert found.report()["licence"] == ("Qwen Research License" if newer else "Apache-2.0")
    assert found.report()["sizes"] == ("2K" if newer else "1K") and found.defaults.source
    assert found.report()["most_images"] == found.pipeline_class.max_images


@pytest.mark.parametrize("name", RELEASED)
def test_a_job_s_own_fields_win(name):
    own = {"num_inference_steps": 11, "guidance_scale": 3, "negative_prompt": "red", "width": 512, "height": 768}
    found = checkpoint.released(name)
    if "layers" in found.pipeline_class.tasks:  # which have the size of their picture
        del own["width"], own["height"]
    request, _, why = parsed(name, own | picture_of(found))
    assert {field: getattr(request, field) for field in own} == own and why == {}


def test_a_job_without_fields_on_2_1_turbo_runs_8_steps_without_guidance_and_says_why():
    request, warnings, why = parsed(TURBO)
    assert values_of(request) == (8, 1.0) and not warnings
    assert why == {
        "num_inference_steps": 8, "guidance_scale": 1.0,
        "source": f"{TURBO}: its makers, who distilled it for 8 steps without guidance",
    }  # fmt: skip


def test_health_says_why_and_names_the_licence_before_anything_is_located(cold_worker):
    worker = cold_worker(QWEN_IMAGE_MODEL=TURBO)
    known = run(worker, {})["output"]["checkpoints"]["generate"]
    assert known["licence"] == "Qwen Research License" and known["model"] == TURBO
    assert known["defaults"] == {
        "num_inference_steps": 8, "guidance_scale": 1.0, "size": "1024x1024", "negative_prompt": None,
        "source": "its makers, who distilled it for 8 steps without guidance",
    }  # fmt: skip
    assert run(worker, {})["output"]["presets"]["generate"]["served"] == ["quality", "balanced", "fast"]
    assert not worker.catalogue.checkpoints


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_a_distilled_checkpoint_draws_every_preset_in_its_own_way_and_says_so(preset):
    request, warnings, _ = parsed(TURBO, {"preset": preset})
    assert (request.preset, *values_of(request)) == ("quality", 8, 1.0)
    words = f"{TURBO} is distilled, made for 8 steps at guidance_scale 1"
    assert warnings == [f"preset '{preset}' draws as 'quality' does: {words}"]
    request, warnings, _ = parsed(TURBO, {"acceleration": "high", "steps": 30})
    assert values_of(request) == (8, 1.0) and "steps 30 is left out" in warnings[0]


def test_other_steps_and_guidance_than_a_distilled_checkpoint_s_are_told():
    request, warnings, _ = parsed(TURBO, {"steps": 20, "cfg": 4})
    assert values_of(request) == (20, 4.0) and [one.rpartition("; ")[2] for one in warnings] == [
        "num_inference_steps is 20", "guidance_scale is 4",
    ]  # fmt: skip


def test_balanced_takes_three_of_five_steps_of_its_checkpoint():
    assert values_of(parsed("Qwen/Qwen-Image-2.1", {"preset": "balanced"})[0]) == (24, 1.0)
    assert values_of(parsed("Qwen/Qwen-Image", {"preset": "balanced"})[0]) == (30, 4.0)


def test_a_negative_prompt_of_the_makers_is_left_out_without_guidance_or_where_the_job_sends_one():
    for fields in ({"guidance_scale": 1}, {"negative_prompt": ""}, {"loras": [{"path": "a/b/x-8steps.safetensors"}]}):
        request, warnings, why = parsed("Qwen/Qwen-Image-2512", fields)
        assert not request.negative_prompt and not warnings and why == {}, fields
    assert parsed("qwen/qwen-image-2512")[2]["negative_prompt"] == makers.NEGATIVE_2512


@pytest.mark.parametrize(("fields", "size"), [
    ({}, (2048, 2048)), ({"width": 512}, (512, 1024)), ({"size": "512x768"}, None), ({"aspect_ratio": "16:9"}, None),
])  # fmt: skip
def test_an_own_size_is_for_jobs_that_name_none(fields, size):
    request, _, why = parsed("Qwen/Qwen-Image-2.1", fields)
    assert size is None or (request.width, request.height) == size
    assert ("width" in why) == (size == (2048, 2048)) and (size or (request.width, request.height) != (2048, 2048))


def test_what_is_not_known_has_the_usual_values_until_it_is_located():
    assert parsed("Org/Name")[2] == {} and values_of(parsed("Org/Name")[0]) == (USUAL.steps, USUAL.guidance)
    found = checkpoint.Checkpoint("Org/Name", "QwenImage21Pipeline", {}, schedule=(1.0, 0.9, 0.5))
    request, _, why = parsed("Org/Name", located=found)
    assert values_of(request) == (3, 1.0) and why["source"] == "Org/Name: sample_sigmas in its model_index.json"


def test_a_folder_is_completed_anew_once_it_is_located_and_stale_warnings_go(cold_worker, tiny, tmp_path):
    """A re-trained checkpoint whose name says its steps, as pruned ones on the hub do."""
    folder = shutil.copytree(tiny / "generate", tmp_path / "Qwen-Image-13B-4steps")
    worker = cold_worker(QWEN_IMAGE_MODEL=str(folder), QWEN_FALLBACK="forbid")
    facts = [run(worker, SMALL | {"negative_prompt": "red"})["output"]["metadata"] for _ in range(2)]
    for one in facts:  # the first was parsed before the folder was looked at
        assert (one["steps"], one["guidance_scale"], one["preset"]) == (4, 1.0, "quality")
        assert one["defaults"]["source"].endswith("its name, which says 4 steps")
        assert warnings_of(one) == ["negative_prompt has no effect at guidance_scale 1"]
    own = run(worker, SMALL | {"steps": 3, "cfg": 2, "preset": "balanced"})["output"]["metadata"]
    assert (own["steps"], own["guidance_scale"]) == (3, 2.0) and "defaults" not in own


def test_the_usual_values_are_not_told(cold_worker):
    facts = run(cold_worker(), SMALL | {"num_inference_steps": 1})["output"]["metadata"]
    assert facts["guidance_scale"] == 4.0 and "defaults" not in facts


@pytest.mark.parametrize("sigmas", [[], "x", [0.5, 0.7], [1.5, 0.5], [1.0, 0.0], [1.0, None], [float("nan")], [True]])
def test_a_schedule_that_is_none_is_refused_by_its_rule(sigmas):
    with pytest.raises(LoadError, match="sample_sigmas is no list of falling numbers from 1 to above 0"):
        makers.read_schedule("QwenImage21Pipeline", json.loads(json.dumps({"sample_sigmas": sigmas})))


def test_the_page_of_models_has_the_table():
    page = (ROOT / "docs/models.md").read_text()
    rows = {}
    for line in page.partition("| checkpoint | steps |")[2].split("\n\n")[0].splitlines()[2:]:
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        first, *others = names.split(", ")
        rows[first] = cells
        rows |= {f"{first.rpartition('-')[0]}{other}": cells for other in others}
    assert set(rows) == {name.partition("/")[2] for name in makers.MAKERS}
    for name, (steps, guidance, size, negative, pictures) in (
        (name, rows[name.partition("/")[2]]) for name in RELEASED
    ):
        found, defaults = checkpoint.released(name), checkpoint.released(name).defaults
        assert (int(steps), float(guidance.partition(",")[0])) == (defaults.steps, defaults.guidance), name
        assert size == ("{}x{}".format(*defaults.size) if "generate" in found.pipeline_class.tasks else ""), name
        assert (negative == "none") == (defaults.negative_prompt is None), name
        assert int(pictures or 0) == found.pipeline_class.max_images, name


def test_a_stretched_schedule_keeps_its_course():
    own = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)
    assert stretched(own, 8) == list(own) and stretched(own, 4) == list(own[::2]) and stretched(own, 1) == [1.0]
    for steps in range(1, 101):
        sigmas = [*stretched(own, steps), 0.0]
        assert len(sigmas) == steps + 1 and all(one > other for one, other in zip(sigmas, sigmas[1:], strict=False))
