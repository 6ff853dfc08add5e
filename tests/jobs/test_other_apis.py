"""Bodies of other image APIs are served with the meaning that their documentation gives, or with a warning."""

import pytest

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.field_types import Lora
from qwen_worker.jobs.openai_images import EDITS, GENERATIONS, Call
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.settings import Settings

PROMPT = {"prompt": "a fox"}
PICTURE = "aGk="
FEW_STEP = "ORG/NAME/FILE-8steps.safetensors"
NAMES = {"generate": "a/generate", "edit": "a/edit"}


def drawn(fields, **settings):
    """The request of a job, and its warnings."""
    warnings = []
    return parse({**PROMPT, **fields}, "job", Presets(Settings(**settings)), warnings.append), warnings


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"cfg_scale": 3, "num_steps": 8, "batch_size": 2}, {"guidance_scale": 3, "num_inference_steps": 8,
                                                             "num_images": 2}),
        ({"output_format": "jpg"}, {"output_format": "jpeg"}),
        ({"image_format": "jpg"}, {"output_format": "jpeg"}),
        ({"image": [PICTURE]}, {"images": (PICTURE,), "task": "edit"}),
        ({"image": PICTURE, "images": [PICTURE]}, {"images": (PICTURE,)}),
        ({"image_base64": PICTURE}, {"images": (PICTURE,), "task": "edit"}),
        ({"reference_images": [PICTURE, "aGV5"]}, {"images": (PICTURE, "aGV5")}),
        ({"image1": PICTURE, "image2": "aGV5", "image3": None}, {"images": (PICTURE, "aGV5")}),
        ({"sync_mode": True}, {"delivery": "inline"}),
        ({"sync_mode": False, "enable_sync_mode": False}, {"delivery": None}),
        ({"enable_base64_output": True}, {"delivery": "inline"}),
        ({"response_format": "url"}, {"delivery": "url"}),
        ({"acceleration": "none"}, {"preset": "quality"}),
        ({"acceleration": "regular"}, {"preset": "balanced"}),
        ({"go_fast": False}, {"preset": "quality"}),
        ({"quality": "medium"}, {"preset": "balanced"}),
        ({"quality": "hd", "preset": "quality"}, {"preset": "quality"}),
        ({"lora_weights": "a/b", "lora_scale": 0.5}, {"loras": (Lora(path="a/b", scale=0.5),)}),
        ({"lora": "a/b", "extra_lora": "c/d", "extra_lora_scale": "0.3"}, {"loras": (
            Lora(path="a/b"), Lora(path="c/d", scale=0.3))}),
        ({"loras": ["a/b", {"path": "c/d", "weight": 0.7}]}, {"loras": (
            Lora(path="a/b"), Lora(path="c/d", scale=0.7))}),
        ({"url": PICTURE}, {"images": (PICTURE,), "task": "edit"}),
        ({"image": PICTURE, "image_2": "aGV5"}, {"images": (PICTURE, "aGV5")}),
        ({"image": PICTURE, "reference_images": ["aGV5"]}, {"images": (PICTURE, "aGV5")}),
        ({"reference_images": []}, {"task": "generate"}),
        ({"init_images": [PICTURE], "denoising_strength": 0.5}, {"images": (PICTURE,), "strength": 0.5}),
        ({"turbo": False, "quality": 80}, {"output_quality": 80, "preset": "quality"}),
        ({"outputType": "URL", "outputFormat": "JPG", "numberResults": 2, "CFGScale": 3}, {
            "delivery": None, "output_format": "jpeg", "num_images": 2, "guidance_scale": 3}),
        ({"parameters": {"width": 512, "guidanceScale": 2}}, {"width": 512, "guidance_scale": 2}),
        ({"lora_weights": "", "lora_2": "a/b", "lora_2_scale": 2}, {"loras": (Lora(path="a/b", scale=2),)}),
        ({"extra_lora_weights": ["a/b", "c/d"], "extra_lora_scale": [0.5, 2]}, {"loras": (
            Lora(path="a/b", scale=0.5), Lora(path="c/d", scale=2))}),
        ({"loras": {"name": "style", "url": "https://a.b/c", "weight": 2}}, {"loras": (
            Lora(path="https://a.b/c", scale=2),)}),
        ({"strength": 1, "style": "", "control_image": None, "num_layers": 0, "background": "auto"}, {}),
        ({"enable_safety_checker": False, "disable_safety_checker": True, "watermark": False}, {}),
        ({"prompt_extend": False, "enable_prompt_expansion": False, "user": "me", "metadata": {"a": 1}}, {}),
    ],
)  # fmt: skip
def test_what_has_a_meaning_here_gets_it_without_a_warning(fields, meant):
    request, warnings = drawn(fields)
    assert {name: getattr(request, name) for name in meant} == meant and warnings == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"enable_safety_checker": True}, "enable_safety_checker true: this worker has no safety checker"),
        ({"disable_safety_checker": False}, "disable_safety_checker false: this worker has no safety checker"),
        ({"enhance_prompt": True}, "enhance_prompt true: this worker does not rewrite prompts"),
        ({"watermark": True}, "watermark true: this worker draws no watermark"),
        ({"strength": 0.9}, "strength 0.9 has no effect without an input picture"),
        ({"denoise": 0.5}, "denoise 0.5 has no effect without an input picture"),
        ({"lora_scale": 1}, "lora_scale has no effect without a LoRA"),
        ({"loras": ["a/b"], "lora_scale": 0.7}, "lora_scale has no effect beside loras: give each of them a scale"),
        ({"loras": [], "lora_scale": 0.7}, "lora_scale has no effect without a LoRA"),
        ({"output_format": "png", "output_quality": 80}, "output_quality 80 has no effect with output_format png"),
        ({"style": "vivid"}, 'style "vivid": it has no effect: the prompt alone says the style'),
        ({"size": ""}, "size is empty, and the default size is used"),
        ({"image_size": "optimize_for_speed"}, 'image_size "optimize_for_speed" has no effect: a smaller size'),
        ({"scheduler": "K_EULER"}, 'scheduler "K_EULER": the model has one scheduler'),
        ({"sampler_name": "DDIM"}, 'sampler_name "DDIM": the model has one scheduler'),
        ({"acceleration": "high"}, "acceleration asks for preset 'fast', and the picture is drawn by 'quality': QWEN_"),
        ({"go_fast": True}, "go_fast asks for preset 'fast', and the picture is drawn by 'quality': QWEN_IMAGE_FAST"),
        ({"quality": "low"}, "quality asks for preset 'fast', and the picture is drawn by 'balanced': QWEN_IMAGE_FA"),
    ],
)
def test_what_is_understood_and_not_done_is_told(fields, told):
    _, (warning,) = drawn(fields)
    assert warning.startswith(told)


