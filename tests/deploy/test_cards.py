"""Cards are offered by what fits; options that cannot be are refused before anything is sent."""

import pytest

from qwen_deploy.cards import Pool, fit, stock_level
from qwen_deploy.environment import worker_settings

from .conftest import SHIP, job_tasks, only

# Of the pools that hold the models, the cheapest an hour, however long a picture takes.
HOURLY = ("--prefer", "hourly", "--seconds", "9999", "--execution-timeout", "9999")


def test_auto_takes_the_cheapest_pool_that_holds_the_models_and_has_a_card(runpod, command):
    assert command(*SHIP, *HOURLY)[0] == 0 and "AMPERE_16" in only(runpod)["gpu"]["pools"]


@pytest.mark.parametrize("arguments, pool", [
    (["--ram-gb", "48"], "AMPERE_16"),  # the text encoder waits in RAM too
    (["--ram-gb", "30"], "ADA_24"),  # too little beside 16 GB; AMPERE_24 would do, and has no card now
    (["--env", "QWEN_PRECISION=bf16"], "AMPERE_80"),  # both exact: 73 GB
    (["--env", "QWEN_PRECISION=bf16", "--tasks", "generate"], "AMPERE_48"),
    (["--env", "QWEN_PRECISION=fp8", "--tasks", "generate"], "ADA_24"),  # AMPERE has no fp8
    (["--env", "QWEN_PRECISION=int8", "--tasks", "generate"], "ADA_24"),  # AMPERE_24 would do, and has no card now
    (["--env", "QWEN_PRECISION=bf16", "--env", "QWEN_SAVINGS=none"], "HOPPER_141"),
    (["--env", "QWEN_PRECISION=bf16", "--ram-gb", "128"], "AMPERE_48"),  # transformers in turns, from RAM
])  # fmt: skip
def test_auto_goes_by_the_worker_s_own_placement(runpod, command, arguments, pool):
    code, text = command(*SHIP, *HOURLY, *arguments)
    (first,) = (line for line in text.splitlines() if line.startswith("1 "))
    assert code == 0 and first.split()[1] == pool and pool in only(runpod)["gpu"]["pools"]


@pytest.mark.parametrize("told", [None, "PLENTY"])
def test_a_stock_that_is_not_known_rules_no_card_out(told):
    assert stock_level({} if told is None else {"availability": told}) == "LOW"
    assert stock_level({"availability": "NONE"}) == "NONE"


@pytest.mark.parametrize(("tasks", "layout"), [
    ("generate", "bf16, modulation table, text encoder streamed"),  # which leaves room for the ControlNet
    ("edit", "bf16, modulation table"),  # which no ControlNet follows
])  # fmt: skip
def test_room_for_a_controlnet_is_in_the_layout_that_the_worker_will_choose(tasks, layout):
    pool = Pool("AMPERE_48", ("A40",), ("A40",), 48, 1.0, "HIGH")
    settings = worker_settings({"QWEN_TASKS": tasks, "QWEN_CONTROLNET": "InstantX/Qwen-Image-ControlNet-Union"})
    assert fit(pool, settings, [tasks], 64, None).layout == layout


def test_a_pool_is_as_large_as_its_smallest_card(runpod, command):
    runpod.gpus.append(("NVIDIA Small", "AMPERE_48", 8, 1.22, "HIGH"))
    code, text = command(*SHIP, "--gpu", "AMPERE_48")
    assert code == 2 and "--gpu AMPERE_48: too small" in text


@pytest.mark.parametrize("pool", ["BLACKWELL_180", "ADA_32_PRO"])  # the latter has RTX 5090s
def test_a_card_that_the_image_s_torch_has_no_kernels_for_is_not_taken(runpod, command, pool):
    runpod.gpus.append(("NVIDIA New", pool, 180, 0.10, "HIGH"))
    code, text = command(*SHIP, "--gpu", pool)
    assert code == 2 and "torch for CUDA 12.6 has no Blackwell kernels" in text
    assert command(*SHIP, *HOURLY)[0] == 0 and pool not in only(runpod)["gpu"]["pools"]


