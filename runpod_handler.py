"""One job's path from input to reply, on a RunPod serverless endpoint.

Parse, route, load on first need, draw, or stand in when no model can be loaded; the nouns of this story live in
`qwen_worker/`. Run it to start the worker; `--test_input '{"input": {...}}'` runs one job and exits; SERVER_MODE=local
serves the SDK's local HTTP API.
"""

import asyncio
import functools
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from pydantic import ValidationError

from qwen_worker import bucket as buckets
from qwen_worker import fallback, fitness, inference, telemetry
from qwen_worker import reply as replies
from qwen_worker.checkpoint import Checkpoint
from qwen_worker.deadline import Paces, limit_of
from qwen_worker.delivery import Terms, deliver, require_usable, terms_of
from qwen_worker.errors import JobError, LoadError
from qwen_worker.inputs import Canvas, open_images, output_size
from qwen_worker.job import Job, Stage
from qwen_worker.job_loop import JobLoop
from qwen_worker.machine import read_machine
from qwen_worker.parsing import parse
from qwen_worker.pipelines import Pipelines
from qwen_worker.preview import Previewer
from qwen_worker.progress import Post, Progress, poster
from qwen_worker.prompt_cache import PromptCache
from qwen_worker.request import (
    SIDE_MULTIPLE,
    Debug,
    Drawing,
    Edit,
    Health,
    Request,
    require_image_count,
    require_size,
)
from qwen_worker.settings import Fallback, ServerMode, Settings
from qwen_worker.stream import stream

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
    return Worker(Settings())


