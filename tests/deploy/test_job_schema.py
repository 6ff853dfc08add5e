"""The schema of a job and the OpenAPI document are what their command writes, and true of jobs and of whole replies."""

import json

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from qwen_deploy import job_schema
from qwen_worker.delivery_settings import ResponseShape
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.openai_images import call_of
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.reply import DrawingResult, complete_metadata, drawing_facts
from qwen_worker.jobs.response_shapes import Files, shaped_reply
from qwen_worker.serving.progress import message_of
from qwen_worker.settings import Settings

from ..conftest import ROOT, run
from ..test_docs import JOBS, MODELS, examples
from ..worker import replies

DOCUMENT = json.loads((ROOT / "docs/openapi.json").read_text())


def validator(name, **options):
    """For a schema of the document. `object_hook`: changes each object of it."""
    components = json.loads(json.dumps(DOCUMENT["components"]), **options)
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


def close(schema):
    """Without fields that the schema does not name, and without those that recorded replies lack."""
    if schema.get("type") != "object" or "properties" not in schema or "unevaluatedProperties" in schema:
        return schema
    needed = [name for name in schema.get("required", []) if name not in replies.VOLATILE]
    return {"additionalProperties": False, **schema, "required": needed}


@pytest.mark.parametrize("name", job_schema.files())
def test_a_file_is_what_its_command_writes(name):
    assert (ROOT / name).read_text() == job_schema.files()[name], "python -m qwen_deploy.job_schema writes it anew"


def test_the_document_is_valid_openapi():
    validate(DOCUMENT)


@pytest.mark.parametrize("job", [*job_schema.EXAMPLES.values(), *(one for one in examples(JOBS) if "input" in one)])
def test_every_example_of_a_job_is_one_by_the_schema(job):
    is_refused = job["input"].get("num_inference_steps", 1) > 100  # docs/jobs.md shows its refusal
    assert validator("Job").is_valid(job) is not is_refused
    if job in job_schema.EXAMPLES.values():
        call = call_of(job["input"], MODELS)
        assert parse(call.fields() if call else job["input"], "job")


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"input": {"prompt": "x", "width": 1000}},
        {"input": {"prompt": "x"}, "policy": {"executionTimeout": 1}},
        {"input": {"prompt": "x"}, "s3Config": {"accessId": "a"}},
    ],
)
def test_a_job_that_is_none_is_none_by_the_document(job):
    assert not validator("Job").is_valid(job)


@pytest.mark.parametrize("name", replies.jobs())
def test_a_recorded_reply_is_as_the_document_says(name):
    posted = restored(replies.recorded(name))
    require("Status", {"id": name, "status": "FAILED" if "error" in posted else "COMPLETED", **posted})
    kind = {"health": "HealthReply", "openai_generations": "OpenaiReply"}.get(name, "DrawingReply")
    if "output" in posted:
        require("Failure" if "error" in posted else kind, posted["output"])


def restored(recorded):
    """The recorded reply with values where it has only their types, since they are measured."""
    values = {"dict": {}, "float": 0.5}
    if isinstance(recorded, list):
        return [restored(one) for one in recorded]
    if not isinstance(recorded, dict):
        return recorded
    return {name: values[value] if name in replies.MEASURED else restored(value) for name, value in recorded.items()}


def require(name, value):
    """The value has the schema of the document, and no field that it does not name."""
    found = validator(name, object_hook=close).iter_errors(value)
    assert [f"{error.json_path}: {error.message[:200]}" for error in found] == []


@pytest.mark.parametrize("shape", ResponseShape)
@pytest.mark.parametrize("by_url", [False, True])
def test_a_reply_in_each_shape_is_as_the_document_says(shape, by_url):
    request = parse({"prompt": "x"}, "job")
    facts = drawing_facts(request, (8, 8), (8, 8), DrawingResult([], 0), "model", Settings())
    metadata = complete_metadata(facts, {"input": 0.1}, ["a warning"], {"delivery": "url", "output_format": "png"})
    name = "".join(map(str.capitalize, shape.split("-"))).replace("Worker", "Drawing") + "Reply"
    files = Files(["aGk=", "aGk="], "image/png", by_url)
    require(name, shaped_reply(shape, request, metadata | {"has_nsfw_concepts": [False]}, files))


def test_progress_is_as_the_document_says():
    job = Job("job", parse({"prompt": "x"}, "job"), warnings=["a warning"])
    require("Progress", message_of(job))


def test_the_task_schema_is_answered_with_the_file_and_no_model(cold_worker):
    worker = cold_worker(QWEN_FALLBACK="forbid")
    posted = run(worker, {"task": "schema"})
    assert posted == {"output": json.loads((ROOT / "docs/job.schema.json").read_text())}
    assert run(worker, {"task": "health"})["output"]["models"] == []


def test_debug_is_answered_as_the_document_says(cold_worker):
    require("DebugReply", run(cold_worker(), {"task": "debug"})["output"])
