"""One picture on two cards, two processes of this machine: the same bytes as on one, and what is exchanged."""

import asyncio
import dataclasses
import threading

import pytest
from PIL import Image

from ..conftest import as_text, run
from ..support.control_nets import random_controlnet
from ..support.patience import until
from .conftest import SMALL, answered, pictures_in

LATENT_BYTES = 4 * 16 * 16 * 16  # of the tiny model's float32 latents of 256 x 256: 16 x 16 places of 16 channels


@pytest.fixture(scope="module")
def workers(warm_workers, lora, tiny, tmp_path_factory):
    """By the number of cards, two workers that differ in nothing else."""
    net = random_controlnet(tiny, tmp_path_factory.mktemp("nets") / "org-net")
    common = {"QWEN_LORA_ROOTS": (lora,), "QWEN_SPEEDUPS": {"rotary"}, "QWEN_CONTROLNET": str(net)}
    both = {gpus: warm_workers(QWEN_GPUS=gpus, QWEN_FALLBACK="forbid", **common) for gpus in ("1", "2")}
    yield both
    both["2"].pipelines.second_card.close()


def jobs(scene):
    """By name, jobs of all kinds, and how many cards draw them."""
    half = Image.new("L", scene.size)
    half.paste(255, (0, 0, 256, 512))
    edit = {"prompt": "a green disc", "image": as_text(scene), "num_inference_steps": 3, "seed": 7}
    edit |= {"width": 256, "height": 256}
    small = edit | {"draw_size": "asked"}
    negative = "a small yellow triangle at the top, blurred, dark, of many words more than the prompt"
    return {
        "plain": (SMALL, 2),
        "one step": ({**SMALL, "num_inference_steps": 1}, 2),
        "another size, guidance in a part of the steps": (
            {**SMALL, "width": 320, "num_inference_steps": 6, "guidance_start": 0.2, "guidance_end": 0.8},
            2,
        ),
        "long negative prompt": ({**SMALL, "negative_prompt": negative, "guidance_scale": 7}, 2),
        "three guided pictures": ({**SMALL, "num_images": 3, "num_inference_steps": 2}, 2),
        "step cache": ({**SMALL, "preset": "balanced", "num_inference_steps": 10, "num_images": 2}, 2),
        "previews": ({**SMALL, "preview": True}, 2),
        "LoRA": ({**SMALL, "loras": [{"path": "plain.safetensors"}]}, 2),
        "LoRA of the modulation": ({**SMALL, "loras": [{"path": "modulation.safetensors", "scale": 0.7}]}, 2),
        "LoRA and step cache": (
            {**SMALL, "preset": "balanced", "num_inference_steps": 9, "loras": [{"path": "plain.safetensors"}]},
            2,
        ),
        "control picture": ({**SMALL, "control_image": as_text(scene.resize((256, 256)))}, 2),
        "no guidance": ({**SMALL, "guidance_scale": 1}, 1),
        "no guidance, three pictures": ({**SMALL, "guidance_scale": 1, "num_images": 3}, 2),
        "no guidance, LoRA, two pictures": (
            {**SMALL, "guidance_scale": 1, "num_images": 2, "loras": [{"path": "modulation.safetensors"}]},
            2,
        ),
        "edit": (edit, 2),
        "edit, strength": ({**small, "strength": 0.6}, 2),
        "edit, mask": ({**small, "mask_image": as_text(half)}, 2),
        "edit, step cache": ({**small, "preset": "balanced", "num_inference_steps": 10}, 2),
        "edit, no guidance, three pictures": ({**small, "guidance_scale": 1, "num_images": 3}, 2),
        "background": ({**small, "task": "background_replacement", "prompt": "a plain green wall"}, 2),
    }


# Without --prove: a job of each path through the pass, the loop, a LoRA and an input picture.
SAMPLE = (
    "plain", "another size, guidance in a part of the steps", "step cache", "LoRA", "LoRA of the modulation",
    "control picture", "no guidance, three pictures", "no guidance, LoRA, two pictures", "edit, mask", "background",
)  # fmt: skip


def test_twenty_jobs_of_all_kinds_are_equal_to_the_byte(workers, scene, sample):
    cases, cards, unequal = jobs(scene), {}, []
    assert len(cases) == 20
    cases = {name: cases[name] for name in sample(SAMPLE, tuple(cases))}
    for name, (fields, _) in cases.items():
        one, two = (answered(workers[gpus], fields) for gpus in ("1", "2"))
        cards[name] = two["metadata"]["gpus"]
        assert "gpus" not in one["metadata"]
        unequal += [name] * (pictures_in(one) != pictures_in(two))
    assert not unequal
    assert cards == {name: count for name, (_, count) in cases.items()}


