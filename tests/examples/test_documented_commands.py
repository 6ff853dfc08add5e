"""Every fenced block of README and Jobs is run, or stands in a table here with the reason why not.

Commands run in a folder that mirrors the repository, against one endpoint as `make serve` starts it. What they print is
compared with the JSON block below them, or checked by the table `CHECKS`.
"""

import base64
import functools
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

import pytest

from qwen_worker.jobs.job import Job, Stage
from qwen_worker.jobs.parsing import parse
from qwen_worker.serving.progress import message_of

from ..conftest import ROOT
from ..test_docs import FENCED, assert_shown, read, tracked
from .conftest import node

PNG = b"\x89PNG"
PAGES = ("README.md", "docs/jobs.md")
# A shell's lines that are not run, by what they begin with. A block of such lines alone is not run at all.
NOT_RUN = {
    r"make (run|serve|play|test|gallery|deploy-tools)\b": "it installs packages; the tests start what it starts",
    r"git clone ": "it needs the network",
    r"(docker|podman|buildah) ": "it needs Docker, or one of its kind",
    r"(cd|export (RUNPOD_API_KEY|ENDPOINT_URL|OWNER)=)": "the environment of these tests has it already",
    r"(python|\.venv\S*/python) deploy_qwen\.py ": "it calls RunPod; tests/test_docs.py has its parser read each call",
    r"(\S+/)?pip install ": "it needs the network",
    r"SERVER_MODE=local .*&$|.*localhost:8000/runsync.*|kill %1": "the SDK's own local API takes port 8000",
}
# Blocks of other languages and of none, by the beginning of their text.
LISTED = {
    "const runpod = createRunpod": "test_clients.py runs this call where RunPod's provider is installed",
    "runpod_handler.py          answers": "a drawing; tests/test_docs.py compares it with the files",
    "invalid_input: loras[0] is not made for": "a message of a 20B model; tests/lora has it from the tiny one",
    "a fox in the snow\nNegative prompt:": "a text in a file; tests/pictures has its layout",
}


