"""Presets: what each sets, where it is served, how it is drawn, and that it leaves the next job as it was."""

import asyncio
import dataclasses
import functools
import os

import pytest
import torch

from qwen_worker.checkpoints.checkpoint import released
from qwen_worker.checkpoints.files import is_missing
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import FEW_STEP_SCHEDULER, Presets
from qwen_worker.preset_settings import Preset
from qwen_worker.settings import Misconfigured, Settings, environment_warnings, read_settings

from ..conftest import as_text, only_proved, place_by, run, warnings_of
from ..support.lora_files import write
from ..support.patience import until

SMALL = {"prompt": "a red circle on the left", "width": 256, "height": 256, "seed": 5}
LIGHTNING = "lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-8steps-V1.1.safetensors"


@pytest.fixture(scope="module")
def few_step(tiny):
    return str(tiny / "few-step/tiny-qwen-image-4steps.safetensors")


def presets(**settings):
    return Presets(Settings(**settings), released, is_missing)


def parsed(fields, **settings):
    return parse({"prompt": "a"} | fields, "job", presets(**settings))


# What a preset sets


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("quality", 50, 4.0)),
        ({"preset": "quality"}, ("quality", 50, 4.0)),
        ({"preset": "balanced"}, ("balanced", 30, 4.0)),
        ({"preset": "fast"}, ("fast", 8, 1.0)),
        ({"preset": "fast", "num_inference_steps": 6}, ("fast", 6, 1.0)),
        ({"preset": "fast", "cfg": 2}, ("fast", 8, 2.0)),
        ({"preset": "balanced", "steps": 50, "guidance_scale": 4}, ("balanced", 50, 4.0)),
        ({"preset": None}, ("quality", 50, 4.0)),
    ],
)
def test_a_preset_sets_what_the_job_does_not(fields, expected):
    request = parsed(fields, QWEN_IMAGE_FAST_LORA=LIGHTNING)
    assert (request.preset, request.num_inference_steps, request.guidance_scale) == expected


