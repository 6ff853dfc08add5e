"""In which size diffusers' edit pipelines look at their input pictures: docs/editing.md, "References"."""

import importlib
import inspect

import pytest

from qwen_worker.pictures.sizes import CONDITIONING_AREA


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def test_no_argument_of_the_20b_pipelines_gives_the_size_of_a_reference(name):
    import diffusers

    assert set(inspect.signature(getattr(diffusers, name).__call__).parameters) == {
        "self", "image", "prompt", "negative_prompt", "true_cfg_scale", "height", "width", "num_inference_steps",
        "sigmas", "guidance_scale", "num_images_per_prompt", "generator", "latents", "prompt_embeds",
        "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask", "output_type", "return_dict",
        "attention_kwargs", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "max_sequence_length",
    }  # fmt: skip


def test_edit_plus_has_its_sizes_as_constants():
    module = importlib.import_module("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus")
    assert (module.CONDITION_IMAGE_SIZE, module.VAE_IMAGE_SIZE) == (384 * 384, CONDITIONING_AREA)


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def test_latents_are_not_taken_in_place_of_a_picture(name):
    import diffusers
    import torch

    pipeline = getattr(diffusers, name)
    latents = torch.zeros(1, 16, 1, 32, 32)
    with pytest.raises(TypeError, match="not subscriptable"):
        pipeline.__call__(pipeline.__new__(pipeline), image=latents, prompt="a")