def test_a_step_sends_the_latents_and_takes_a_prediction_of_their_size(workers):
    """And once for a call the prompt, which the first step's pass takes along."""
    counts, steps = workers["2"].pipelines.second_card.counts, 9
    answered(workers["2"], SMALL)
    before = dataclasses.replace(counts)
    answered(workers["2"], {**SMALL, "num_inference_steps": steps})
    assert counts.passes - before.passes == steps
    assert counts.received_bytes - before.received_bytes == steps * LATENT_BYTES
    prompt_bytes = counts.sent_bytes - before.sent_bytes - steps * (LATENT_BYTES + 4)
    assert 0 < prompt_bytes < LATENT_BYTES * 4


def test_health_tells_what_the_second_card_does(workers):
    for count in "12":
        answered(workers[count], SMALL)
    (model, *_) = run(workers["2"], {"task": "health"})["output"]["models"]
    second = model["second_card"]
    assert second["state"] == "on" and second["passes"] > 0 and second["exchange_seconds"] > 0
    assert second["plan"].startswith("fp32 on cpu, transformers 0.0") and second["used_gb"] > 0.1
    assert "second_card" not in run(workers["1"], {"task": "health"})["output"]["models"][0]


def test_pictures_that_share_a_call_with_guidance_are_equal_too(workers):
    """Four rows in each pass, whose prompts have one length and the negative prompt another."""
    drawn = []
    for worker in workers.values():
        worker.batches.max_pictures = 4
        drawn.append(answered(worker, {**SMALL, "num_images": 4, "negative_prompt": "a small yellow triangle, dark"}))
        worker.batches.max_pictures = 1
    assert drawn[0]["images"] == drawn[1]["images"] and len(drawn[0]["images"]) == 4
    assert drawn[1]["metadata"]["gpus"] == 2


def test_two_jobs_without_guidance_are_drawn_one_a_card(workers):
    """Each is what it is alone, and both have taken one call: the second job leaves the queue with the first."""
    fields = [
        {**SMALL, "guidance_scale": 1, "seed": seed, "prompt": prompt}
        for seed, prompt in ((1, "a red circle"), (2, "a large blue square in the center, on a green background"))
    ]
    alone = [answered(workers["1"], job)["image"] for job in fields]
    worker, calls = workers["2"], []
    pipe = worker.pipelines.load("generate").pipe
    hook = pipe.vae.decoder.register_forward_hook(lambda *_: calls.append(worker.queue.in_call[:]))

    async def both():
        held = threading.Event()
        worker.inference_thread.submit(held.wait)
        tasks = [
            asyncio.create_task(worker.answer({"id": f"job-{number}", "input": job}))
            for number, job in enumerate(fields)
        ]
        await until(lambda: len(worker.queue.waiting) == 2)
        held.set()
        return await asyncio.gather(*tasks)

    replies = asyncio.run(both())
    hook.remove()
    assert [reply["image"] for reply in replies] == alone
    assert [reply["metadata"]["gpus"] for reply in replies] == [2, 2]
    assert [len(entries) for entries in calls] == [2, 2]  # decoded one after the other, in one call


def test_a_lora_s_file_that_is_damaged_while_its_job_waits_costs_the_second_card_and_no_job(workers, lora, monkeypatch):
    """The first card has its matrices of the job before."""
    worker, file, ended = workers["2"], lora / "to be damaged.safetensors", []
    file.write_bytes((lora / "plain.safetensors").read_bytes())
    monkeypatch.setattr(worker.pipelines.second_card, "end", ended.append)
    job = {**SMALL, "loras": [{"path": file.name}]}
    picture = answered(worker, job)["image"]

    async def damaged_in_the_queue():
        held = threading.Event()
        worker.inference_thread.submit(held.wait)
        answering = asyncio.create_task(worker.answer({"id": "a-job", "input": job}))
        await until(lambda: worker.queue.waiting)
        file.write_bytes(b"damaged")  # in place
        held.set()
        return await answering

    reply = asyncio.run(damaged_in_the_queue())
    assert reply["image"] == picture and reply["metadata"]["gpus"] == 1
    assert not ended
