"""A ControlNet is found where checkpoints are, or fetched; one of another shape is refused before it is loaded."""

import json
import shutil
from dataclasses import replace

import pytest

from qwen_worker.checkpoints import checkpoint as checkpoints
from qwen_worker.checkpoints import controlnet
from qwen_worker.errors import LoadError

from ..support.control_nets import random_controlnet
from ..support.local_hub import LocalHub


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return random_controlnet(tiny, tmp_path_factory.mktemp("nets") / "org-net")


@pytest.fixture
def generate(tiny):
    return checkpoints.inspect(tiny / "generate")


def with_config(folder, target, **changes):
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_a_folder_says_how_large_it_is_and_that_it_belongs(folder, generate):
    found = controlnet.find(str(folder), ())
    found.require_belongs(generate)
    assert (found.name.endswith("/org-net"), found.blocks, found.width) == (True, 2, 128)
    stored_bytes = (folder / "diffusion_pytorch_model.safetensors").stat().st_size
    assert found.parameters == pytest.approx(stored_bytes / 2, 0.02)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_attention_heads": 8}, r"has 8 heads \(num_attention_heads\), and the transformer of .*te 4: it was"),
        ({"attention_head_dim": 128}, r"has 128 channels a head \(attention_head_dim\)"),
        ({"joint_attention_dim": 3584}, "has 3584 channels of text"),
        ({"in_channels": 128}, "has 128 channels of latents"),
        ({"axes_dims_rope": [8, 12, 12]}, "as its rotary axes"),
        ({"num_layers": 9}, "has 9 blocks, and the transformer of .*generate 5"),
    ],
)
def test_one_of_another_shape_does_not_belong(folder, tmp_path, generate, changes, sentence):
    found = controlnet.find(str(with_config(folder, tmp_path / "net", **changes)), ())
    with pytest.raises(LoadError, match=sentence):
        found.require_belongs(generate)


def test_the_released_models_are_compared_before_their_files_are_here(folder):
    model = checkpoints.released("Qwen/Qwen-Image")
    with pytest.raises(LoadError, match="has 32 channels a head .*, and the transformer of Qwen/Qwen-Image 128"):
        controlnet.find(str(folder), ()).require_belongs(model)


def test_edits_and_2_1_have_no_controlnet(folder, generate):
    found = controlnet.find(str(folder), ())
    for class_name in ("QwenImageEditPipeline", "QwenImage21Pipeline"):
        with pytest.raises(LoadError, match=f"controls a QwenImagePipeline, and .* is a {class_name}"):
            found.require_belongs(replace(generate, class_name=class_name))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "FluxControlNetModel"}, "is a FluxControlNetModel and no QwenImageControlNetModel of"),
        ({"extra_condition_channels": 4}, "is a ControlNet for inpainting, which takes a mask"),
    ],
)
def test_one_of_another_kind_is_refused_by_name(folder, tmp_path, changes, sentence):
    with pytest.raises(LoadError, match=sentence):
        controlnet.find(str(with_config(folder, tmp_path / "net", **changes)), ())


def test_a_folder_without_weights_and_a_damaged_file_are_refused(folder, tmp_path):
    broken = with_config(folder, tmp_path / "net")
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LoadError):
        controlnet.find(str(broken), ())
    weights.unlink()
    with pytest.raises(LoadError, match="holds no safetensors file"):
        controlnet.find(str(broken), ())


def test_a_hub_id_is_described_without_its_weights_and_then_fetched(folder, web, monkeypatch, tmp_path, generate):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", web(LocalHub({"Org/Net": folder})))
    found = controlnet.find("Org/Net", ())
    found.require_belongs(generate)
    assert found.folder is None and not list(tmp_path.rglob("*.safetensors"))
    here = controlnet.fetch(found)
    assert here.folder and here.parameters == controlnet.find(str(folder), ()).parameters
    assert abs(found.parameters / here.parameters - 1) < 0.02
    assert controlnet.find("Org/Net", ()).folder  # from now on it is here