def test_the_endpoint_s_preset_is_for_jobs_that_do_not_say_and_models_that_serve_it():
    endpoint = {"QWEN_PRESET": "fast", "QWEN_IMAGE_FAST_LORA": LIGHTNING}
    assert parsed({}, **endpoint).preset == "fast"
    assert parsed({"preset": "quality"}, **endpoint).num_inference_steps == 50
    edit = parsed({"image": "aGk="}, **endpoint)
    assert (edit.preset, edit.num_inference_steps) == ("quality", 50)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        (LIGHTNING, None, 8),
        ("a/b/Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors", None, 4),
        ("/volume/loras/lightning-4-step", None, 4),
        ("a/b/renamed.safetensors", 8, 8),
        (LIGHTNING, 4, 8),
        ("/volume/loras/style-v2-step-1500", 8, 8),
        ("/volume/loras/lora_v1.1_steps", 8, 8),
        ("/volume/loras/epoch=10-step=500", 8, 8),
        ("https://a.b/lightning-8steps.safetensors?key=a/b", None, 8),
    ],
)
def test_the_steps_of_a_few_step_lora_are_in_its_name_or_else_set(name, steps, expected):
    own = Presets(Settings(QWEN_EDIT_FAST_LORA=name, QWEN_FAST_STEPS=steps))
    assert own.steps(Preset.FAST, "edit") == expected


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"QWEN_IMAGE_FAST_LORA": "a/b/lora-2004steps.safetensors"},
            "QWEN_IMAGE_FAST_LORA: must say its number of steps",
        ),
        ({"QWEN_PRESET": "fast"}, "QWEN_PRESET: fast needs QWEN_IMAGE_FAST_LORA or QWEN_EDIT_FAST_LORA"),
        ({"QWEN_PRESET": "turbo"}, "QWEN_PRESET: Input should be 'quality', 'balanced' or 'fast'"),
        ({"QWEN_FAST_STEPS": "0"}, "QWEN_FAST_STEPS: Input should be greater than or equal to 1"),
        ({"QWEN_LORAS": "style"}, "QWEN_LORAS: must be JSON such as"),
        ({"QWEN_LORAS": '[{"scale": 1}]'}, "QWEN_LORAS.0.path: Field required"),
        ({"QWEN_LORAS": '[{"path": "a/b", "skale": 1}]'}, "QWEN_LORAS.0.skale: Extra inputs are not permitted, not 1"),
        ({"QWEN_LORAS": '[{"path": "https://me:secret@a.b/c"'}, "QWEN_LORAS: must be JSON such as"),
        ({"QWEN_LORAS": '{"path": "https://me:secret@a.b/c"}'}, "QWEN_LORAS: Input should be a valid"),
        ({"QWEN_IMAGE_FAST_LORA": "https://me:secret@a.b/c"}, "QWEN_IMAGE_FAST_LORA: must say its"),
    ],
)
def test_settings_that_cannot_be_used_end_the_start_by_their_name(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        read_settings()
    assert words in str(caught.value) and "secret" not in str(caught.value)


def test_a_misspelled_setting_is_told():
    assert environment_warnings(dict.fromkeys(["QWEN_SPEEDUP", "QWEN_PRESET", "QWEN_XYZXYZXYZ", "HOME"], "")) == [
        "QWEN_SPEEDUP is no setting of this worker; QWEN_SPEEDUPS is",
        "QWEN_XYZXYZXYZ is no setting of this worker",
    ]


def test_a_speed_up_that_is_gone_is_told_and_the_others_stay(monkeypatch):
    monkeypatch.setenv("QWEN_SPEEDUPS", "rotary, qkv,channels_last")
    assert read_settings().QWEN_SPEEDUPS == {"rotary"}
    assert environment_warnings(os.environ) == [
        f"QWEN_SPEEDUPS names {name}, which this worker does not have any more" for name in ("channels_last", "qkv")
    ]


# Which are served


def test_a_preset_without_its_lora_is_refused_by_name_before_anything(cold_worker, tmp_path):
    worker = cold_worker(QWEN_IMAGE_FAST_LORA=str(tmp_path / "gone-4steps.safetensors"))
    assert run(worker, SMALL | {"preset": "fast"})["error"] == (
        "invalid_input: preset 'fast' is not served for generate here: the file that QWEN_IMAGE_FAST_LORA names is not "
        "there"
    )
    error = run(worker, SMALL | {"preset": "fast", "image": "aGk="})["error"]
    assert error.endswith("is not served for edit here: QWEN_EDIT_FAST_LORA names no few-step LoRA")
    assert not worker.catalogue.checkpoints


def test_health_lists_what_is_served(cold_worker, few_step):
    worker = cold_worker(QWEN_IMAGE_FAST_LORA=few_step, QWEN_PRESET="fast")
    assert run(worker, {})["output"]["presets"] == {
        "generate": {"served": ["quality", "balanced", "fast"], "default": "fast", "reasons": {}},
        "edit": {
            "served": ["quality", "balanced"],
            "default": "quality",
            "reasons": {"fast": "QWEN_EDIT_FAST_LORA names no few-step LoRA"},
        },
    }
    assert not worker.catalogue.checkpoints


def test_2_1_is_drawn_fast_in_the_steps_of_its_makers_whatever_the_file_is_called():
    newer = {"QWEN_IMAGE_MODEL": "Qwen/Qwen-Image-2.1", "QWEN_IMAGE_FAST_LORA": "lightx2v/Qwen-Image-2.1-Lightning"}
    request = parsed({"preset": "fast"}, **newer)
    assert (request.num_inference_steps, request.guidance_scale) == (4, 1.0)
    viggle = "Viggle/Qwen-Image-2.1-viggle-turbo/Qwen-Image-2.1-viggle-turbo-v0.3-6step-lora-r256.safetensors"
    assert parsed({"preset": "fast"}, **newer | {"QWEN_IMAGE_FAST_LORA": viggle}).num_inference_steps == 6


def test_a_2_1_checkpoint_in_a_folder_has_no_step_cache(cold_worker, tmp_path):
    from ..support.random_21 import build

    build(tmp_path / "newer")
    worker = cold_worker(QWEN_IMAGE_MODEL=str(tmp_path / "newer"), QWEN_IMAGE_FAST_LORA=LIGHTNING)
    facts = run(worker, SMALL | {"preset": "balanced", "num_inference_steps": 8})["output"]["metadata"]
    assert (facts["preset"], facts["step_cache"], facts["steps"]) == ("balanced", False, 8)
    assert run(worker, {})["output"]["presets"]["generate"]["served"] == ["quality", "balanced", "fast"]


def test_a_preset_s_lora_that_is_none_is_the_endpoint_s_fault(cold_worker, tmp_path):
    file = tmp_path / "broken-4steps.safetensors"
    file.write_bytes(b"\x80\x04 a pickle")
    worker = cold_worker(QWEN_IMAGE_FAST_LORA=str(file))
    assert run(worker, SMALL | {"preset": "fast"})["error"].startswith(
        "model_unavailable: QWEN_IMAGE_FAST_LORA must be a safetensors file"
    )
    assert run(worker, SMALL | {"num_inference_steps": 1})["output"]["success"]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((torch.ones(1, 7), torch.ones(7, 1)), "the preset's LoRA is not made for tiny-qwen-image/generate; 1 of 1 "),
        ((torch.full((1, 128), torch.nan), torch.ones(128, 1)), "the preset's LoRA holds infinite numbers, or none"),
    ],
)
def test_a_preset_s_lora_that_cannot_be_applied_is_the_endpoint_s_fault(cold_worker, tmp_path, weights, words):
    file = write(tmp_path / "broken-4steps.safetensors", {"transformer_blocks.0.attn.to_q": weights})
    worker = cold_worker(QWEN_IMAGE_FAST_LORA=str(file))
    assert run(worker, SMALL | {"preset": "fast"})["error"].startswith(f"model_unavailable: {words}")
    assert run(worker, SMALL | {"num_inference_steps": 1})["output"]["success"]


