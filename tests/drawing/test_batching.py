"""Small pictures that share a call: the same as alone within rounding, and no job's end is another's."""

import asyncio
import dataclasses
import functools
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from qwen_worker.drawing.batching import Batches, are_alike, may_share
from qwen_worker.drawing.queue import DrawingJob, WaitingQueue
from qwen_worker.errors import Cancelled
from qwen_worker.jobs.deadline import Kind
from qwen_worker.jobs.job import Job, Stage
from qwen_worker.jobs.parsing import parse
from qwen_worker.lora.file import LoraFile, LoraUse
from qwen_worker.model_settings import Gpus, Precision
from qwen_worker.pictures.canvas import Canvas
from qwen_worker.settings import Settings

from ..conftest import as_text, picture_of, run
from ..model.test_savings import EXACT, pipeline
from ..support.lora_files import lora_layer
from ..support.patience import until

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 3}
# Prompts and negative prompts of 3 to 23 tokens: all but the longest are padded.
FOUR = [
    {**SMALL, "seed": 1},
    {
        **SMALL,
        "seed": 2,
        "prompt": "a large blue square in the center, on a green background",
        "negative_prompt": "red",
    },
    {**SMALL, "seed": 3, "prompt": "a green triangle on the left", "output_format": "webp"},
    {**SMALL, "seed": 4, "prompt": "circle", "negative_prompt": "a small yellow triangle at the top, blurred, dark"},
]


@pytest.fixture(scope="module")
def worker(tiny):
    """A warm worker that lets four pictures share a call."""
    import runpod_handler

    models = {"QWEN_IMAGE_MODEL": str(tiny / "generate"), "QWEN_EDIT_MODEL": str(tiny / "edit")}
    one = runpod_handler.Worker(Settings(**models, QWEN_MODEL_ROOTS=(), QWEN_BATCH=4, QWEN_PROGRESS_SECONDS=0.02))
    run(one, SMALL)
    one.pipelines.load("edit")
    return one


@pytest.fixture
def pipe(worker):
    return worker.pipelines.load("generate").pipe


@pytest.fixture
def calls(pipe):
    """The rows of every forward of the transformer, as they come; first the prompt's, then the negative's."""
    rows = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, given: rows.append(len(given["hidden_states"])), with_kwargs=True
    )
    yield rows
    hook.remove()


async def held(worker, jobs, told=None):
    """(the jobs' tasks, all waiting for the inference thread in this order; what lets them go).

    `told`: lists that take their progress, by number.
    """
    release, tasks = threading.Event(), []
    worker.inference_thread.submit(release.wait)

    async def tell(number, message):
        told[number].append(message)

    try:
        for number, job in enumerate(jobs):
            job = {"id": f"job-{number}"} | (job if "input" in job else {"input": job})
            post = functools.partial(tell, number) if told else None
            tasks.append(asyncio.create_task(worker.answer(job, post)))
            await until(lambda count=number + 1: len(worker.queue.waiting) == count)
    except AssertionError:
        release.set()
        raise
    return tasks, release


def together(worker, *jobs, meanwhile=None):
    """The replies of jobs that wait for the inference thread at the same time; `meanwhile(tasks)` runs beside them."""

    async def all_of_them():
        tasks, release = await held(worker, jobs)
        release.set()
        if meanwhile:
            await meanwhile(tasks)
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(all_of_them())


def images(replies):
    assert all(reply.get("success") for reply in replies), replies
    return [text for reply in replies for text in reply.get("images", [reply["image"]])]


def pixels(texts):
    return [np.asarray(picture_of(text).convert("RGB"), np.int16) for text in texts]


def assert_close(texts, others):
    """The tolerance in float32: no sample is off by more than 1 of 255, and not one in a thousand at all."""
    for ours, theirs in zip(pixels(texts), pixels(others), strict=True):
        difference = np.abs(ours - theirs)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def alone(worker, *jobs):
    return images([run(worker, fields)["output"] for fields in jobs])


# The pictures


