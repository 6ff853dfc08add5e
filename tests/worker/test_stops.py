"""A job is stopped in every stage, ends at its limit, and leaves nothing behind."""

import asyncio
import time

import pytest

from qwen_worker.errors import JobError
from qwen_worker.jobs.deadline import Kind, Paces, limit_of
from qwen_worker.jobs.job import Job, Stage
from qwen_worker.jobs.parsing import parse
from qwen_worker.loading.builder import Builder
from qwen_worker.pictures.canvas import Canvas

from ..conftest import as_text, run
from ..support.patience import until

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}
LONG = {**SMALL, "num_inference_steps": 100}


# Stops


async def stopped(worker, fields, when, then=lambda: None):
    """Once `when` is set a job is stopped, and `then()` called; nothing of it may run on when it has ended."""
    task = asyncio.create_task(worker.answer({"id": "stopped", "input": fields}))
    await until(when.is_set)
    task.cancel()
    await asyncio.sleep(0)  # the job is told
    then()
    await until(task.done)
    assert task.cancelled()


class Hold:
    """A hook that holds the inference thread in its call number `call`, from 1 on, until `go_on` is set."""

    def __init__(self, gate, call=1):
        self.call, self.calls, self.reached, self.go_on = call, 0, gate(), gate()

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.call:
            self.reached.set()
            self.go_on.wait()


def test_a_stop_during_a_fetch_is_heard_while_the_server_is_silent_and_logged(cold_worker, web, gate, capsys):
    worker = cold_worker(QWEN_FALLBACK="force")
    asked, held = gate(), gate()
    address = web(lambda handler: asked.set() or held.wait())
    asyncio.run(stopped(worker, {"prompt": "a", "image_url": address}, asked))
    assert "stopped | task=edit" in (logged := capsys.readouterr().out) and "code=cancelled" in logged
    assert worker.counters.errors == {"cancelled": 1}


def test_a_job_cancelled_before_its_turn_is_over_before_that_and_never_draws(warm_worker, gate):
    release, drawn = gate(), []
    pipe = warm_worker.pipelines.load("generate").pipe
    hook = pipe.transformer.register_forward_hook(lambda *_: drawn.append(1))
    warm_worker.inference_thread.submit(release.wait)

    async def cancel():
        task = asyncio.create_task(warm_worker.answer({"id": "x", "input": SMALL}))
        await until(lambda: warm_worker.queue.waiting)
        task.cancel()
        await until(task.done)
        assert task.cancelled()

    try:
        asyncio.run(cancel())
    finally:
        release.set()
    warm_worker.inference_thread.submit(lambda: None).result()
    hook.remove()
    assert not drawn


def test_a_stop_while_the_model_is_loaded_is_passed_on_before_and_the_load_serves_the_next_job(
    cold_worker, gate, monkeypatch
):
    loading, go_on, loads = gate(), gate(), []
    real = Builder.build

    def slow(self, *arguments, **named):
        loads.append(1)
        loading.set()
        go_on.wait()
        return real(self, *arguments, **named)

    monkeypatch.setattr(Builder, "build", slow)
    worker = cold_worker()
    asyncio.run(stopped(worker, SMALL, loading))
    go_on.set()
    assert run(worker, SMALL)["output"]["metadata"]["backend"] == "qwen-image"
    assert loads == [1]


def test_a_stop_while_text_is_encoded_ends_the_job_at_that_call_s_end(warm_worker, gate):
    pipe = warm_worker.pipelines.load("generate").pipe
    encoding, steps = Hold(gate), []
    hooks = [
        pipe.text_encoder.register_forward_hook(encoding),
        pipe.transformer.register_forward_hook(lambda *_: steps.append(1)),
    ]
    fields = {**LONG, "prompt": "a prompt seen by no other test"}
    try:
        asyncio.run(stopped(warm_worker, fields, encoding.reached, encoding.go_on.set))
    finally:
        for hook in hooks:
            hook.remove()
    assert encoding.calls == 1 and steps == [] and "encode_prompt" not in vars(pipe)


