"""What the tests of two cards share: a small job, its reply, and LoRAs."""

import pytest

from ..conftest import run
from ..support import lora_files

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 3, "seed": 5}


@pytest.fixture(scope="session")
def lora(tiny, tmp_path_factory):
    """A folder with a LoRA of the blocks' matrices, and one of the modulation too."""
    from diffusers import QwenImageTransformer2DModel

    folder = tmp_path_factory.mktemp("loras")
    transformer = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")
    for name, layers in (("plain", lora_files.PLAIN), ("modulation", lora_files.LAYERS)):
        lora_files.write(folder / f"{name}.safetensors", lora_files.matrices(transformer, layers))
    return folder


def answered(worker, fields):
    body = run(worker, fields, "a-job")
    assert "error" not in body, body["error"]
    return body["output"]


def pictures_in(reply):
    return reply.get("images") or [reply["image"]]
