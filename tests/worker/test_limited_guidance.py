"""Jobs with guidance in a part of their steps: what is drawn, how many passes that takes, and what is told of it."""

import contextlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_worker.drawing.partial_denoise import linear_sigmas
from qwen_worker.errors import JobError
from qwen_worker.jobs.deadline import Paces
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse

from ..conftest import as_text, picture_of, run, warnings_of

JOB = {"prompt": "a red circle on a blue background", "width": 256, "height": 256, "num_inference_steps": 8, "seed": 5}
HALF = {"guidance_start": 0.25, "guidance_end": 0.75}  # of 8 steps the third to the sixth


def drawn(worker, **fields):
    body = run(worker, JOB | fields)
    assert "error" not in body, body["error"]
    return body["output"]["image"], body["output"]["metadata"]


@contextlib.contextmanager
def counting(worker, task="generate"):
    """Counts the transformer's passes within: the rows of each."""
    transformer, rows = worker.pipelines.get(task).pipe.transformer, []
    hook = transformer.img_in.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        hook.remove()


def test_the_whole_range_is_the_job_without_it_and_no_range_is_the_job_without_guidance(warm_worker):
    plain, facts = drawn(warm_worker)
    assert drawn(warm_worker, guidance_start=0, guidance_end=1)[0] == plain and "guided_steps" not in facts
    none = {"num_inference_steps": 4, "guidance_start": 0.3, "guidance_end": 0.7}  # of 4 no step lies within
    unguided, facts = drawn(warm_worker, **none)
    assert unguided == drawn(warm_worker, num_inference_steps=4, guidance_scale=1)[0]
    assert unguided != drawn(warm_worker, num_inference_steps=4)[0]
    assert facts["guided_steps"] == 0 and "none of 4 steps" in warnings_of(facts)[0]


def test_a_picture_is_stock_s_with_guidance_up_to_a_step_and_stock_s_without_from_there(warm_worker):
    """The second call of stock's pipeline begins with the latents in which the first one was left."""
    image, facts = drawn(warm_worker, guidance_end=0.5)
    pipe, left = warm_worker.pipelines.get("generate").pipe, []
    call = {"prompt": JOB["prompt"], "width": 256, "height": 256, "max_sequence_length": 1024}
    sigmas = linear_sigmas(8)

    def leave(pipe, step, timestep, tensors):
        left.append(tensors["latents"])
        return tensors

    noise = torch.Generator().manual_seed(5)
    whole = {"sigmas": sigmas, "negative_prompt": " ", "true_cfg_scale": 4.0, "output_type": "latent"}
    pipe(**call, **whole, generator=noise, callback_on_step_end=leave)
    theirs = pipe(**call, sigmas=sigmas[4:], true_cfg_scale=1.0, latents=left[3]).images[0]
    assert np.array_equal(np.asarray(picture_of(image)), np.asarray(theirs))
    assert (facts["guidance_start"], facts["guidance_end"], facts["guided_steps"]) == (0, 0.5, 4)


@contextlib.contextmanager
def computing(worker, task):
    """Notes the step of each pass within that a step cache does not predict."""
    pipe, steps = worker.pipelines.get(task).pipe, []
    block = pipe.transformer.transformer_blocks[1].attn
    hook = block.register_forward_pre_hook(lambda *_: steps.append(pipe.scheduler.step_index or 0))
    try:
        yield steps
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("steps", "strength", "start", "end"),
    [
        (12, 1, 0.25, 1), (12, 1, 0.33, 1), (13, 1, 0.2, 1), (11, 1, 0, 0.75), (12, 1, 0.25, 0.8), (18, 0.5, 0.3, 1),
        (16, 1, 0.3, 1), (7, 1, 0.1, 1), (3, 1, 0.3, 1),
    ],
)  # fmt: skip
def test_balanced_computes_the_last_step_wherever_guidance_begins(warm_worker, scene, steps, strength, start, end):
    """And of the steps before it every second one, with both passes where it has two."""
    task, count = ("generate", steps) if strength == 1 else ("edit", round(steps * strength))
    source = {"image": as_text(scene), "draw_size": "asked"} if task == "edit" else {}
    fields = {"preset": "balanced", "num_inference_steps": steps, "guidance_start": start, "guidance_end": end}
    drawn(warm_worker, task=task, num_inference_steps=1, **source)
    with computing(warm_worker, task) as computed:
        _, facts = drawn(warm_worker, task=task, **fields, **source, **({"strength": strength} if source else {}))
    guided = parse({"task": "generate", **JOB, **fields}, "one").guided_steps(count)
    assert facts["step_cache"] and facts["guided_steps"] == len(guided) > 0
    predicted = [step for step in range(count) if computed.count(step) < 1 + (step in guided)]
    # The first six steps are computed, or five where that makes the last one a computed one.
    assert predicted == list(range(6 - count % 2, count - 1, 2))


