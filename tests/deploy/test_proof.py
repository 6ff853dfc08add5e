"""What is noted of the test jobs of a deployment."""

from qwen_deploy.proof import job_timing
from qwen_deploy.runpod.jobs import read_answer


def test_the_load_of_a_cold_worker_is_not_a_picture_s_time():
    facts = {"processing_time": 63.0, "timings": {"load": 60.0}, "seeds": [1, 2], "dimensions": "64x64", "steps": 50}
    answer = read_answer("j", {"status": "COMPLETED", "output": {"metadata": facts}, "executionTime": 64_000})
    timing = job_timing("generate", answer, "NVIDIA H200")
    assert (timing["seconds"], timing["load"], timing["pictures"], timing["card"]) == (4.0, 60.0, 2, "NVIDIA H200")