def test_jobs_that_wait_are_drawn_in_one_call_as_they_are_alone(worker, warm_worker, calls):
    replies = together(worker, *FOUR)
    assert calls == [4, 4] * 3
    assert [reply["metadata"]["batch"] for reply in replies] == [4] * 4
    assert_close(images(replies), alone(warm_worker, *FOUR))
    assert len(set(images(replies))) == 4
    for reply in replies:
        assert set(reply["metadata"]["timings"]) == {"input", "load", "inference", "encode"}
        assert reply["metadata"]["timings"]["inference"] > 0 and reply["metadata"]["steps"] == 3
    assert run(worker, {"task": "health"})["output"]["counters"]["batched"] >= 4


def test_in_bfloat16_with_the_table_they_differ_as_bfloat16_does(settings, tiny, worker, warm_worker, monkeypatch):
    """The tolerance in bfloat16: no farther from the picture drawn alone than twice that is from float32's."""
    folder = tiny / "generate"
    pipe, table = pipeline(settings, folder, Precision.BF16, EXACT, table=True)
    (model, loaded), *_ = worker.pipelines.loaded.items()
    plan = dataclasses.replace(loaded.plan, precision=Precision.BF16)
    with monkeypatch.context() as patch:
        patch.setitem(worker.pipelines.loaded, model, dataclasses.replace(loaded, pipe=pipe, table=table, plan=plan))
        replies = together(worker, *FOUR)
        by_itself = pixels(alone(worker, *FOUR))
    assert [reply["metadata"]["batch"] for reply in replies] == [4] * 4
    exact = pixels(alone(warm_worker, *FOUR))

    def error(ours, theirs):
        return np.mean([np.square(a - b).mean() for a, b in zip(ours, theirs, strict=True)])

    assert 0 < error(pixels(images(replies)), by_itself) <= 2 * error(by_itself, exact)


def test_without_guidance_there_is_no_negative_row(worker, warm_worker, calls):
    jobs = [{**fields, "guidance_scale": 1} for fields in FOUR[:2]]
    assert_close(images(together(worker, *jobs)), alone(warm_worker, *jobs))
    assert calls == [2] * 3


def test_pictures_of_one_job_share_calls_and_are_those_of_their_seeds(worker, warm_worker, calls):
    reply = run(worker, {**SMALL, "seed": 7, "num_images": 3})["output"]
    assert calls == [3, 3] * 3 and reply["metadata"]["batch"] == 3
    assert_close(images([reply]), alone(warm_worker, *({**SMALL, "seed": seed} for seed in (7, 8, 9))))


def test_more_pictures_than_a_call_takes_are_several_calls(worker, warm_worker, calls, monkeypatch):
    monkeypatch.setattr(worker.batches, "max_pictures", 2)
    reply = run(worker, {**SMALL, "seed": 7, "num_images": 3})["output"]
    assert calls == [2, 2] * 3 + [1, 1] * 3 and reply["metadata"]["batch"] == 2
    assert_close(images([reply]), alone(warm_worker, *({**SMALL, "seed": seed} for seed in (7, 8, 9))))


def test_a_job_joins_whole_or_not_at_all(worker, calls):
    replies = together(worker, *({**SMALL, "num_images": count} for count in (2, 3, 2)))
    assert calls == [4, 4] * 3 + [3, 3] * 3
    assert [reply["metadata"]["batch"] for reply in replies] == [4, 3, 4]
    assert [len(reply["images"]) for reply in replies] == [2, 3, 2]


def test_a_job_without_company_is_drawn_at_once_and_to_the_bit_as_without_batching(worker, warm_worker):
    for fields in FOUR:
        reply = run(worker, fields)["output"]
        assert reply["metadata"]["batch"] == 1
        assert reply["image"] == run(warm_worker, fields)["output"]["image"]


def test_off_by_default_every_picture_has_a_call_of_its_own(warm_worker):
    pipe, rows = warm_worker.pipelines.load("generate").pipe, []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda *given: rows.append(len(given[2]["hidden_states"])), with_kwargs=True
    )
    several = {**SMALL, "seed": 7, "num_images": 2}
    try:
        replies = together(warm_worker, several, *FOUR[:2])
    finally:
        hook.remove()
    assert rows == [1] * 2 * 3 * 4
    assert not any("batch" in reply["metadata"] for reply in replies)
    assert images(replies) == alone(warm_worker, {**SMALL, "seed": 7}, {**SMALL, "seed": 8}, *FOUR[:2])


