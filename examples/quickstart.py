"""The first two pictures: starts the worker's local API on the tiny checkpoint, sends it two jobs, saves the results.

What it sends is what a client of an endpoint sends; what it starts is the worker itself, `runpod_handler.py`.
"""

import base64
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "models/tiny-qwen-image"
OUT = ROOT / "out"
PATIENCE = 180  # seconds for the API to answer and for a job to end: importing torch on a cold disk takes a while

JOBS = {
    "generate": {
        "prompt": "a large green triangle in the center, on a yellow background",
        "width": 512,
        "height": 512,
        "num_inference_steps": 20,
        "seed": 7,
    },
    "background_replacement": {
        "task": "background_replacement",
        "prompt": "a plain green wall",
        "image": base64.b64encode((ROOT / "examples/red-circle.png").read_bytes()).decode(),
        "num_inference_steps": 20,
        "seed": 7,
    },
}


def main() -> None:
    port = free_port()
    models = {"QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit")}
    mode = {"SERVER_MODE": "local", "QWEN_FALLBACK": "forbid", "UVICORN_LOG_LEVEL": "warning"}
    environment = {**os.environ, **models, **mode}
    command = [sys.executable, str(ROOT / "runpod_handler.py"), "--rp_api_port", str(port)]
    print("Starting the worker on the tiny checkpoint ...", flush=True)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(port, server)
            for name, fields in JOBS.items():
                send(port, name, fields)
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, server: subprocess.Popen) -> None:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if server.poll() is not None:
            sys.exit(f"The worker ended with exit code {server.returncode} before it answered.")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    sys.exit(f"The worker did not answer on port {port} within {PATIENCE} seconds.")


def send(port: int, name: str, fields: dict) -> None:
    response = requests.post(f"http://127.0.0.1:{port}/runsync", json={"input": fields}, timeout=PATIENCE)
    body = response.json()
    if "error" in body:
        sys.exit(f"The {name} job failed: {body['error']}")
    output = body["output"]
    OUT.mkdir(exist_ok=True)
    file = OUT / f"{name}.png"
    file.write_bytes(base64.b64decode(output["image"]))
    facts = output["metadata"]
    timings = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in facts["timings"].items())
    print(
        f"{output['message']}: {file.relative_to(ROOT)} ({facts['dimensions']}, backend {facts['backend']}, {timings})"
    )


if __name__ == "__main__":
    main()
