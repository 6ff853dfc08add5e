"""What the network and RunPod refuse, and what the operator is told of it."""

import time

import pytest

from ..conftest import NEW, SHIP, only
from ..fake_runpod import Fault


def test_a_connection_that_drops_during_an_update_does_not_matter(runpod, command):
    runpod.add()
    runpod.faults = [Fault("PATCH", "/serverless/", drop="before"), Fault("PATCH", "/serverless/", drop="after")]
    assert command(*SHIP)[0] == 0 and only(runpod)["image"] == NEW


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_connection_that_drops_during_a_creation_makes_one_endpoint(runpod, command, drop):
    runpod.faults = [Fault("POST", "/v2/serverless$", drop=drop)]
    assert command(*SHIP)[0] == 0 and only(runpod)["image"] == NEW


def test_a_retry_after_is_waited_for(runpod, command, clock):
    runpod.add()
    runpod.faults = [Fault("PATCH", "/serverless/", 429, {"Retry-After": "12"}), Fault("GET", "/workers", 503)]
    code, text = command(*SHIP)
    assert code == 0 and 12.0 in clock.pauses and "RunPod answered 429; trying again in 12 s" in text


def test_a_retry_after_as_a_date_is_waited_for(runpod, command, clock):
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 40))
    runpod.faults = [Fault("GET", "/v2/serverless$", 429, {"Retry-After": later})]
    assert command(*SHIP)[0] == 0 and any(30 < pause <= 40 for pause in clock.pauses)


REFUSALS = [
    (401, "RunPod does not accept RUNPOD_API_KEY (401: on purpose)"),
    (402, "balance does not cover this (402: on purpose). Add credit"),
    (403, "It needs to read and write Serverless"),
    (404, "the new endpoint does not exist or belongs to another account"),
    (409, "the new endpoint is being changed by something else"),
    (429, "takes no more requests for now (429: on purpose). Wait 900 s"),
    (500, "RunPod is failing (500: on purpose)"),
]


@pytest.mark.parametrize("status, sentence", REFUSALS)
def test_each_refusal_has_its_sentence(runpod, command, status, sentence):
    runpod.faults = [Fault("POST", "/v2/serverless$", status, {"Retry-After": "900"})]
    code, text = command(*SHIP)
    assert code == 1 and sentence in text and not runpod.endpoints and "Traceback" not in text


@pytest.mark.parametrize("body", [{"unheard": "of"}, ["a list"]])
def test_an_answer_that_is_not_runpod_s_is_said_so(runpod, command, body):
    runpod.faults = [Fault("GET", "/v2/serverless$", 200, body=body)]
    code, text = command(*SHIP)
    assert code == 1 and "RUNPOD_API_URL" in text


def test_a_failing_runpod_is_asked_five_times(runpod, command, clock):
    runpod.faults = [Fault("GET", "/v2/serverless$", 502) for _ in range(9)]
    code, text = command(*SHIP)
    assert code == 1 and "RunPod is failing (502" in text and len(runpod.requests) == 5
    assert clock.pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("arguments, sentence", [
    (("--disk", "7", "--flashboot", "off"), "disk: must be at least 8, not 7"),
    (("--env", "SECRET_THING=1234567"), "env.SECRET_THING: too short"),
])  # fmt: skip
def test_a_refused_field_is_named_with_its_rule_and_value(runpod, command, arguments, sentence):
    entry = "$.disk: must be at least 8" if "--disk" in arguments else "$.env.SECRET_THING: too short"
    body = {"title": "Unprocessable Entity", "status": 422, "detail": "Request validation failed.", "errors": [entry]}
    runpod.faults = [Fault("POST", "/v2/serverless$", 422, body=body)]
    code, text = command(*SHIP, *arguments)
    assert code == 1 and f"RunPod refused the new endpoint (422): {sentence}" in text and "1234567" not in text


def test_no_network_is_said_so(command):
    code, text = command(*SHIP, url="http://127.0.0.1:9")  # nothing listens there
    assert code == 1 and "This machine cannot reach 127.0.0.1: no network" in text


def test_a_wrong_key_is_refused_before_anything_is_built(runpod, command, docker):
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--yes", key="rpa_WRONGKEY000000000")
    assert code == 1 and "RunPod does not accept RUNPOD_API_KEY" in text and not docker.calls()


@pytest.mark.parametrize("key, sentence", [("", "is not set"), ("short", "not 5"), ("two words here", "one printable")])
def test_a_missing_or_impossible_key_is_said_so(command, key, sentence):
    code, text = command(*SHIP, key=key)
    assert code == 2 and "RUNPOD_API_KEY" in text and sentence in text
    assert not key or key not in text


def test_a_test_job_that_drops_is_sent_again(runpod, command):
    runpod.add()
    runpod.faults = [Fault("POST", "/run", drop="after"), Fault("POST", "/run", 502)]
    assert command(*SHIP)[0] == 0


def test_a_job_of_the_operator_is_not_sent_twice(runpod, command):
    runpod.add(NEW)
    runpod.faults = [Fault("POST", "/run", drop="after")]
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert code == 1 and "dropped the connection" in text and len(runpod.writes) == 1
