"""docs/job.schema.json and docs/openapi.json, written from the worker's models of jobs and replies.

`python -m qwen_deploy.job_schema` writes them; a test holds them to the code. The OpenAPI document is about RunPod's
routes of an endpoint, as RunPod's documentation had them in August 2026: RunPod publishes none for them.
"""

import json
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from qwen_worker import __version__
from qwen_worker.errors import CODES
from qwen_worker.jobs.job import Stage
from qwen_worker.jobs.openai_images import MODELS
from qwen_worker.jobs.openai_images import TASKS as OPENAI_ROUTES
from qwen_worker.jobs.reply import DrawingReply, Metadata
from qwen_worker.jobs.response_shapes import FalReply, ReplicateReply, RunpodPublicReply
from qwen_worker.jobs.schema import definitions, input_schema, job_schema, plain
from qwen_worker.network.bucket import S3Config

from .session import ROOT

Json = dict[str, Any]

PLACE = "#/components/schemas/{}"
REPLIES = (DrawingReply, RunpodPublicReply, FalReply, ReplicateReply, Metadata)
STATES = {
    "IN_QUEUE": "the job waits for a worker",
    "IN_PROGRESS": "a worker does the job, and output is its progress",
    "COMPLETED": "output is the reply",
    "FAILED": "error says why",
    "CANCELLED": "the job was stopped",
    "TIMED_OUT": "RunPod ended the job at its time limit",
}
PROMPT = {"prompt": "a fox in the snow"}
EDIT = {"task": "edit", "prompt": "make it winter", "image_url": "https://example.com/garden.jpg"}
EXAMPLES: dict[str, Json] = {
    "generate": {"input": PROMPT},
    "edit": {"input": EDIT, "policy": {"executionTimeout": 60_000}},
    "background_replacement": {"input": EDIT | {"task": "background_replacement", "prompt": "a beach at sunset"}},
    "other_names": {"input": {**PROMPT, "aspect_ratio": "16:9", "num_outputs": 2, "output_format": "jpg"}},
    "loras": {"input": {**PROMPT, "loras": [{"path": "ORG/NAME", "scale": 0.8}]}},
    "openai": {"input": {"openai_route": "/v1/images/generations", "openai_input": {**PROMPT, "size": "1024x1024"}}},
    "health": {"input": {"task": "health"}},
    "schema": {"input": {"task": "schema"}},
}
OTHERS = ("OpenaiReply", "OpenaiModelsReply", "HealthReply", "DebugReply", "SchemaReply", "Failure")
TEXT: Json = {"type": "string"}
ANY: Json = {"type": "object"}
COUNTS: Json = {"type": "object", "additionalProperties": {"type": "integer"}}
EMPTY: Json = {"enum": [None, ""]}  # of a field of a bucket that counts as absent


def files() -> dict[str, str]:
    """The text of each file, by its path from the root."""
    contents = {"docs/job.schema.json": job_schema(), "docs/openapi.json": document()}
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in contents.items()}


def document() -> Json:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Qwen-Image on RunPod",
            "version": __version__,
            "description": "The API of a serverless endpoint of RunPod whose worker draws with Qwen-Image. The routes "
            "are RunPod's; `input` and `output` are the worker's.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {
                "url": "https://api.runpod.ai/v2/{endpoint}",
                "variables": {"endpoint": {"default": "ENDPOINT_ID", "description": "the endpoint's id"}},
            }
        ],
        "security": [{"key": []}],
        "paths": paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "an API key of RunPod"}},
            "parameters": {"id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}},
            "schemas": schemas(),
        },
    }


