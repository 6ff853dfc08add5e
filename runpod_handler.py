"""One job's path from input to reply, on a RunPod serverless endpoint.

Parse, route, load on first need, draw, or stand in when no model can be loaded; the nouns of this story live in
`qwen_worker/`. Run it to start the worker; `--test_input '{"input": {...}}'` runs one job and exits; SERVER_MODE=local
serves the SDK's local HTTP API.
"""

import asyncio
import functools
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from qwen_worker.checkpoints import checkpoint as checkpoints
from qwen_worker.checkpoints.checkpoint import Checkpoint
from qwen_worker.checkpoints.files import is_missing
from qwen_worker.drawing import inference
from qwen_worker.drawing.batching import Batches
from qwen_worker.drawing.partial_denoise import fixed_steps, steps_of
from qwen_worker.drawing.preview import Previewer
from qwen_worker.drawing.prompt_cache import PromptCache
from qwen_worker.drawing.queue import Line
from qwen_worker.errors import JobError, LoadError
from qwen_worker.jobs import openai_images
from qwen_worker.jobs import reply as replies
from qwen_worker.jobs.deadline import Paces, kind_of, limit_of
from qwen_worker.jobs.job import Job, Stage
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.jobs.reply import Drawn
from qwen_worker.jobs.request import SIDE_MULTIPLE, Debug, Drawing, Edit, Health, Request, require_served
from qwen_worker.loading.loader import Loader
from qwen_worker.loading.pipelines import Loaded, Pipelines
from qwen_worker.log import log_line
from qwen_worker.lora.loras import Loras
from qwen_worker.memory import cuda
from qwen_worker.memory.footprint import Plan
from qwen_worker.memory.machine import read_machine
from qwen_worker.network import bucket as buckets
from qwen_worker.pictures import fallback
from qwen_worker.pictures.delivery import Terms, deliver, require_usable, terms_of
from qwen_worker.pictures.inputs import Canvas, open_images, output_size
from qwen_worker.serving import fitness, health
from qwen_worker.serving.job_loop import JobLoop, leave
from qwen_worker.serving.progress import Post, Progress, poster
from qwen_worker.serving.stream import stream
from qwen_worker.settings import Fallback, Misconfigured, ServerMode, Settings, read_settings, unknown
from qwen_worker.stopwatch import timed

SIDE_THREADS = 8  # that many jobs at once may have their pictures opened or sent


async def handler(job: dict) -> dict:
    """Answer one job of the RunPod SDK."""
    return await worker().answer(job)


async def streaming_handler(job: dict) -> AsyncIterator[dict]:
    """With STREAM: the progress of a job, and its reply as the last of the list that becomes `output`."""
    async for item in stream(worker().answer, job, worker().limit):
        yield item


@functools.cache
def worker() -> "Worker":
    return Worker(read_settings())


