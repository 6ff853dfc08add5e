"""`spent` shows what RunPod has billed, added up as the bill is."""

import re

import pytest

from .conftest import OLD
from .fake_runpod import Fault


def test_the_days_that_are_asked_for_are_those_that_count(runpod, command):
    runpod.add()
    for days_ago in (0, 6, 7):
        runpod.bills.add("serverless", "ep1", days_ago, 1.0, 0, 0.5, 0.25)
    assert "$5.25 for endpoints and volumes in 30 days" in command("spent")[1]
    assert "$3.50 for endpoints and volumes in 7 days" in command("spent", "--days", "7")[1]
    assert "$1.75 for endpoints and volumes in 1 day" in command("spent", "--days", "1")[1]


def test_an_endpoint_s_bill_has_a_row_for_each_day_that_cost_something(runpod, command):
    runpod.add()
    runpod.add(OLD, name="another")
    runpod.bills.add("serverless", "ep1", 0, 1.0, 0.5, 0.25, 0.125)
    runpod.bills.add("serverless", "ep1", 1, 0, 0, 0, 0)
    runpod.bills.add("serverless", "ep3", 1, 99, 0, 0, 0)
    code, text = command("spent", "--name", "qwen-image")
    assert code == 0 and "Endpoint qwen-image (ep1): $1.88 in 30 days" in text
    assert re.findall(r"^2026-\S+", text, re.M) == ["2026-06-30"] and re.search(r"1\.50 +0\.25 +0\.12 +1\.88", text)


def test_a_deleted_endpoint_and_a_volume_stay_in_the_bill(runpod, command):
    runpod.bills.add("serverless", "ep9", 3, 7.0, 0, 0, 0)
    runpod.bills.add("network-volumes", "vol1", 3, 0, 2.0)
    code, text = command("spent")
    assert code == 0 and "$9.00" in text and re.search(r"\(deleted\) +ep9 +7\.00", text)
    assert re.search(r"volume +vol1 +2\.00", text)
    code, text = command("spent", "--endpoint-id", "ep9")
    assert code == 0 and "Endpoint ep9, which is deleted: $7.00" in text


def test_nothing_billed_is_said_so(runpod, command):
    code, text = command("spent")
    assert code == 0 and "Nothing was billed." in text and "$0.00" in text


def test_an_id_that_never_was_is_told(runpod, command):
    code, text = command("spent", "--endpoint-id", "epX")
    assert code == 1 and "Endpoint epX does not exist, and nothing was billed in 30 days." in text


@pytest.mark.parametrize(("code", "words"), [
    (403, "RUNPOD_API_KEY may not read the bill (403)"),
    (401, "RunPod does not accept RUNPOD_API_KEY"),
    (500, "RunPod is failing (500"),
])  # fmt: skip
def test_a_bill_that_is_refused_is_told(runpod, command, code, words):
    runpod.faults = [Fault("GET", "/v2/billing/serverless", code) for _ in range(5)]
    done, text = command("spent")
    assert done == 1 and words in text


@pytest.mark.parametrize("body", [{"metadata": {}}, {"records": None}])
def test_a_bill_without_records_is_told(runpod, command, body):
    runpod.faults = [Fault("GET", "/v2/billing/serverless", 200, body=body)]
    code, text = command("spent")
    assert code == 1 and "RunPod answered the bill of endpoints without `records`" in text
