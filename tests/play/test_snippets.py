"""The calls that the page offers are run as they stand, and send the body that the page itself sends."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from qwen_play import snippets
from qwen_play.form import Form, Picture, base64_text, job_input

from ..conftest import respond

# Whatever a shell, Python or JavaScript could take for its own.
NASTY = 'it\'s "quoted" $HOME `id` $(id) ${x} \\n back\\slash\nsecond line {braces} %s </script> 狐 🦊\nJSON'
KEY = "a-key-of-the-test"


@pytest.fixture
def form(tmp_path):
    pictures = []
    for name in ("picture-1.png", "picture-2.jpg", "mask.png"):
        (tmp_path / name).write_bytes(name.encode() * 100)
        pictures.append(Picture(tmp_path / name, os.path.splitext(name)[1]))
    return Form(
        NASTY, NASTY, "fast", "16:9", False, "8", "1.5", "7", "ORG/NAME 0.5", tuple(pictures[:2]), mask=pictures[2]
    )


@pytest.fixture
def endpoint(web):
    """Its address, and the requests that it was sent."""
    requests = []

    def answer(handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.headers["User-Agent"].startswith("Python-urllib"):  # RunPod's firewall turns it away
            return respond(handler, b"error code: 1010", 403)
        requests.append((handler.path, handler.headers["Authorization"], body))
        states = {"/v2/ep/run": "IN_QUEUE", "/v2/ep/status/j1": "COMPLETED"}
        reply = {"id": "j1", "status": states.get(handler.path), "output": {"image": "cGljdHVyZQ=="}}
        return respond(handler, json.dumps(reply).encode(), Content_Type="application/json")

    return web(answer) + "/v2/ep", requests


def run(command, folder):
    environment = {**os.environ, "RUNPOD_API_KEY": KEY, "NO_PROXY": "*", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def sent(requests):
    path, key, body = requests[0]
    assert (path, key) == ("/v2/ep/run", f"Bearer {KEY}")
    return json.loads(body)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_shell_sends_the_body_of_the_page(form, endpoint, tmp_path):
    url, requests = endpoint
    run(["bash", "-c", snippets.curl(url, form)], tmp_path)
    assert sent(requests) == {"input": job_input(form, base64_text)}


def test_python_sends_the_body_of_the_page_and_saves_the_picture(form, endpoint, tmp_path):
    url, requests = endpoint
    run([sys.executable, "-c", snippets.python(url, form)], tmp_path)
    assert sent(requests) == {"input": job_input(form, base64_text)}
    assert (tmp_path / "result.png").read_bytes() == b"picture"


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_typescript_sends_the_body_of_the_page_and_saves_the_picture(form, endpoint, tmp_path):
    """Its types are taken off as node itself does from its version 22 on, so that older ones run it too."""
    url, requests = endpoint
    text = snippets.typescript(url, form)
    for typed, plain in (("route: string, body?: object", "route, body"), ("name: string", "name")):
        assert typed in text
        text = text.replace(typed, plain)
    (tmp_path / "call.mjs").write_text(text)
    run(["node", "call.mjs"], tmp_path)
    assert sent(requests) == {"input": job_input(form, base64_text)}
    assert (tmp_path / "result.png").read_bytes() == b"picture"


def test_no_snippet_holds_a_picture_or_more_than_the_key_s_name(form):
    for write in (snippets.curl, snippets.python, snippets.typescript):
        text = write("https://api.runpod.ai/v2/ep", form)
        assert "RUNPOD_API_KEY" in text and "mask.png" in text and base64_text("", form.pictures[0]) not in text


def test_a_call_without_pictures_reads_no_file():
    for write in (snippets.curl, snippets.python, snippets.typescript):
        text = write("https://api.runpod.ai/v2/ep", Form("a fox"))
        assert "base64 <" not in text and "read(" not in text and "readFile" not in text
