"""Progress goes out one message at a time and never after the result; previews stay small and cheap."""

import asyncio
import base64
import json
import random
from types import SimpleNamespace

import pytest
import torch

from qwen_deploy.runpod import waiting
from qwen_play import following
from qwen_worker.drawing.preview import SHARE, Preview, Previewer
from qwen_worker.jobs.job import Job, Stage
from qwen_worker.jobs.parsing import parse
from qwen_worker.serving.progress import Progress, message_of
from qwen_worker.serving.stream import CHUNK_BYTES, stream

from ..conftest import picture_of
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.pretended_time import run_pretended

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}


def a_job(**fields):
    job = Job("a", parse({**SMALL, "num_inference_steps": 10, **fields}, "a"))
    job.enter(Stage.DRAWING)
    return job


def test_a_report_tells_step_total_percent_and_seconds_left(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr("qwen_worker.jobs.job.time.monotonic", lambda: next(seconds) / 10)
    job = a_job(num_images=2)
    assert message_of(job) == {"stage": "drawing", "step": 0, "total": 20, "percent": 0}
    for step in (1, 2, 3):
        job.end_step(step, 10)
    assert message_of(job) == {"stage": "drawing", "step": 3, "total": 20, "percent": 15, "seconds_left": 1.7}


def test_a_report_has_the_warnings_that_the_reply_will_have():
    job = a_job()
    assert "warnings" not in message_of(job)
    job.warn("output_format png: it may be too large")
    assert message_of(job)["warnings"] == ["output_format png: it may be too large"]


def test_progress_never_comes_after_the_result_in_1000_runs():
    rng = random.Random(1)
    flying, late, sent = 0, 0, 0

    async def one():
        nonlocal late
        job, done = a_job(), False

        async def post(_message):
            nonlocal flying, late, sent
            flying, sent = flying + 1, sent + 1
            assert flying == 1, "two messages at once"
            await asyncio.sleep(rng.random() / 500)
            late += done
            flying -= 1

        async with Progress(job, post, 0.0001):
            for step in range(1, rng.randrange(2, 6)):
                await asyncio.sleep(rng.random() / 1000)
                job.end_step(step, 10)
        done = True
        await asyncio.sleep(0)

    async def all_of_them():
        for _ in range(1000):
            await one()
        await asyncio.sleep(0.01)

    run_pretended(all_of_them())
    assert late == 0 and sent > 1000


def test_messages_are_spaced_and_only_of_what_changed():
    sent = []

    async def post(message):
        sent.append((asyncio.get_running_loop().time(), message["step"]))

    async def run():
        job = a_job()
        async with Progress(job, post, 0.1):
            for step in range(1, 11):
                job.end_step(step, 10)
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)

    run_pretended(run())
    assert sent == [(0.0, 1), (pytest.approx(0.1), 6), (pytest.approx(0.2), 10)]


def test_a_stopped_job_waits_for_no_message():
    async def run():
        async def post(_message):
            await asyncio.sleep(30)

        async def job():
            async with Progress(a_job(), post, 0.01):
                await asyncio.sleep(30)

        task = asyncio.create_task(job())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert run_pretended(run())[1] == pytest.approx(0.1)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_stop_while_the_last_message_is_sent_is_not_lost(deaf):
    async def run():
        sending = asyncio.Event()

        async def post(_message):
            sending.set()
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                if not deaf:  # as `asyncio.wait_for` may be, where what it waits for is there already
                    raise

        async def job():
            async with Progress(a_job(), post, 10), asyncio.timeout(30):
                await sending.wait()
            return "a result"

        task = asyncio.create_task(job())
        await sending.wait()
        await asyncio.sleep(0.1)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        run_pretended(run())


def test_a_time_limit_that_ran_out_before_the_last_message_is_no_stop():
    async def run():
        async def post(_message):
            await asyncio.sleep(0.3)

        async with Progress(a_job(), post, 10), asyncio.timeout(0.1):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        run_pretended(run())


