"""OpenAI's Images API in front of the endpoint: a call becomes a job, and the job's output the answer.

The worker understands the calls; here they are only carried. Knows nothing of what a call may hold.
"""

import json
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from .bodies import answer, read_body, watched
from .client_api import RUNSYNC_BYTES
from .forms import read_form
from .job import ENDED, JobRequest, LocalJob, Status
from .plane import Plane
from .request import BadRequest, as_object, read_json

GENERATIONS, EDITS, MODELS = "/v1/images/generations", "/v1/images/edits", "/v1/models"
MOST_SECONDS = 24 * 3600.0  # a call waits for its job, however long; a client that hangs up ends both


def openai_routes(plane: Plane) -> APIRouter:
    """Below `/openai` of the endpoint's address."""
    routes = APIRouter()

    async def call(request: Request, route: str, arguments: Any) -> Response:
        job = plane.submit(JobRequest({"openai_route": route, "openai_input": arguments}), sync=True)
        try:
            async with watched(request) as gone:
                await plane.wait_until(lambda: job.status in ENDED, MOST_SECONDS, gone)
        finally:
            plane.cancel(job)
        return answer_of(job)

    @routes.post(GENERATIONS)
    async def generate(request: Request) -> Response:
        return await call(request, GENERATIONS, read_arguments(await read_body(request, RUNSYNC_BYTES)))

    @routes.post(EDITS)
    async def edit(request: Request) -> Response:
        body, kind = await read_body(request, RUNSYNC_BYTES), request.headers.get("content-type", "")
        is_form = kind.lower().startswith("multipart/form-data")
        return await call(request, EDITS, await read_form(body, kind) if is_form else read_arguments(body))

    @routes.get(MODELS)
    async def models(request: Request) -> Response:
        await read_body(request, RUNSYNC_BYTES)
        return await call(request, MODELS, {})

    return routes


def read_arguments(body: bytes) -> dict[str, Any]:
    """Raises `BadRequest`."""
    arguments = as_object(read_json(body))
    if arguments is None:
        raise BadRequest('The body must be a JSON object, as {"prompt": "a fox in the snow"}')
    return arguments


def answer_of(job: LocalJob) -> Response:
    """The worker's answer, or its error in OpenAI's shape with the status that OpenAI's clients know it by."""
    if job.status is Status.COMPLETED:
        # A worker that streams ends its list with the reply.
        chunks = cast("list[Any]", job.output) if isinstance(job.output, list) else [job.output]
        output = as_object(chunks[-1]) if chunks else None
        if output is not None:
            return answer(output)
        return openai_error("The worker's reply was larger than the platform takes", "server_error", 500)
    if job.status is Status.FAILED:
        try:
            error = as_object(json.loads(job.error))
        except (TypeError, ValueError):
            error = None
        if error is None:
            return openai_error(str(job.error), "server_error", 500)
        return answer({"error": error}, 400 if error.get("type") == "invalid_request_error" else 500)
    return openai_error(f"The job is {job.status}", "server_error", 500)


def openai_error(message: str, kind: str, status: int) -> Response:
    return answer({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)