CHECKED = {"QWEN_SAFETY_MODEL": "Org/Name"}
REWRITTEN = {"QWEN_REWRITE_URL": "https://api.openai.com/v1", "QWEN_REWRITE_MODEL": "writer"}


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"enable_safety_checker": True}, CHECKED),
        ({"disable_safety_checker": False}, CHECKED),
        ({"enable_safety_checker": True, "disable_safety_checker": False}, CHECKED),
        ({}, CHECKED),
        ({"prompt_extend": True, "enhance_prompt": True}, REWRITTEN),
        ({"enable_prompt_expansion": True, "preview": True}, REWRITTEN),
    ],
)
def test_what_the_endpoint_s_checks_do_as_asked_needs_no_warning(fields, settings):
    request, warnings = drawn(fields, **settings)
    assert warnings == [] and request.prompt_extend == (settings is REWRITTEN)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"enable_safety_checker": False},
            "enable_safety_checker false: the endpoint checks every picture, and no job",
        ),
        (
            {"disable_safety_checker": True},
            "disable_safety_checker true: the endpoint checks every picture, and no job",
        ),
        ({"preview": True}, "preview true: the endpoint checks every picture before it is sent, and sends no previews"),
    ],
)
def test_a_safety_check_is_not_switched_off_by_a_job(fields, told):
    request, (warning,) = drawn(fields, **CHECKED)
    assert warning.startswith(told) and not request.preview


def test_speed_is_given_where_it_is_served():
    for fields in ({"acceleration": "high"}, {"go_fast": True}, {"quality": "low"}):
        request, warnings = drawn(fields, QWEN_IMAGE_FAST_LORA=FEW_STEP)
        assert (request.preset, request.num_inference_steps, warnings) == ("fast", 8, [])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"go_fast": True, "num_inference_steps": 50, "guidance": 4},
         "num_inference_steps 50 and guidance 4 are left out: go_fast asks for preset 'fast'"),
        ({"acceleration": "high", "num_inference_steps": 30, "guidance_scale": 2.5},
         "num_inference_steps 30 and guidance_scale 2.5 are left out: acceleration asks for preset 'fast'"),
        ({"quality": "low", "steps": 20}, "steps 20 is left out: quality asks for preset 'fast'"),
        ({"turbo": True, "guidance": "4", "steps": 8}, "guidance 4 is left out: turbo asks for preset 'fast'"),
        ({"use_turbo": True, "steps": 8, "guidance": 1}, None),
    ],
)  # fmt: skip
def test_a_wish_for_speed_is_drawn_with_the_steps_and_guidance_of_the_preset(fields, told):
    request, warnings = drawn(fields, QWEN_IMAGE_FAST_LORA=FEW_STEP)
    assert (request.preset, request.num_inference_steps, request.guidance_scale) == ("fast", 8, 1)
    assert warnings == ([f"{told}, which draws 8 steps at guidance_scale 1"] if told else [])


