"""The command `play`: the playground page on a real endpoint, run by the page's own Python.

The page gets the key in its environment, as this command has got it, and the endpoint's address as an option. Knows
nothing of what the page shows.
"""

import os
import subprocess

from .endpoints import find_endpoint
from .errors import UsageError
from .options import PlayOptions
from .runpod.client import read_key
from .screen import Screen
from .session import ROOT, SessionOpener

PYTHON = ROOT / ".venv-play/bin/python"


def play(screen: Screen, options: PlayOptions, open_session: SessionOpener) -> int:
    """Until the page ends; its exit code.

    Raises `DeployError` for an endpoint that takes no queued jobs, and `UsageError` where the page is not installed.
    """
    session = open_session()
    endpoint = find_endpoint(session.api, options)
    url = session.queue(endpoint).urls["run"].removesuffix("/run")
    if not PYTHON.is_file():
        raise UsageError("The playground page is not installed. Install it with: make .venv-play/installed")
    command = [str(PYTHON), "-m", "qwen_play", "--url", url, "--host", options.host]
    command += ["--port", str(options.port)]
    if options.price is not None:
        command += ["--price", str(options.price)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RUNPOD_API_KEY": read_key(os.environ)}) as page:
        try:
            return page.wait()
        except KeyboardInterrupt:  # the page may not have heard of it, where it was no Ctrl-C on this terminal
            page.terminate()
            screen.say("The playground has ended.")
            return 0
