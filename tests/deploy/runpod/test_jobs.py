"""What a job's answer is read as."""

from qwen_deploy.runpod.jobs import read_answer


def test_a_streaming_endpoint_s_last_item_is_the_reply():
    status = {"status": "COMPLETED", "output": [{"stage": "drawing"}, {"image": "x"}], "executionTime": 2500}
    answer = read_answer("j", status)
    assert answer.reply == {"image": "x"} and answer.seconds == 2.5 and answer.error == ""
