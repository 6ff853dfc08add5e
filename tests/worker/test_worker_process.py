"""The worker as the platform starts it: a process of its own, in the SDK's loop, its local API and its test input."""

import json
import socket
import subprocess
import sys
import time

import requests

from ..conftest import ROOT, free_port, picture_of
from ..support.patience import outcome, run_to_its_end

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}


def run_worker(*arguments, env, file="runpod_handler.py"):
    return run_to_its_end([sys.executable, file, *arguments], env=env)


def test_one_job_from_the_command_line(environment):
    done = run_worker("--test_input", json.dumps({"input": SMALL}), env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "task=generate size=256x256 steps=2" in done.stdout and "backend=qwen-image code=ok" in done.stdout


def test_the_repository_s_test_input_is_a_job(environment):
    done = run_worker(env=environment(QWEN_FALLBACK="force"))
    assert done.returncode == 0 and "backend=pil-fallback code=ok" in done.stdout


def test_the_hub_s_handler_is_the_worker(environment):
    done = run_worker(env=environment(QWEN_FALLBACK="force"), file=".runpod/handler.py")
    assert done.returncode == 0 and "backend=pil-fallback code=ok" in done.stdout, done.stderr


def test_a_failed_job_from_the_command_line_exits_1(environment):
    done = run_worker("--test_input", '{"input": {"prompt": ""}}', env=environment())
    assert done.returncode == 1 and "invalid_input: prompt must not be empty" in done.stdout


def test_a_setting_that_cannot_be_used_ends_the_start_by_its_name(environment):
    done = run_worker(env=environment(QWEN_FALLBACK="sometimes"))
    assert done.returncode == 1 and "QWEN_FALLBACK" in done.stderr and "Traceback" not in done.stderr


def test_a_laptop_is_answered_in_moments_and_fetches_nothing(environment, tmp_path):
    env = environment(QWEN_IMAGE_MODEL="Qwen/Qwen-Image", HF_HOME=str(tmp_path / "hub"), CUDA_VISIBLE_DEVICES="")
    done = run_worker("--test_input", '{"input": {"prompt": "a cat"}}', env=env)
    assert "needs a CUDA GPU (from 30.6 GB free" in done.stdout and "backend=pil-fallback code=ok" in done.stdout
    assert not (tmp_path / "hub").exists()


def test_the_local_api_serves_a_job(environment):
    port = free_port()
    command = [sys.executable, "runpod_handler.py", "--rp_api_port", str(port)]
    env = environment(SERVER_MODE="local", QWEN_FALLBACK="force")
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            body = outcome(server, lambda: posted_when_up(f"http://127.0.0.1:{port}/runsync", {"input": SMALL}, server))
        finally:
            server.terminate()
    assert body["status"] == "COMPLETED" and picture_of(body["output"]["image"]).size == (256, 256)


def test_a_port_that_is_taken_is_told_with_the_option_that_names_another(environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "runpod_handler.py", "--rp_api_host", "127.0.0.1", "--rp_api_port", port]
        done = run_to_its_end(command, env=environment(SERVER_MODE="local"))
    assert done.returncode and "--rp_api_port names another" in done.stdout and "Traceback" not in done.stderr


def posted_when_up(url, body, server):
    while True:
        try:
            return requests.post(url, json=body).json()
        except requests.ConnectionError:
            assert server.poll() is None, "the local API ended"
            time.sleep(0.2)