# Who shares


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        ({"prompt": "b", "negative_prompt": "c", "seed": 9, "num_images": 2, "output_format": "jpeg"}, True),
        ({"output_quality": 50, "delivery": "inline", "response_shape": "fal"}, True),
        ({"width": 512}, False),
        ({"width": 512, "height": 128 + 384}, False),
        ({"num_inference_steps": 4}, False),
        ({"guidance_scale": 4.5}, False),
        ({"preview": True}, False),
    ],
)
def test_only_what_differs_from_picture_to_picture_may_differ(other, shared):
    one, other = parse(SMALL, "a"), parse(SMALL | other, "b")
    assert (may_share(other) and are_alike(one, other)) is shared and are_alike(one, one)


def test_a_field_that_nobody_thought_of_keeps_jobs_apart():
    one = parse(SMALL, "a")
    assert not are_alike(one, type("Other", (type(one),), {"__annotations__": {}})(**SMALL))
    assert not are_alike(one, one.model_copy(update={"preset": "fast"}))


def test_large_pictures_and_those_with_previews_are_drawn_alone(worker, calls):
    large = {**SMALL, "width": 1024, "height": 768, "num_inference_steps": 1}
    replies = together(worker, large, large, *({**SMALL, "num_inference_steps": 1, "preview": True} for _ in range(2)))
    assert [reply["metadata"]["batch"] for reply in replies] == [1] * 4 and set(calls) == {1}


def test_an_edit_is_drawn_alone(worker, scene):
    edit = {**SMALL, "num_inference_steps": 1, "image": as_text(scene), "num_images": 2, "draw_size": "asked"}
    replies = together(worker, edit, edit)
    assert [reply["metadata"]["batch"] for reply in replies] == [1, 1] and all(reply["success"] for reply in replies)


def test_a_call_begins_with_the_oldest_job_whoever_has_shared_the_last_one(worker, calls):
    ends = []

    async def note(tasks):
        names = dict(zip(tasks, "abcdef", strict=True))
        for task in tasks:
            task.add_done_callback(lambda one: ends.append(names[one]))

    other, third = {**SMALL, "num_inference_steps": 2}, {**SMALL, "num_inference_steps": 1}
    replies = together(worker, SMALL, other, SMALL, third, other, third, meanwhile=note)
    assert all(reply["metadata"]["batch"] == 2 for reply in replies)
    assert calls == [2, 2] * 3 + [2, 2] * 2 + [2, 2]
    assert [set(ends[:2]), set(ends[2:4]), set(ends[4:])] == [{"a", "c"}, {"b", "e"}, {"d", "f"}]


def test_who_comes_while_another_is_encoded_is_in_time(worker, calls, pipe, gate):
    encoding, go_on = gate(), gate()
    hook = pipe.text_encoder.register_forward_hook(lambda *_: (encoding.set(), go_on.wait()) and None)

    async def two():
        first = asyncio.create_task(worker.answer({"id": "a", "input": {**SMALL, "prompt": "never encoded before"}}))
        await until(encoding.is_set)
        second = asyncio.create_task(worker.answer({"id": "b", "input": SMALL}))
        await until(lambda: worker.queue.waiting)
        go_on.set()
        return await asyncio.gather(first, second)

    try:
        replies = asyncio.run(two())
    finally:
        hook.remove()
    assert calls == [2, 2] * 3 and all(reply["metadata"]["batch"] == 2 for reply in replies)


def test_a_call_takes_what_the_checkpoint_s_class_and_the_plan_allow(worker):
    loaded, job = worker.pipelines.load("generate"), waiting("a", width=512, height=512)
    assert worker.batches.pictures_per_call(loaded, job) == 4
    newer = dataclasses.replace(loaded.checkpoint, class_name="QwenImage21Pipeline")
    assert worker.batches.pictures_per_call(dataclasses.replace(loaded, checkpoint=newer), job) == 1
    tight = dataclasses.replace(loaded.plan, device="cuda")
    tight = dataclasses.replace(tight, limit_bytes=tight.peak_bytes(512, 1024))
    assert worker.batches.pictures_per_call(dataclasses.replace(loaded, plan=tight), job) == 2
    file = LoraFile("key", {"layer": lora_layer(64, 1 << 20, 1 << 20)}, None)
    job.loras = (LoraUse(file, 1.0, "loras[0]"),)
    assert worker.batches.pictures_per_call(dataclasses.replace(loaded, plan=tight), job) == 1


