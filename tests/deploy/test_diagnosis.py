"""`status` says why a queue is stuck; and what a job or a deployment says when its endpoint is gone."""

import re

import pytest

from .conftest import NEW, OLD, SHIP
from .fake_runpod import Build, Fault


def status(command):
    code, text = command("status", "--endpoint-id", "ep1")
    assert code == 0, text
    return text


def stuck(runpod, build, waiting=1, workers=1, **fields):
    """An endpoint whose workers do what the build says, and jobs that wait for them."""
    runpod.builds[NEW] = build
    endpoint = runpod.add(NEW, workers=workers, **fields)
    for _ in range(waiting):
        runpod.add_job("ep1", {"task": "generate"})
    return endpoint


def test_a_lack_of_cards_is_told_with_the_pools_that_have_some(runpod, command):
    runpod.gpus = [(*gpu[:4], "NONE" if gpu[1] == "ADA_24" else gpu[4]) for gpu in runpod.gpus]
    stuck(runpod, Build(state="THROTTLED"))
    text = status(command)
    assert "No capacity: 1 throttled" in text and "RunPod's stock: ADA_24 none." in text
    assert "Cards are free in AMPERE_48, AMPERE_80, HOPPER_141: add one with --gpu." in text
    assert "Only US-KS-2 may be used: --data-centers '' lifts that." in text and "Healthy" not in text


def test_no_worker_at_all_is_a_lack_of_cards_where_there_are_none(runpod, command):
    runpod.gpus = [(*gpu[:4], "NONE") for gpu in runpod.gpus]
    stuck(runpod, Build(), workers=0, waiting=2)
    text = status(command)
    assert "No capacity: 2 jobs wait, and no worker is started" in text and "Cards are free" not in text


def test_a_pool_that_has_vanished_from_the_catalogue_has_no_cards(runpod, command):
    runpod.gpus = [gpu for gpu in runpod.gpus if gpu[1] != "ADA_24"]
    stuck(runpod, Build(state="THROTTLED"))
    assert "RunPod's stock: ADA_24 none." in status(command)


def test_without_the_catalogue_the_rest_of_the_diagnosis_stands(runpod, command):
    stuck(runpod, Build(state="THROTTLED"))
    runpod.faults = [Fault("GET", "/catalog/gpus", 403)]
    text = status(command)
    assert "No capacity: 1 throttled" in text and "RunPod's stock: not known." in text


def test_a_crash_loop_is_told_with_the_worker_s_last_words(runpod, command):
    stuck(runpod, Build(crashes=True, log=("Traceback", "ModuleNotFoundError: No module named 'torch'")))
    for worker in runpod.workers["ep1"]:
        worker.status, worker.starts = "INITIALIZING", 3
    text = status(command)
    assert "Crash loop: worker w2 started its container 4 times. It wrote last: Traceback | Module" in text


def test_a_missing_image_is_named(runpod, command):
    stuck(runpod, Build(unpullable=True))
    for worker in runpod.workers["ep1"]:
        worker.status = "INITIALIZING"
    text = status(command)
    assert f"Image missing: worker w2 cannot pull {NEW}" in text and "manifest unknown" in text


def test_an_unhealthy_worker_is_told_with_its_last_words(runpod, command):
    stuck(runpod, Build(state="UNHEALTHY", log=("CUDA driver version is insufficient",)))
    assert "Unhealthy: worker w2. It wrote last: CUDA driver version is insufficient" in status(command)


def test_a_paused_endpoint_is_told_with_the_way_on(runpod, command):
    endpoint = stuck(runpod, Build(), workers=0)
    endpoint["workers"] = {"min": 0, "max": 0, "idleTimeout": 5}
    text = status(command)
    assert "Paused: the endpoint may have no workers, so nobody takes its jobs (1 wait)" in text
    assert "python deploy_qwen.py resume --endpoint-id ep1" in text
    sent = len(runpod.writes)
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert code == 1 and "is paused, nobody would take the job" in text and len(runpod.writes) == sent


