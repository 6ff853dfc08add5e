"""The command that serves the page: reads its options, starts the endpoint at home where that is wanted, and ends both.

The key of a real endpoint comes from RUNPOD_API_KEY, and the password of a page that others can reach from
PLAY_PASSWORD: neither is on a command line, where every user of the machine could read it.
"""

import argparse
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from .endpoint import LOOPBACK, Endpoint
from .history import History
from .home import endpoint_address
from .jobs import Jobs

PORT, HOME_PORT = 7860, 8000
USER = "play"  # who signs in where the page has a password
PASSWORD = "PLAY_PASSWORD"


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m qwen_play", description="A page that draws on an endpoint.")
    parser.add_argument(
        "--url", help="the endpoint's address, for example https://api.runpod.ai/v2/ID (default: at home)"
    )
    parser.add_argument(
        "--local-port", type=int, default=HOME_PORT, help="of the endpoint at home, which is started if none answers "
        "there (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=PORT, help="of the page (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help=f"address of the page; another one needs {PASSWORD}")
    parser.add_argument("--price", type=float, help="dollars an hour of a worker: results then say what they cost")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = read_options(arguments)
    password = os.environ.get(PASSWORD, "")
    if options.host not in LOOPBACK and not password:
        return refuse(f"With --host {options.host} others can reach the page. Set {PASSWORD} to a password for it.")
    if not is_free(options.host, options.port):
        return refuse(f"Port {options.port} is taken. Choose another one with --port.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="qwen-play-") as folder, endpoint_address(options) as url:
        key = os.environ.pop("RUNPOD_API_KEY", "") if options.url else ""  # the endpoint at home needs none
        endpoint = Endpoint(url, key)
        # Gradio reads both when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from .serving import serve

        auth = (USER, password) if password else None
        serve(Jobs(endpoint, History(), Path(folder), options.price), options.host, options.port, auth)
    return 0


def refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(0)