# A failure of one


def test_a_prompt_that_is_refused_joins_nobody(worker, calls):
    replies = together(worker, FOUR[0], {**SMALL, "prompt": "龘" * 1999}, FOUR[1])
    assert replies[1]["error"].startswith("invalid_input: prompt must be at most 1019 tokens")
    assert [replies[k]["metadata"]["batch"] for k in (0, 2)] == [2, 2] and calls == [2, 2] * 3


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_prompt_that_cannot_be_encoded_fails_its_own_job_only(worker, pipe, monkeypatch, guilty):
    encode = pipe.encode_prompt

    @functools.wraps(encode)
    def broken(*args, **more):
        if inspect.signature(encode).bind(*args, **more).arguments["prompt"] == "break":
            raise RuntimeError("planted")
        return encode(*args, **more)

    monkeypatch.setattr(pipe, "encode_prompt", broken)
    jobs = [FOUR[0], FOUR[1], FOUR[2]]
    jobs[guilty] = {**SMALL, "prompt": "break"}
    replies = together(worker, *jobs)
    assert replies.pop(guilty)["error"].startswith("internal: ")
    assert [reply["metadata"]["batch"] for reply in replies] == [2, 2]


@pytest.mark.parametrize("guilty", [0, 2])
def test_when_the_call_fails_each_is_drawn_alone_and_the_guilty_one_fails(
    worker, warm_worker, pipe, calls, monkeypatch, capsys, guilty
):
    with torch.no_grad():
        mark = pipe.encode_prompt(prompt="break")[0][0]
    forward = pipe.transformer.forward

    def broken(*args, encoder_hidden_states=None, **more):
        if any(torch.equal(row[: len(mark)], mark) for row in encoder_hidden_states):
            raise ValueError("planted")
        return forward(*args, encoder_hidden_states=encoder_hidden_states, **more)

    monkeypatch.setattr(pipe.transformer, "forward", broken)
    jobs = FOUR[:3]
    jobs[guilty] = {**SMALL, "prompt": "break"}
    replies = together(worker, *jobs)
    assert calls == [3] + [1] * (1 + 2 * 6)  # nothing is tried twice
    assert replies.pop(guilty)["error"] == f"internal: job-{guilty}"
    jobs.pop(guilty)
    assert images(replies) == alone(warm_worker, *jobs)
    assert [reply["metadata"]["batch"] for reply in replies] == [1, 1]
    logged = capsys.readouterr().out
    assert all(f"job-{number} | drawn by itself after ValueError in company" in logged for number in range(3))
    monkeypatch.undo()
    assert [reply["metadata"]["batch"] for reply in together(worker, *FOUR)] == [4] * 4


