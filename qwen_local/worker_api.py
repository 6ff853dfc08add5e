"""What the SDK's job loop speaks to: it takes jobs and stops, and posts progress, chunks and results.

These routes lie below a key that only the workers are told, as a job's result may come from nobody else. Knows
nothing of clients.
"""

from typing import Any

from fastapi import APIRouter, Request, Response

from .bodies import TooLarge, answer, read_body, refusal, watched
from .plane import Plane, UnknownJob
from .request import as_object, read_json

HOLD_SECONDS = 20.0  # that a poll is held
MOST_STREAMED_BYTES = 20_000_000  # of a chunk; the worker keeps its own far below


def environment(address: str, worker: str, key: str) -> dict[str, str]:
    """The variables by which the SDK's loop finds the plane. `address`: up to and with the workers' key."""
    query = "?gpu=local"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{address}/job-take/$ID{query}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{address}/job-done/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{address}/job-stream/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_PING": f"{address}/ping/$RUNPOD_POD_ID{query}",
        "RUNPOD_POD_ID": worker, "RUNPOD_AI_API_KEY": key, "RUNPOD_ENDPOINT_ID": "local",
        # The SDK's own checks dial an address in the internet.
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true",
    }  # fmt: skip


def worker_routes(plane: Plane, hold_seconds: float = HOLD_SECONDS) -> APIRouter:
    """Below the workers' key."""
    routes = APIRouter()

    async def hand_out(request: Request, worker: str, most: int, single: bool) -> Response:
        async with watched(request) as gone:  # a worker that has hung up must not be handed what it does not hear
            jobs = [job.for_worker() for job in await plane.take(worker, most, hold_seconds, gone)]
        if not jobs:
            return Response(status_code=204)
        return answer(jobs[0] if single else jobs)

    @routes.get("/job-take/{worker}")
    async def take(request: Request, worker: str) -> Response:
        return await hand_out(request, worker, 1, single=True)

    @routes.get("/job-take-batch/{worker}")
    async def take_batch(request: Request, worker: str, batch_size: int = 1) -> Response:
        return await hand_out(request, worker, batch_size, single=False)

    @routes.get("/job-stop/{worker}")
    async def take_stops(request: Request, worker: str) -> Response:
        async with watched(request) as gone:
            ids = await plane.take_stops(worker, hold_seconds, gone)
        return answer({"jobsToStop": ids}) if ids else Response(status_code=204)

    @routes.post("/job-done/{worker}/{job_id}")
    async def hear(request: Request, worker: str, job_id: str) -> Response:
        try:
            job = plane.find(job_id)
            content = await read_body(request, job.result_bytes())
            body = read_object(content)
        except UnknownJob:
            return refusal("unknown job", 404)
        except TooLarge as error:
            plane.refuse_result(plane.find(job_id), error.size)
            return refusal(str(error))  # the platform's own status for it is 400
        if body.get("status") == "IN_PROGRESS":
            plane.hear_progress(job, body)
        else:
            plane.hear_result(job, worker, body, len(content))
        return answer({})

    @routes.post("/job-stream/{worker}/{job_id}")
    async def hear_chunk(request: Request, worker: str, job_id: str) -> Response:
        try:
            job = plane.find(job_id)
            plane.hear_chunk(job, read_object(await read_body(request, MOST_STREAMED_BYTES)))
        except UnknownJob:
            return refusal("unknown job", 404)
        except TooLarge as error:
            return refusal(str(error))
        return answer({})

    @routes.get("/ping/{worker}")
    async def ping(worker: str, status: str = "", reason: str = "", job_id: str = "") -> Response:
        plane.hear_ping(worker, job_id.split(","), reason.removeprefix("Unfit: ") if status == "unhealthy" else None)
        return answer({})

    return routes


def read_object(body: bytes) -> dict[str, Any]:
    data = read_json(body)
    fields = as_object(data)
    return {"output": data} if fields is None else fields
