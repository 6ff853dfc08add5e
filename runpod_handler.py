"""One job's path from input to reply, on a RunPod serverless endpoint.

Parse, route, load on first need, draw, or stand in when no model can be loaded, and reply; the nouns of this story live
in `qwen_worker/`. Run it to start the worker; `--test_input '{"input": {...}}'` runs one job and exits;
SERVER_MODE=local serves the SDK's local HTTP API.
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
from qwen_worker.drawing.partial_denoise import drawn_steps, fixed_steps
from qwen_worker.drawing.preview import Previewer
from qwen_worker.drawing.prompt_cache import PromptCache
from qwen_worker.drawing.queue import DrawingJob, WaitingQueue
from qwen_worker.errors import JobError, LoadError
from qwen_worker.jobs import openai_images
from qwen_worker.jobs import reply as replies
from qwen_worker.jobs.deadline import Paces, kind_of, limit_of
from qwen_worker.jobs.job import Job, Stage
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.jobs.reply import Drawn
from qwen_worker.jobs.request import SIDE_MULTIPLE, Drawing, Edit, Health, Request, require_served
from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.loading.loader import Loader
from qwen_worker.loading.pipelines import Pipelines
from qwen_worker.log import log_line
from qwen_worker.lora.loras import Loras
from qwen_worker.memory import cuda
from qwen_worker.memory.footprint import Plan
from qwen_worker.memory.machine import read_machine
from qwen_worker.network.bucket import bucket_from_settings
from qwen_worker.pictures import fallback
from qwen_worker.pictures.delivery import Terms, deliver, require_usable, terms_of
from qwen_worker.pictures.inputs import Canvas, open_images, output_size
from qwen_worker.serving import fitness, health
from qwen_worker.serving.job_loop import JobLoop, leave
from qwen_worker.serving.progress import Post, Progress, poster
from qwen_worker.serving.stream import stream
from qwen_worker.settings import Fallback, Misconfigured, ServerMode, Settings, read_settings, warnings_about
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
        self.side_threads = ThreadPoolExecutor(SIDE_THREADS, thread_name_prefix="side")  # pictures in and out
        self.presets = Presets(settings, checkpoints.known, is_missing)
        self.loras, self.catalogue = Loras(settings), Catalogue(settings)
        self.pipelines = Pipelines(settings, self.catalogue, self.loras.open_for_endpoint)
        self.loader = Loader(settings, self.pipelines, self.inference_thread)
        self.queue = WaitingQueue(self.inference_thread)
        self.batches = Batches(self.queue, settings.QWEN_BATCH)
        self.prompts = PromptCache(round(settings.QWEN_PROMPT_CACHE_MB * 1e6))
        self.paces, self.previewer = Paces(), Previewer()
        self.bucket = bucket_from_settings(settings)
        self.limit = round(settings.QWEN_RESULT_LIMIT_MB * 1e6)  # bytes of a reply
        self.counters = health.Counters()
        self.jobs: dict[str, asyncio.Task] = {}  # being answered, by id

    async def answer(self, job: dict, tell: Post | None = None, limit: int | None = None) -> dict:
        """The reply to a job, of at most `limit` bytes; `tell` takes its progress, in place of the platform.

        The job boundary: whatever goes wrong inside becomes a reply, except a cancellation.
        """
        job_id, task, started = str(job.get("id")), "unknown", time.perf_counter()
        self.jobs[job_id] = asyncio.current_task()
        call = openai_images.call_of(job.get("input"), self.catalogue.labels())
        try:
            request = parse(call.fields() if call else job.get("input"), job_id, self.presets)
            task = request.task
            if isinstance(request, Drawing):
                reply = await self.serve(request, job, tell, min(limit or self.limit, self.limit))
            else:
                reply = self.report(request)
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

    def report(self, request: Request) -> dict:
        """The reply of health or debug; loads nothing."""
        if not isinstance(request, Health):
            return health.debug(self.settings)
        presets = self.presets.served(self.catalogue.located)
        loaded, fallen_back = self.pipelines.report(), self.loader.state()
        return health.health(self.settings, read_machine(), loaded, fallen_back, presets, self.counters)

    async def serve(self, request: Drawing, sent: dict, tell: Post | None, limit: int) -> dict:
        """A drawing job from its pictures to its reply: only what touches the model is on the one inference thread."""
        job = Job(str(sent.get("id")), request, limit_of(sent, self.settings.QWEN_JOB_SECONDS))
        terms = terms_of(sent, request, self.settings, limit, self.bucket)
        async with Progress(job, tell or poster(job.id), self.settings.QWEN_PROGRESS_SECONDS), job.within_limit():
            require_served_by(self.catalogue.located(request.task), request)
            # Before anything that waits for the inference thread, which may be at another job's drawing.
            sources, mask = await job.on(self.side_threads, self.open_pictures, job, terms)
            checkpoint, failure = await self.locate(job)
            require_served_by(checkpoint, request)
            loras = () if failure else await job.on(self.side_threads, self.loras.open_for_job, job, checkpoint)
            multiple = checkpoint.size_multiple if checkpoint else SIDE_MULTIPLE
            canvas = Canvas(sources, mask, output_size(request, sources, mask, multiple))
            self.require_time(job, canvas)

            turn = self.queue.submit(DrawingJob(job, canvas, loras), self.draw, checkpoint, failure)
            drawn = await job.outcome_of(turn, functools.partial(self.queue.draws_for_nobody, job))
            job.enter(Stage.DELIVERING)
            label = self.catalogue.label_for(request.task)
            facts = replies.metadata_of(request, canvas.size, drawn, label, self.settings)
            whole = functools.partial(replies.with_timings, facts, job.timings)
            delivery = request, drawn.pictures, terms, whole, job.timings, job.cancelled
            return await job.on(self.side_threads, deliver, *delivery)

    def open_pictures(self, job: Job, terms: Terms) -> tuple[list[Image.Image], Image.Image | None]:
        """The job's input pictures and its mask; on a side thread."""
        with timed(job.timings, "input"):
            require_usable(terms, job.cancelled)
            return open_images(job.request, self.settings.QWEN_FETCH_SECONDS, job.cancelled)

    async def locate(self, job: Job) -> tuple[Checkpoint | None, LoadError | None]:
        """What is known of the checkpoint that serves the job, and why it cannot be had, where that is known."""
        job.enter(Stage.WAITING)
        task, failure = job.request.task, None
        if not self.loader.ready(task):
            _, failure = await job.on(self.inference_thread, self.loader.place, task)
        # Known from an earlier job also where the load has failed since: the same job is refused or not, either way.
        return self.catalogue.located(task), failure

    def require_time(self, job: Job, canvas: Canvas) -> None:
        """Tell the job how many steps will really run; refuse it where they clearly have no time."""
        request = job.request
        loaded = self.pipelines.get(request.task)
        fixed = fixed_steps(loaded.pipe) if loaded else 0
        strength = request.strength if isinstance(request, Edit) else 1.0
        steps = drawn_steps(fixed or request.num_inference_steps, strength)
        job.expect(steps)
        kind, calls = kind_of(request, canvas.size, len(canvas.sources)), self.batches.fewest_calls(request)
        self.paces.require_time(kind, calls, steps, job.seconds_to_limit(), None if fixed else strength)

    def draw(self, entry: DrawingJob, checkpoint: Checkpoint | None, failure: LoadError | None) -> Drawn:
        """The pictures and what drew them, loading the model first where it is not; on the inference thread."""
        job, canvas, loaded = entry.job, entry.canvas, None
        job.enter(Stage.LOADING)
        if failure is None:

            def require_room(plan: Plan) -> None:
                """A job that the plan has no room for is refused before anything is loaded."""
                size = checkpoint.name, checkpoint.size_multiple, *canvas.size, len(canvas.sources)
                inference.plan_for(entry, plan).require_fits(*size)

            with timed(job.timings, "load"):
                loaded, failure = self.loader.load(job.request.task, require_room)
        if failure and self.settings.QWEN_FALLBACK is Fallback.FORBID:
            raise JobError("model_unavailable", failure.reason)
        if loaded and (swap := self.pipelines.activate(loaded)):
            job.timings["swap"] = swap
        cuda.peak_vram_gb(reset=True)
        self.queue.enter_call(entry)
        with timed(job.timings, "inference"):
            if failure:
                return Drawn(fallback.draw(job.request, *canvas.parts), 0, failure=failure)
            inference.require_drawable(loaded, entry)
            drawn = self.batches.draw(loaded, entry, self.prompts)
            drawn = drawn or inference.draw(loaded, entry, self.prompts, self.previewer)
        if drawn.batch == 1:  # in company a step takes longer and says nothing of how fast it could be
            kind, count = kind_of(job.request, canvas.size, len(canvas.sources)), len(drawn.pictures)
            self.paces.record(kind, job.step_seconds, count, drawn.steps, job.stage_seconds())
        loaded.stages.setdefault("first_job", round(job.stage_seconds(), 3))
        return drawn


def require_served_by(checkpoint: Checkpoint | None, request: Drawing) -> None:
    """Refuse what only the checkpoint, once known, can say."""
    if checkpoint:
        require_served(request, checkpoint.size_multiple, checkpoint.pipeline_class.max_images)


def main() -> None:
    # The SDK's own default, DEBUG, logs every reply with its images.
    os.environ.setdefault("RUNPOD_DEBUG_LEVEL", "INFO")
    try:
        settings = worker().settings
    except Misconfigured as error:
        sys.exit(f"A setting in the environment cannot be used. {error}")
    for warning in warnings_about(os.environ):
        log_line(None, "WARN", warning)
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