# How they are drawn


def test_the_reply_says_by_which_preset_and_a_lora_s_schedule_is_the_one_it_was_made_for(
    cold_worker, few_step, monkeypatch
):
    worker = cold_worker(QWEN_IMAGE_FAST_LORA=few_step)
    facts = run(worker, SMALL | {"preset": "fast"})["output"]["metadata"]
    assert (facts["preset"], facts["steps"], facts["guidance_scale"]) == ("fast", 4, 1.0)
    pipe = next(iter(worker.pipelines.loaded.values())).pipe
    used, original = [], pipe.scheduler
    monkeypatch.setattr(type(original), "step", spying(type(original).step, used))
    run(worker, SMALL | {"preset": "fast"})
    config = dict(used[0].config)
    assert {name: config[name] for name in FEW_STEP_SCHEDULER} == FEW_STEP_SCHEDULER
    assert used[0].sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])  # those of Lightning's schedule
    assert pipe.scheduler is original and original.config["shift_terminal"] == 0.02


def test_a_few_step_lora_of_the_job_s_own_draws_as_the_preset_does(cold_worker, few_step, tiny):
    """On the schedule that it was made for, in its steps; with other steps on that schedule too, and told."""
    worker = cold_worker(QWEN_IMAGE_FAST_LORA=few_step, QWEN_LORA_ROOTS=str(tiny / "few-step"))
    own = {"loras": [{"path": "tiny-qwen-image-4steps.safetensors"}]}
    for steps in ({}, {"num_inference_steps": 2}):
        preset = run(worker, SMALL | steps | {"preset": "fast"})["output"]
        output = run(worker, SMALL | steps | own)["output"]
        facts = output["metadata"]
        assert output["image"] == preset["image"] and facts["guidance_scale"] == 1 and facts["preset"] == "quality"
        assert facts["steps"] == preset["metadata"]["steps"] == steps.get("num_inference_steps", 4)
        assert len(warnings_of(facts)) == len(steps)
    balanced = run(worker, SMALL | own | {"preset": "balanced", "negative_prompt": "yellow"})["output"]
    assert balanced["metadata"]["step_cache"] is False and balanced["metadata"]["steps"] == 4
    assert warnings_of(balanced["metadata"]) == ["negative_prompt has no effect at guidance_scale 1"]


