"""The endpoint at home, which the page draws on where no other is named: found, or started and ended with the page.

It runs in the worker's environment, and the page in its own.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .endpoint import Endpoint
from .errors import PlayError

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv/bin/python"
LOOK_SECONDS = 0.3
END_SECONDS = 20  # that the endpoint may take to end its workers


@contextmanager
def endpoint_address(options: argparse.Namespace) -> Iterator[str]:
    """Of the endpoint to draw on. Ends the process with a sentence where the one at home does not come up."""
    url = options.url or f"http://127.0.0.1:{options.local_port}/v2/local"
    if options.url or answers(url):
        yield url
        return
    print("Starting the endpoint at home ...", flush=True)
    page = f"http://{options.host}:{options.port}"  # which the endpoint's own page leads to
    command = [str(PYTHON), "-m", "qwen_local", "--port", str(options.local_port), "--playground", page]
    # In a session of its own: Ctrl-C reaches the page alone, which then ends the endpoint in order.
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        wait_for(url, child)
        yield url
    finally:
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()


def wait_for(url: str, child: subprocess.Popen[bytes]) -> None:
    while not answers(url):
        if child.poll() is not None:
            sys.exit(
                f"The endpoint at home ended with exit code {child.returncode}; its reason is above. If its port is "
                "taken, choose another one with --local-port."
            )
        time.sleep(LOOK_SECONDS)


def answers(url: str) -> bool:
    """Whether an endpoint is there that takes jobs from this page. Another program on the port is none."""
    try:
        Endpoint(url).ask("GET", "health")
    except PlayError:
        return False
    return True