def picture_in(text):
    """Base64 of a picture, or a part of it that a script prints."""
    return base64.b64decode(text[: len(text) // 4 * 4]).startswith(PNG)


def saved(printed, folder):
    """What example clients print: the name of a picture that is there."""
    return (folder / printed.strip().splitlines()[-1]).read_bytes().startswith(PNG)


def replied(printed, folder):
    """What `runpod_handler.py` prints for its test job."""
    return "'backend': 'qwen-image'" in printed or '"backend": "qwen-image"' in printed


# What is printed by blocks that have no JSON below them, by a part of their text.
CHECKS = {
    "examples/client.": saved,
    "examples/curl.sh": saved,
    "examples/openai_client.py": saved,
    "runpod_handler.py": replied,
    "client.images.generate": lambda printed, folder: picture_in(printed),
    "urllib.request.urlopen": lambda printed, folder: picture_in(printed),
    "client.post": lambda printed, folder: picture_in(printed),
}


def blocks(page):
    """The page's fenced blocks in order: language and text."""
    return FENCED.findall(read(page))


BLOCKS = [(page, number) for page in PAGES for number in range(len(blocks(page)))]


def named(page, number):
    language, text = blocks(page)[number]
    return f"{page}:{number}:{language or 'text'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The repository, of which every name at the top is a link; what commands write beside them is not in it."""
    mirror = tmp_path_factory.mktemp("repository")
    for name in {name.partition("/")[0] for name in tracked()}:
        (mirror / name).symlink_to(ROOT / name)
    return mirror


@pytest.fixture(scope="module")
def put_in(local_endpoint):
    """What a reader writes in place of other words; the job has ended."""
    circle = base64.b64encode((ROOT / "examples/red-circle.png").read_bytes()).decode()
    job = requested(f"{local_endpoint}/run", {"input": {"prompt": "a red circle", "num_inference_steps": 2}})
    while job["status"] in ("IN_QUEUE", "IN_PROGRESS"):
        time.sleep(0.1)
        job = requested(f"{local_endpoint}/status/{job['id']}")
    return {
        "https://api.runpod.ai/v2/ENDPOINT_ID": local_endpoint,
        "http://127.0.0.1:8000/v2/local": local_endpoint,
        "JOB_ID": job["id"],
        "https://example.com/garden.jpg": f"data:image/png;base64,{circle}",
        "api_key=...": 'api_key="key"',
        ".venv/bin/python": sys.executable,
    }


def requested(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def filled(text, put_in):
    for word, value in put_in.items():
        text = text.replace(word, value)
    return text


def commands(text):
    """A shell's lines, those that go on below as one."""
    return re.sub(r" *\\\n *", " ", text).strip().splitlines()


def run_of(text):
    """The lines that are run."""
    return [line for line in commands(text) if line and not any(re.match(start, line) for start in NOT_RUN)]


def is_job(language, text):
    return language == "json" and "input" in json.loads(text)


@pytest.mark.parametrize(("page", "number"), BLOCKS, ids=[named(*block) for block in BLOCKS])
def test_every_fenced_block_is_run_or_listed(page, number, request):
    language, text = blocks(page)[number]
    if language == "bash":
        if lines := run_of(text):
            check_shell(page, number, lines, request)
    elif language == "python":
        check_python(page, number, request)
    elif language == "json":
        check_json(page, number)
    elif language == "ts":
        assert text.strip() in {file.read_text().strip() for file in (ROOT / "examples").glob("*.ts")}
    else:
        assert any(text.startswith(start) for start in LISTED), f"not run and not listed: {text}"


def check_shell(page, number, lines, request):
    if any(re.match(r"node ", line) for line in lines):
        if not node():
            pytest.skip("client.ts needs node 22.18 or later; `make test-clients` installs one")
    put_in, folder = (request.getfixturevalue(name) for name in ("put_in", "folder"))
    path = f"{os.path.dirname(node() or '')}:{os.environ['PATH']}"
    environment = {
        **os.environ, "PATH": path, "NO_PROXY": "*", "RUNPOD_API_KEY": "a-key",
        "ENDPOINT_URL": put_in["http://127.0.0.1:8000/v2/local"],
    }  # fmt: skip
    script = filled("\n".join(["set -euo pipefail", *lines]), put_in)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_printed(page, number, done.stdout, folder)
    if '"IN_QUEUE"' in done.stdout:  # nobody waits for the job, and others would wait until it is drawn
        requested(f"{put_in['http://127.0.0.1:8000/v2/local']}/cancel/{json.loads(done.stdout)['id']}", {})


def check_printed(page, number, printed, folder):
    """Against the JSON block that follows, unless that is a job, or by the table."""
    language, text = (blocks(page) + [("", "")])[number + 1]
    if language == "json" and not is_job(language, text):
        assert_shown(json.loads(text), json.loads(printed))
        return
    own = blocks(page)[number][1]
    checks = [check for part, check in CHECKS.items() if part in own]
    assert checks and all(check(printed, folder) for check in checks), printed


def check_python(page, number, request):
    """What the block has made, or that it is an example's file, which has its tests."""
    own = blocks(page)[number][1]
    if own.strip() not in {file.read_text().strip() for file in (ROOT / "examples").glob("*.py")}:
        put_in, folder = (request.getfixturevalue(name) for name in ("put_in", "folder"))
        check_printed(page, number, made_by_python(page, folder, tuple(put_in.items()))[number], folder)


@functools.cache
def made_by_python(page, folder, put_in):
    """`picture` after each of the page's Python blocks, of which each goes on where the one before it ends."""
    numbers = [number for number, (language, _) in enumerate(blocks(page)) if language == "python"]
    script = "\n".join(f"{blocks(page)[number][1]}\nprint(picture[:1000])" for number in numbers)
    done = subprocess.run(
        [sys.executable, "-c", filled(script, dict(put_in))], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(numbers, done.stdout.splitlines(), strict=True))


def check_json(page, number):
    """A job, whose fields tests/test_docs.py has the worker read; a reply to the block before; or progress."""
    language, text = blocks(page)[number]
    if is_job(language, text):
        return
    if "stage" in json.loads(text):
        assert set(json.loads(text)) == progress_fields()
        return
    before, text_before = blocks(page)[number - 1]
    assert before in ("bash", "python") or is_job(before, text_before), f"no reply to the block before: {text}"


def progress_fields():
    job = Job("a", parse({"prompt": "a", "num_inference_steps": 50}, "a"))
    job.enter(Stage.DRAWING)
    for step in (1, 2, 3):
        job.end_step(step, 50)
    return set(message_of(job))


def test_no_block_is_listed_that_is_gone():
    texts = [text for page in PAGES for _, text in blocks(page)]
    assert [start for start in LISTED if not any(text.startswith(start) for text in texts)] == []
