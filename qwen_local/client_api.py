"""The platform's API for clients: run, runsync, status, stream, cancel, retry, health, purge-queue.

Knows nothing of workers, nor of who may call.
"""

from fastapi import APIRouter, Request, Response

from .bodies import answer, read_body, refusal, watched
from .job import ENDED, LocalJob
from .plane import Plane
from .request import read_request, read_wait

RUN_BYTES, RUNSYNC_BYTES = 10_000_000, 20_000_000  # of a request, as the platform takes it
WAIT_SECONDS = 90.0


def client_routes(plane: Plane, wait_seconds: float = WAIT_SECONDS) -> APIRouter:
    """Below the endpoint's address. `wait_seconds`: that /runsync waits where the call does not say.

    The app turns `BadRequest`, `TooLarge` and `UnknownJob` into answers.
    """
    routes = APIRouter()

    @routes.post("/run")
    async def run(request: Request) -> Response:
        job = plane.submit(read_request(await read_body(request, RUN_BYTES)))
        return answer({"id": job.id, "status": job.status})

    @routes.post("/runsync")
    async def run_and_wait(request: Request) -> Response:
        seconds = read_wait(request.query_params.get("wait"), wait_seconds)
        job = plane.submit(read_request(await read_body(request, RUNSYNC_BYTES)), sync=True)
        async with watched(request) as gone:
            await plane.wait_until(lambda: job.status in ENDED, seconds, gone)
        return answer(job.state())

    @routes.get("/status/{job_id}")
    async def status(job_id: str) -> Response:
        return answer(plane.find(job_id).state())

    @routes.get("/stream/{job_id}")
    async def stream(job_id: str) -> Response:
        job = plane.find(job_id)
        return answer({**brief(job), "stream": [{"output": chunk} for chunk in job.pop_chunks()]})

    @routes.post("/cancel/{job_id}")
    async def cancel(job_id: str) -> Response:
        job = plane.find(job_id)
        plane.cancel(job)
        return answer(brief(job))

    @routes.post("/retry/{job_id}")
    async def retry(job_id: str) -> Response:
        job = plane.find(job_id)
        if not plane.retry(job):
            return refusal(f"Only a job that is FAILED or TIMED_OUT can be tried again; this one is {job.status}")
        return answer(brief(job))

    @routes.get("/health")
    async def health() -> Response:
        return answer(plane.health())

    @routes.post("/purge-queue")
    async def purge() -> Response:
        return answer({"removed": plane.purge(), "status": "completed"})

    return routes


def brief(job: LocalJob) -> dict[str, str]:
    return {"id": job.id, "status": job.status}