def test_a_stop_while_a_picture_is_decoded_draws_no_other(warm_worker, gate):
    pipe = warm_worker.pipelines.load("generate").pipe
    decoding, steps = Hold(gate), []
    hooks = [
        pipe.vae.decoder.register_forward_hook(decoding),
        pipe.transformer.register_forward_hook(lambda *_: steps.append(1)),
    ]
    fields = {**SMALL, "num_images": 3, "guidance_scale": 1}
    try:
        asyncio.run(stopped(warm_worker, fields, decoding.reached, decoding.go_on.set))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(steps) == 2


@pytest.mark.parametrize("passes", [5, 6])  # guidance makes two of a step
def test_a_stop_ends_the_drawing_with_the_step_and_the_next_picture_is_as_ever(warm_worker, ask, gate, passes):
    same = {**SMALL, "seed": 3}
    before = ask(**same)["output"]["image"]
    drawing = Hold(gate, passes)
    hook = warm_worker.pipelines.load("generate").pipe.transformer.register_forward_hook(drawing)
    try:
        asyncio.run(stopped(warm_worker, LONG, drawing.reached, drawing.go_on.set))
        warm_worker.inference_thread.submit(lambda: None).result()
    finally:
        hook.remove()
    assert drawing.calls == 6 and ask(**same)["output"]["image"] == before


# Limits


@pytest.mark.parametrize(
    ("job", "seconds"),
    [
        ({}, 60),
        ({"policy": None}, 60),
        ({"policy": {"executionTimeout": 0}}, 60),
        ({"policy": {"executionTimeout": True}}, 60),
        ({"policy": {"executionTimeout": "5000"}}, 60),
        ({"policy": {"executionTimeout": 100_000}}, 98),
        ({"policy": {"executionTimeout": 5000}}, 4.5),
    ],
)
def test_the_limit_is_the_policy_s_less_a_margin_to_say_so(job, seconds):
    assert limit_of(job, 60) == seconds
    assert limit_of({}, None) is None


def test_a_job_past_its_limit_says_how_far_it_came_and_draws_no_more(warm_worker):
    pipe = warm_worker.pipelines.load("generate").pipe
    passes = []

    def hook(*_):
        passes.append(1)
        if len(passes) == 3:  # the first of the second step's
            time.sleep(15)

    hook = pipe.transformer.register_forward_hook(hook)
    try:
        # Of a size that is drawn nowhere else: nothing is known of the time that it needs.
        job = {"id": "late", "input": {**LONG, "height": 288}, "policy": {"executionTimeout": 15_000}}
        reply = asyncio.run(warm_worker.answer(job))
        warm_worker.inference_thread.submit(lambda: None).result()
    finally:
        hook.remove()
    assert reply["error"] == "deadline_exceeded: the job's 13.5 seconds ran out after 2 of 100 steps"
    assert len(passes) == 4


def test_a_load_that_takes_too_long_ends_the_job_and_goes_on(cold_worker, gate, monkeypatch):
    go_on, real = gate(), Builder.build
    monkeypatch.setattr(Builder, "build", lambda *arguments, **named: go_on.wait() and real(*arguments, **named))
    worker = cold_worker(QWEN_JOB_SECONDS=5)
    error = run(worker, SMALL)["error"]
    assert error == "deadline_exceeded: the job's 5 seconds ran out while the model was loaded"
    go_on.set()
    worker.inference_thread.submit(lambda: None).result()
    assert len(worker.pipelines.loaded) == 1


def test_a_job_whose_time_ends_behind_another_job_waited_for_the_model(warm_worker, gate):
    run(warm_worker, SMALL)
    go_on = gate()
    warm_worker.inference_thread.submit(go_on.wait)
    # Of a size that is drawn nowhere else: nothing is known of the time that it needs.
    job = {"id": "behind", "input": {**SMALL, "height": 320}, "policy": {"executionTimeout": 5000}}
    error = asyncio.run(warm_worker.answer(job))["error"]
    assert error == "deadline_exceeded: the job's 4.5 seconds ran out while it waited for the model"


def test_a_fetch_that_takes_too_long_ends_the_job(cold_worker, web, gate):
    over = gate()
    fields = {"prompt": "a", "image_url": web(lambda handler: over.wait())}
    error = run(cold_worker(QWEN_FALLBACK="force", QWEN_JOB_SECONDS=5), fields)["error"]
    assert error == "deadline_exceeded: the job's 5 seconds ran out while its input was fetched and opened"