def test_the_platform_sees_progress_in_order_and_the_result_last(environment, web):
    plane = ControlPlane()
    slow = random.Random(2)
    plane.fault = lambda kind, number: slow.random() * 0.1 if kind == "job-done" else None
    names = [f"job-{number}" for number in range(5)]
    with WorkerProcess(environment(QWEN_PROGRESS_SECONDS="0.05", **addresses(web(plane)))) as worker:
        for name in names:
            plane.put(name, {**SMALL, "num_inference_steps": 20, "preview": name > "job-2"})
        plane.wait(lambda: len(plane.bodies) == len(names))
        assert worker.terminate() == 0  # and so has sent all that it ever would
    for name in names:
        kinds = plane.kinds(name)
        assert kinds[-1] == "result" and kinds.count("result") == 1 and "progress" in kinds
    told = [data["output"] for kind, _, data in plane.log if kind == "progress"]
    assert all(one["total"] == 20 for one in told)
    assert {"drawing"} <= {one["stage"] for one in told}


# Previews


@pytest.fixture
def pipe(warm_worker):
    return warm_worker.pipelines.load("generate").pipe


def test_the_estimate_is_the_finished_picture_where_the_path_is_straight(pipe):
    side, multiple = 512, pipe.vae_scale_factor
    shape = (1, pipe.vae.config.z_dim, 1, side // multiple, side // multiple)
    clean, noise = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    packed = [pipe._pack_latents(one.transpose(1, 2), 1, shape[1], *shape[3:]) for one in (clean, noise)]
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.8)
    pipe._num_timesteps = 400  # as many as afford a preview at once
    at = [(1 - sigma) * packed[0] + sigma * packed[1] for sigma in pipe.scheduler.sigmas]
    preview = Previewer().start(pipe, (side, side))
    assert preview.after_step(0, at[1]) is None  # nothing to compare it with yet
    preview.remember(at[1])
    preview.started -= 100
    shown = preview.after_step(1, at[2])
    direct = picture_of(preview.thumbnail(packed[0]))
    difference = [abs(a - b) for a, b in zip(picture_of(shown).tobytes(), direct.tobytes(), strict=True)]
    assert max(difference) <= 4 and max(direct.size) <= 512  # a rounding apart, and each a JPEG


@pytest.mark.parametrize(
    ("cost", "count"),
    [(0.5, {"known": 4, "guessed": 4}), (1.0, {"known": 2, "guessed": 2}), (5.0, {"known": 0, "guessed": 1})],
)
@pytest.mark.parametrize("before", ["known", "guessed"])
def test_previews_take_at_most_their_share_of_the_drawing(monkeypatch, before, cost, count):
    """The first on a worker goes by a guess of what one costs."""
    now = 0.0
    monkeypatch.setattr("qwen_worker.drawing.preview.time.monotonic", lambda: now)

    def thumbnail(self, packed):
        nonlocal now
        now += cost
        return "a picture"

    monkeypatch.setattr(Preview, "thumbnail", thumbnail)
    steps = 100
    pipe = SimpleNamespace(num_timesteps=steps, scheduler=SimpleNamespace(sigmas=torch.linspace(1, 0, steps + 1)))
    previewer = Previewer()
    previewer.cost_seconds = {"known": cost, "guessed": None}[before]
    preview, shown = previewer.start(pipe, (256, 256)), []
    for step in range(steps):
        now += 1.0
        shown.append(preview.after_step(step, torch.zeros(1)))
        preview.remember(torch.zeros(1))
    assert shown.count("a picture") == count[before] and (count[before] * cost <= SHARE * steps or count[before] == 1)


def test_previews_are_small_pictures_where_they_are_cheap_and_change_nothing(cold_worker):
    worker, told = cold_worker(QWEN_PROGRESS_SECONDS=0.01), []

    async def tell(message):
        told.append(message)

    worker.previewer.cost_seconds = 0.0
    fields = {**SMALL, "num_inference_steps": 20, "preview": True}
    reply = asyncio.run(worker.answer({"id": "look", "input": fields}, tell))
    previews = [message["preview"] for message in told if "preview" in message]
    assert previews and all(picture_of(one).format == "JPEG" and len(one) < 100_000 for one in previews)
    plain = asyncio.run(worker.answer({"id": "look", "input": {**fields, "preview": False}}))
    assert plain["image"] == reply["image"]