def test_an_image_built_for_blackwell_takes_its_cards(runpod, command):
    runpod.gpus.append(("NVIDIA B200", "BLACKWELL_180", 180, 0.10, "HIGH"))
    index = "TORCH_INDEX=https://download.pytorch.org/whl/cu130"
    assert command(*SHIP, "--build-arg", index)[0] == 0
    assert only(runpod)["gpu"]["pools"] == ["BLACKWELL_180"] and only(runpod)["gpu"]["minCudaVersion"] == "13.0"


def test_a_task_that_is_not_wanted_is_not_served_until_it_is(runpod, command):
    assert command(*SHIP, "--tasks", "generate")[0] == 0
    assert only(runpod)["env"]["QWEN_TASKS"] == "generate"
    assert job_tasks(runpod) == ["health", "generate", "health"]
    runpod.jobs.clear()
    assert command(*SHIP, "--env", "QWEN_BATCH=2")[0] == 0
    assert job_tasks(runpod) == ["health", "generate", "health"]
    assert command(*SHIP, "--tasks", "generate", "edit")[0] == 0 and "QWEN_TASKS" not in only(runpod)["env"]


@pytest.mark.parametrize(
    ("arguments", "tasks"), [([], ["generate"]), (["--tasks", "generate", "edit"], ["generate", "edit"])]
)
def test_an_endpoint_whose_other_model_is_a_folder_that_is_not_there_serves_one_task(runpod, command, arguments, tasks):
    runpod.add(env={"QWEN_EDIT_MODEL": "/none"})
    assert command(*SHIP, *arguments)[0] == 0
    assert job_tasks(runpod) == ["health", *tasks, "health"]
    assert ("QWEN_EDIT_MODEL" in only(runpod)["env"]) == (tasks == ["generate"])


@pytest.mark.parametrize("arguments, sentence", [
    (["--gpu", "AMPERE_16", "--env", "QWEN_PRECISION=bf16"], "--gpu AMPERE_16: too small"),
    (["--gpu", "NVIDIA RTX 4090"], "--gpu must name pools among AMPERE_16"),
    (["--env", "QWEN_PRECISION=fp7"], "QWEN_PRECISION"),
    (["--env", "QWEN_WORKER_VERSION=v1"], "would let any image pass"),
    (["--env", "RUNPOD_API_KEY"], "--env RUNPOD_API_KEY"),
    (["--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
    (["--env", "QWEN_IMAGE_MODEL=you/finetune"], "whose size is not known here"),
    (["--workers-min", "4"], "--workers-min must be at most --workers-max, 3, not 4"),
    (["--workers-max", "0"], "--workers-max must be at least 1"),
    (["--idle-timeout", "4000"], "--idle-timeout must be from 1 to 3600, not 4000"),
])  # fmt: skip
def test_a_mistake_is_refused_before_anything_is_sent(runpod, command, arguments, sentence):
    code, text = command(*SHIP, *arguments)
    assert code == 2 and sentence in text and not runpod.writes


def test_no_pool_that_fits_is_said_with_the_reasons(runpod, command):
    code, text = command(*SHIP, "--env", "QWEN_VRAM_GB=5")
    assert code == 1 and "No pool holds the models" in text and not runpod.writes


@pytest.mark.parametrize(("mode", "words"), [
    ("allow", "callers get a marked stand-in picture; --env QWEN_FALLBACK=forbid gives them an error"),
    ("forbid", "callers get an error, and never a stand-in"),
    ("force", "every caller gets a marked stand-in picture"),
])  # fmt: skip
def test_the_plan_says_what_callers_get_when_a_model_cannot_be_loaded(command, mode, words):
    assert words in command(*SHIP, "--env", f"QWEN_FALLBACK={mode}", "--dry-run")[1]
