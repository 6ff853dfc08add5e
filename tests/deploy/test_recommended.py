"""`--models`: the recommended models by one word, with the few-step LoRAs that are made for them."""

import json

import pytest

from qwen_deploy import hub_files, recommended
from qwen_worker.checkpoints import checkpoint
from qwen_worker.checkpoints.makers import LICENCES
from qwen_worker.preset_settings import steps_in

from .conftest import only
from .fake_runpod import Build, draws

IMAGE = "ghcr.io/owner/qwen-image:v9"


@pytest.fixture
def deployed(runpod, command):
    """deployed(arguments): the variables of the endpoint that a deployment makes."""

    def deploy(*arguments):
        runpod.builds[IMAGE] = Build(draws("v9"))
        code, text = command("--image", IMAGE, "--yes", "--no-test", *arguments)
        assert code == 0, text
        return only(runpod)["env"]

    return deploy


def test_the_recommended_models_are_of_the_defaults_size_and_licence():
    for task, default in (("generate", "Qwen/Qwen-Image"), ("edit", "Qwen/Qwen-Image-Edit")):
        name = recommended.MODELS[task]
        assert checkpoint.released(name).parameters == checkpoint.released(default).parameters
        assert LICENCES[name] == LICENCES[default] == "Apache-2.0"
        assert task in checkpoint.released(name).pipeline_class.tasks
        assert steps_in(recommended.RECOMMENDED_LORAS[recommended.FAST_LORAS[task]])


def test_one_option_takes_them_with_their_few_step_loras(deployed):
    env = deployed("--models", "recommended")
    assert {name: value for name, value in env.items() if name.endswith(("_MODEL", "_LORA"))} == {
        "QWEN_IMAGE_MODEL": "Qwen/Qwen-Image-2512", "QWEN_EDIT_MODEL": "Qwen/Qwen-Image-Edit-2511",
        **recommended.RECOMMENDED_LORAS,
    }  # fmt: skip


def test_of_one_task_that_model_alone_is_taken_and_env_adds_to_it(deployed):
    own = "QWEN_EDIT_FAST_LORA=me/own/own-4steps.safetensors"
    env = deployed("--models", "recommended", "--tasks", "edit", "--env", own)
    assert env["QWEN_EDIT_MODEL"] == "Qwen/Qwen-Image-Edit-2511" and env["QWEN_EDIT_FAST_LORA"].startswith("me/own")
    assert not {"QWEN_IMAGE_MODEL", "QWEN_IMAGE_FAST_LORA"} & set(env)


def test_without_the_option_the_endpoint_s_defaults_stay(deployed):
    assert not {"QWEN_IMAGE_MODEL", "QWEN_EDIT_MODEL", "QWEN_IMAGE_FAST_LORA"} & set(deployed())


def test_one_2_1_model_serves_both_tasks_and_its_licence_is_told_before(runpod, command):
    code, text = command("--image", IMAGE, "--models", "Qwen/Qwen-Image-2.1", "--dry-run")
    assert code == 0 and "Qwen/Qwen-Image-2.1 is under the Qwen Research License" in text
    assert '"QWEN_IMAGE_MODEL": "Qwen/Qwen-Image-2.1", "QWEN_EDIT_MODEL": "Qwen/Qwen-Image-2.1"' in text


@pytest.mark.parametrize("words, sentence", [
    ("--models Org/Other", "--models Org/Other is no released model"),
    ("--models Qwen/Qwen-Image Qwen/Qwen-Image-2512", "--models Qwen/Qwen-Image-2512 is no released model, or"),
    ("--models recommended --env QWEN_IMAGE_MODEL=a/b", "--models and --env QWEN_IMAGE_MODEL both choose a model"),
])  # fmt: skip
def test_what_chooses_no_model_or_two_is_refused(runpod, command, words, sentence):
    code, text = command("--image", IMAGE, "--yes", *words.split())
    assert code == 2 and sentence in text and not runpod.writes


def test_a_build_that_bakes_bakes_the_models_that_are_chosen(docker, command):
    words = "--image-name my --tag v1 --build-only --build-arg BAKE=yes --models recommended --dry-run"
    code, text = command(*words.split(), key="")
    assert code == 0 and "the weights of Qwen/Qwen-Image-2512, Qwen/Qwen-Image-Edit-2511" in text
    assert "BAKE_MODELS=Qwen/Qwen-Image-2512 Qwen/Qwen-Image-Edit-2511" in text


def test_a_volume_takes_the_word_too(runpod, command):
    code, text = command("volume", "create", "weights", "--models", "recommended", "--yes")
    assert code == 0 and "110 GB" in text, text


def test_the_list_of_models_and_the_hub_s_presets_recommend_them(command):
    code, text = command("models", key="", width=200)
    assert code == 0 and all(f"* {name}" in text for name in recommended.MODELS.values())
    assert all(source in text for source in recommended.RECOMMENDED_LORAS.values()) and "--models recommended" in text
    for offer in hub_files.PRESETS.values():
        assert set(recommended.MODELS.values()) <= set(offer.env.values()), json.dumps(offer.env)
