"""A job's webhook hears how it ended, as the platform tells it."""

import asyncio
import json

from qwen_local.job import JobRequest
from qwen_local.plane import Plane
from qwen_local.webhooks import Webhooks

from ..conftest import respond
from ..support.patience import until


def ended_job(url, pause_seconds=0.0):
    """What is said while a job with this webhook ends."""
    lines = []

    async def end():
        webhooks = Webhooks(lines.append, pause_seconds)
        plane = Plane([webhooks])
        job = plane.submit(JobRequest({"prompt": "a"}, webhook=url))
        await plane.take("worker-1", 1, 1)
        plane.hear_result(job, "worker-1", {"output": {"image": "x"}})
        await until(lambda: not webhooks.posting)
        return job

    return asyncio.run(end()), lines


def test_the_whole_job_is_posted_until_it_is_taken(web):
    heard = []

    def hear(handler):
        heard.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        respond(handler, b"", 200 if len(heard) == 3 else 503)

    url = web(hear) + "/done"
    job, lines = ended_job(url)
    assert len(heard) == 3 and heard[0] == heard[2] and lines == []
    assert heard[0] == {**job.state(), "input": {"prompt": "a"}, "webhook": url}
    assert heard[0]["status"] == "COMPLETED" and heard[0]["output"] == {"image": "x"}


def test_a_webhook_that_does_not_take_it_is_given_up_and_the_job_stays_what_it_is(web):
    for url, words in [
        (
            web(lambda handler: respond(handler, b"", 302, Location="http://127.0.0.1:9/")),
            "it answered 302 instead of 200",
        ),
        ("http://127.0.0.1:9/nobody", "it cannot be reached (ClientConnectorError)"),
        ("http://host.invalid/", "it cannot be reached (ClientConnectorDNSError)"),
    ]:
        job, lines = ended_job(url)
        assert lines == [f"the webhook of {job.id} was tried 3 times and given up: {words}"]
        assert job.state()["status"] == "COMPLETED"