class Worker:
    """What outlives a job: the loaded pipelines, the failures to load one, the inference thread, the counters."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.pipelines = Pipelines(settings)
        self.failures: dict[str, tuple[LoadError, float]] = {}  # by role: what failed, and when
        self.counters = telemetry.Counters()
        # The one thread that touches torch: the event loop stays free to hear the platform's stop.
        self.inference_thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self.side_threads = ThreadPoolExecutor(SIDE_THREADS, thread_name_prefix="side")  # pictures in and out
        self.paces = Paces()
        self.prompts = PromptCache(round(settings.QWEN_PROMPT_CACHE_MB * 1e6))
        self.jobs: dict[str, asyncio.Task] = {}  # being answered, by id
        self.previewer = Previewer()
        self.limit = round(settings.QWEN_RESULT_LIMIT_MB * 1e6)
        self.bucket = buckets.of_settings(settings)

    async def answer(self, job: dict, tell: Post | None = None, limit: int | None = None) -> dict:
        """The reply to a job, of at most `limit` bytes; `tell` takes its progress, in place of the platform.

        The job boundary: whatever goes wrong inside becomes a reply, except a cancellation.
        """
        job_id, task, started = str(job.get("id")), "unknown", time.perf_counter()
        self.jobs[job_id] = asyncio.current_task()
        try:
            request = parse(job.get("input"), job_id)
            task = request.task
            reply = await self.route(request, job, tell, limit)
        except JobError as error:
            reply = error.reply()
        except asyncio.CancelledError:
            self.record(job_id, task, {"error": "cancelled"}, time.perf_counter() - started)
            raise
        except Exception as error:  # noqa: BLE001  the SDK would post the traceback, with its paths, to the caller
            telemetry.log_line(job_id, "ERROR", traceback.format_exc())
            reply = JobError("internal", job_id, refresh_worker=inference.spoils_the_worker(error)).reply()
        finally:
            if self.jobs.get(job_id) is asyncio.current_task():  # a job handed out twice is here twice
                del self.jobs[job_id]
        self.record(job_id, task, reply, time.perf_counter() - started)
        return reply

    async def route(self, request: Request, job: dict, tell: Post | None, limit: int | None) -> dict:
        if isinstance(request, Health):
            reasons = {role: failure.reason for role, (failure, _) in self.failures.items()}
            state = {"mode": self.settings.QWEN_FALLBACK.value, "reasons": reasons}
            loaded = list(self.pipelines.loaded.values())
            return telemetry.health(self.settings, read_machine(), loaded, state, self.counters)
        if isinstance(request, Debug):
            return telemetry.debug(self.settings)
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
        request, timings = job.request, {}
        refuse_what_it_cannot(self.pipelines.located.get(self.pipelines.model_for(request.task)), request)
        # Before anything that waits for the inference thread, which may be at another job's drawing.
        sources, mask = await job.on(self.side_threads, self.opened, job, terms, timings)
        known, failure = await self.located(job)
        refuse_what_it_cannot(known, request)
        size = output_size(request, sources, mask, known.size_multiple if known else SIDE_MULTIPLE)
        canvas = Canvas(sources, mask, size)
        left = job.limit and job.started + job.limit - time.monotonic()
        self.paces.require_time(kind_of(request, canvas), request.num_images, request.num_inference_steps, left)

        pictures, facts = await job.on(self.inference_thread, self.draw, job, known, failure, canvas, timings)
        job.enter(Stage.DELIVERING)
        whole = functools.partial(replies.with_timings, facts, timings)
        return await job.on(self.side_threads, deliver, request, pictures, terms, whole, timings, job.cancelled)

    async def located(self, job: Job) -> tuple[Checkpoint | None, LoadError | None]:
        """What is known of the checkpoint that serves the job, also where loading it has failed, and that failure."""
        job.enter(Stage.WAITING)
        model = self.pipelines.model_for(job.request.task)
        checkpoint, failure = self.pipelines.located.get(model), None
        serves = checkpoint is not None and job.request.task in checkpoint.pipeline_class.tasks
        if not serves or model not in self.pipelines.loaded:
            checkpoint, failure = await job.on(
                self.inference_thread, self.attempt, self.pipelines.locate, job.request.task
            )
        # Known from an earlier job also where the load has failed since: the same job is refused or not, either way.
        return checkpoint or self.pipelines.located.get(model), failure

    def opened(self, job: Job, terms: Terms, timings: dict[str, float]) -> tuple[list, Image.Image | None]:
        """The job's input pictures and its mask; on a side thread."""
        with telemetry.timed(timings, "input"):
            require_usable(terms, job.cancelled)
            return open_images(job.request, self.settings.QWEN_FETCH_SECONDS, job.cancelled)

    def draw(
        self, job: Job, checkpoint: Checkpoint | None, failure: LoadError | None, canvas: Canvas, timings: dict
    ) -> tuple[list[Image.Image], dict]:
        """The pictures and what is known of them, loading the model first where it is not; on the inference thread."""
        request, loaded, plan = job.request, None, None
        sources, mask, size = canvas.sources, canvas.mask, canvas.size
        job.enter(Stage.LOADING)
        if failure is None:
            plan, failure = self.attempt(self.pipelines.place, request.task)
        if plan:
            inference.require_fits(checkpoint.name, plan, size, len(sources), checkpoint.size_multiple)
            with telemetry.timed(timings, "load"):
                loaded, failure = self.attempt(self.load, request.task)
        if failure and self.settings.QWEN_FALLBACK is Fallback.FORBID:
            raise JobError("model_unavailable", failure.reason)

        telemetry.peak_vram_gb(reset=True)
        try:
            job.enter(Stage.DRAWING)
            if loaded and (swap := self.pipelines.activate(loaded)):
                timings["swap"] = swap
            with telemetry.timed(timings, "inference"):
                if loaded:
                    inference.require_prompt_fits(loaded, request)
                    pictures, steps = inference.draw(loaded, request, sources, mask, size, job, self.prompts)
                    self.paces.record(
                        kind_of(request, canvas), job.step_seconds, len(pictures), steps, job.drawing_seconds()
                    )
                else:
                    pictures, steps = fallback.draw(request, sources, mask, size), 0
        finally:
            job.leave_drawing()

        facts = replies.metadata_of(request, size, steps, loaded, self.pipelines.label_for(request.task))
        facts["worker_version"] = self.settings.QWEN_WORKER_VERSION
        if loaded and loaded.plan.device == "cuda":
            facts["peak_vram_gb"] = telemetry.peak_vram_gb()
        return pictures, facts | ({"fallback_reason": failure.reason} if failure else {})

    def place(self, task: str) -> LoadError | None:
        """Why the task's model cannot be had on this machine, if so; loads nothing."""
        return self.inference_thread.submit(self.attempt, self.pipelines.place, task).result()[1]

    def preload(self, task: str) -> LoadError | None:
        """Load a task's pipeline before any job asks for it; why it cannot be had, if so."""
        return self.place(task) or self.inference_thread.submit(self.attempt, self.load, task).result()[1]

    def load(self, task: str):
        """The task's pipeline; the first time, its plan goes to the log."""
        known = self.pipelines.model_for(task) in self.pipelines.loaded
        loaded = self.pipelines.load(task)
        if not known:
            name, seconds = loaded.checkpoint.name, loaded.seconds
            telemetry.log_line(None, "INFO", f"{name} loaded in {seconds:.1f} s: {loaded.plan}")
        return loaded

    def attempt(self, step: Callable, task: str):
        """(step(task), None), or (None, why the model cannot be had): remembered, and tried again only if passing."""
        if self.settings.QWEN_FALLBACK is Fallback.FORCE:
            return None, LoadError("QWEN_FALLBACK=force: this worker loads no model")
        role = "generate" if task == "generate" else "edit"
        failure, failed_at = self.failures.get(role, (None, 0.0))
        paused = time.monotonic() - failed_at < self.settings.QWEN_LOAD_RETRY_SECONDS
        if failure and (paused or not failure.passing):
            return None, failure
        try:
            found = step(task)
        except LoadError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  whatever keeps a model from loading means: stand in
            telemetry.log_line(None, "ERROR", traceback.format_exc())
            part = f"{role}/{self.pipelines.stage}".rstrip("/")
            failure = LoadError(f"{type(error).__name__} while loading {part}; the worker's log has the rest")
        else:
            self.failures.pop(role, None)
            return found, None
        telemetry.log_line(None, "WARN", f"the {role} model cannot be loaded: {failure.reason}")
        self.failures[role] = failure, time.monotonic()
        return None, failure

    def record(self, job_id: str, task: str, reply: dict, seconds: float) -> None:
        """Count the job and log its one line: no prompt, image or secret in it."""
        code = str(reply["error"]).split(":")[0] if "error" in reply else "ok"
        facts = reply.get("metadata", {})
        backend = facts.get("backend", "-")
        self.counters.count(task, code, seconds, backend == "pil-fallback", facts.get("peak_vram_gb") or 0.0)
        telemetry.log_line(
            job_id,
            "INFO" if code == "ok" else "ERROR" if code == "internal" else "WARN",
            f"task={task} size={facts.get('dimensions', '-')} steps={facts.get('steps', '-')} "
            f"seconds={seconds:.3f} backend={backend} code={code}",
        )


