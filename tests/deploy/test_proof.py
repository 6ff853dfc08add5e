"""What is noted of the test jobs of a deployment."""

import math

import pytest

from qwen_deploy.proof import job_timing
from qwen_deploy.runpod.jobs import read_answer
from qwen_worker.loading.self_check import Finding

from .conftest import NEW, SHIP
from .fake_runpod import draws


def test_the_load_of_a_cold_worker_is_not_a_picture_s_time():
    facts = {"processing_time": 63.0, "timings": {"load": 60.0}, "seeds": [1, 2], "dimensions": "64x64", "steps": 50}
    answer = read_answer("j", {"status": "COMPLETED", "output": {"metadata": facts}, "executionTime": 64_000})
    timing = job_timing("generate", answer, "NVIDIA H200")
    assert (timing["seconds"], timing["load"], timing["pictures"], timing["card"]) == (4.0, 60.0, 2, "NVIDIA H200")


def test_what_failed_in_the_self_check_is_said_and_not_rolled_back(runpod, command):
    """The worker stands such an optimisation down by itself."""
    broken = [Finding("compile", 0.31, 0.02, 0.1), Finding("fp8", math.nan, 0.08, 0.1), Finding("table", 0, 0.005, 1)]
    broken += [Finding("streamed", math.nan, 0, 0.1, "OutOfMemoryError: no room")]

    def answer(fields, env):
        reply = draws("v1")(fields, env)
        if fields["task"] == "health":
            findings = {"Qwen/Qwen-Image": broken, "Qwen/Qwen-Image-Edit": broken[2:3], "tiny": []}
            reply["models"] = [
                {"model": name, "self_check": [finding.report() for finding in found]}
                for name, found in findings.items()
            ]
        return reply

    runpod.builds[NEW].answer = answer
    code, text = command(*SHIP)
    assert code == 0, text
    for words in (
        "! Qwen/Qwen-Image: the self-check failed: compile is 0.31 from the plain way, where 0.02 may be",
        "! Qwen/Qwen-Image: the self-check failed: fp8 gives NaN",
        "! Qwen/Qwen-Image: the self-check failed: streamed could not be compared: OutOfMemoryError: no room",
        "✓ Qwen/Qwen-Image-Edit: the self-check passed: table",
    ):
        assert words in text, text
    assert text.count("self-check") == 4


def on_two(facts, state="on"):
    """The answers of workers of two cards, of which each drawing's metadata has these facts."""

    def answer(fields, env):
        reply = draws("v1")(fields, env)
        if fields["task"] == "health":
            reply["models"] = [{"model": "Qwen/Qwen-Image", "second_card": {"state": state}}]
        else:
            reply["metadata"] |= {"guidance_scale": 4.0} | facts
        return reply

    return answer


def test_two_cards_are_proved_by_what_the_picture_was_drawn_on(runpod, command):
    runpod.builds[NEW].answer = on_two({"gpus": 2})
    code, text = command(*SHIP, "--gpu-count", "2")
    assert code == 0, text
    assert "s on two of NVIDIA" in " ".join(text.split())


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"gpus": 1}, "on", "metadata.gpus must be 2, not 1: one card drew alone"),
        ({}, "on", "metadata.gpus must be 2, not None"),
        ({"gpus": 1, "guidance_scale": 1.0}, "the two cards differ", "the worker says: the two cards differ"),
    ],
)
def test_a_second_card_that_does_not_draw_is_no_deployment(runpod, command, facts, state, words):
    runpod.builds[NEW].answer = on_two(facts, state)
    code, text = command(*SHIP, "--gpu-count", "2")
    assert code == 1 and words in " ".join(text.split()), text
