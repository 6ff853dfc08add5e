"""The endpoint's limit, the test jobs and `send` say the same: what callers' jobs cannot do does not serve."""

import json

import pytest

from .conftest import NEW, SHIP, only, settable_fields
from .fake_runpod import Build, draws

SLOW = {"edit": 614}


@pytest.mark.parametrize("enforced", [True, False], ids=["ended by RunPod", "let run"])
@pytest.mark.parametrize("arguments", [(), ("--execution-timeout", "300"), ("--gpu", "auto")])
def test_an_edit_of_614_seconds_never_serves_under_a_shorter_limit(runpod, command, enforced, arguments):
    endpoint = runpod.add(timeout=300_000)
    before = json.loads(json.dumps(settable_fields(endpoint)))
    runpod.builds[NEW] = Build(draws("v1"), seconds=SLOW, progress=({"stage": "drawing", "step": 9, "total": 50},))
    runpod.enforces_limits = enforced
    code, text = command(*SHIP, *arguments)
    assert code == 1 and "serves" not in text.replace("nobody knows whether it serves", ""), text
    assert "rawing is slow" in text and "300 s" in text and settable_fields(endpoint) == before


def test_a_new_endpoint_whose_edit_outlasts_its_limit_is_left_without_workers(runpod, command):
    runpod.builds[NEW] = Build(draws("v1"), seconds=SLOW)
    code, text = command(*SHIP)
    assert code == 1 and only(runpod)["workers"]["max"] == 0 and "its worker named no stage" in text


def test_jobs_are_sent_with_the_endpoint_s_own_limit(runpod, command):
    runpod.add(timeout=420_000)
    assert command(*SHIP)[0] == 0 and command("send", "--endpoint-id", "ep1", "a fox")[0] == 0
    limits = [body["policy"]["executionTimeout"] for method, path, body in runpod.requests if path.endswith("/run")]
    assert len(limits) > 3 and set(limits) == {420_000}


def test_a_load_that_takes_the_limit_is_named(runpod, command):
    runpod.add(timeout=300_000)
    runpod.builds[NEW] = Build(draws("v1"), seconds={"generate": 400}, progress=({"stage": "loading"},))
    code, text = command(*SHIP)
    assert code == 1 and "generate: the job was ended at the endpoint's limit of 300 s; loading is slow" in text


def test_a_job_that_nearly_takes_the_limit_is_said_with_what_is_slow(runpod, command):
    runpod.add(timeout=300_000)
    runpod.builds[NEW] = Build(draws("v1", load=240.0), seconds={"generate": 270})
    code, text = command(*SHIP)
    assert code == 0 and "generate took 270 of the 300 s that a job may run: Loading is slow: 240 s load" in text, text


def test_the_worker_s_own_deadline_counts_as_the_limit(runpod, command):
    def answer(fields, env):
        late = {"error": "deadline_exceeded: the job's 298 seconds ran out while it was drawn", "success": False}
        return late if fields["task"] == "edit" else draws("v1")(fields, env)

    runpod.add(timeout=300_000)
    runpod.builds[NEW] = Build(answer, progress=({"stage": "drawing"},))
    code, text = command(*SHIP)
    assert code == 1 and "limit of 300 s (deadline_exceeded: the job's 298 seconds ran out" in text


def test_send_says_that_the_limit_ended_the_job(runpod, command, tmp_path):
    runpod.add(NEW, timeout=300_000)
    runpod.builds[NEW] = Build(draws("v1"), seconds={"generate": 614}, progress=({"stage": "drawing"},))
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert code == 1 and "ended at the endpoint's limit of 300 s; drawing is slow" in text


def test_the_limit_of_a_new_endpoint_follows_from_its_slowest_task(runpod, command):
    code, text = command(*SHIP, "--gpu", "AMPERE_16")
    limit = only(runpod)["timeout"]
    assert code == 0 and limit > 614_000 and limit % 60_000 == 0, text
    assert "AMPERE_16: a picture takes ~144 s (computed), more than 30 s" in text


def test_a_limit_that_is_too_short_for_the_cards_is_said_before_a_yes(runpod, command):
    code, text = command(*SHIP, "--gpu", "AMPERE_16", "--execution-timeout", "300", "--dry-run")
    assert (
        code == 0
        and "AMPERE_16: drawing is slow: an edit ~374 s, where --execution-timeout ends jobs after 300 s" in text
    )
    code, text = command(*SHIP, "--gpu", "HOPPER_141", "--execution-timeout", "200", "--dry-run")
    assert code == 0 and "HOPPER_141: loading is slow: a cold worker's first job may take" in text


def test_an_endpoint_without_a_limit_has_none(runpod, command):
    runpod.add(NEW, timeout=0)
    assert command("send", "--endpoint-id", "ep1", "a fox")[0] == 0
    assert all("policy" not in body for _, path, body in runpod.requests if path.endswith("/run"))