@pytest.mark.parametrize(
    ("fields", "drawn_with", "told"),
    [
        ({"num_inference_steps": 50}, (50, 1), ["num_inference_steps is 50"]),
        ({"guidance_scale": 4}, (8, 4), ["guidance_scale is 4"]),
        ({"num_inference_steps": 6, "cfg": 2, "go_fast": True}, (6, 2), ["num_inference_steps is 6",
                                                                        "guidance_scale is 2"]),
        ({"num_inference_steps": 8, "guidance_scale": 1}, (8, 1), []),
    ],
)  # fmt: skip
def test_a_job_that_names_preset_fast_keeps_its_own_steps_and_guidance_and_hears_what_they_should_be(
    fields, drawn_with, told
):
    request, warnings = drawn({"preset": "fast", **fields}, QWEN_IMAGE_FAST_LORA=FEW_STEP)
    assert (request.num_inference_steps, request.guidance_scale) == drawn_with
    begin = "preset 'fast' draws by a few-step LoRA, made for 8 steps at guidance_scale 1"
    assert warnings == [f"{begin}; {one}" for one in told]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": None}, "prompt is required, and this prompt is null: send a text"),
        ({"promt": "x"}, r'this input has only "promt" \(did you mean prompt\?\)'),
        ({"text": "a fox"}, r'this input has only "text" \(did you mean prompt\?\)'),
        ({"input": {"prompt": "x"}}, "input is given within input: send"),
        ({**PROMPT, "webhook": "https://example.com"}, "webhook stands beside input, not in it: send"),
        ({**PROMPT, "s3Config": {}}, "s3Config stands beside input"),
        ({**PROMPT, "policy": {}}, "policy stands beside input"),
        ({**PROMPT, "preset": "fast", "quality": "low"}, "preset 'fast' is not served"),
        ({**PROMPT, "enable_safety_checker": "yes"}, 'enable_safety_checker must be true or false, not "yes"'),
        ({**PROMPT, "disable_safety_checker": "yes"}, 'disable_safety_checker must be true or false, not "yes"'),
        ({**PROMPT, "enhance_prompt": 1}, r"prompt_extend \(sent as enhance_prompt\) must be true or false, not 1"),
        ({**PROMPT, "enhance_prompt": True, "prompt_extend": False}, "prompt_extend is given twice, as enhance_prompt"),
        (
            {**PROMPT, "enable_safety_checker": True, "disable_safety_checker": True},
            r"enable_safety_checker is given twice, .* and as disable_safety_checker \(false\), and the two differ",
        ),
        ({**PROMPT, "acceleration": "max"}, "acceleration must be 'none', 'regular' or 'high', not \"max\""),
        ({**PROMPT, "acceleration": ["high"]}, "acceleration must be .* not a list of 1"),
        ({**PROMPT, "lora": "a/b", "lora_weights": "c/d"}, "lora_weights and lora name the same LoRA: send one of"),
        ({**PROMPT, "extra_lora_weights": ["a/b"], "extra_lora_scale": []}, "extra_lora_scale must have one scale for"),
        ({**PROMPT, "control_image": PICTURE}, "control_image is not here: this worker has no ControlNet .QWEN_CONTR"),
        ({**PROMPT, "controlnet_conditioning_scale": 0.5}, "controlnet_conditioning_scale is not here"),
        ({**PROMPT, "num_layers": 4}, "num_layers is not here: task layers takes it; send that task"),
        ({"workflow": {"3": {"class_type": "KSampler"}}}, "workflow is not here: this worker is no ComfyUI; send prom"),
        ({**PROMPT, "stream": True}, "stream must be false, not true: the endpoint's settings say"),
        ({**PROMPT, "n_iter": 2}, "n_iter must be 1, not 2: num_images says how many pictures are drawn"),
        ({**PROMPT, "model": 5}, "model must be the name of a model, not 5"),
        ({**PROMPT, "callback_url": "https://a.b"}, "callback_url stands beside input, not in it: .*webhook"),
        ({**PROMPT, "parameters": "steps=5"}, 'parameters must be an object of fields, not "steps=5"'),
        ({**PROMPT, "steps": 5, "parameters": {"steps": 6}}, "steps is given twice, as steps and as parameters.steps"),
        ({**PROMPT, "numImages": 2, "num_images": 3}, "num_images is given twice, as num_images and as n"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "messages must be a list of one message of the user"),
        ({"messages": [{"role": "user", "content": [{"audio": "x"}]}]}, "messages must be a list of one message"),
        ({**PROMPT, "lora": "a/b", "loras": []}, "loras is given twice, as lora and as loras"),
        ({**PROMPT, "lora_weights": 5}, r"loras\[0\].path must be"),
        ({**PROMPT, "image1": PICTURE, "images": [PICTURE]}, "images is given twice, as image1 and as images"),
    ],
)
def test_what_cannot_be_served_is_refused_with_what_to_send(fields, words):
    with pytest.raises(InvalidInput, match=words):
        parse(fields, "job")


