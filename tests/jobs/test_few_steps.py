"""A few-step LoRA in a job's `loras` brings its steps and guidance, and what does not fit it is told."""

import pytest

from qwen_worker.jobs.few_steps import few_step_loras, takes_few_steps, warnings_of
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.settings import Settings

LIGHTNING = "lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-8steps-V1.1.safetensors"
TURBO = "https://example.com/Wuli-Qwen-Image-2512-Turbo-LoRA-4steps-V2.0-bf16.safetensors?sig=2steps"
STYLE = "a/b/style-1500steps.safetensors"


def parsed(*paths, **fields):
    loras = [path if isinstance(path, dict) else {"path": path} for path in paths]
    settings = Settings(QWEN_IMAGE_FAST_LORA=LIGHTNING, QWEN_PRESET=fields.pop("endpoint", "quality"))
    return parse({"prompt": "a", "loras": loras} | fields, "job", Presets(settings))


@pytest.mark.parametrize(
    ("paths", "fields", "expected"),
    [
        ([LIGHTNING], {}, ("quality", 8, 1.0)),
        ([STYLE, TURBO], {}, ("quality", 4, 1.0)),
        ([LIGHTNING], {"num_inference_steps": 6, "guidance_scale": 2}, ("quality", 6, 2.0)),
        ([LIGHTNING], {"endpoint": "fast"}, ("quality", 8, 1.0)),  # and not with the endpoint's few-step LoRA too
        ([LIGHTNING], {"preset": "balanced"}, ("balanced", 8, 1.0)),
        ([TURBO], {"preset": "fast"}, ("fast", 8, 1.0)),
        ([STYLE], {}, ("quality", 50, 4.0)),
        ([STYLE], {"endpoint": "fast"}, ("fast", 8, 1.0)),
        ([{"path": LIGHTNING, "scale": 0}], {}, ("quality", 50, 4.0)),
        ([{"path": LIGHTNING, "scale": -1}], {}, ("quality", 50, 4.0)),
    ],
)
def test_steps_and_guidance_are_those_of_the_few_step_lora_where_the_job_says_none(paths, fields, expected):
    request = parsed(*paths, **fields)
    assert (request.preset, request.num_inference_steps, request.guidance_scale) == expected
    assert takes_few_steps(request) is (expected[2] < 4)


def test_what_is_no_url_has_no_steps():
    assert few_step_loras(parsed("http://[/8steps")) == {}


def test_a_job_that_says_nothing_else_has_no_warnings():
    assert few_step_loras(parsed(STYLE, LIGHTNING)) == {1: 8}
    for request in (parsed(), parsed(STYLE), parsed(LIGHTNING), parsed(STYLE, preset="fast"), parsed(LIGHTNING, STYLE)):
        assert warnings_of(request) == []


@pytest.mark.parametrize(
    ("paths", "fields", "warning"),
    [
        ([LIGHTNING], {"num_inference_steps": 20}, "loras[0] is a few-step LoRA by its name, made for 8 steps; "
                                                   "num_inference_steps is 20"),
        ([STYLE, TURBO], {"guidance_scale": 4}, "loras[1] is a few-step LoRA by its name, made for "
                                                   "guidance_scale 1; it is 4"),
        ([LIGHTNING, LIGHTNING], {}, "loras[1] is a few-step LoRA by its name, and is added to another one: "
                                    "one is enough"),
        ([LIGHTNING], {"preset": "fast"}, "loras[0] is a few-step LoRA by its name, and is added to that of preset "
                                          "'fast': one is enough"),
        ([STYLE], {"num_inference_steps": 8, "guidance_scale": 1}, "num_inference_steps 8 at guidance_scale 1 is for "
                                                                   "few-step LoRAs, and no name in loras says"),
        ([], {"guidance_scale": 1, "negative_prompt": "red"}, "negative_prompt has no effect at guidance_scale 1"),
        ([LIGHTNING], {"negative_prompt": "red"}, "negative_prompt has no effect at guidance_scale 1"),
        ([], {"preset": "fast", "negative_prompt": "red"}, "negative_prompt has no effect at guidance_scale 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_or_has_no_effect_is_told(paths, fields, warning):
    (found,) = warnings_of(parsed(*paths, **fields))
    assert found.startswith(warning)


def test_a_negative_prompt_that_says_nothing_or_acts_is_not_told():
    for fields in ({"guidance_scale": 1, "negative_prompt": " "}, {"negative_prompt": "red"}, {"guidance_scale": 1}):
        assert warnings_of(parsed(**fields)) == []
