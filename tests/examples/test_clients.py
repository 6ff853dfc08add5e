"""The example clients against a worker process: pictures, progress, a stop, errors."""

import base64
import io
import os
import re
import signal
import subprocess
import sys

from PIL import Image

from ..conftest import ROOT
from ..support.patience import wait_until

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 40, "seed": 7}
CIRCLE = ROOT / "examples/red-circle.png"


def steps_shown(text):
    """Of the messages of a drawing: `drawing 12/40`, or the progress as JSON."""
    return [int(step) for step in re.findall(r'drawing(?: |", "step": ?)(\d+)', text)]


def size_of(file):
    return Image.open(io.BytesIO(file.read_bytes())).size


def reply_of(plane, job_id):
    return plane.result(job_id)["output"]


def test_pictures_are_saved_and_their_progress_is_shown(kind, start, endpoint, plane, tmp_path):
    client = start(kind, endpoint, {**SMALL, "num_images": 2})
    assert client.status() == 0, client.err
    first, second = client.out.split()
    job_id = first.removesuffix("-1.png")
    assert [(tmp_path / file).read_bytes() for file in (first, second)] == [
        base64.b64decode(picture) for picture in reply_of(plane, job_id)["images"]
    ]
    assert size_of(tmp_path / second) == (256, 256)
    shown = steps_shown(client.err)
    assert shown == sorted(shown) and any(0 < step < 80 for step in shown)


def test_a_picture_is_sent_from_a_file(kind, start, endpoint, plane, tmp_path):
    image = f"@{CIRCLE}" if kind != "sh" else base64.b64encode(CIRCLE.read_bytes()).decode()
    edit = {**SMALL, "task": "background_replacement", "prompt": "a plain green wall", "num_inference_steps": 4}
    client = start(kind, endpoint, {**edit, "draw_size": "asked", "image": image})
    assert client.status() == 0, client.err
    (file,) = client.out.split()
    reply = reply_of(plane, file.removesuffix("-1.png"))
    assert reply["message"] == "Background replaced"
    assert (tmp_path / file).read_bytes() == base64.b64decode(reply["image"])


def test_ctrl_c_cancels_the_job_within_a_step(kind, start, endpoint, plane):
    """A step of this size takes a third of a second; progress says each. One more may begin before the stop comes."""
    known = set(plane.taken)
    client = start(kind, endpoint, {**SMALL, "width": 1024, "height": 1024, "num_inference_steps": 100})
    wait_until(lambda: set(plane.taken) - known, client.process.pid)
    (job_id,) = set(plane.taken) - known
    plane.wait(lambda: steps_told(plane, job_id)[-1:] >= [3])
    at = steps_told(plane, job_id)[-1]
    os.killpg(client.process.pid, signal.SIGINT)
    assert client.status() == 130, client.err
    assert f"Cancelled {job_id}" in client.err
    following = start(kind, endpoint, SMALL)  # drawn when nothing of the stopped job is
    assert following.status() == 0, following.err
    last = steps_told(plane, job_id)[-1]
    print(f"{kind}: step {at} at Ctrl-C, step {last} at the end")  # pytest -rP shows it
    assert at <= last <= at + 2 and "result" not in plane.kinds(job_id)


def steps_told(plane, job_id):
    return [data["output"].get("step", 0) for kind, one, data in list(plane.log) if (kind, one) == ("progress", job_id)]


def test_an_error_of_the_worker_is_printed_as_its_sentence(kind, start, endpoint):
    client = start(kind, endpoint, {**SMALL, "num_inference_steps": 500})
    assert client.status() == 1 and client.out == ""
    sentence = "invalid_input: num_inference_steps must be a whole number from 1 to 100, not 500"
    assert client.err.splitlines()[-1] == f"FAILED: {sentence}"


def openai_client(url, folder, *words):
    environment = {**os.environ, "ENDPOINT_URL": url, "NO_PROXY": "*"}
    command = [sys.executable, ROOT / "examples/openai_client.py", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_openai_s_client_draws_a_picture_and_edits_it(local_endpoint, tmp_path):
    done = openai_client(local_endpoint, tmp_path, "a red circle", "make it green")
    assert done.stdout.split() == ["generated.png", "edited.png"], done.stderr
    assert [size_of(tmp_path / file) for file in done.stdout.split()] == [(1024, 1024)] * 2


def test_openai_s_client_prints_an_error_of_the_worker_as_its_sentence(local_endpoint, tmp_path):
    done = openai_client(local_endpoint, tmp_path, "", "make it green")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.strip() == "Error code: 400 - invalid_input: prompt must not be empty"