def test_unknown_fields_are_left_out_where_the_endpoint_says_so():
    request, warnings = drawn({"stesp": 5, "size_from": 1}, QWEN_UNKNOWN_FIELDS="warn")
    assert request.num_inference_steps == 50
    assert warnings == [
        '"stesp" is not a field of generate (did you mean steps?), and has no effect',
        '"size_from" is not a field of generate (task edit takes it), and has no effect',
    ]
    request, warnings = drawn({"loras": [{"path": "a/b", "colour": 1}]}, QWEN_UNKNOWN_FIELDS="warn")
    assert request.loras == (Lora(path="a/b"),)
    assert warnings == ['"colour" is not a field of loras[0], and has no effect']
    with pytest.raises(InvalidInput, match="loras"):
        drawn({"loras": [{"path": "a/b", "url": "c/d"}]}, QWEN_UNKNOWN_FIELDS="warn")
    with pytest.raises(InvalidInput, match="prompt is required"):
        parse({"text": "a fox"}, "job", Presets(Settings(QWEN_UNKNOWN_FIELDS="warn")))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("Qwen/Qwen-Image", []),
        ("qwen/QWEN-image@main", []),
        ("qwen-image", []),
        ("", []),
        ("Qwen/Qwen-Image-Edit", ['model "Qwen/Qwen-Image-Edit" is not here: Qwen/Qwen-Image serves generate']),
        ("\ud800", ['model "\\ud800" is not here: Qwen/Qwen-Image serves generate']),
    ],
)
def test_a_job_may_name_the_model_that_serves_it_and_hears_of_another(model, told):
    warnings = []
    models = {"generate": "Qwen/Qwen-Image", "edit": "Qwen/Qwen-Image-Edit"}
    request = parse({**PROMPT, "model": model}, "job", warn=warnings.append, models=models)
    assert warnings == told and "model" not in request.model_dump()


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        ({"messages": [{"role": "user", "content": "a fox"}], "extra_body": {"height": 512}}, {
            "prompt": "a fox", "height": 512}),
        ({"messages": [{"role": "user", "content": [{"image": PICTURE}, {"text": "a fox"}]}]}, {
            "prompt": "a fox", "images": (PICTURE,), "task": "edit"}),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "a"},
                                    {"text": "b"}]}]}, {"prompt": "a\nb", "images": (PICTURE,)}),
        ({"inputs": "a fox", "parameters": {"target_size": {"width": 512, "height": 768}}}, {
            "prompt": "a fox", "size": "512x768"}),
        ({"inputs": PICTURE, "parameters": {"prompt": "a fox"}}, {"prompt": "a fox", "images": (PICTURE,)}),
    ],
)  # fmt: skip
def test_a_prompt_is_found_where_chats_and_pipelines_have_it(body, meant):
    request = parse(body, "job")
    assert {name: getattr(request, name) for name in meant} == meant


@pytest.mark.parametrize(
    ("route", "asked", "told"),
    [
        (GENERATIONS, {"style": "vivid"}, 'style "vivid": it has no effect: the prompt alone says the style'),
        (GENERATIONS, {"model": "dall-e-3"}, 'model "dall-e-3" is not here: a/generate serves'),
        (GENERATIONS, {"size": ""}, "size is empty, and the default size is used"),
        (EDITS, {"image": PICTURE, "input_fidelity": "low"}, 'input_fidelity "low": it has no effect: an edit'),
    ],
)
def test_what_openai_s_clients_cannot_leave_out_is_served_with_a_warning(route, asked, told):
    warnings = []
    call = Call({"openai_route": route, "openai_input": {**PROMPT, **asked}}, NAMES)
    parse(call.fields(), "job", warn=warnings.append, models=NAMES)
    assert len(warnings) == 1 and warnings[0].startswith(told)
