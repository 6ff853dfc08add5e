"""Endpoints for the tests: one in this process without a worker, and one as its user starts it."""

import functools

import pytest
import requests

from qwen_local.app import endpoint_app
from qwen_local.plane import Plane
from qwen_local.start_page import start_page

from ..conftest import environment_of
from ..support.control_plane import PlaneServer
from ..support.local_endpoint import LocalEndpoint

WORKER_KEY = "workers-key"


class Doorway:
    """An endpoint without a worker, to be called over HTTP."""

    def __init__(self, token=None):
        self.plane = Plane()
        page = functools.partial(start_page, "http://127.0.0.1:8000", token is not None, None)
        self.server = PlaneServer(self.plane, endpoint_app(self.plane, WORKER_KEY, token, page))
        self.root = f"http://127.0.0.1:{self.server.server_port}"

    def call(self, method, path, **options):
        return requests.request(method, self.root + path, timeout=60, **options)

    def post(self, path, **options):
        return self.call("POST", f"/v2/local/{path}", **options)

    def get(self, path, **options):
        return self.call("GET", f"/v2/local/{path}", **options)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def doorway():
    """doorway(token=None): an endpoint without a worker."""
    opened = []

    def of(**options):
        opened.append(Doorway(**options))
        return opened[-1]

    yield of
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def endpoint(tiny, tmp_path_factory):
    """The endpoint as its user starts it, with one worker that draws, which tells every step."""
    settings = {"QWEN_PROGRESS_SECONDS": "0.05", "QWEN_PRELOAD": "generate"}
    environment = environment_of(tiny, tmp_path_factory.mktemp("home"), **settings)
    with LocalEndpoint(environment) as one:
        one.wait_for(lambda: one.said("worker-1 ready after"))
        yield one
