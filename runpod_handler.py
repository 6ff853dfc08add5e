"""One job's path from input to reply, on a RunPod serverless endpoint.

Parse, route, load on first need, draw, or fall back when no model can be loaded, and reply; the nouns of this story
live in `qwen_worker/`. Run it to start the worker; `--test_input '{"input": {...}}'` runs one job and exits;
SERVER_MODE=local serves the SDK's local HTTP API.
"""

import asyncio
import functools
import os
import sys
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from qwen_worker.checkpoints import checkpoint as checkpoints
from qwen_worker.checkpoints.checkpoint import Checkpoint
from qwen_worker.checkpoints.files import is_missing
from qwen_worker.delivery_settings import ResponseShape
from qwen_worker.drawing import inference, job_plan
from qwen_worker.drawing.batching import Batches
from qwen_worker.drawing.preview import Previewer
from qwen_worker.drawing.prompt_cache import PromptCache
from qwen_worker.drawing.prompts import rewrite_prompt
from qwen_worker.drawing.queue import DrawingJob, WaitingQueue
from qwen_worker.errors import CudaSpoiledError, JobError, LoadError
from qwen_worker.jobs import openai_images
from qwen_worker.jobs import reply as replies
from qwen_worker.jobs.deadline import Paces, kind_of, limit_of
from qwen_worker.jobs.job import Job, Stage
from qwen_worker.jobs.named_sizes import Grid
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets, settle
from qwen_worker.jobs.reply import DrawingResult
from qwen_worker.jobs.request import Drawing, Request
from qwen_worker.jobs.response_shapes import shape_of
from qwen_worker.jobs.schema import job_schema
from qwen_worker.jobs.tasks import Health, Schema
from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.loading.controlnets import controlnets_from_settings
from qwen_worker.loading.loader import Loader
from qwen_worker.loading.pipelines import Pipelines
from qwen_worker.loading.safety import SafetyCheck
from qwen_worker.log import log_exception, log_line
from qwen_worker.lora.loras import Loras
from qwen_worker.memory import card, cuda
from qwen_worker.memory.footprint import Plan
from qwen_worker.memory.machine import read_machine
from qwen_worker.network.bucket import bucket_from_settings
from qwen_worker.network.rewrite import rewriter_from_settings, waiting_threads
from qwen_worker.pictures import fallback, marks, matching
from qwen_worker.pictures.canvas import Canvas, canvas_of
from qwen_worker.pictures.delivery import Terms, deliver, require_usable, size_warning, terms_of, terms_of_photo
from qwen_worker.pictures.inputs import Inputs, open_images
from qwen_worker.pictures.parameters import embed_parameters
from qwen_worker.pictures.signing import signer_from_settings
from qwen_worker.serving import fitness, health
from qwen_worker.serving.job_loop import JobLoop, end_process
from qwen_worker.serving.progress import Post, Progress, poster
from qwen_worker.serving.stream import Reply, SdkJob, stream
from qwen_worker.settings import Fallback, Misconfigured, ServerMode, Settings, environment_warnings, read_settings
from qwen_worker.stopwatch import timed

SIDE_THREADS = 8  # so many jobs at once may have their pictures opened or sent


async def handler(job: SdkJob) -> Reply:
    """Answer one job of the RunPod SDK."""
    return await worker().answer(job)


async def streaming_handler(job: SdkJob) -> AsyncGenerator[Reply, None]:
    """With STREAM: the progress of a job, and its reply as the last of the list that becomes `output`."""
    async for chunk in stream(worker().answer, job, worker().reply_bytes):
        yield chunk


@functools.cache
def worker() -> "Worker":
    return Worker(read_settings())


