"""The whole family of models in the SDK's own loop, in worker processes that have no stand-ins."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.measure import community_files
from qwen_tiny import CONTROL
from qwen_tiny.world import judge, scenes

from ..conftest import as_text, only_proved, picture_of
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.random_21 import build

SMALL = {"width": 256, "height": 256, "num_inference_steps": 2, "seed": 1}
SCENE = scenes.Scene("red", "circle", "blue", "large", "left", x=0.25, radius=0.23)


@pytest.fixture
def answers(environment, web):
    """answers(jobs, **settings): the outputs of jobs, by name, that a fresh worker process must draw."""

    def drawn(jobs, **settings):
        plane, outputs = ControlPlane(), {}
        with WorkerProcess(environment(QWEN_FALLBACK="forbid", **settings, **addresses(web(plane)))):
            for name, fields in jobs.items():
                plane.put(name, fields)
                body = plane.result(name)
                assert "error" not in body, f"{name}: {body['error']}"
                outputs[name] = body["output"]
        assert {output["metadata"]["backend"] for output in outputs.values()} == {"qwen-image"}
        return outputs

    return drawn


@only_proved
def test_layers_controls_starts_and_single_files_are_served_by_one_worker(tiny, answers, tmp_path):
    file = community_files.write_gguf(community_files.weights_of(tiny / "generate"), tmp_path / "q8.gguf", "Q8_0")
    picture = Image.fromarray(scenes.draw(SCENE, 256, 256))
    mask = Image.new("L", (256, 256))
    mask.paste(255, (128, 0, 256, 256))
    prompt, image = "a red circle on a blue background", as_text(picture)
    control = {"control_image": image, "control_preprocess": "canny"}
    start = {"task": "generate", "prompt": prompt, "image": image, "num_inference_steps": 4}
    outputs = answers(
        {
            "plain": {**SMALL, "prompt": prompt},
            "controlled": {**SMALL, "prompt": "a red shape on a blue background", **control, "num_inference_steps": 10},
            "start": {**SMALL, **start, "strength": 0.5},
            "masked": {**SMALL, **start, "mask_image": as_text(mask)},
            "edit": {"prompt": "make the background green", "image": image, "num_inference_steps": 2},
            "layers": {"task": "layers", "prompt": "a shape", "image": image, "num_layers": 2, "guidance_scale": 1,
                       "num_inference_steps": 6, "seed": 7},
        },
        QWEN_IMAGE_TRANSFORMER=str(file), QWEN_LAYERED_MODEL=str(tiny / "layered"), QWEN_CONTROLNET=str(tiny / CONTROL),
    )  # fmt: skip
    shown = {name: picture_of(output["image"]) for name, output in outputs.items()}
    reading = judge.read(shown["controlled"])
    assert (reading.shape, reading.position) == ("circle", "left")
    assert outputs["start"]["metadata"]["steps"] == 2 and judge.overlap(picture, shown["start"]) > 0.9
    kept = (np.asarray(one)[:, :128] for one in (shown["masked"], picture))
    assert np.array_equal(*kept)
    below, above = judge.read_layers([picture_of(text) for text in outputs["layers"]["images"]])
    assert below == judge.Reading("blue") and (above.shape, above.colour) == ("circle", "red")


@only_proved
def test_qwen_image_2_1_is_served_whole(answers, tmp_path, scene):
    build(tmp_path / "two-one")
    model = str(tmp_path / "two-one")
    outputs = answers(
        {
            "transparent": {**SMALL, "prompt": "a red circle", "background": "transparent"},
            "ten": {**SMALL, "prompt": "a red circle", "images": [as_text(scene.resize((96, 96)))] * 10},
        },
        QWEN_IMAGE_MODEL=model, QWEN_EDIT_MODEL=model,
    )  # fmt: skip
    assert picture_of(outputs["transparent"]["image"]).mode == "RGBA"
    assert outputs["ten"]["metadata"]["dimensions"] == "256x256"
