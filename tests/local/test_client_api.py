"""What a client is answered, without a worker: wrong bodies, unknown jobs, waits, stops, chunks, results too large."""

import json

import pytest

from .conftest import WORKER_KEY

JOB = {"input": {"prompt": "a"}}


@pytest.fixture
def home(doorway):
    return doorway()


def take(home):
    return home.call("GET", f"/workers/{WORKER_KEY}/job-take/worker-1").json()


def post_result(home, job_id, body, kind="job-done"):
    path = f"/workers/{WORKER_KEY}/{kind}/worker-1/{job_id}?isStream=false"
    return home.call("POST", path, data=json.dumps(body)).status_code


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The body must be JSON"),
        (b"{", "The body must be JSON"),
        (b"\xff\xfe", "The body must be JSON"),
        (b"[" * 100_000, "The body must be JSON"),
        (b'{"input": {"seed": ' + b"1" * 5000 + b"}}", "fox\"}}: a number in it has too many digits"),
        (b"[]", "must be a JSON object with an input"),
        (b'{"prompt": "a"}', "must be a JSON object with an input"),
        (b'{"input": {}}', 'input must not be empty, as {} is: RunPod hands no such job to a worker'),
        (b'{"input": null}', "input must not be empty, as null is"),
        (b'{"input": {"a": 1}, "policy": 5}', "policy must be an object, as"),
        (b'{"input": {"a": 1}, "policy": {"executionTimeout": 60}}', "from 5000 to 604800000, not 60"),
        (b'{"input": {"a": 1}, "policy": {"executionTimeout": true}}', "policy.executionTimeout must be a number of"),
        (b'{"input": {"a": 1}, "policy": {"executionTimeout": NaN}}', "policy.executionTimeout must be a number of"),
        (b'{"input": {"a": 1}, "policy": {"ttl": "1h"}}', 'policy.ttl must be a number of milliseconds from 10000 to'),
        (b'{"input": {"a": 1}, "policy": {"lowPriority": 1}}', "policy.lowPriority must be true or false, not 1"),
        (b'{"input": {"a": 1}, "webhook": "ftp://x"}', "webhook must be a URL that begins with http:// or https://"),
        (b'{"input": {"a": 1}, "webhook": "http://[x"}', "webhook must be a URL"),
        (b'{"input": {"a": 1}, "webhook": ["http://x"]}', "webhook must be a URL"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_job_is_refused_with_the_rule(home, body, words):
    for path in ("run", "runsync"):
        answer = home.post(path, data=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and words in answer.json()["error"]
    assert home.get("health").json()["jobs"]["inQueue"] == 0


@pytest.mark.parametrize("wait", ["0", "999", "300001", "soon", "nan"])
def test_a_wait_out_of_bounds_is_refused(home, wait):
    answer = home.post(f"runsync?wait={wait}", json=JOB)
    assert answer.status_code == 400 and "wait must be a number of milliseconds from 1000 to 300000" in answer.text


def test_runsync_waits_no_longer_than_it_is_told(home):
    answer = home.post("runsync?wait=1000", json=JOB).json()
    assert answer == {"id": answer["id"], "status": "IN_QUEUE"} and answer["id"].startswith("sync-")
    assert home.get(f"status/{answer['id']}").json() == answer


def test_of_a_job_that_there_is_not_nothing_is_known(home):
    for method, path in (("GET", "status"), ("GET", "stream"), ("POST", "cancel"), ("POST", "retry")):
        answer = home.call(method, f"/v2/local/{path}/nothing")
        assert answer.status_code == 404 and "There is no such job" in answer.json()["error"]


def test_a_job_goes_to_the_worker_with_what_stands_beside_its_input(home):
    beside = {"webhook": "http://127.0.0.1:9/", "policy": {"executionTimeout": 60000}, "s3Config": {"bucketName": "b"}}
    job = home.post("run", json={**JOB, **beside, "other": 1}).json()
    assert job["status"] == "IN_QUEUE"
    assert take(home) == {"id": job["id"], **JOB, **beside}


def test_the_status_tells_progress_and_then_the_reply(home):
    job_id = home.post("run", json=JOB).json()["id"]
    take(home)
    assert "output" not in home.get(f"status/{job_id}").json()
    assert post_result(home, job_id, {"status": "IN_PROGRESS", "output": {"step": 3}}) == 200
    state = home.get(f"status/{job_id}").json()
    assert state["status"] == "IN_PROGRESS" and state["output"] == {"step": 3} and state["workerId"] == "worker-1"
    assert post_result(home, job_id, {"output": {"image": "ä"}}) == 200
    state = home.get(f"status/{job_id}").json()
    assert state["status"] == "COMPLETED" and state["output"] == {"image": "ä"}
    assert state["delayTime"] >= 0 and state["executionTime"] >= 0 and "error" not in state


def test_every_chunk_is_streamed_once(home):
    job_id = home.post("run", json=JOB).json()["id"]
    take(home)
    for step in (1, 2):
        post_result(home, job_id, {"output": {"step": step}}, "job-stream")
    assert home.get(f"stream/{job_id}").json()["stream"] == [{"output": {"step": 1}}, {"output": {"step": 2}}]
    post_result(home, job_id, {"output": {"step": 3}}, "job-stream")
    post_result(home, job_id, {"output": [1, 2, 3]})
    last = {"id": job_id, "status": "COMPLETED", "stream": [{"output": {"step": 3}}]}
    assert home.get(f"stream/{job_id}").json() == last
    assert home.get(f"stream/{job_id}").json() == {**last, "stream": []}


def test_a_stop_of_a_job_that_has_ended_changes_nothing(home):
    job_id = home.post("run", json=JOB).json()["id"]
    take(home)
    post_result(home, job_id, {"output": {"image": "x"}})
    assert home.post(f"cancel/{job_id}").json() == {"id": job_id, "status": "COMPLETED"}
    answer = home.post(f"retry/{job_id}")
    assert answer.status_code == 400 and "this one is COMPLETED" in answer.json()["error"]


@pytest.mark.parametrize(("path", "most"), [("run", 10), ("runsync?wait=1000", 20)])
def test_a_result_above_the_platform_s_limit_is_dropped_and_the_job_completes_without_output(home, path, most):
    job_id = home.post(path, json=JOB).json()["id"]
    take(home)
    assert post_result(home, job_id, {"output": {"image": "x" * (most * 1_000_000)}}) == 400
    state = home.get(f"status/{job_id}").json()
    assert state["status"] == "COMPLETED" and "output" not in state


def test_what_is_no_json_from_a_worker_leaves_the_job_as_it_is(home):
    job_id = home.post("run", json=JOB).json()["id"]
    take(home)
    path = f"/workers/{WORKER_KEY}/job-done/worker-1/{job_id}"
    assert home.call("POST", path, data=b"{").status_code == 400
    assert home.get(f"status/{job_id}").json()["status"] == "IN_PROGRESS"