class Worker:
    """What outlives a job: the models that are loaded or cannot be, the threads, the counters."""

    def __init__(self, settings: Settings):
        self.settings = settings
        # The one thread that touches torch: the event loop stays free to hear the platform's stop.
        self.inference_thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self.presets = Presets(settings, checkpoints.known, is_missing)
        self.loras = Loras(settings)
        self.pipelines = Pipelines(settings, self.loras.of_endpoint)
        self.loader = Loader(settings, self.pipelines, self.inference_thread)
        self.counters = health.Counters()
        self.line = Line(self.inference_thread)
        self.batches = Batches(self.line, settings.QWEN_BATCH)
        self.side_threads = ThreadPoolExecutor(SIDE_THREADS, thread_name_prefix="side")  # pictures in and out
        self.paces, self.previewer = Paces(), Previewer()
        self.prompts = PromptCache(round(settings.QWEN_PROMPT_CACHE_MB * 1e6))
        self.jobs: dict[str, asyncio.Task] = {}  # being answered, by id
        self.limit = round(settings.QWEN_RESULT_LIMIT_MB * 1e6)
        self.bucket = buckets.of_settings(settings)

    async def answer(self, job: dict, tell: Post | None = None, limit: int | None = None) -> dict:
        """The reply to a job, of at most `limit` bytes; `tell` takes its progress, in place of the platform.

        The job boundary: whatever goes wrong inside becomes a reply, except a cancellation.
        """
        job_id, task, started = str(job.get("id")), "unknown", time.perf_counter()
        self.jobs[job_id] = asyncio.current_task()
        call = openai_images.call_of(job.get("input"), self.pipelines.labels())
        try:
            request = parse(call.fields() if call else job.get("input"), job_id, self.presets)
            task = request.task
            reply = await self.route(request, job, tell, limit)
        except JobError as error:
            reply = error.reply()
        except asyncio.CancelledError:
            self.counters.record(job_id, task, {"error": "cancelled"}, time.perf_counter() - started)
            raise
        except Exception as error:  # noqa: BLE001  the SDK would post the traceback, with its paths, to the caller
            log_line(job_id, "ERROR", traceback.format_exc())
            reply = JobError("internal", job_id, refresh_worker=cuda.spoils_the_worker(error)).reply()
        finally:
            if self.jobs.get(job_id) is asyncio.current_task():  # a job handed out twice is here twice
                del self.jobs[job_id]
        self.counters.record(job_id, task, reply, time.perf_counter() - started)
        return call.reply(reply) if call else reply

    async def route(self, request: Request, job: dict, tell: Post | None, limit: int | None) -> dict:
        if isinstance(request, Health):
            states = self.loader.state(), self.presets.served(self.loader.known)
            return health.health(self.settings, read_machine(), self.pipelines.report(), *states, self.counters)
        if isinstance(request, Debug):
            return health.debug(self.settings)
        limit = self.limit if limit is None else min(limit, self.limit)
        return await self.within_its_limit(request, job, tell, limit)

    async def within_its_limit(self, request: Drawing, job: dict, tell: Post | None, limit: int) -> dict:
        """The reply of a drawing job; past its limit it is ended as by a stop, and says how far it came."""
        running = Job(str(job.get("id")), request, limit_of(job, self.settings.QWEN_JOB_SECONDS))
        running.previewer = self.previewer if request.preview else None
        terms = terms_of(job, request, self.settings, limit, self.bucket)
        try:
            async with (
                Progress(running, tell or poster(running.id), self.settings.QWEN_PROGRESS_SECONDS),
                asyncio.timeout(running.limit) as clock,
            ):
                return await self.serve(running, terms)
        except TimeoutError:
            if not clock.expired():
                raise
            raise running.out_of_time() from None

    async def serve(self, job: Job, terms: Terms) -> dict:
        """A drawing job from its pictures to its reply: only what touches the model is on the one inference thread."""
        request = job.request
        refuse_what_it_cannot(self.loader.known(request.task), request)
        # Before anything that waits for the inference thread, which may be at another job's drawing.
        sources, mask = await job.on(self.side_threads, self.opened, job, terms)
        known, failure = await self.located(job)
        refuse_what_it_cannot(known, request)
        job.loras = () if failure else await job.on(self.side_threads, self.loras.of_job, job, known)
        size = output_size(request, sources, mask, known.size_multiple if known else SIDE_MULTIPLE)
        canvas = Canvas(sources, mask, size)
        self.foresee(job, canvas)

        drawn = await job.on(self.line, self.draw, job, known, failure, canvas)
        job.enter(Stage.DELIVERING)
        facts = replies.metadata_of(request, size, drawn, self.pipelines.label_for(request.task), self.settings)
        whole, pictures = functools.partial(replies.with_timings, facts, job.timings), drawn.pictures
        return await job.on(self.side_threads, deliver, request, pictures, terms, whole, job.timings, job.cancelled)

    def foresee(self, job: Job, canvas: Canvas) -> None:
        """How many steps will really run; a job that they clearly leave no time for is refused."""
        request = job.request
        left = job.limit and job.started + job.limit - time.monotonic()
        strength = request.strength if isinstance(request, Edit) else 1.0
        loaded = self.pipelines.loaded.get(self.pipelines.model_for(request.task))
        fixed = fixed_steps(loaded.pipe) if loaded else 0
        steps = steps_of(fixed or request.num_inference_steps, strength)
        job.expect(steps)
        kind, calls = kind_of(request, canvas.size, len(canvas.sources)), self.batches.fewest_calls(request)
        self.paces.require_time(kind, calls, steps, left, None if fixed else strength)

    async def located(self, job: Job) -> tuple[Checkpoint | None, LoadError | None]:
        """What is known of the checkpoint that serves the job, and why it cannot be had, where that is known."""
        job.enter(Stage.WAITING)
        task, failure = job.request.task, None
        if not self.loader.ready(task):
            _, failure = await job.on(self.inference_thread, self.loader.place, task)
        # Known from an earlier job also where the load has failed since: the same job is refused or not, either way.
        return self.loader.known(task), failure

    def opened(self, job: Job, terms: Terms) -> tuple[list, Image.Image | None]:
        """The job's input pictures and its mask; on a side thread."""
        with timed(job.timings, "input"):
            require_usable(terms, job.cancelled)
            return open_images(job.request, self.settings.QWEN_FETCH_SECONDS, job.cancelled)

    def draw(self, job: Job, checkpoint: Checkpoint | None, failure: LoadError | None, canvas: Canvas) -> Drawn:
        """The pictures and what drew them, loading the model first where it is not; on the inference thread."""
        job.enter(Stage.LOADING)
        loaded = None
        if failure is None:
            # A job that the plan has no room for is refused before anything is loaded.
            facts = checkpoint.name, checkpoint.size_multiple, *canvas.size, len(canvas.sources)

            def fits(plan: Plan) -> None:
                inference.plan_for(job, plan).require_fits(*facts)

            with timed(job.timings, "load"):
                loaded, failure = self.loader.load(job.request.task, fits)
        if failure and self.settings.QWEN_FALLBACK is Fallback.FORBID:
            raise JobError("model_unavailable", failure.reason)
        if loaded and (swap := self.pipelines.activate(loaded)):
            job.timings["swap"] = swap
        cuda.peak_vram_gb(reset=True)
        try:
            job.enter(Stage.DRAWING)
            with timed(job.timings, "inference"):
                if failure:
                    return Drawn(fallback.draw(job.request, *canvas.parts), 0, failure=failure)
                return self.by_the_model(job, loaded, canvas)
        finally:
            job.leave_drawing()

    def by_the_model(self, job: Job, loaded: Loaded, canvas: Canvas) -> Drawn:
        inference.require_drawable(loaded, job)
        drawn = self.batches.draw(loaded, job, self.prompts) or inference.draw(loaded, job, *canvas.parts, self.prompts)
        if drawn.batch == 1:  # in company a step takes longer and says nothing of how fast it could be
            kind, count = kind_of(job.request, canvas.size, len(canvas.sources)), len(drawn.pictures)
            self.paces.record(kind, job.step_seconds, count, drawn.steps, job.drawing_seconds())
        loaded.stages.setdefault("first_job", round(job.drawing_seconds(), 3))
        return drawn


