"""The lines of the terminal: one for each job, on one line, whatever a job or a worker calls itself."""

import asyncio

import pytest

from qwen_local.console import JobLines, task_of
from qwen_local.job import JobRequest
from qwen_local.plane import Plane


def test_a_job_is_a_line_with_its_task_its_seconds_and_its_state(capsys):
    now = [0.0]
    plane = Plane([JobLines()], clock=lambda: now[0])

    def run(job_input, **body):
        job = plane.submit(JobRequest(job_input))
        asyncio.run(plane.take("worker-1", 1, 1))
        now[0] += 1.5
        plane.hear_result(job, "worker-1", body)
        return job.id

    drawn = run({"prompt": "a"}, output={"image": "x"})
    failed = run({"task": "edit"}, error="internal:\x1b[31m\nforged line " + "x" * 200)
    large = plane.submit(JobRequest({"prompt": "a"}))
    plane.refuse_result(large, 12_300_000)
    waiting = plane.submit(JobRequest({"prompt": "a", "image": "x"}))
    plane.cancel(waiting)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{drawn} generate 1.5 s COMPLETED"
    assert lines[1].startswith(f"{failed} edit 1.5 s FAILED: internal:?[31m forged line xxx") and len(lines[1]) < 260
    assert lines[2].startswith(
        f"{large.id} has a reply of 12.3 MB. RunPod takes no more than 10 MB and drops a larger one"
    )
    assert lines[4] == f"{waiting.id} edit CANCELLED"


@pytest.mark.parametrize(
    ("job_input", "task"),
    [
        ({"openai_route": "/v1/images/edits", "openai_input": {}}, "openai edits"),
        ({"task": "health"}, "health"),
        ({"task": ["x"], "prompt": "a"}, "generate"),
        ("text", "job"),
    ],
)
def test_the_task_is_what_the_input_says_at_first_sight(job_input, task):
    assert task_of(job_input) == task


def test_a_job_that_the_end_of_the_endpoint_interrupts_is_not_said_to_go_on(capsys):
    lines = JobLines()
    plane = Plane([lines])
    job = plane.submit(JobRequest({"prompt": "a"}))
    asyncio.run(plane.take("worker-1", 1, 1))
    lines.ending = True
    plane.lose("worker-1")
    assert capsys.readouterr().out == f"{job.id} was not finished, because the endpoint ends\n"