class Worker:
    """What outlives a job: the models that are loaded or cannot be, the threads, the counters."""

    def __init__(self, settings: Settings):
        self.settings = settings
        # The one thread that loads and draws: the event loop stays free to hear the platform's stop.
        self.inference_thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self.side_threads = ThreadPoolExecutor(SIDE_THREADS, thread_name_prefix="side")  # pictures in and out
        self.loras, self.catalogue = Loras(settings), Catalogue(settings)
        self.presets = Presets(settings, checkpoints.released, is_missing, self.catalogue.located)
        self.safety_check = SafetyCheck(settings, settings.QWEN_SAFETY_MODEL) if settings.QWEN_SAFETY_MODEL else None
        self.controlnets = controlnets_from_settings(settings)
        machine = self.safety_check.machine_for_models if self.safety_check else read_machine
        self.pipelines = Pipelines(settings, self.catalogue, self.loras.open_for_endpoint, machine)
        self.loader = Loader(settings, self.pipelines, self.inference_thread)
        self.queue = WaitingQueue(self.inference_thread)
        self.batches = Batches(self.queue, settings.QWEN_BATCH, settings.QWEN_GPUS)
        self.prompt_cache = PromptCache(round(settings.QWEN_PROMPT_CACHE_MB * 1e6))
        self.paces, self.previewer, self.counters = Paces(), Previewer(), health.Counters()
        self.bucket, self.signer = bucket_from_settings(settings), signer_from_settings(settings)
        self.rewriter = rewriter_from_settings(settings)
        self.reply_bytes = round(settings.QWEN_RESULT_LIMIT_MB * 1e6)  # that a reply may have
        self.jobs: dict[str, asyncio.Task[Any]] = {}  # that are being answered, by id

    async def answer(self, job: SdkJob, post: Post | None = None, limit_bytes: int | None = None) -> Reply:
        """The reply to a job, of at most `limit_bytes`; its progress goes to `post`, or else to the platform.

        The job boundary: whatever goes wrong inside becomes a reply, except a cancellation.
        """
        job_id, task, started = str(job.get("id")), "unknown", time.perf_counter()
        answering = cast("asyncio.Task[Any]", asyncio.current_task())  # a coroutine always runs in a task
        self.jobs[job_id] = answering
        models = self.catalogue.labels()
        call = openai_images.call_of(job.get("input"), models)
        warnings: list[str] = []
        try:
            fields = call.fields() if call else job.get("input")
            request = parse(fields, job_id, self.presets, warnings.append, models)
            task = request.task
            if isinstance(request, Drawing):
                limit_seconds = limit_of(job, self.settings.QWEN_JOB_SECONDS)
                # Clients of other APIs know no field that tells a stand-in from a picture.
                takes_stand_ins = call is None and shape_of(request, self.settings) is ResponseShape.WORKER
                drawing = Job(job_id, request, limit_seconds, warnings, takes_stand_ins)
                limit_bytes = min(limit_bytes or self.reply_bytes, self.reply_bytes)
                reply = await self.serve(drawing, job, post, limit_bytes)
            else:
                reply = self.report(request)
        except JobError as error:
            reply = error.reply()
        except asyncio.CancelledError:
            self.counters.record(job_id, task, {"error": "cancelled"}, time.perf_counter() - started)
            raise
        except CudaSpoiledError as error:
            sentence = f"CUDA has failed on this worker ({error.reason}), which draws nothing any more"
            reply = JobError("internal", sentence, refresh_worker=error.refresh_worker).reply()
        except Exception as error:  # noqa: BLE001  the SDK would post the traceback, with its paths, to the caller
            log_exception(job_id)
            reply = JobError("internal", job_id, refresh_worker=cuda.has_spoiled(error)).reply()
        finally:
            if self.jobs.get(job_id) is answering:  # the platform may hand a job out twice: the second has its id then
                del self.jobs[job_id]
        self.counters.record(job_id, task, reply, time.perf_counter() - started)
        return call.reply(reply) if call else reply

    def try_card(self) -> None:
        """Compute on the card. Raises `LoadError` with what fails."""
        self.inference_thread.submit(card.try_out).result()

    def load_safety_check(self) -> None:
        """Have the safety check ready, where there is to be one. Raises `LoadError`."""
        if self.safety_check:
            self.inference_thread.submit(self.safety_check.load).result()

    def report(self, request: Request) -> Reply:
        """The reply of health, debug or schema; loads nothing."""
        if isinstance(request, Schema):
            return job_schema()
        if not isinstance(request, Health):
            return health.debug(self.settings)
        presets, known = self.presets.report(), self.catalogue.report()
        models, fallbacks = self.pipelines.report(), self.loader.report()
        check = self.safety_check.report() if self.safety_check else None
        control = self.controlnets.report() if self.controlnets else None
        facts = models, fallbacks, presets, self.counters, check, known, control
        return health.health(self.settings, read_machine(), *facts)

    async def serve(self, job: Job, sdk_job: SdkJob, post: Post | None, limit_bytes: int) -> Reply:
        """A drawing job from its pictures to its reply: only what touches the model is on the one inference thread."""
        request = job.request
        terms = terms_of(sdk_job, request, self.settings, limit_bytes, self.bucket)
        if self.signer:
            self.signer.require_valid()
        async with Progress(job, post or poster(job.id), self.settings.QWEN_PROGRESS_SECONDS), job.within_limit():
            if located := self.catalogue.located(request.task):
                located.require_serves(request)
            # Before anything that waits for the inference thread, which may be at another job's drawing.
            inputs, terms = await job.run_on(self.side_threads, self.open_pictures, job, terms)
            if self.safety_check:
                await self.check_inputs(self.safety_check, job, inputs)
            if self.rewriter and request.prompt_extend:
                await job.run_on(waiting_threads, rewrite_prompt, self.rewriter, job, inputs)
            checkpoint, failure = await self.locate(job)
            defaults, request = settle(job, self.presets), job.request
            if checkpoint:
                checkpoint.require_serves(request)
            controlnets = None
            if self.controlnets and not failure:
                controlnets = await job.run_on(self.side_threads, self.controlnets.open_for_job, request, checkpoint)
            loras = () if failure else await job.run_on(self.side_threads, self.loras.open_for_job, job, checkpoint)
            grid = checkpoint.grid if checkpoint else Grid()
            if checkpoint and not failure and checkpoint.warning:
                job.warn(checkpoint.warning)
            canvas = await job.run_on(self.side_threads, canvas_of, job, inputs, grid)
            request = job.request
            if warning := size_warning(request, canvas.result_size, terms):
                job.warn(warning)
            self.require_time(job, canvas)

            job.enter(Stage.WAITING)
            outcome = self.queue.submit(DrawingJob(job, canvas, loras, controlnets), self.draw, failure)
            drawn = await job.wait_for(outcome, functools.partial(self.queue.has_abandoned_call, job))
            concepts = await self.safety_check.check_drawn(job, drawn.pictures) if self.safety_check else []
            job.enter(Stage.DELIVERING)
            origin = marks.origin_of(request, is_stand_in=drawn.model is None)
            edit_round = inputs.lineage.get("round") if inputs.lineage else None
            marks.mark_pictures(drawn.pictures, origin, self.settings.QWEN_MARK, edit_round)
            label = self.catalogue.label_for(request.task)
            scalings = [use.file.scalings for use in loras if not use.from_settings]
            metadata = replies.drawing_facts(
                request, canvas.result_size, canvas.size, drawn, label, self.settings, scalings, job.instruction
            )
            facts = ("defaults", drawn.model and defaults), ("has_nsfw_concepts", concepts)
            metadata |= cast("Any", {name: fact for name, fact in facts if fact})
            metadata |= cast("Any", canvas.report(request, drawn.pictures) | matching.report(drawn.pictures, job.warn))
            if request.embed_parameters:
                embed_parameters(drawn.pictures, request, metadata)
            sign = self.signer.signing(origin, metadata) if self.signer else None
            metadata_with = functools.partial(replies.complete_metadata, metadata, job.timings, job.warnings)
            delivery = request, drawn.pictures, terms, metadata_with, job.timings, job.cancelled, sign, inputs.lineage
            return await job.run_on(self.side_threads, deliver, *delivery)

    def open_pictures(self, job: Job, terms: Terms) -> tuple[Inputs, Terms]:
        """The job's input pictures and its mask, and the terms for a photo of its own size; on a side thread."""
        with timed(job.timings, "input"):
            require_usable(terms, job.cancelled)
            inputs = open_images(job.request, self.settings.QWEN_FETCH_SECONDS, job.warn, job.cancelled)
            if inputs.stitch:
                terms = terms_of_photo(job.request, inputs.stitch, terms, job.warn, job.cancelled)
            return inputs, terms

    async def check_inputs(self, check: SafetyCheck, job: Job, inputs: Inputs) -> None:
        """Raises `JobError` content_rejected, or model_unavailable where pictures cannot be checked."""
        if not check.judge:  # the SDK's local API makes no fitness checks, which load it before any job
            try:
                await job.run_on(self.inference_thread, check.load)
            except LoadError as failure:
                raise JobError("model_unavailable", f"the safety check: {failure.reason}") from None
        await check.check_inputs(job, inputs.to_check)

    async def locate(self, job: Job) -> tuple[Checkpoint | None, LoadError | None]:
        """The checkpoint that serves the job, where it has been located, and why its model cannot be had, if so."""
        job.enter(Stage.WAITING)
        task, plan = job.request.task, None
        if not self.loader.ready(task):
            plan = await job.run_on(self.inference_thread, self.loader.place, task)
        # A checkpoint located for an earlier job counts also where loading has failed since: a job that it does not
        # serve is refused either way.
        return self.catalogue.located(task), plan if isinstance(plan, LoadError) else None

    def require_time(self, job: Job, canvas: Canvas) -> None:
        """Tell the job how many steps will really run; refuse it where they clearly have no time."""
        request, left = job.request, job.seconds_to_limit()
        steps, whole_steps = request.drawn_steps, request.whole_steps(request.drawn_steps)
        job.expect_steps(steps)
        kind, calls = kind_of(request, canvas.size, len(canvas.sources)), self.batches.fewest_calls(request)
        self.paces.require_time(kind, calls, steps, left, request.strength, whole_steps)

    def draw(self, entry: DrawingJob, failure: LoadError | None) -> DrawingResult:
        """The pictures and what drew them, loading the model first where it is not; on the inference thread."""
        job, canvas, loaded = entry.job, entry.canvas, failure
        job.describe_load = self.pipelines.load_state
        job.enter(Stage.LOADING)
        if loaded is None:
            with timed(job.timings, "load"):
                loaded = self.loader.load(job.request.task, functools.partial(self.require_room, entry))
        if isinstance(loaded, LoadError):
            return self.fall_back(entry, loaded)
        if entry.controlnets:
            with timed(job.timings, "load"):
                entry.controlnets.load(loaded.checkpoint, loaded.plan)
        if swap_seconds := self.pipelines.activate(loaded):
            job.timings["swap"] = swap_seconds
        cuda.peak_vram_gb(reset=True)
        self.queue.enter_call(entry)
        with timed(job.timings, "inference"):
            inference.require_drawable(loaded, entry)
            try:
                drawn = self.batches.draw(loaded, entry, self.prompt_cache)
                drawn = drawn or inference.draw(loaded, entry, self.prompt_cache, self.previewer)
            except CudaSpoiledError as error:
                raise self.pipelines.blame(loaded, error) from None
        self.pipelines.notes.clear_unexplained()
        if drawn.batch == 1:  # in company a step takes longer and says nothing of how fast it could be
            kind, count = kind_of(job.request, canvas.size, len(canvas.sources)), len(drawn.pictures)
            steps = job.request.whole_steps(drawn.steps)
            self.paces.record(kind, job.step_seconds, count, steps, job.stage_seconds())
        loaded.stage_seconds.setdefault("first_job", round(job.stage_seconds(), 3))
        return drawn

    def require_room(self, entry: DrawingJob, plan: Plan) -> None:
        """Refuse a job that the plan has no room for, before anything is loaded. Raises `JobError` out_of_memory."""
        task = entry.job.request.task
        checkpoint = self.catalogue.locate(task)
        names = [checkpoint.name] + ([entry.controlnets.name] if entry.controlnets else [])
        facts = " and ".join(names), checkpoint.size_multiple
        job_plan.require_room(entry, plan, self.pipelines.get(task), *facts)

    def fall_back(self, entry: DrawingJob, failure: LoadError) -> DrawingResult:
        """Stand-ins for the job's pictures. Raises `JobError` model_unavailable where they are not to be had."""
        if self.settings.QWEN_FALLBACK is Fallback.FORBID or not entry.job.takes_stand_ins:
            raise JobError("model_unavailable", failure.reason)
        entry.job.warn(f"no model drew this, it is a stand-in: {failure.reason}")
        self.queue.enter_call(entry)
        with timed(entry.job.timings, "inference"):
            return DrawingResult(fallback.draw(entry.job.request, entry.canvas), 0, failure=failure)