def test_out_of_memory_each_is_drawn_alone_and_later_calls_are_smaller(worker, warm_worker, pipe, calls, monkeypatch):
    forward = pipe.transformer.forward

    def full(*args, hidden_states=None, **more):
        if len(hidden_states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.27 GiB")
        return forward(*args, hidden_states=hidden_states, **more)

    monkeypatch.setattr(pipe.transformer, "forward", full)
    monkeypatch.setattr(worker.batches, "max_pixels", 4 * 256 * 256)
    assert images(together(worker, *FOUR)) == alone(warm_worker, *FOUR)
    assert calls == [4] + [1, 1] * 3 * 4
    calls.clear()
    assert_close(images(together(worker, *FOUR)), alone(warm_worker, *FOUR))
    assert calls == [2, 2] * 3 * 2


# Stops and limits


class Pause:
    """Holds the inference thread in the pipeline after three steps of guided drawing, until `go_on` is set."""

    def __init__(self, gate):
        self.forwards, self.reached, self.go_on = 0, gate(), gate()

    def __call__(self, *_):
        self.forwards += 1
        if self.forwards == 2 * 3 + 1:
            self.reached.set()
            self.go_on.wait()


@pytest.fixture
def pause(pipe, gate):
    one = Pause(gate)
    hook = pipe.transformer.register_forward_hook(one)
    yield one
    one.go_on.set()
    hook.remove()


LONG = [{**fields, "num_inference_steps": 8} for fields in FOUR[:3]]


@pytest.fixture(scope="module")
def whole(worker):
    """The pictures of a call that nothing happens to."""
    return images(together(worker, *LONG))


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_stop_of_one_frees_it_at_once_and_leaves_the_others_as_they_are(worker, whole, pause, who):
    async def stop(tasks):
        await until(pause.reached.is_set)
        tasks[who].cancel()
        await until(tasks[who].done)
        assert [task.done() for task in tasks] == [number == who for number in range(3)]
        pause.go_on.set()

    replies = together(worker, *LONG, meanwhile=stop)
    assert isinstance(replies.pop(who), asyncio.CancelledError)
    assert images(replies) == [image for number, image in enumerate(whole) if number != who]  # its rows stayed in
    assert pause.forwards == 2 * 8 and not worker.queue.waiting


def test_when_all_are_stopped_the_call_ends_within_a_step_and_the_last_waits_for_it(worker, pause, warm_worker):
    async def stop(tasks):
        await until(pause.reached.is_set)
        for task in tasks:
            task.cancel()
        await until(lambda: all(task.done() for task in tasks[:2]))
        await asyncio.sleep(0.1)
        # As long as the thread is in the pipeline one of them holds its slot.
        assert [task.done() for task in tasks] == [True, True, False]
        pause.go_on.set()
        await until(lambda: all(task.done() for task in tasks))
        assert pause.forwards == 2 * 4 and not worker.queue.waiting

    replies = together(worker, *LONG, meanwhile=stop)
    assert all(isinstance(reply, asyncio.CancelledError) for reply in replies)
    assert run(worker, FOUR[0])["output"]["image"] == alone(warm_worker, FOUR[0])[0]


def test_the_limit_of_one_ends_it_alone(worker, whole, pause):
    async def wait(tasks):
        await until(tasks[1].done)
        pause.go_on.set()

    late = {"input": LONG[1], "policy": {"executionTimeout": 15_000}}
    replies = together(worker, LONG[0], late, LONG[2], meanwhile=wait)
    assert replies[1]["error"] == "deadline_exceeded: the job's 13.5 seconds ran out after 3 of 8 steps"
    assert images([replies[0], replies[2]]) == [whole[0], whole[2]]


def test_a_stop_before_the_call_keeps_a_job_out_of_it(worker, calls):
    async def two():
        tasks, release = await held(worker, FOUR[:3])
        tasks[1].cancel()
        await until(tasks[1].done)
        assert tasks[1].cancelled()
        release.set()
        return await asyncio.gather(tasks[0], tasks[2])

    assert [reply["metadata"]["batch"] for reply in asyncio.run(two())] == [2, 2]
    assert calls == [2, 2] * 3


def test_each_job_s_progress_is_its_own(worker):
    told = {0: [], 1: []}
    jobs = [{**SMALL, "num_inference_steps": 30}, {**SMALL, "num_inference_steps": 30, "num_images": 3}]

    async def both():
        tasks, release = await held(worker, jobs, told)
        release.set()
        return await asyncio.gather(*tasks)

    asyncio.run(both())
    for number, pictures in ((0, 1), (1, 3)):
        drawing = [message for message in told[number] if message["stage"] == "drawing" and message["step"]]
        assert len(drawing) > 3 and {message["total"] for message in drawing} == {30 * pictures}
        assert all(message["step"] % pictures == 0 for message in drawing)
        assert [m["step"] for m in drawing] == sorted(m["step"] for m in drawing)


def test_after_a_call_that_failed_a_job_s_progress_begins_again():
    job = Job("a", parse(SMALL, "a"), limit_seconds=5)
    job.enter(Stage.DRAWING)
    job.begin_drawing(0)
    job.end_step(2, 3)
    job.start_over()
    assert job.steps_done == 0
    assert str(job.deadline_error()).endswith("ran out after 0 of 3 steps")


def test_what_a_call_of_several_takes_says_nothing_of_how_fast_one_could_be(worker, monkeypatch):
    kind, new = Kind("generate", (288, 256), 0, True, "quality"), {"width": 288}  # a size that is drawn nowhere else
    together(worker, *(fields | new for fields in FOUR))
    assert kind not in worker.paces.step_seconds
    run(worker, FOUR[0] | new)
    assert kind in worker.paces.step_seconds
    several = parse({**SMALL, "num_images": 3}, "a")
    assert worker.batches.fewest_calls(several) == 1
    monkeypatch.setattr(worker.batches, "max_pictures", 2)
    assert worker.batches.fewest_calls(several) == 2
    assert worker.batches.fewest_calls(several.model_copy(update={"preview": True})) == 3
    assert worker.batches.fewest_calls(several.model_copy(update={"width": 2048, "height": 2048})) == 3


def test_a_second_card_that_may_not_be_there_makes_no_job_seem_longer(worker):
    """Where the first card draws alone, it draws together what `QWEN_BATCH` lets it."""
    batches = Batches(worker.queue, 4, Gpus.TWO)
    several = parse({**SMALL, "num_images": 4, "guidance_scale": 1}, "a")
    assert batches.fewest_calls(several) == 1
    assert batches.fewest_calls(several.model_copy(update={"preview": True})) == 2


def test_a_limit_that_one_call_for_all_pictures_keeps_is_no_reason_to_refuse_them(worker):
    several = {**SMALL, "width": 320, "num_images": 3}  # of a size that is drawn nowhere else, as slow as this
    worker.paces.record(Kind("generate", (320, 256), 0, True, "quality"), 5.0, 1, 3, 15.0)

    def answered(fields):
        return asyncio.run(worker.answer({"id": "a", "input": fields, "policy": {"executionTimeout": 20_000}}))

    assert answered(several)["success"]
    assert answered({**several, "preview": True})["error"].startswith("deadline_exceeded: 3 steps take about 45.0")


# The queue


def waiting(name, **fields):
    request = parse({**SMALL, **fields}, name)
    return DrawingJob(Job(name, request), Canvas([], None, (request.width, request.height)))


def test_turns_come_in_order_and_what_comes_of_them_is_passed_on():
    queue, order = WaitingQueue(ThreadPoolExecutor(1)), []

    def work(entry, fails):
        order.append(entry.job.id)
        if fails:
            raise ValueError(entry.job.id)
        return entry.job.id.upper()

    hold = threading.Event()
    queue.thread.submit(hold.wait)
    a, b, c = (queue.submit(waiting(name), work, name == "b") for name in "abc")
    assert c.cancel()
    hold.set()
    assert a.result() == "A"
    with pytest.raises(ValueError, match="b"):
        b.result()
    queue.thread.shutdown()
    assert order == ["a", "b"] and queue.waiting == []


def test_a_turn_that_has_left_the_queue_never_comes():
    queue, order = WaitingQueue(ThreadPoolExecutor(1)), []
    hold = threading.Event()
    queue.thread.submit(hold.wait)
    by_name = {name: waiting(name) for name in "abcd"}
    outcomes = {name: queue.submit(one, lambda one: order.append(one.job.id)) for name, one in by_name.items()}
    assert queue.oldest(lambda one: one.job.id > "a") is by_name["b"]
    assert queue.oldest(lambda one: one.job.id > "d") is None
    queue.finish(by_name["b"], "done")
    by_name["c"].job.cancelled.set()
    queue.finish(by_name["c"], "done")
    outcomes["d"].cancel()
    queue.finish(by_name["d"], "done")
    queue.finish(by_name["b"], "again")
    hold.set()
    queue.thread.shutdown()
    assert order == ["a"] and outcomes["b"].result(0) == "done" and outcomes["d"].cancelled()
    with pytest.raises(Cancelled):
        outcomes["c"].result(0)