def test_busy_workers_are_too_few(runpod, command):
    stuck(runpod, Build(state="RUNNING"), waiting=4, workers=5)
    assert "Too few workers: all 5 are busy, and 4 jobs wait" in status(command)


@pytest.mark.parametrize(("env", "words"), [
    ({"SERVER_MODE": "local"}, "SERVER_MODE is local: such workers take no jobs of a queue"),
    ({"QWEN_FALLBACK": "force"}, "QWEN_FALLBACK is force: every job gets a stand-in"),
])  # fmt: skip
def test_a_setting_that_keeps_jobs_from_being_drawn_is_named(runpod, command, env, words):
    stuck(runpod, Build(), env=env)
    assert words in status(command)


@pytest.mark.parametrize("refused", [401, 403])
def test_a_key_that_may_not_look_into_the_queue_is_told_beside_the_rest(runpod, command, refused):
    runpod.add(NEW)
    runpod.faults = [Fault("GET", "/jobs/ep1/health", refused)]
    text = status(command)
    assert "The queue cannot be read: RUNPOD_API_KEY has no right to it" in text
    assert re.search(rf"image +{NEW}", text) and "Jobs: not known" in text


@pytest.mark.parametrize(("code", "words"), [
    (401, "RunPod does not accept RUNPOD_API_KEY (401: on purpose)"),
    (403, "RUNPOD_API_KEY may not do this with endpoint ep1 (403: on purpose)"),
])  # fmt: skip
def test_a_wrong_key_is_told(runpod, command, code, words):
    runpod.add(NEW)
    runpod.faults = [Fault("GET", "/v2/serverless/ep1$", code)]
    done, text = command("status", "--endpoint-id", "ep1")
    assert done == 1 and words in text


@pytest.mark.parametrize(("build", "words"), [
    (Build(), "Healthy: nothing keeps its jobs from being done"),
    (Build(state="INITIALIZING", start_log=("start container",) * 9), "Healthy"),
])  # fmt: skip
def test_a_worker_that_draws_or_starts_is_no_cause(runpod, command, build, words):
    stuck(runpod, build)
    assert words in status(command)


def test_a_job_that_waits_too_long_says_for_what(runpod, command):
    stuck(runpod, Build(state="THROTTLED"), waiting=0, workers=0)
    code, text = command("send", "--endpoint-id", "ep1", "a fox", "--timeout", "30")
    assert code == 1 and "is IN_QUEUE after 30 s. Last: in queue · throttled: no card is free for 1 worker" in text
    assert "Why: python deploy_qwen.py status --endpoint-id ep1" in text


def delete_at(runpod, method, path):
    """Somebody deletes the endpoint at that request."""

    def delete(now, where):
        if now == method and path in where and "ep1" in runpod.endpoints:
            runpod.delete("ep1")

    runpod.on_request = delete


@pytest.mark.parametrize("path", ["/status/", "/workers"])
def test_an_endpoint_deleted_under_a_job_is_told(runpod, command, path):
    stuck(runpod, Build(state="INITIALIZING"), waiting=0, workers=0)
    delete_at(runpod, "GET", path)
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert (
        code == 1 and "Endpoint ep1 was deleted while the job waited" in text and "could not be cancelled" not in text
    )


@pytest.mark.parametrize(("method", "path"), [("GET", "/workers"), ("GET", "/status/"), ("PATCH", "/serverless/")])
def test_an_endpoint_deleted_under_a_deployment_is_told_with_what_is_saved(runpod, command, method, path):
    runpod.add(OLD)
    delete_at(runpod, method, path)
    code, text = command(*SHIP)
    assert code == 1 and "Endpoint ep1 was deleted by somebody else: there is nothing to roll back" in text, text
    (file,) = (runpod.state / "ep1").glob("*.json")
    assert f"What its configuration was: {file}" in text and "Traceback" not in text


def test_a_new_endpoint_deleted_under_a_deployment_is_told(runpod, command):
    delete_at(runpod, "GET", "/status/")
    code, text = command(*SHIP)
    assert code == 1 and "There is no endpoint named qwen-image: none was made, or it was deleted meanwhile" in text