def paths() -> Json:
    wait = {
        "name": "wait",
        "in": "query",
        "description": "How long to wait for the reply, in milliseconds.",
        "schema": {"type": "integer", "minimum": 1000, "maximum": 300_000, "default": 90_000},
    }
    job = {"required": True, "content": json_content("Job", EXAMPLES)}
    return {
        "/run": {"post": operation("run", "Queue a job.", "Queued", requestBody=job)},
        "/runsync": {
            "post": operation("runsync", "Wait for a job's reply.", "Status", requestBody=job, parameters=[wait])
        },
        "/status/{id}": {"get": of_job("status", "The state of a job, and its progress or its reply.", "Status")},
        "/stream/{id}": {
            "get": of_job(
                "stream", "What has come of a job's output since the last call, where the endpoint streams.", "Stream"
            )
        },
        "/cancel/{id}": {"post": of_job("cancel", "Stop a job.", "Queued")},
        "/retry/{id}": {"post": of_job("retry", "Queue a job anew that has failed or timed out.", "Queued")},
        "/purge-queue": {"post": operation("purgeQueue", "Remove all jobs that wait for a worker.", "Purged")},
        "/health": {"get": operation("health", "Jobs and workers of the endpoint, by state.", "EndpointHealth")},
    }


def operation(name: str, summary: str, answer: str, **more: object) -> Json:
    """A route's description. `answer`: the schema of what it answers."""
    refused = {
        "400": "The body cannot be read.",
        "401": "The API key is missing or wrong.",
        "429": "There are too many requests.",
    }
    return {
        "operationId": name,
        "summary": summary,
        **more,
        "responses": {
            "200": {"description": summary, "content": json_content(answer)},
            **{status: {"description": words} for status, words in refused.items()},
        },
    }


def of_job(name: str, summary: str, answer: str) -> Json:
    route = operation(name, summary, answer, parameters=[{"$ref": "#/components/parameters/id"}])
    route["responses"]["404"] = {"description": "There is no such job, or it is too old."}
    return route


