"""What a job asks for and does not get is in its reply, once, whoever noticed it."""

import pytest

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.reply import complete_metadata

DELIVERY = {"delivery": "inline", "output_format": "png"}


def metadata_of(job):
    return complete_metadata({"prompt": "a fox"}, job.timings, job.warnings, DELIVERY)


def test_a_reply_without_warnings_has_no_such_field():
    assert "warnings" not in metadata_of(Job("job", parse({"prompt": "a fox"}, "job")))


def test_warnings_from_before_the_job_and_from_within_come_in_their_order_and_once():
    job = Job("job", parse({"prompt": "a fox"}, "job"), warnings=["the first", "the second"])
    for sentence in ("the third", "the second", "the third"):
        job.warn(sentence)
    assert metadata_of(job)["warnings"] == ["the first", "the second", "the third"]


def test_a_warning_shows_no_secret_of_a_url():
    job = Job("job", parse({"prompt": "a fox"}, "job"))
    job.warn("https://me:secret@example.com/a.png?signature=1 has a profile that cannot be used")
    assert metadata_of(job)["warnings"] == ["https://example.com/a.png has a profile that cannot be used"]


def test_no_job_sends_warnings_itself():
    with pytest.raises(InvalidInput, match='"warnings" is not a field of generate'):
        parse({"prompt": "a fox", "warnings": ["x"]}, "job")
