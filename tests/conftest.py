"""What the tests stand on: the tiny checkpoint, a warm worker that serves it, pictures, a web server on loopback."""

import asyncio
import base64
import functools
import http.server
import io
import itertools
import os
import socket
import threading
from pathlib import Path

import psutil
import pytest
from PIL import Image

# Read by torch when it is imported, here and in every process that a test starts. Threads for these sizes gain nothing,
# and on a machine that is busy otherwise they spin for one another: OpenMP's took four times the processor's seconds.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Read by the SDK and the hub when they are imported: no test reaches the network.
os.environ.setdefault("RUNPOD_DEBUG_LEVEL", "INFO")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing listens there

ROOT = Path(__file__).parents[1]
TINY_WARNING = "the model is a small one for tests, and draws coloured shapes only"
PROCESS_BYTES = 3_000_000_000  # of a process of tests with torch, and of a worker process that it starts
job_numbers = itertools.count()
only_proved = pytest.mark.skipif("not config.getoption('--prove')", reason="a long proof, which --prove asks for")


def pytest_addoption(parser):
    parser.addoption("--prove", action="store_true", help="the long proofs whole, of which there is else a sample")


@pytest.hookimpl(optionalhook=True)  # a machine with a card may have no xdist
def pytest_xdist_auto_num_workers(config):
    """`-n auto`: a process for each processor, as far as there is memory for them."""
    return max(1, min(os.cpu_count() or 1, psutil.virtual_memory().available // PROCESS_BYTES))


@pytest.fixture(scope="session")
def sample(pytestconfig):
    """sample(quick, whole): the size of a proof, `whole` with --prove alone."""
    return lambda quick, whole: whole if pytestconfig.getoption("--prove") else quick


@pytest.fixture
def gate():
    """gate(): an event that a fake may wait for without a limit: at the test's end it is set."""
    gates = []

    def new():
        gates.append(threading.Event())
        return gates[-1]

    yield new
    for one in gates:
        one.set()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No setting of the shell reaches a test."""
    for name in list(os.environ):
        if name.startswith(("QWEN_", "BUCKET_", "RUNPOD_ALLOW")) or name in ("SERVER_MODE", "RUNPOD_ENDPOINT_ID"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny():
    """The folder of the tiny checkpoint, with `generate/` and `edit/` in it."""
    return ROOT / "models/tiny-qwen-image"


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory):
    """A folder for compiled blocks and for notes of CUDA errors: no test leaves one for the machine's own worker."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def settings(tiny, tmp_path):
    """Settings(**overrides) for the tiny checkpoint, with nowhere else to look for weights."""
    return functools.partial(tiny_settings, tiny, tmp_path / "compiled")


def tiny_settings(tiny, compiled_folder, **overrides):
    from qwen_worker.settings import Settings

    defaults = {
        "QWEN_IMAGE_MODEL": str(tiny / "generate"),
        "QWEN_EDIT_MODEL": str(tiny / "edit"),
        "QWEN_MODEL_ROOTS": (),
        "QWEN_COMPILED_FOLDER": compiled_folder,
    }
    return Settings(**defaults | overrides)


@pytest.fixture
def cold_worker(settings):
    """cold_worker(**settings): a worker that has loaded nothing."""
    import runpod_handler

    return lambda **overrides: runpod_handler.Worker(settings(**overrides))


@pytest.fixture(scope="session")
def warm_workers(tiny, compiled_folder):
    """warm_workers(**settings): a worker for many tests, as loading takes long. They change no setting of it."""
    import runpod_handler

    return lambda **overrides: runpod_handler.Worker(tiny_settings(tiny, compiled_folder, **overrides))


@pytest.fixture(scope="session")
def warm_worker(warm_workers):
    """One worker for the session. Tests that change a worker take `cold_worker`."""
    return warm_workers()


def environment_of(tiny, home, **variables):
    """A worker process's: the shell's, less what would steer the worker or the SDK."""
    steering = ("RUNPOD_", "QWEN_", "SERVER_", "BUCKET_", "STREAM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    models = {"QWEN_IMAGE_MODEL": str(tiny / "generate"), "QWEN_EDIT_MODEL": str(tiny / "edit")}
    # An empty home: the SDK prefers the credentials in ~/.runpod to the environment's.
    return {**kept, **models, "HOME": str(home), "NO_PROXY": "*", **variables}


@pytest.fixture
def environment(tiny, tmp_path):
    """environment(**variables): `environment_of` the test's own home."""
    return functools.partial(environment_of, tiny, tmp_path)


def run(worker, fields, job_id=None):
    """What the SDK would post for a job with this input: its own `run_job` around the worker."""
    from runpod.serverless.modules.rp_job import run_job

    job = {"id": job_id or f"job-{next(job_numbers)}", "input": fields}
    return asyncio.run(run_job(worker.answer, job))


def posted(worker, _job_id=None, **fields):
    return run(worker, fields, _job_id)


@pytest.fixture
def ask(warm_worker):
    """ask(**fields): the body posted for a job on the warm worker; `_job_id` chooses the job's id."""
    return functools.partial(posted, warm_worker)


@pytest.fixture
def draw(ask):
    """draw(**fields): the picture and the metadata of a job that must succeed."""

    def drawn(**fields):
        body = ask(**fields)
        assert "error" not in body, body["error"]
        return picture_of(body["output"]["image"]), body["output"]["metadata"]

    return drawn


def place_by(worker, plan):
    """Have the worker load and draw by this plan, for every model that it has a plan for."""
    plans = worker.pipelines.planner.plans
    plans |= dict.fromkeys(plans, plan)


def warnings_of(metadata):
    """A reply's warnings, without the one that every reply of the tiny checkpoint has."""
    warnings = metadata.get("warnings", [])
    return [warning for warning in warnings if warning != TINY_WARNING]


def picture_of(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def file_of(picture, format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def heic_of(picture, **options):
    """A HEIC of the picture: the worker has no encoder."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture).save(buffer, **options)
    return buffer.getvalue()


def text_of(data):
    return base64.b64encode(data).decode()


def as_text(picture, format="PNG", **options):
    return text_of(file_of(picture, format, **options))


@pytest.fixture
def scene():
    """A red disc on blue, 512 x 512: something with a subject and a background."""
    from PIL import ImageDraw

    picture = Image.new("RGB", (512, 512), "blue")
    ImageDraw.Draw(picture).ellipse((156, 156, 356, 356), fill="red")
    return picture


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(answer):
    """An HTTP server on loopback whose every request `answer(handler)` answers; `.server_port` is where.

    A control plane has a server of its own, which is of the same use.
    """
    if hasattr(answer, "serve"):
        return answer.serve()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *_):
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


@pytest.fixture
def web(monkeypatch):
    """web(answer) serves on loopback and returns the address; `answer(handler)` writes one response, or is a plane."""
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    servers = []

    def address_of(answer):
        servers.append(serve(answer))
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield address_of
    for server in servers:
        server.shutdown()
        server.server_close()


def respond(handler, body, status=200, **headers):
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
