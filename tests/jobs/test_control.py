"""What a job may say of its control pictures, and where it is refused: without a ControlNet, a picture, or sense."""

import pytest

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.few_steps import warnings_of
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.jobs.reply import DrawingResult, drawing_facts
from qwen_worker.settings import Settings

PICTURE = "aGVsbG8="
BOTH = [PICTURE, PICTURE]


@pytest.fixture
def read(settings):
    """read(**fields): the request of a job on an endpoint that has a ControlNet."""
    presets = Presets(settings(QWEN_CONTROLNET="Org/Net"))
    return lambda **fields: parse({"prompt": "a", **fields}, "job", presets)


def controls(request):
    return [tuple(control) for control in request.controls]


def test_one_control_picture_is_followed_wholly_unless_the_job_says_how_much(read):
    assert controls(read()) == []
    request = read(control_image=PICTURE)
    assert controls(request) == [("control_image", None, 1.0, "none")]
    assert (request.control_start, request.control_end) == (0.0, 1.0)
    request = read(control_image=PICTURE, control_type="depth", control_scale="0.5", control_start=0.1, control_end=0.8)
    assert controls(request) == [("control_image", "depth", 0.5, "none")]
    assert (request.control_start, request.control_end) == (0.1, 0.8)


def test_two_control_pictures_share_a_value_or_have_their_own(read):
    request = read(control_image=BOTH, control_type=["canny", "depth"], control_scale=0.7)
    assert controls(request) == [
        ("control_image[0]", "canny", 0.7, "none"),
        ("control_image[1]", "depth", 0.7, "none"),
    ]
    request = read(control_image=BOTH, control_scale=[0, 2], control_preprocess=["canny", "none"])
    assert controls(request) == [("control_image[0]", "canny", 0, "canny"), ("control_image[1]", None, 2, "none")]


@pytest.mark.parametrize(
    ("fields", "steps", "followed"),
    [
        ({}, 4, 4),
        ({"control_end": 0.2}, 4, 0),
        ({"control_end": 0.25}, 4, 1),
        ({"control_start": 0.95}, 3, 0),
        ({"control_start": 0.3, "control_end": 0.6}, 10, 3),
        ({"control_start": 0.3, "control_end": 0.45, "control_image": BOTH}, 4, 0),
    ],
)
def test_a_range_that_has_no_step_is_warned_of_as_diffusers_chooses_the_steps(read, fields, steps, followed):
    request = read(**{"control_image": PICTURE, "num_inference_steps": steps} | fields)
    start, end = request.control_start, request.control_end
    by_diffusers = [step for step in range(steps) if not (step / steps < start or (step + 1) / steps > end)]
    assert list(request.controlled_steps(steps)) == by_diffusers and len(by_diffusers) == followed
    told = f"between control_start {start:g} and control_end {end:g} lies none of {steps} steps: control_image has no"
    assert [warning.startswith(told) for warning in warnings_of(request)] == ([] if followed else [True])
    facts = drawing_facts(request, (8, 8), (8, 8), DrawingResult([], steps, controlnet="a/b"), "model", Settings())
    assert facts["control"]["steps"] == followed


def test_the_names_of_other_apis_are_understood(read):
    request = read(
        control_image_url="https://example.org/edges.png",
        controlnet_conditioning_scale=0.8,
        control_mode="pose",
        control_guidance_start=0.2,
        control_guidance_end=0.9,
    )
    assert request.control_image == ("https://example.org/edges.png",)
    assert controls(request) == [("control_image", "pose", 0.8, "none")]
    assert (request.control_start, request.control_end) == (0.2, 0.9)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"control_scale": float("nan")}, "control_scale must be a number from 0 to 2, or a list of one for each"),
        ({"control_scale": 2.1}, "control_scale must be a number from 0 to 2, or a list of one for each .*, not 2.1"),
        ({"control_scale": [1, -1]}, "control_scale must be a number from 0 to 2.*, not -1"),
        ({"control_scale": [1, 1]}, "control_scale must be one value or one for each control picture, 1, not 2"),
        ({"control_scale": []}, "control_scale must be a number from 0 to 2"),
        ({"control_type": "lineart"}, "control_type must be 'canny', 'soft_edge', 'depth' or 'pose'.*, not"),
        ({"control_preprocess": "depth"}, "control_preprocess must be 'none' or 'canny'.*, not \"depth\""),
        ({"control_preprocess": "canny", "control_type": "pose"}, "control_preprocess 'canny' makes a picture of cont"),
        ({"control_start": 0.5, "control_end": 0.5}, "control_start must be below control_end, 0.5, not 0.5"),
        ({"control_end": 1.5}, "control_end must be a number from 0 to 1, not 1.5"),
        ({"control_image": [PICTURE] * 3}, "control_image must be an image, or a list of 1 or 2 images, not a list"),
        ({"control_image": []}, "control_image must be an image, or a list of 1 or 2 images"),
        ({"controlnet": {"x": 1}}, "controlnet is not here: a job's ControlNet is the endpoint's; send control_image"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(read, fields, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        read(**{"control_image": PICTURE} | fields)


@pytest.mark.parametrize("name", ["control_type", "control_scale", "control_end", "control_preprocess"])
def test_how_a_picture_is_followed_is_refused_without_the_picture(read, name):
    value = {"control_type": "canny", "control_preprocess": "canny"}.get(name, 1)
    with pytest.raises(InvalidInput, match=f"{name} says how control_image is followed, and control_image is not"):
        read(**{name: value})


def test_edits_take_no_control_pictures(read):
    with pytest.raises(InvalidInput, match="control_image is not taken by edit; task generate takes it"):
        read(image=PICTURE, control_image=PICTURE)


@pytest.mark.parametrize(
    "fields", [{"control_image": PICTURE}, {"controlnet_conditioning_scale": 0.5}, {"control_image_url": PICTURE}]
)
def test_an_endpoint_without_a_controlnet_says_so(settings, fields):
    name = next(iter(fields))
    with pytest.raises(InvalidInput, match=rf"{name} is not here: this worker has no ControlNet \(QWEN_CONTROLNET\)"):
        parse({"prompt": "a", **fields}, "job", Presets(settings()))