@pytest.mark.parametrize("task", ["generate", "edit", "background_replacement"])
def test_a_step_outside_takes_one_pass_whatever_the_task(warm_worker, scene, task):
    fields = {"task": task} | ({} if task == "generate" else {"image": as_text(scene), "draw_size": "asked"})
    drawn(warm_worker, **fields, num_inference_steps=1)
    for more, passes, guided in (
        ({}, 16, None),
        (HALF, 8 + 4, 4),
        ({"guidance_end": 0.25, "num_images": 2}, 2 * (8 + 2), 2),
        ({"guidance_scale": 1, **HALF}, 8, 0),
    ):
        with counting(warm_worker, task) as rows:
            _, facts = drawn(warm_worker, **fields, **more)
        assert rows == [1] * passes and facts.get("guided_steps") == guided, more
    assert warnings_of(facts) == [f"{name} has no effect at guidance_scale 1" for name in HALF]


def test_the_range_is_of_the_steps_that_strength_leaves(warm_worker, scene):
    fields = {"task": "edit", "image": as_text(scene), "draw_size": "asked", "strength": 0.5}
    with counting(warm_worker, "edit") as rows:
        _, facts = drawn(warm_worker, **fields, guidance_end=0.5)
    assert (facts["steps"], facts["guided_steps"], len(rows)) == (4, 2, 4 + 2)


def test_passes_that_are_one_call_are_so_in_the_range_alone(warm_worker, warm_workers):
    worker = warm_workers(QWEN_SPEEDUPS="guidance")
    drawn(worker, num_inference_steps=1)
    with counting(worker) as rows:
        image, _ = drawn(worker, **HALF)
    # The first step of the range shows both prompts, and the other three are one pass of two rows each.
    assert rows == [1, 1, 1, 1, 2, 2, 2, 1, 1]
    ours, theirs = (np.asarray(picture_of(text), np.int16) for text in (image, drawn(warm_worker, **HALF)[0]))
    assert abs(ours - theirs).max() <= 1


def test_the_step_cache_predicts_each_pass_from_its_own_steps(warm_worker):
    transformer = warm_worker.pipelines.get("generate").pipe.transformer
    fields = {"preset": "balanced", "num_inference_steps": 12}
    computed = []
    hook = transformer.transformer_blocks[1].attn.to_q.register_forward_pre_hook(lambda *_: computed.append(1))
    for more, passes, blocks in (
        ({}, 24, 2 * 9),
        ({"guidance_end": 0.5}, 18, 9 + 6),
        ({"guidance_start": 0.5}, 18, 9 + 6),  # the second pass's first six
    ):
        computed.clear()
        with counting(warm_worker) as rows:
            _, facts = drawn(warm_worker, **fields, **more)
        assert facts["step_cache"] and (len(rows), len(computed)) == (passes, blocks), more
    hook.remove()


def test_pictures_that_share_a_call_have_the_same_range(cold_worker):
    worker = cold_worker(QWEN_BATCH="2")
    several = run(worker, JOB | HALF | {"num_images": 2})["output"]
    assert (several["metadata"]["batch"], several["metadata"]["guided_steps"]) == (2, 4)
    for number, image in enumerate(several["images"]):
        alone = drawn(worker, **HALF, seed=5 + number)[0]
        assert abs(np.asarray(picture_of(image), np.int16) - np.asarray(picture_of(alone), np.int16)).max() <= 1


def test_a_job_after_a_range_is_drawn_as_by_a_fresh_worker(warm_worker):
    plain, _ = drawn(warm_worker)
    drawn(warm_worker, **HALF)
    transformer = warm_worker.pipelines.get("generate").pipe.transformer
    assert drawn(warm_worker)[0] == plain and "forward" not in vars(transformer)


def test_steps_of_one_pass_count_half_in_what_is_left_and_what_fits(monkeypatch):
    now = 0.0
    monkeypatch.setattr("qwen_worker.jobs.job.time.monotonic", lambda: now)
    job = Job("a", parse(JOB | HALF | {"num_images": 2}, "a"))
    job.begin_drawing(0)
    left = []
    for step in range(1, 9):
        now += 4.0 if step in (3, 4, 5, 6) else 2.0
        job.end_step(step, 8)
        left.append(job.drawing_seconds_left())
    assert left == [None, 44.0, 40.0, 36.0, 32.0, 28.0, 26.0, 24.0]  # 24 seconds a picture
    job.start_over()
    assert job.drawing_seconds_left() == 48.0
    paces = Paces()
    paces.record("kind", job.step_seconds, pictures=1, steps=job.request.whole_steps(8), seconds=24.0)
    paces.require_time("kind", 1, 8, 24.0, whole_steps=6.0)
    with pytest.raises(JobError, match=r"8 steps take about 24\.0 seconds and 15\.0 are left; .* at most 5 would"):
        paces.require_time("kind", 1, 8, 15.0, whole_steps=6.0)


def test_files_keep_the_range_with_the_other_parameters(warm_worker):
    image, _ = drawn(warm_worker, **HALF, embed_parameters=True, num_inference_steps=4)
    kept = json.loads(Image.open(picture_bytes(image)).text["parameters_json"])
    assert {name: kept[name] for name in HALF} == HALF


def picture_bytes(text):
    import base64
    import io

    return io.BytesIO(base64.b64decode(text))
