"""Starts the endpoint, its workers and its web server, and ends them in the order in which they need each other."""

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from .app import ENDPOINT, endpoint_app, worker_path
from .console import JobLines, say
from .options import LOOPBACK, is_tiny, models_of, worker_settings
from .plane import Plane
from .start_page import start_page
from .webhooks import Webhooks
from .worker_api import environment
from .workers import ROOT, Workers

LOGS = ROOT / "out/serve"
EVERYWHERE = ("0.0.0.0", "::", "")


class Server(uvicorn.Server):
    """Without uvicorn's own signal handlers: the workers must end before it does."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def web_server(app: ASGIApp) -> Server:
    """h11 answers `Expect: 100-continue` only when a body is asked for, so that one can be refused unsent."""
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="off", interface="asgi3", log_config=None,
        access_log=False, proxy_headers=False, timeout_graceful_shutdown=2, timeout_keep_alive=75,
    )  # fmt: skip
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def shown_host(host: str) -> str:
    """For an address that a program on this machine can call."""
    host = "127.0.0.1" if host in EVERYWHERE else host
    return f"[{host}]" if ":" in host else host


async def serve(options: argparse.Namespace, listener: socket.socket) -> None:
    """Until a signal comes."""
    address = f"http://{shown_host(options.host)}:{listener.getsockname()[1]}"
    token = options.token or (None if options.host in LOOPBACK else secrets.token_urlsafe(24))
    worker_key, shell = secrets.token_urlsafe(32), dict(os.environ)
    models = models_of(options, shell)
    lines = JobLines()
    plane = Plane([lines, Webhooks(say)])

    def variables(worker: str) -> dict[str, str]:
        leads_here = environment(address + worker_path(worker_key), worker, secrets.token_urlsafe(16))
        return worker_settings(models, shell) | leads_here

    workers = Workers(plane, variables, say, None if options.verbose else LOGS)
    page = start_page(address, token is not None, options.playground)
    server = web_server(endpoint_app(plane, worker_key, token, lambda: page))
    introduce(options, address, token, models)

    stopping, at_once = asyncio.Event(), asyncio.Event()
    hear_signals(stopping, at_once)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    keeping = asyncio.create_task(workers.keep(options.workers))
    timing = asyncio.create_task(plane.keep_time())
    waiting = asyncio.create_task(stopping.wait())
    done, _ = await asyncio.wait({serving, keeping, timing, waiting}, return_when=asyncio.FIRST_COMPLETED)

    say("Ending the workers. Ctrl-C once more ends them at once.")
    lines.ending = True
    for worker in list(plane.workers):
        plane.retire(worker)
    await workers.end(at_once)
    timing.cancel()
    waiting.cancel()
    plane.close()
    server.should_exit = True
    await asyncio.gather(serving, keeping)
    for task in done:
        task.result()  # raises what ended the server before a signal came


def hear_signals(stopping: asyncio.Event, at_once: asyncio.Event) -> None:
    """Set the first event at the first SIGINT or SIGTERM, and the second one at the next."""

    def hear() -> None:
        (at_once if stopping.is_set() else stopping).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, hear)


def introduce(options: argparse.Namespace, address: str, token: str | None, models: dict[str, str]) -> None:
    say(f"Listening at {address}, which a browser can open. Ctrl-C ends it.")
    say(f"  RunPod's SDK      {address}/v2, endpoint {ENDPOINT}")
    say(f"  OpenAI's clients  {address}/v2/{ENDPOINT}/openai/v1")
    for setting, kind in (("QWEN_IMAGE_MODEL", "draws with"), ("QWEN_EDIT_MODEL", "edits with")):
        model = models[setting]
        name = "the tiny checkpoint, which knows coloured shapes only" if is_tiny(model) else model
        say(f"  {kind}        {name}")
    if token:
        say(f"  token             {token}  (clients send Authorization: Bearer {token})")
    if options.playground:
        say(f"  playground        {options.playground}")
    if not options.verbose:
        say(f"  workers' logs     {os.path.relpath(LOGS, Path.cwd())}")