def main() -> None:
    # The SDK's own default, DEBUG, logs every reply with its images.
    os.environ.setdefault("RUNPOD_DEBUG_LEVEL", "INFO")
    try:
        settings, loader = worker().settings, worker().loader
    except Misconfigured as error:
        sys.exit(f"A setting in the environment cannot be used. {error}")
    for warning in environment_warnings(os.environ):
        log_line(None, "WARN", warning)
    loader.import_ahead()
    import runpod  # pyright: ignore[reportMissingTypeStubs]  the SDK has none

    if settings.SERVER_MODE is ServerMode.LOCAL and "--rp_serve_api" not in sys.argv:
        sys.argv.append("--rp_serve_api")
    checks = fitness.checks(
        settings,
        loader.why_not_placed,
        loader.why_not_loaded,
        worker().try_card,
        load_safety_check=worker().load_safety_check,
    )
    for check in checks:
        runpod.serverless.register_fitness_check(check)  # pyright: ignore[reportUnknownMemberType]  not annotated
    slots = settings.QWEN_CONCURRENCY * settings.QWEN_BATCH
    loop = JobLoop(worker().jobs, slots, settings.QWEN_SHUTDOWN_SECONDS, settings.QWEN_STUCK_SECONDS)
    config: dict[str, Any] = {"handler": handler, "concurrency_modifier": loop.concurrency}
    if settings.STREAM:
        config |= {"handler": streaming_handler, "return_aggregate_stream": True}
    try:
        runpod.serverless.start(config)
    except SystemExit as end:  # raised by the SDK after a test input, and by its local API where that does not start
        if settings.SERVER_MODE is ServerMode.LOCAL and end.code:
            log_line(None, "ERROR", "the local API has not started; if its port is taken, --rp_api_port names another")
        end_process(end.code)
    end_process()


if __name__ == "__main__":
    main()
