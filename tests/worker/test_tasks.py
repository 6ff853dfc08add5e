"""An endpoint of one task refuses jobs of the other, and gives the other model no room."""

import pytest

from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.loading.planner import Planner
from qwen_worker.memory.footprint import GB
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.settings import Settings

from ..conftest import ROOT, run, text_of

PROMPT = {"prompt": "a red circle"}
PICTURE = {"image": text_of((ROOT / "examples/red-circle.png").read_bytes())}
EDITS = "edit and background_replacement"


@pytest.mark.parametrize(
    ("served", "fields", "sentence"),
    [
        ("generate", PROMPT | PICTURE, "task edit is not served by this endpoint, which serves generate"),
        ("generate", PROMPT | PICTURE | {"task": "background_replacement"},
         "task background_replacement is not served by this endpoint, which serves generate"),
        ("edit", PROMPT, f"task generate is not served by this endpoint, which serves {EDITS}"),
        ("edit", {"task": "generate"}, f"task generate is not served by this endpoint, which serves {EDITS}"),
        ("edit", {"openai_route": "/v1/images/generations", "openai_input": PROMPT},
         f"task generate is not served by this endpoint, which serves {EDITS}"),
    ],
)  # fmt: skip
def test_a_job_of_a_task_that_is_not_served_is_refused_and_gets_no_stand_in(cold_worker, served, fields, sentence):
    worker = cold_worker(QWEN_TASKS=served, QWEN_FALLBACK="force")  # by which every job that is served gets one
    posted = run(worker, fields)
    assert f"invalid_input: {sentence}" in posted["error"] and "image" not in posted.get("output", {})
    assert run(worker, PROMPT | (PICTURE if served == "edit" else {}))["output"]["image"]


def test_health_and_the_list_of_models_name_what_is_served(cold_worker):
    worker = cold_worker(QWEN_TASKS="edit")
    assert list(run(worker, {"task": "health"})["output"]["presets"]) == ["edit"]
    (model,) = run(worker, {"openai_route": "/v1/models"})["output"]["data"]
    assert model["id"] == "tiny-qwen-image/edit"


@pytest.mark.parametrize(("tasks", "models", "swapped"), [("generate,edit", 2, True), ("generate", 1, False)])
def test_a_model_that_is_not_served_is_not_planned(tasks, models, swapped):
    settings = Settings(QWEN_TASKS=tasks)
    here = Machine(Gpu("NVIDIA Test", (8, 9), 24 * GB, 24 * GB), 200 * GB, 200 * GB)
    plan = Planner(settings, Catalogue(settings), lambda: here).place("generate", ())
    assert len(plan.models) == models and plan.swapped == swapped