def spying(step, used):
    def spied(self, *args, **kwargs):
        used.append(self)
        return step(self, *args, **kwargs)

    return spied


def test_a_folder_that_holds_one_lora_will_do(cold_worker, few_step, tiny):
    one = cold_worker(QWEN_IMAGE_FAST_LORA=few_step)
    folder = cold_worker(QWEN_IMAGE_FAST_LORA=str(tiny / "few-step"), QWEN_FAST_STEPS=4)
    pictures = [run(worker, SMALL | {"preset": "fast"})["output"]["image"] for worker in (one, folder)]
    assert pictures[0] == pictures[1]


@pytest.fixture(scope="module")
def fresh_worker(tiny, few_step):
    """fresh_worker(precision, table): one that has drawn nothing yet."""
    import runpod_handler

    def made(precision, table):
        models = {"QWEN_IMAGE_MODEL": str(tiny / "generate"), "QWEN_EDIT_MODEL": str(tiny / "edit")}
        settings = Settings(
            **models, QWEN_MODEL_ROOTS=(), QWEN_PRECISION=precision, QWEN_IMAGE_FAST_LORA=few_step,
            QWEN_LORA_ROOTS=str(tiny / "few-step"), QWEN_PRELOAD="",
        )  # fmt: skip
        worker = runpod_handler.Worker(settings)
        plan = dataclasses.replace(worker.pipelines.place("generate"), table=table)
        place_by(worker, plan)
        return worker

    return made


@pytest.fixture(scope="module")
def workers(fresh_worker):
    """workers(precision, table): the same one every time."""
    return functools.cache(fresh_worker)


LORA = {"loras": [{"path": "tiny-qwen-image-4steps.safetensors", "scale": 0.8}]}
QUICK = SMALL | {"num_inference_steps": 10}


def stopped(worker, fields):
    """A job that is stopped in the middle of its drawing."""
    transformer, passes = next(iter(worker.pipelines.loaded.values())).pipe.transformer, []
    hook = transformer.img_in.register_forward_pre_hook(lambda *_: passes.append(1))

    async def both():
        job = asyncio.create_task(worker.answer({"id": "stopped", "input": fields | {"num_inference_steps": 100}}))
        await until(lambda: len(passes) > 10)
        assert not job.done()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    try:
        asyncio.run(both())
    finally:
        hook.remove()


def failed(worker, fields, monkeypatch):
    """A job whose transformer fails in its eighth pass."""
    transformer = next(iter(worker.pipelines.loaded.values())).pipe.transformer
    count = iter(range(7))

    def fails(*_):
        if next(count, None) is None:
            raise RuntimeError("planted")

    hook = transformer.img_in.register_forward_pre_hook(fails)
    assert run(worker, fields)["error"].startswith("internal")
    hook.remove()