def kind_of(request: Drawing, canvas: Canvas) -> tuple:
    """What jobs have in common that take the same time a step."""
    return request.task, canvas.size, len(canvas.sources), request.guidance_scale > 1


def refuse_what_it_cannot(checkpoint: Checkpoint | None, request: Drawing) -> None:
    """What only the checkpoint, once known, can say: the multiple its VAE needs, the pictures its class takes."""
    if checkpoint is None:
        return
    if request.width:
        require_size(request.width, request.height, checkpoint.size_multiple)
    if isinstance(request, Edit):
        require_image_count(request, checkpoint.pipeline_class.max_images)


def main() -> None:
    # The SDK's own default, DEBUG, logs every reply with its images.
    os.environ.setdefault("RUNPOD_DEBUG_LEVEL", "INFO")
    try:
        settings = worker().settings
    except ValidationError as error:
        problems = "; ".join(f"{one['loc'][0]}: {one['msg']}, not {one['input']!r}" for one in error.errors())
        sys.exit(f"A setting in the environment cannot be used. {problems}")
    except buckets.Misconfigured as error:
        sys.exit(f"A setting in the environment cannot be used. {error}")
    import runpod

    if settings.SERVER_MODE is ServerMode.LOCAL and "--rp_serve_api" not in sys.argv:
        sys.argv.append("--rp_serve_api")
    for check in fitness.checks(settings, worker().place, worker().preload):
        runpod.serverless.register_fitness_check(check)
    loop = JobLoop(worker().jobs, settings.QWEN_CONCURRENCY, settings.QWEN_SHUTDOWN_SECONDS)
    streamed = {"handler": streaming_handler, "return_aggregate_stream": True}
    served = streamed if settings.STREAM else {"handler": handler}
    runpod.serverless.start({**served, "concurrency_modifier": loop.concurrency})
    leave()


def leave() -> None:
    """End the process although a load or an upload that nobody waits for any more may still run on a thread."""
    sys.stdout.flush()
    for child in multiprocessing.active_children():
        child.terminate()  # the SDK's heartbeat
    os._exit(0)


if __name__ == "__main__":
    main()
