"""A job is followed through whatever an endpoint says or leaves unsaid, and every fault becomes one sentence."""

import base64
import itertools
import json

import pytest
from PIL import Image

from qwen_play import endpoint as endpoints
from qwen_play.endpoint import Endpoint
from qwen_play.errors import NoAnswer, PlayError, UnknownJob
from qwen_play.following import PATIENCE_SECONDS, follow
from qwen_play.history import MOST_ENTRIES, MOST_VISITORS, Entry, History
from qwen_play.result import read_result
from qwen_play.shown import moment_html, result_html

from ..conftest import file_of, respond

RED = file_of(Image.new("RGB", (64, 64), "red"))
METADATA = {"backend": "qwen-image", "dimensions": "64x64", "steps": 4, "guidance_scale": 4.0, "seed": 7}
DRAWING = {"stage": "drawing", "step": 3, "total": 20, "seconds_left": 4.2}


@pytest.fixture
def speaking(web):
    """speaking(*answers): an endpoint that gives one after another, the last for ever; a number is a status alone."""

    def endpoint(*answers):
        waiting = itertools.chain(answers, itertools.repeat(answers[-1]))

        def answer(handler):
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            one = next(waiting)
            if isinstance(one, int):
                return respond(handler, b'{"error": "no"}', one)
            return respond(handler, json.dumps(one).encode(), Content_Type="application/json")

        return Endpoint(web(answer) + "/v2/ep", "a-secret-key")

    return endpoint


def followed(endpoint):
    return list(follow(endpoint, "job", sleep=lambda seconds: None))


def reply(**metadata):
    return {"success": True, "image": base64.b64encode(RED).decode(), "metadata": METADATA | metadata}


def test_a_job_is_told_from_the_queue_to_its_picture(speaking):
    moments = followed(speaking(
        {"status": "IN_QUEUE"}, {"status": "IN_PROGRESS", "workerId": "a"},
        {"status": "IN_PROGRESS", "workerId": "a", "output": {"stage": "loading", "step": 0, "total": 20}},
        {"status": "IN_PROGRESS", "workerId": "a", "output": {**DRAWING, "preview": "x"}},
        {"status": "IN_PROGRESS", "workerId": "a", "output": {**DRAWING, "step": 4}},
        {"status": "COMPLETED", "executionTime": 2500, "output": reply()},
    ))  # fmt: skip
    assert [moment.text for moment in moments] == [
        "Waiting for a worker", "The worker has begun", "Loading the model", "Step 3 of 20, about 4 s left",
        "Step 4 of 20, about 4 s left", "Done.",
    ]  # fmt: skip
    assert moments[4].preview == "x", "a preview stays until there is a newer one"
    assert moments[-1].seconds == 2.5 and moments[-1].reply


def test_a_streaming_endpoint_s_last_message_counts(speaking):
    moments = followed(speaking(
        {"status": "IN_PROGRESS", "output": [{"stage": "loading"}, DRAWING]},
        {"status": "COMPLETED", "output": [DRAWING, reply()]},
    ))  # fmt: skip
    assert moments[0].step == 3 and moments[1].reply["image"]


@pytest.mark.parametrize("after", [{"status": "IN_QUEUE"}, {"status": "IN_PROGRESS", "workerId": "b"}])
def test_a_worker_that_is_lost_is_told_until_the_end(speaking, after):
    moments = followed(speaking(
        {"status": "IN_PROGRESS", "workerId": "a", "output": DRAWING}, after, {"status": "COMPLETED", "output": reply()}
    ))  # fmt: skip
    assert not moments[0].note
    assert all(moment.note.startswith("The worker that had this job is gone") for moment in moments[1:])
    assert "The worker that had this job is gone" in moment_html(moments[-1])


def test_a_stop_says_how_far_the_job_was(speaking):
    moments = followed(speaking({"status": "IN_PROGRESS", "output": DRAWING}, {"status": "CANCELLED"}))
    assert moments[-1].over and moments[-1].text == "Stopped at step 3 of 20." and not moments[-1].failure


