"""What goes wrong is a sentence on the page: wrong files, wrong keys, stand-ins, a taken port. No key is ever seen."""

import base64
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
from PIL import Image

from ...conftest import ROOT, file_of, free_port, respond, serve
from ...support.patience import run_to_its_end, wait_until
from .conftest import KEY, PYTHON, PlayProcess, SpokenEndpoint

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
REPLY = {
    "success": True,
    "image": base64.b64encode(file_of(Image.new("RGB", (64, 64), "grey"))).decode(),
    "metadata": {
        "backend": "pil-fallback", "fallback_reason": "the model does not fit <here> ${1 + 1} {{value}}", "steps": 0,
        "dimensions": "64x64", "warnings": ["draws <i>coloured</i> shapes only"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def spoken(chromium):
    """The page on an endpoint that a test speaks for: (the endpoint, the process of the page)."""
    endpoint = SpokenEndpoint()
    server = serve(endpoint)
    url = f"http://127.0.0.1:{server.server_port}/v2/ep"
    with PlayProcess("--url", url, RUNPOD_API_KEY=KEY) as process:
        yield endpoint, process
    server.shutdown()
    server.server_close()


@pytest.fixture
def visitor(spoken, open_page):
    endpoint, process = spoken
    endpoint.refusal, endpoint.states = 0, [{"status": "COMPLETED", "output": REPLY}]
    return open_page(process.address)


def test_a_stand_in_is_named_loudly_and_no_text_of_others_is_markup(visitor):
    visitor.draw("a fox")
    visitor.wait("Done", "Error")
    wait_until(lambda: "No model drew this picture" in visitor.page.inner_text("#play-facts"))
    text = visitor.page.inner_text("#play-facts")
    assert "does not fit <here> ${1 + 1} {{value}}" in text and "draws <i>coloured</i> shapes only" in text
    visitor.shoot("stand-in")


@pytest.mark.parametrize("status, words", [(401, "refuses the key"), (404, "no endpoint at"), (503, "broken")])
def test_a_refusal_is_a_sentence_and_the_page_can_be_used_again(spoken, visitor, status, words):
    spoken[0].refusal = status
    visitor.draw("a fox")
    assert words in visitor.wait("Error")[-1]
    spoken[0].refusal = 0
    visitor.draw("a fox")
    assert "Done" in visitor.wait("Done", "Error")[-1]


def test_the_worker_s_own_sentence_is_shown(spoken, visitor):
    spoken[0].states = [{"status": "FAILED", "error": "invalid_input: num_inference_steps must be from 1 to 100"}]
    visitor.draw("a fox", steps="many")
    assert "num_inference_steps must be from 1 to 100" in visitor.wait("Error")[-1]
    assert spoken[0].sent[-1]["num_inference_steps"] == "many"


def test_the_key_reaches_the_endpoint_and_nobody_else(spoken, visitor):
    visitor.draw("a fox")
    visitor.wait("Done", "Error")
    endpoint, process = spoken
    assert endpoint.keys == {f"Bearer {KEY}"}
    visitor.page.click("#play-code button >> nth=0")
    seen = [visitor.page.content(), visitor.page.inner_text("#play-curl")]
    config = visitor.page.request.get(f"{process.address}/config").text()
    arguments = " ".join(subprocess.check_output(["ps", "-eo", "args"], text=True).split())
    assert not any(KEY in text for text in (*seen, config, *process.lines, arguments))


@pytest.mark.parametrize("name, content, words", [
    ("notes.txt", b"not a picture", "notes.txt"), ("drawing.svg", SVG, "drawing.svg"),
    ("notes.png", b"not a picture", "notes.png is not a picture"), ("large.png", bytes(60_000_000), "20"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_in_words(visitor, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    visitor.choose(tmp_path / name)
    said = visitor.page.locator(".toast-body, [role=alert], .toast-wrap").first
    said.wait_for()
    assert words.lower() in said.inner_text().lower()
    assert visitor.page.locator("#play-pictures .thumbnail-item, #play-pictures .grid-container img").count() == 0
    visitor.faults[:] = [fault for fault in visitor.faults if "413" not in fault and "400" not in fault]


@pytest.mark.parametrize("path, method, headers, status", [
    ("/", "GET", {"Host": "evil.example"}, 400),
    ("/gradio_api/upload", "POST", {"Sec-Fetch-Site": "cross-site"}, 403),
    (f"/gradio_api/file={ROOT}/README.md", "GET", {}, 403),
])  # fmt: skip
def test_another_site_and_the_disk_behind_the_page_are_refused(spoken, path, method, headers, status):
    request = urllib.request.Request(spoken[1].address + path, headers=headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == status
    refused.value.close()


def run_page(*options, **variables):
    return run_to_its_end([str(PYTHON), "-m", "qwen_play", *options], env={"PATH": "/usr/bin:/bin", **variables})


@pytest.mark.skipif(not PYTHON.exists(), reason="the page is not installed: make .venv-play/installed")
def test_a_port_that_is_taken_and_an_open_door_are_told_with_the_way_out():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_page("--url", "http://127.0.0.1:9/v2/ep", "--port", str(port))
        assert done.returncode == 2 and done.stderr == f"Port {port} is taken. Choose another one with --port.\n"
    done = run_page("--url", "http://127.0.0.1:9/v2/ep", "--host", "0.0.0.0")
    assert done.returncode == 2 and "Set PLAY_PASSWORD to a password" in done.stderr
    assert str(ROOT) not in done.stderr


@pytest.mark.skipif(not PYTHON.exists(), reason="the page is not installed: make .venv-play/installed")
def test_another_program_on_the_endpoint_s_port_is_told_with_the_option():
    server = serve(lambda handler: respond(handler, b"not found", 404))
    try:
        done = run_page("--local-port", str(server.server_port), "--port", str(free_port()))
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 1 and "choose another one with --local-port" in done.stderr
