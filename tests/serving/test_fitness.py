"""A worker that cannot do its work says why at its start and takes no job; one that can may load before its first."""

import tempfile
from dataclasses import replace

import pytest

from qwen_worker.errors import LoadError
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.serving.fitness import Unfit, checks
from qwen_worker.settings import Settings

from ..support.control_plane import ControlPlane, WorkerProcess, addresses

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 1}


NO_GPU, GPU = Machine(None, 8, 8), Machine(Gpu("NVIDIA Test", (9, 0), 80, 80), 8, 8)


def examined(place=lambda task: None, preload=lambda task: None, try_card=lambda: None, here=NO_GPU, **settings):
    for check in checks(Settings(**settings), place, preload, try_card, lambda: here):
        check()


def test_a_fit_worker_passes_and_loads_what_it_is_told_to():
    loaded = []
    examined(preload=lambda task: loaded.append(task), QWEN_PRELOAD="edit, generate")
    assert loaded == ["generate", "edit"]
    examined(preload=lambda task: loaded.append(task), QWEN_PRELOAD="edit, generate", QWEN_TASKS="generate")
    assert loaded == ["generate", "edit", "generate"]


def test_a_folder_for_temporary_files_that_cannot_be_written_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(Unfit, match="scratch: the folder for temporary files cannot be written") as caught:
        examined()
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("fallback", ["allow", "forbid"])
def test_a_card_that_does_not_compute_is_a_reason_whatever_stands_in_for_models(fallback):
    def fail():
        raise LoadError("NVIDIA Test cannot be used: a product in bfloat16 fails: CUDA error: no kernel image")

    placed = []
    with pytest.raises(Unfit, match="^card: NVIDIA Test cannot be used: a product in bfloat16 fails: CUDA error"):
        examined(placed.append, try_card=fail, here=GPU, QWEN_FALLBACK=fallback)
    assert not placed  # nothing is planned for such a card
    examined(try_card=fail, QWEN_FALLBACK=fallback)  # without a GPU nothing is tried
    examined(try_card=fail, here=GPU, QWEN_FALLBACK="force")  # nor where no model will be loaded


@pytest.mark.parametrize("fallback", ["allow", "forbid", "force"])
def test_a_safety_check_that_cannot_be_made_is_a_reason_before_any_model_is_planned(fallback):
    def fail():
        raise LoadError("Org/Name is no image classifier")

    placed = []
    settings = Settings(QWEN_FALLBACK=fallback, QWEN_PRELOAD="generate")
    with pytest.raises(Unfit, match="^safety check: Org/Name is no image classifier$"):
        for check in checks(settings, placed.append, placed.append, lambda: None, lambda: NO_GPU, fail):
            check()
    assert placed == []


def test_a_driver_that_shows_no_card_is_a_reason():
    here = replace(GPU, gpu=None, gpu_obstacle="NVML says: Driver/library version mismatch; torch sees none")
    with pytest.raises(Unfit, match="^card: NVML says: Driver/library version mismatch; torch sees none"):
        examined(here=here)


@pytest.mark.parametrize(
    ("missing", "settings", "unfit"),
    [
        ({"generate", "edit"}, {"QWEN_FALLBACK": "allow"}, False),
        ({"generate", "edit"}, {"QWEN_FALLBACK": "forbid"}, True),
        ({"edit"}, {"QWEN_FALLBACK": "forbid"}, False),
        ({"edit"}, {"QWEN_FALLBACK": "forbid", "QWEN_PRELOAD": "edit"}, True),
        ({"edit"}, {"QWEN_FALLBACK": "forbid", "QWEN_PRELOAD": "generate"}, False),
        ({"edit"}, {"QWEN_FALLBACK": "forbid", "QWEN_PRELOAD": "edit", "QWEN_TASKS": "generate"}, False),
        ({"generate"}, {"QWEN_FALLBACK": "forbid", "QWEN_PRELOAD": "edit", "QWEN_TASKS": "generate"}, True),
    ],
)
def test_a_model_that_is_missing_is_a_reason_where_nothing_stands_in_for_it(missing, settings, unfit):
    def place(task):
        return LoadError("there is none") if task in missing else None

    if unfit:
        with pytest.raises(Unfit, match="(generate|edit): there is none"):
            examined(place, **settings)
    else:
        examined(place, **settings)


def test_a_card_that_fails_while_loading_is_a_reason_also_where_stand_ins_are_allowed():
    def preload(task):
        raise RuntimeError("CUDA error: an illegal memory access at /some/path")

    with pytest.raises(Unfit) as caught:
        examined(preload=preload, QWEN_PRELOAD="generate", QWEN_FALLBACK="allow")
    assert str(caught.value) == "RuntimeError while loading; the worker's log has the rest"


def test_a_preload_does_not_outlast_the_platform_s_patience(monkeypatch, gate):
    monkeypatch.setenv("RUNPOD_INIT_TIMEOUT", "0.5")
    over, ended = gate(), []
    examined(preload=lambda task: ended.append(over.wait(60)), QWEN_PRELOAD="generate")
    assert not ended


def test_the_worker_process_loads_first_and_an_unfit_one_ends_with_its_reason(environment, web, tmp_path):
    plane = ControlPlane()
    env = environment(QWEN_PRELOAD="generate", **addresses(web(plane)))
    with WorkerProcess(env) as worker:
        plane.put("first", SMALL)
        assert plane.result("first")["output"]["success"]
        said = [one["message"] for one in worker.messages()]
        loaded, begun = (next(n for n, text in enumerate(said) if words in text) for words in ("loaded in", "Started"))
        assert loaded < begun
    unfit = {**env, "QWEN_FALLBACK": "forbid", "QWEN_IMAGE_MODEL": str(tmp_path)}
    with WorkerProcess(unfit) as worker:
        assert worker.end() == 1
    assert any("holds no model_index.json" in line for line in worker.lines)