@pytest.mark.parametrize("end, sentence", [
    ({"status": "FAILED", "error": "invalid_input: steps: too many"}, "invalid_input: steps: too many"),
    ({"status": "FAILED", "error": json.dumps({"error_message": "out_of_memory: no"})}, "out_of_memory: no"),
    ({"status": "FAILED"}, "No reason was given."),
    ({"status": "TIMED_OUT"}, "time limit"),
    ({"status": "COMPLETED", "output": {"error": "internal: job"}}, "internal: job"),
    ({"status": "COMPLETED", "output": {"some": "thing"}}, "holds no picture"),
    ({"status": "COMPLETED", "output": None}, "holds no picture"),
])  # fmt: skip
def test_an_end_without_a_picture_is_the_worker_s_sentence(speaking, end, sentence):
    last = followed(speaking(end))[-1]
    assert sentence in last.failure and last.over and last.reply is None


def test_an_endpoint_that_is_busy_for_a_while_is_asked_again(speaking):
    moments = followed(speaking({"status": "IN_QUEUE"}, 429, 502, {"status": "COMPLETED", "output": reply()}))
    assert "Asking again" in moments[1].text and moments[-1].reply


def test_an_endpoint_that_stays_silent_is_given_up():
    seconds = itertools.count(0, PATIENCE_SECONDS / 3)
    with pytest.raises(NoAnswer, match="make serve"):
        list(follow(Endpoint("http://127.0.0.1:9/v2/local"), "job", lambda _: None, lambda: next(seconds)))


@pytest.mark.parametrize("status, kind, words", [
    (401, PlayError, "refuses the key"), (404, PlayError, "no endpoint at"), (413, PlayError, "too large"),
    (429, NoAnswer, "busy"), (500, NoAnswer, "broken"), (400, PlayError, "no"),
])  # fmt: skip
def test_a_refusal_is_a_sentence_without_the_key(speaking, status, kind, words):
    with pytest.raises(kind, match=words) as raised:
        speaking(status).submit({"prompt": "a fox"})
    assert "a-secret-key" not in str(raised.value)


def test_a_job_that_is_forgotten_is_told_apart_from_an_endpoint_that_is_not_there(speaking):
    with pytest.raises(UnknownJob, match="30 minutes"):
        speaking(404).status("job")


@pytest.mark.parametrize("answer", [[], {"no": "id"}])
def test_what_is_no_endpoint_is_named_so(speaking, answer):
    with pytest.raises(PlayError, match="does not seem to be an endpoint"):
        speaking(answer).submit({"prompt": "a fox"})


def test_a_job_above_the_platform_s_limit_is_refused_before_it_is_sent(speaking):
    with pytest.raises(PlayError, match="10.0 MB, and RunPod takes at most 10 MB"):
        speaking(500).submit({"image": "x" * endpoints.REQUEST_BYTES})


def test_a_result_says_what_it_cost_and_a_stand_in_is_named_first():
    result = read_result(reply(warnings=["<b>careful</b>"]), None, 36.0, 1.5)
    assert result.line == "64 × 64 · 4 steps · guidance 4 · seed 7 · 36.0 s · $0.0150"
    assert "&lt;b&gt;careful" in result_html(result) and "stand-in" not in result_html(result)
    stand_in = result_html(read_result(reply(backend="pil-fallback", fallback_reason="no <room>"), None, None, None))
    assert stand_in.index("No model drew this picture") < stand_in.index("64 × 64") and "no &lt;room&gt;" in stand_in


def test_a_reply_with_a_url_is_fetched_without_the_key(web):
    keys = []

    def bucket(handler):
        keys.append(handler.headers.get("Authorization"))
        respond(handler, RED)

    endpoint = Endpoint("http://127.0.0.1:9/v2/ep", "a-secret-key")
    address = web(bucket) + "/picture.png"
    assert read_result({"image_url": address, "metadata": METADATA}, endpoint.fetch, 1, None).suffix == ".png"
    assert keys == [None]
    with pytest.raises(PlayError, match="no PNG, JPEG or WebP"):
        read_result({"image": "aGVsbG8=", "metadata": METADATA}, endpoint.fetch, 1, None)


def test_the_history_is_each_visitor_s_own_newest_first_and_bounded(tmp_path):
    history, result = History(), read_result(reply(), None, None, None)
    for number in range(MOST_ENTRIES + 5):
        history.add("one", Entry(str(number), None, result, tmp_path))
    history.add("other", Entry("x", None, result, tmp_path))
    assert [entry.job_id for entry in history.entries("one")][:2] == [str(MOST_ENTRIES + 4), str(MOST_ENTRIES + 3)]
    assert len(history.entries("one")) == MOST_ENTRIES and len(history.entries("other")) == 1
    for number in range(MOST_VISITORS):
        history.add(f"visitor-{number}", Entry("x", None, result, tmp_path))
    assert not history.entries("one")
