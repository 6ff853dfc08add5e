"""Inputs made to break the worker: a refusal or a reply, no path or traceback in it, and it lives on."""

import asyncio
import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runpod.serverless.modules.rp_job import run_job

from qwen_worker.errors import CODES
from qwen_worker.jobs.aliases import ALIASES, READERS
from qwen_worker.jobs.tasks import TASKS

FIELDS = sorted(
    {name for model in TASKS.values() for name in model.model_fields} | set(ALIASES) | set(READERS) | {"image"}
)
nasty = st.sampled_from(
    ["", "\0", "../../etc/passwd", "<|image_pad|>", "{prompt}", "%s%n", "'; --", "\ud800", "𝕏" * 500, "a" * 3000, "NaN",
     "file:///etc/passwd", "http://169.254.169.254/", "http://[::1", "data:image/png;base64,", "iVBORw0KGgo=", "-1"]
)  # fmt: skip
numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, 16, 256, 2048, 2**53, -0.0, 1e308, True])
)
text = st.one_of(nasty, st.text(max_size=60), st.text(string.printable, max_size=20))
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=8
)
# Mostly right, with something wrong: what is wrong everywhere is refused at the first field.
plausible = st.fixed_dictionaries(
    {"prompt": st.one_of(st.just("a cat"), text), "width": st.just(256), "height": st.just(256)},
    optional={name: values for name in FIELDS if name not in ("prompt", "width", "height")},
)
wild = st.dictionaries(st.one_of(st.sampled_from(["task", *FIELDS]), text), values, max_size=8)
# OpenAI's calls, as the platform's proxy wraps them
ROUTES = ["/v1/images/generations", "/v1/images/edits", "/v1/models"]
names = st.one_of(st.sampled_from(["model", "response_format", "quality", "mask", "user", "images", *FIELDS]), text)
asked = st.one_of(plausible, st.dictionaries(names, values, max_size=8), values)
calls = st.fixed_dictionaries(
    {"openai_route": st.one_of(st.sampled_from(ROUTES), values)}, optional={"openai_input": asked, "prompt": values}
)
inputs = st.one_of(plausible, wild, calls, values)
beside = st.fixed_dictionaries({}, optional={"s3Config": values, "policy": values, "webhook": values})

DEPTH = 100_000  # of objects within objects: more than Python's own readers and printers of JSON follow

FORBIDDEN = ("Traceback", "/home/", "/root/", "site-packages", ".py", "qwen_worker", "runpod_handler", "secret-word")


def test_hostile_inputs_are_answered_and_tell_nothing(cold_worker, capsys, sample):
    worker = cold_worker(QWEN_FALLBACK="force", QWEN_FETCH_SECONDS=0.2, BUCKET_ENDPOINT_URL=None)
    seen, count = [], sample(300, 1000)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs, beside)
    def hostile(fields, more):
        body = asyncio.run(run_job(worker.answer, {"id": f"job-{len(seen)}", "input": fields, **more}))
        posted = json.dumps(body, ensure_ascii=False).encode("utf-8").decode()
        error = body.get("error", "ok")
        code = json.loads(error)["code"] if error.startswith("{") else error.split(":")[0]
        seen.append(code)
        assert code == "ok" or code in CODES and code != "internal", body["error"]
        if code != "ok":
            assert not any(word in posted for word in FORBIDDEN if word not in repr(fields) + repr(more))
            assert len(posted) < 5000
        capsys.readouterr()

    hostile()
    assert len(seen) >= count and seen.count("ok") > count / 50 and seen.count("invalid_input") > 0.3 * count
    assert asyncio.run(worker.answer({"id": "after", "input": {"task": "health"}}))["status"] == "healthy"


@pytest.mark.parametrize("place", ["input", "prompt", "image", "loras", "parameters", "metadata", "s3Config", "policy"])
def test_a_job_that_is_nested_a_hundred_thousand_times_is_answered_and_the_next_one_too(cold_worker, place):
    deep = {}
    for _ in range(DEPTH):
        deep = {"a": deep}
    fields = {"prompt": "a cat", "width": 256, "height": 256}
    job = {"id": "deep", "input": fields | {place: deep}}
    if place in ("input", "s3Config", "policy"):
        job = {"id": "deep", "input": fields, place: deep}
    worker = cold_worker(QWEN_FALLBACK="force")
    body = asyncio.run(run_job(worker.answer, job))
    # What nothing reads draws the picture all the same.
    assert ("error" in body) is (place not in ("metadata", "policy"))
    assert body.get("error", "invalid_input").startswith("invalid_input")
    assert len(json.dumps(body)) < 500_000
    assert asyncio.run(run_job(worker.answer, {"id": "next", "input": fields}))["output"]["success"]