@pytest.mark.parametrize(
    ("precision", "table"), [("fp32", False), ("bf16", True), pytest.param("bf16", False, marks=only_proved)]
)
def test_a_quality_job_is_bit_equal_to_a_fresh_worker_s_after_any_other(
    workers, fresh_worker, monkeypatch, precision, table
):
    fresh = run(fresh_worker(precision, table), QUICK)["output"]["image"]
    worker = workers(precision, table)
    run(worker, QUICK | {"preset": "fast"} | LORA)
    assert run(worker, QUICK)["output"]["image"] == fresh
    assert (next(iter(worker.pipelines.loaded.values())).table is not None) == table

    def after(what, last=False):
        if last or precision == "fp32":  # bfloat16 is slow on many processors: it is looked at once, after all of these
            assert run(worker, QUICK)["output"]["image"] == fresh, what

    other = [
        run(worker, QUICK | more)["output"]["image"] for more in ({"preset": "fast"}, LORA, {"preset": "balanced"})
    ]
    assert len({fresh, *other}) == 4
    after("one of each")
    run(worker, SMALL | {"preset": "fast"} | LORA)
    after("fast with another LoRA")
    for fields in ({"preset": "balanced"}, {"preset": "fast"}, LORA):
        stopped(worker, SMALL | fields)
        after(f"{fields}, stopped")
        failed(worker, QUICK | fields, monkeypatch)
        after(f"{fields}, failed")
    again = [
        run(worker, QUICK | more)["output"]["image"] for more in ({"preset": "fast"}, LORA, {"preset": "balanced"})
    ]
    assert again == other
    after("all", last=True)


def test_nothing_is_left_on_the_modules(workers):
    worker = workers("fp32", False)
    run(worker, QUICK)
    transformer = next(iter(worker.pipelines.loaded.values())).pipe.transformer

    def attributes():
        modules = transformer.named_modules()  # diffusers leaves an attribute of its cache's, which is None then
        return {name: sorted(key for key, value in vars(one).items() if value is not None) for name, one in modules}

    clean = attributes()
    for fields in ({"preset": "balanced"}, {"preset": "fast"}, LORA, {"preset": "balanced"} | LORA):
        run(worker, QUICK | fields)
    run(worker, QUICK)
    assert attributes() == clean


def test_transformers_that_take_turns_do_so_around_lora_jobs(cold_worker, few_step, tiny, scene):
    lora = {"QWEN_IMAGE_FAST_LORA": few_step, "QWEN_EDIT_FAST_LORA": few_step}
    worker, resident = (cold_worker(**lora) for _ in range(2))
    plan = dataclasses.replace(worker.pipelines.place("generate"), swapped=True)
    place_by(worker, plan)
    edit = {"image": as_text(scene), "prompt": "make it green", "draw_size": "asked"}
    for fields in ({}, {"preset": "fast"}, edit, edit | {"preset": "fast"}, {"preset": "balanced"}, {}):
        fields = SMALL | {"num_inference_steps": 2} | fields
        assert run(worker, fields)["output"]["image"] == run(resident, fields)["output"]["image"], fields
    assert set(worker.pipelines.builder.swap.modules) == set(worker.pipelines.loaded)


# The step cache


