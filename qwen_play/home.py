"""The endpoint at home, which the page draws on where no other is named: found, or started and ended with the page.

It runs in the worker's environment, and the page in its own.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from .endpoint import Endpoint
from .errors import NoAnswer, PlayError

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv/bin/python"
LOOK_SECONDS = 0.3
END_SECONDS = 20  # that the endpoint may take to end its workers


class HomeEndpoint:
    """`with HomeEndpoint(options) as url:`. Ends the process with a sentence where the endpoint does not come up."""

    def __init__(self, options: argparse.Namespace):
        self.given, self.port = options.url, options.local_port
        self.child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> str:
        if self.given:
            return self.given
        url = f"http://127.0.0.1:{self.port}/v2/local"
        if not answers(url):
            print("Starting the endpoint at home ...", flush=True)
            command = [str(PYTHON), "-m", "qwen_local", "--port", str(self.port)]
            # In a session of its own: Ctrl-C reaches the page alone, which then ends the endpoint in order.
            self.child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
            self.wait(url)
        return url

    def wait(self, url: str) -> None:
        assert self.child
        while not answers(url):
            if self.child.poll() is not None:
                sys.exit(
                    f"The endpoint at home ended with exit code {self.child.returncode}; its reason is above. If port "
                    f"{self.port} is taken, choose another one with --local-port."
                )
            time.sleep(LOOK_SECONDS)

    def __exit__(self, *_: object) -> None:
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()


def answers(url: str) -> bool:
    """Whether an endpoint is there, though it may refuse to say more."""
    try:
        Endpoint(url).ask("GET", "health")
    except NoAnswer:
        return False
    except PlayError:
        pass
    return True