def test_a_job_that_clearly_cannot_make_it_is_refused_with_the_steps_that_could(warm_worker, monkeypatch):
    run(warm_worker, {**SMALL, "num_inference_steps": 5, "num_images": 2})
    monkeypatch.setattr("qwen_worker.drawing.inference.draw", lambda *_: pytest.fail("it was drawn"))
    job = {"id": "hopeless", "input": {**LONG, "num_images": 2}, "policy": {"executionTimeout": 1000}}
    error = asyncio.run(warm_worker.answer(job))["error"]
    assert error.startswith("deadline_exceeded: 100 steps take about ") and "are left; " in error
    assert "num_inference_steps of at most " in error or error.endswith("not even one step fits")


def test_the_steps_named_are_those_that_fit():
    paces = Paces()
    paces.record("kind", 0.5, pictures=2, steps=10, seconds=14)  # five for the steps and two beside, each
    paces.record("kind", 0.6, pictures=2, steps=10, seconds=20)
    paces.require_time("kind", 1, 10, 7)
    paces.require_time("other", 1, 10, 0.1)
    paces.require_time("kind", 1, 10, None)
    with pytest.raises(JobError) as caught:
        paces.require_time("kind", 1, 50, 10)
    assert str(caught.value) == (
        "deadline_exceeded: 50 steps take about 27.0 seconds and 10.0 are left; "
        "num_inference_steps of at most 16 would make it"
    )
    with pytest.raises(JobError, match="not even one step fits"):
        paces.require_time("kind", 4, 1, 8)


def test_an_edit_is_judged_by_the_steps_that_its_strength_leaves(warm_worker, scene):
    # Of a size that is drawn nowhere else, as slow as this.
    warm_worker.paces.record(Kind("edit", (256, 288), 1, True, "quality"), 1000.0, pictures=1, steps=10, seconds=10_000)
    fields = {**SMALL, "height": 288, "num_inference_steps": 10, "image": as_text(scene), "draw_size": "asked"}

    def answered(strength):
        job = {"id": "edit", "input": {**fields, "strength": strength}, "policy": {"executionTimeout": 4_500_000}}
        return asyncio.run(warm_worker.answer(job))

    error = answered(0.5)["error"]
    assert error.startswith("deadline_exceeded: 5 steps take about 5000.0 seconds and 4")
    assert error.endswith("num_inference_steps of at most 8 would make it")
    assert answered(0.3)["metadata"]["steps"] == 3

    job = Job("edit", parse({"task": "edit", **fields, "strength": 0.3, "num_images": 2}, "edit"))
    warm_worker.require_time(job, Canvas([scene], None, (256, 288)))
    assert (job.steps_per_picture, job.total_steps) == (3, 6)  # before the first of them


def test_how_far_is_told_by_picture():
    job = Job("a", parse({**SMALL, "num_images": 3, "num_inference_steps": 10}, "a"), 5)
    job.enter(Stage.DRAWING)
    job.begin_drawing(1)
    job.end_step(4, 10)
    assert str(job.deadline_error()).endswith("ran out after 4 of 10 steps of picture 2 of 3")
    job.begin_drawing(2)
    job.end_step(10, 10)
    assert str(job.deadline_error()).endswith("ran out after 10 of 10 steps of picture 3 of 3")
    job.begin_drawing(0, 2)
    job.end_step(4, 10)
    assert (
        str(job.deadline_error()).endswith("ran out after 4 of 10 steps of pictures 1 to 2 of 3")
        and job.steps_done == 8
    )


def test_seconds_a_step_are_those_of_one_picture_however_many_a_call_draws(monkeypatch):
    now = 0.0
    monkeypatch.setattr("qwen_worker.jobs.job.time.monotonic", lambda: now)
    jobs = [Job("a", parse({**SMALL, "num_images": 3, "num_inference_steps": 10}, "a")) for _ in range(2)]
    for job, at_once in zip(jobs, (1, 3), strict=True):
        job.begin_drawing(0, at_once)
    for step in (1, 2, 3):
        now += 6.0
        for job in jobs:
            job.end_step(step, 10)
    assert [job.step_seconds for job in jobs] == [6.0, 2.0]
    assert [job.drawing_seconds_left() for job in jobs] == [27 * 6.0, 7 * 6.0]
