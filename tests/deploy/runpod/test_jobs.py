"""What a job's status and answer are read as."""

import pytest

from qwen_deploy.runpod.jobs import describe_progress, read_answer


def test_a_streaming_endpoint_s_last_item_is_the_reply():
    status = {"status": "COMPLETED", "output": [{"stage": "drawing"}, {"image": "x"}], "executionTime": 2500}
    answer = read_answer("j", status)
    assert answer.reply == {"image": "x"} and answer.seconds == 2.5 and answer.error == ""


@pytest.mark.parametrize("status, words", [
    ({"status": "IN_QUEUE"}, "in queue"),
    ({"status": "IN_PROGRESS", "output": {"stage": "drawing", "step": 3, "total": 50, "seconds_left": 14.6}},
     "in progress · drawing · step 3/50 · 15 s left"),
    ({"status": "IN_PROGRESS", "output": [{"stage": "loading"}]}, "in progress · loading"),
    ({"status": "IN_PROGRESS", "output": "anything"}, "in progress"),
])  # fmt: skip
def test_progress_is_in_the_worker_s_own_words(status, words):
    assert describe_progress(status) == words