# Streams


async def collected(items):
    return [item async for item in items]


def test_a_stream_is_the_progress_and_then_the_reply_within_the_limits():
    limit = 3 * CHUNK_BYTES

    async def answer(job, tell, reply_limit):
        assert reply_limit == CHUNK_BYTES
        for step in range(40):
            await tell({"step": step, "preview": "x" * 100_000})
        await tell({"step": 40, "preview": "x" * CHUNK_BYTES})
        return {"image": "y" * (CHUNK_BYTES - 100)}

    items = asyncio.run(collected(stream(answer, {"id": "a"}, limit)))
    assert [item["step"] for item in items[:-1]] == list(range(41)) and "image" in items[-1]
    assert all(len(json.dumps(item)) < CHUNK_BYTES for item in items)
    assert len(json.dumps({"output": items})) <= limit
    assert 10 < sum("preview" in item for item in items) < 41


def test_a_stream_that_is_left_stops_its_job_and_waits_for_its_end():
    ended = []

    async def answer(job, tell, limit):
        await tell({"step": 1})
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            ended.append(True)
            raise

    async def leave():
        async for _ in (items := stream(answer, {"id": "a"}, 10 * CHUNK_BYTES)):
            await asyncio.sleep(0)
            break
        await items.aclose()

    assert run_pretended(leave())[1] == pytest.approx(0.1) and ended


def test_an_endpoint_that_streams_answers_with_a_list_and_hears_a_stop(environment, web):
    plane = ControlPlane()
    settings = {"STREAM": "1", "QWEN_PROGRESS_SECONDS": "0.05"}
    with WorkerProcess(environment(**settings, **addresses(web(plane)))) as worker:
        plane.put("good", {**SMALL, "num_inference_steps": 20})
        output = plane.result("good")["output"]
        assert picture_of(output[-1]["image"]).size == (256, 256) and output[0]["total"] == 20
        chunks = [data["output"] for kind, job_id, data in plane.log if kind == "chunk"]
        assert chunks == output and plane.kinds("good")[-1] == "result"
        plane.put("bad", {"prompt": ""})
        assert plane.result("bad") == {"error": "invalid_input: prompt must not be empty"}
        noisy = {"prompt": "a", "width": 1024, "height": 1024, "num_inference_steps": 1, "output_format": "png"}
        plane.put("large", noisy)
        large = plane.result("large")
        assert large["error"].startswith("result_too_large: the reply has ") and "at most 1 MB" in large["error"]
        plane.put("long", {**SMALL, "num_inference_steps": 100, "width": 1024, "height": 1024})
        plane.wait(lambda: "chunk" in plane.kinds("long"))
        plane.stop("long")
        plane.put("next", SMALL)
        assert plane.result("next")["output"][-1]["success"] and "long" not in plane.bodies
        assert worker.terminate() == 0


def test_base64_of_a_preview_is_a_whole_jpeg(pipe):
    preview = Previewer().start(pipe, (512, 256))
    shape = (1, 1, pipe.vae.config.z_dim, 256 // pipe.vae_scale_factor, 512 // pipe.vae_scale_factor)
    shown = preview.thumbnail(pipe._pack_latents(torch.zeros(shape), 1, shape[2], *shape[3:]))
    assert base64.b64decode(shown)[-2:] == b"\xff\xd9" and picture_of(shown).width == 2 * picture_of(shown).height


@pytest.mark.parametrize("words", [waiting.STAGES, following.STAGES])
def test_who_tells_of_a_job_has_words_for_every_stage_that_a_message_names(words):
    """The page and the deploy helper know the worker by its messages alone."""
    assert set(words) == {stage.name.lower() for stage in Stage}