def refuse_what_it_cannot(checkpoint: Checkpoint | None, request: Drawing) -> None:
    """What only the checkpoint, once known, can say."""
    if checkpoint:
        require_served(request, checkpoint.size_multiple, checkpoint.pipeline_class.max_images)


def main() -> None:
    # The SDK's own default, DEBUG, logs every reply with its images.
    os.environ.setdefault("RUNPOD_DEBUG_LEVEL", "INFO")
    try:
        settings = worker().settings
    except Misconfigured as error:
        sys.exit(f"A setting in the environment cannot be used. {error}")
    for problem in unknown(os.environ):
        log_line(None, "WARN", problem)
    import runpod

    if settings.SERVER_MODE is ServerMode.LOCAL and "--rp_serve_api" not in sys.argv:
        sys.argv.append("--rp_serve_api")
    for check in fitness.checks(settings, worker().loader.why_not_placed, worker().loader.why_not_loaded):
        runpod.serverless.register_fitness_check(check)
    lives = settings.QWEN_SHUTDOWN_SECONDS, settings.QWEN_STUCK_SECONDS
    loop = JobLoop(worker().jobs, settings.QWEN_CONCURRENCY * settings.QWEN_BATCH, *lives)
    streamed = {"handler": streaming_handler, "return_aggregate_stream": True}
    served = streamed if settings.STREAM else {"handler": handler}
    try:
        runpod.serverless.start({**served, "concurrency_modifier": loop.concurrency})
    except SystemExit as end:  # of a test input
        leave(end.code)
    leave()


if __name__ == "__main__":
    main()
