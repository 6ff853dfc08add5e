"""The example clients and what a platform may answer, by a server on loopback that answers by a script. No worker."""

import base64
import json
import os
import re
import signal
import socket

import pytest

from ..conftest import respond
from ..support.patience import wait_until

JOB = {"prompt": "a red circle"}
QUEUED = (200, {"id": "one", "status": "IN_QUEUE"})
PICTURE = b"the bytes of a picture"
FACTS = {"output_format": "webp", "dimensions": "256x256", "seeds": [7], "backend": "qwen-image"}
REPLY = {"image": base64.b64encode(PICTURE).decode(), "metadata": FACTS}


def ended(status="COMPLETED", **fields):
    return 200, {"id": "one", "status": status, **fields}


class Script:
    """Each request gets the next answer of the first part of its path, and the last one of them again and again.

    An answer is a status with a body, or 'hang up'. `asked` are the requests: that part, and the key; `bodies` theirs.
    """

    def __init__(self, **answers):
        self.answers, self.asked, self.agents, self.bodies = answers, [], set(), []

    def __call__(self, handler):
        self.bodies.append(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)))
        name = handler.path.split("/")[1]
        self.asked.append((name, handler.headers.get("Authorization")))
        self.agents.add(handler.headers["User-Agent"])
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "hang up":
            handler.close_connection = True
        else:
            status, body = answer
            respond(handler, body if isinstance(body, bytes) else json.dumps(body).encode(), status)

    def count(self, name):
        return [asked for asked, _ in self.asked].count(name)


def last_line(client):
    return client.err.strip().splitlines()[-1]


def test_the_shape_that_a_client_reads_is_asked_for(kind, start, web):
    if kind == "sh":
        pytest.skip("its job is a file of the user's own")
    script = Script(run=[QUEUED], status=[ended(output=REPLY)])
    assert start(kind, web(script), JOB).status() == 0
    assert json.loads(script.bodies[0]) == {"input": JOB | {"response_shape": "worker"}}


def test_what_may_pass_is_tried_again(kind, start, web, tmp_path):
    script = Script(run=[(503, b"busy"), QUEUED], status=["hang up", (429, b"slower"), ended(output=REPLY)])
    client = start(kind, web(script), JOB)
    assert client.status() == 0, client.err
    assert (tmp_path / client.out.strip()).read_bytes() == PICTURE and client.out.strip() == "one-1.webp"
    assert (script.count("run"), script.count("status")) == (2, 3)
    assert {key for _, key in script.asked} == {"Bearer a-key"}
    assert not any("urllib" in agent for agent in script.agents)  # RunPod's firewall turns that name away


def test_a_job_that_the_endpoint_may_have_is_not_sent_again(kind, start, web):
    """It would be drawn, and paid for, twice."""
    script = Script(run=["hang up"])
    client = start(kind, web(script), JOB)
    assert client.status() != 0 and script.count("run") == 1


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_request_that_is_refused_is_not_sent_again_and_the_answer_is_printed(kind, start, web, status):
    script = Script(run=[(status, {"error": "this is the reason"})])
    client = start(kind, web(script), JOB)
    assert client.status() == 1 and script.count("run") == 1
    assert "this is the reason" in client.err and str(status) in client.err and "Traceback" not in client.err


@pytest.mark.parametrize("status", ["TIMED_OUT", "CANCELLED", "FAILED"])
def test_a_job_that_has_ended_without_a_reply_is_told_by_its_state(kind, start, web, status):
    client = start(kind, web(Script(run=[QUEUED], status=[ended(status, error="the reason")])), JOB)
    assert client.status() == 1 and last_line(client) == f"{status}: the reason" and client.out == ""


def test_a_completed_job_whose_reply_was_dropped_is_no_success(kind, start, web):
    client = start(kind, web(Script(run=[QUEUED], status=[ended()])), JOB)
    assert client.status() == 1 and last_line(client) == "COMPLETED: no reply" and client.out == ""


def test_a_stand_in_is_no_success(kind, start, web):
    facts = {**FACTS, "backend": "pil-fallback", "fallback_reason": "it needs 60 GB"}
    client = start(kind, web(Script(run=[QUEUED], status=[ended(output={**REPLY, "metadata": facts})])), JOB)
    assert client.status() == 1 and last_line(client) == "This is a stand-in, which no model drew: it needs 60 GB"


def test_the_reply_of_an_endpoint_that_streams_is_the_last_of_its_list(kind, start, web, tmp_path):
    client = start(kind, web(Script(run=[QUEUED], status=[ended(output=[{"stage": "drawing"}, REPLY])])), JOB)
    assert client.status() == 0, client.err
    assert (tmp_path / "one-1.webp").read_bytes() == PICTURE


def test_pictures_are_fetched_from_their_urls_without_the_key(kind, start, web, tmp_path):
    script = Script(run=[QUEUED], picture=[(200, PICTURE)])
    address = web(script)
    urls = [f"{address}/picture/1", f"{address}/picture/2"]
    output = {"image_url": urls[0], "image_urls": urls, "metadata": {**FACTS, "seeds": [7, 8]}}
    script.answers["status"] = [ended(output=output)]
    client = start(kind, address, JOB)
    assert client.status() == 0, client.err
    assert [(tmp_path / file).read_bytes() for file in client.out.split()] == [PICTURE] * 2
    assert [key for name, key in script.asked if name == "picture"] == [None, None]


def test_a_job_above_the_limit_of_the_platform_is_not_sent(kind, start, web, tmp_path):
    script = Script(run=[QUEUED])
    (tmp_path / "large.png").write_bytes(bytes(8_000_000))
    image = "@large.png" if kind != "sh" else "A" * 10_666_668
    client = start(kind, web(script), {**JOB, "image": image})
    assert client.status() == 1 and script.asked == []
    assert re.match(r"/run takes 10 MB, and this job has 10\.?[67]", client.err)


def test_ctrl_c_while_nothing_answers_ends_the_client(kind, start):
    """And before that it has tried again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nothing listens there
        client = start(kind, f"http://127.0.0.1:{taken.getsockname()[1]}", JOB)
        wait_until(lambda: re.search("trying again|Will retry", client.err), client.process.pid)
        os.killpg(client.process.pid, signal.SIGINT)
        assert client.status() in (130, -signal.SIGINT) and "Traceback" not in client.err


def test_ctrl_c_before_the_id_is_known_says_that_the_job_may_be_running(kind, start):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = start(kind, f"http://127.0.0.1:{listener.getsockname()[1]}", JOB)
        listener.settimeout(60)
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)  # the request is on its way, and is never answered
            os.killpg(client.process.pid, signal.SIGINT)
            assert client.status() != 0
    assert "the job may be running there" in client.err and "Cancelled" not in client.err


@pytest.mark.parametrize("kind", ["py", "ts"], indirect=True)
@pytest.mark.parametrize(
    ("field", "sentence"), [("image=@none.png", "none.png"), ("fox", "A prompt of several words needs quotes.")]
)
def test_a_slip_in_a_field_is_told_in_a_sentence(kind, start, web, field, sentence):
    script = Script(run=[QUEUED])
    client = start(kind, web(script), JOB, field)
    assert client.status() == 1 and script.asked == []
    assert sentence in client.err and "Traceback" not in client.err and "    at " not in client.err