def test_the_step_cache_computes_every_second_step_after_the_first_six_and_the_last(workers):
    worker = workers("fp32", False)
    run(worker, QUICK)
    pipe = next(iter(worker.pipelines.loaded.values())).pipe
    steps, computed = [], []
    hooks = [
        pipe.transformer.img_in.register_forward_pre_hook(lambda *_: steps.append(1)),
        pipe.transformer.transformer_blocks[1].attn.to_q.register_forward_pre_hook(
            lambda *_: computed.append(len(steps))
        ),
    ]
    for count in (30, 29, 3):
        steps.clear()
        computed.clear()
        facts = run(worker, SMALL | {"preset": "balanced", "num_inference_steps": count})["output"]["metadata"]
        assert facts["steps"] == count and facts["step_cache"] is True and len(steps) == 2 * count
        first = 6 if count % 2 == 0 else 5
        # guidance makes two passes of a step, and both are computed or none
        expected = [n for n in range(1, count + 1) if n <= first or (count - n) % 2 == 0]
        assert sorted({-(-pass_ // 2) for pass_ in computed}) == expected and len(computed) == 2 * len(expected)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 1}, {"seed": 8}])
def test_a_cached_picture_is_close_to_one_of_as_many_steps(workers, fields):
    from benchmarks.quality import psnr

    from ..conftest import picture_of

    worker = workers("fp32", False)
    thirty = SMALL | {"num_inference_steps": 30} | fields
    whole, cached = (
        picture_of(run(worker, thirty | {"preset": preset})["output"]["image"]) for preset in ("quality", "balanced")
    )
    assert 30 < psnr(whole, cached) < 100


def test_a_cached_picture_does_not_depend_on_its_company(cold_worker):
    import numpy as np

    from ..conftest import picture_of

    fields = SMALL | {"preset": "balanced", "num_inference_steps": 12}
    alone, shared = cold_worker(), cold_worker(QWEN_BATCH=4)
    several = run(shared, fields | {"num_images": 3})["output"]
    assert several["metadata"]["batch"] == 3
    for number, image in enumerate(several["images"]):
        one = run(alone, fields | {"seed": 5 + number})["output"]["image"]
        pictures = [np.asarray(picture_of(text), np.int16) for text in (image, one)]
        assert abs(pictures[0] - pictures[1]).max() <= 1


def test_cached_edits_and_partial_ones_are_drawn(cold_worker, scene):
    from PIL import Image

    worker = cold_worker()
    mask = Image.new("L", scene.size)
    mask.paste(255, (128, 128, 384, 384))
    edit = {"prompt": "make it green", "image": as_text(scene), "draw_size": "asked"}
    fields = SMALL | edit | {"preset": "balanced"}
    for more in ({"num_inference_steps": 8}, {"strength": 0.5, "num_inference_steps": 18, "mask": as_text(mask)}):
        facts = run(worker, fields | more)["output"]["metadata"]
        assert facts["step_cache"] is True and facts["backend"] == "qwen-image"


@pytest.mark.parametrize(("steps", "strength", "drawn"), [(30, 0.5, 15), (30, 0.3, 9), (7, 1.0, 7), (4, 0.01, 1)])
def test_the_cache_knows_the_steps_that_are_drawn(cold_worker, monkeypatch, steps, strength, drawn):
    """And so computes the last one."""
    from qwen_worker.drawing import configured
    from qwen_worker.jobs.parsing import parse
    from qwen_worker.speed import step_cache

    worker, told = cold_worker(), []
    run(worker, SMALL | {"num_inference_steps": 1})
    loaded = next(iter(worker.pipelines.loaded.values()))
    predict_steps = step_cache.predict_steps
    monkeypatch.setattr(
        step_cache, "predict_steps", lambda model, cached: told.append(cached) or predict_steps(model, cached)
    )
    fields = {"prompt": "a", "image_url": "https://a.b/c", "strength": strength, "num_inference_steps": steps}
    with configured.configured(loaded, parse(fields | {"preset": "balanced"}, "one"), (), loaded.plan):
        assert told == [(drawn, 0)]


# What they are worth


def test_fast_and_balanced_are_within_five_points_of_quality(sample):
    """A picture of 160 is 0.6 of a point; one of 8 is 12.5, and of those none may be read wrongly but one."""
    from types import SimpleNamespace

    from benchmarks import quality

    pictures, points = sample(8, 160), sample(13, 5)
    options = SimpleNamespace(prompts=pictures, size=256, presets=list(quality.PRESETS))
    rows = {row["preset"]: row for row in quality.presets(options)}
    drawn_by = {preset: (row["steps"], row["guidance"], row["of"]) for preset, row in rows.items()}
    expected = {"quality": (50, 4.0), "balanced": (30, 4.0), "fast": (4, 1.0)}
    assert drawn_by == {preset: (*by, pictures) for preset, by in expected.items()}
    for preset in ("balanced", "fast"):
        assert rows[preset]["all"] >= rows["quality"]["all"] - points, rows
    assert rows["balanced"]["PSNR"] > 40 and rows["quality"]["all"] >= 70