def json_content(schema: str, examples: dict[str, Json] | None = None) -> Json:
    found: Json = {"schema": refer(schema)}
    if examples:
        found["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"application/json": found}


def refer(schema: str) -> Json:
    return {"$ref": PLACE.format(schema)}


def schemas() -> dict[str, Json]:
    """By name: RunPod's envelopes, the worker's replies, and the schema of a job's input with its definitions."""
    return {
        "Job": job(),
        "Policy": policy(),
        "S3Config": s3_config(),
        "Queued": record("The job's id and state.", id={"type": "string"}, status={"enum": list(STATES)}),
        "Status": status(),
        "Stream": stream(),
        "Purged": record("How many jobs were removed.", removed={"type": "integer"}, status={"type": "string"}),
        "EndpointHealth": record("Counts by state.", jobs=COUNTS, workers=COUNTS),
        "Output": output(),
        "Progress": progress(),
        "Failure": record("What beside the error is left of a reply.", success={"const": False}),
        **replies(),
        "OpenaiReply": openai_reply(),
        "OpenaiModelsReply": openai_models_reply(),
        "HealthReply": health_reply(),
        "DebugReply": debug_reply(),
        "SchemaReply": record("The reply of schema: the JSON schema of a job's input.", **{"$schema": TEXT}),
        "Input": input_schema(PLACE),
        **definitions(PLACE),
    }


def record(description: str, optional: Json | None = None, **fields: Json) -> Json:
    """The schema of an object with these fields, and perhaps with optional ones."""
    return {
        "type": "object",
        "description": description,
        "properties": fields | (optional or {}),
        "required": list(fields),
    }


def job() -> Json:
    return record(
        "The body of /run and /runsync: the job's input, and what RunPod itself reads.",
        {
            "webhook": {
                "type": "string",
                "format": "uri",
                "description": "Where RunPod posts the final status of the job. It tries three times.",
            },
            "policy": refer("Policy"),
            "s3Config": refer("S3Config"),
        },
        input=refer("Input"),
    )


def policy() -> Json:
    """RunPod's limits of a job, in milliseconds; a day has 86,400,000."""
    week = 7 * 86_400_000
    return {
        "type": "object",
        "description": "Limits of the job in milliseconds, in place of the endpoint's.",
        "properties": {
            "executionTimeout": {
                "type": "integer",
                "minimum": 5000,
                "maximum": week,
                "description": "How long the job may run. The worker ends it a little earlier, and says why.",
            },
            "ttl": {
                "type": "integer",
                "minimum": 10_000,
                "maximum": week,
                "default": 86_400_000,
                "description": "How long the job may exist, from the time when it was sent.",
            },
            "lowPriority": {
                "type": "boolean",
                "default": False,
                "description": "Whether no worker is started for the job.",
            },
        },
    }


def s3_config() -> Json:
    """The schema of a job's own bucket. Fields that are null or empty count as absent."""
    found = cast(Json, plain(S3Config.model_json_schema()))
    needed: list[str] = found["required"]
    for name, field in cast("dict[str, Json]", found["properties"]).items():
        if name not in needed:
            found["properties"][name] = {"anyOf": [{key: field[key] for key in field if key != "default"}, EMPTY]}
    return found | {"additionalProperties": EMPTY}


def status() -> Json:
    codes = "\n".join(f"- {code}: {sentence}" for code, sentence in CODES.items())
    return record(
        "The state of a job.\n" + "\n".join(f"- {state}: {words}" for state, words in STATES.items()),
        {
            "output": refer("Output"),
            "error": {
                "type": "string",
                "description": "A code, a colon and a sentence. A call of OpenAI's has OpenAI's error object as JSON "
                f"text. RunPod has errors of its own.\n{codes}",
            },
            "delayTime": {"type": "integer", "description": "milliseconds in the queue"},
            "executionTime": {"type": "integer", "description": "milliseconds of work"},
            "workerId": {"type": "string"},
            "retries": {"type": "integer"},
        },
        id={"type": "string"},
        status={"enum": list(STATES)},
    )


def stream() -> Json:
    part = record("A part of the output.", output={"anyOf": [refer("Progress"), refer("Output")]})
    return record("What is new.", status={"enum": list(STATES)}, stream={"type": "array", "items": part})


def output() -> Json:
    """The schema of a job's output, whatever its state and the endpoint's settings."""
    names = [model.__name__ for model in REPLIES if model is not Metadata]
    reply = [refer(name) for name in ("Progress", *names, *OTHERS)]
    parts = {
        "type": "array",
        "items": {"anyOf": reply},
        "description": "Where the endpoint streams: progress, then the reply.",
    }
    return {"anyOf": [*reply, parts]}


def progress() -> Json:
    count: Json = {"type": "integer", "minimum": 0}
    return record(
        "How far a job is.",
        {
            "seconds_left": {"type": "number", "description": "of the steps, once they are timed"},
            "preview": {"type": "string", "description": "a JPEG in base64, if the job asks for previews"},
            "warnings": {"type": "array", "items": {"type": "string"}},
            "load": record(
                "How far the load of the model is that the job waits for.",
                {"bytes": count, "total_bytes": count},
                stage={"type": "string", "description": "`download`, or another stage of a load"},
            ),
        },
        stage={"enum": [stage.name.lower() for stage in Stage]},
        step=count,
        total=count,
        percent=count,
    )


def replies() -> dict[str, Json]:
    """The schemas of the replies to jobs that draw, by the names of their types."""
    adapters: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (model.__name__, "serialization", TypeAdapter(model)) for model in REPLIES
    ]
    _, found = TypeAdapter.json_schemas(adapters, ref_template=PLACE.replace("{}", "{model}"))
    return cast("dict[str, Json]", plain(found["$defs"]))


def openai_reply() -> Json:
    picture = {"anyOf": [record("A picture in base64.", b64_json=TEXT), record("A picture's URL.", url=TEXT)]}
    pictures = {"type": "array", "items": picture, "minItems": 1}
    routes = " and ".join(OPENAI_ROUTES)
    return record(f"The reply to {routes}.", created={"type": "integer"}, data=pictures, metadata=refer("Metadata"))


def openai_models_reply() -> Json:
    model = record("A model.", id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)
    return record(f"The reply to {MODELS}.", object={"const": "list"}, data={"type": "array", "items": model})


def health_reply() -> Json:
    return record(
        "The reply of health.",
        status={"const": "healthy"},
        environment=ANY,
        memory_usage=ANY,
        worker_version=TEXT,
        models={"type": "array", "items": ANY},
        presets=ANY,
        fallback=ANY,
        counters=ANY,
    )


def debug_reply() -> Json:
    versions: Json = {"type": "object", "additionalProperties": {"type": ["string", "null"]}}
    return record(
        "The reply of debug.", python_version=TEXT, platform=TEXT, packages=versions, settings=ANY, modules_loaded=ANY
    )


if __name__ == "__main__":
    for name, text in files().items():
        (ROOT / name).write_text(text)
