"""The image's worker as the platform starts it: its own entry point, as its own user, jobs from a queue on loopback."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

from .store import Store


@contextmanager
def started(store: Store, image: str, command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """`command` in a container of the image, whose user, folder and environment it has, with `env` over that."""
    container = store.run("from", image)
    variables = [option for name, value in env.items() for option in ("--env", f"{name}={value}")]
    process = subprocess.Popen(["buildah", "run", *variables, container, "--", *command], env=store.env)
    try:
        yield process
    finally:
        end(process)
        store.run("rm", container)


def end(process: subprocess.Popen) -> None:
    """SIGTERM to what runs in the container, which buildah does not pass on; SIGKILL to what stays."""
    inside = [one for one in psutil.Process(process.pid).children(recursive=True) if "buildah" not in one.name()]
    for one in inside:
        one.terminate()
    _, left = psutil.wait_procs(inside, timeout=40)
    for one in left:
        os.kill(one.pid, signal.SIGKILL)
    process.wait(40)


def user_of(store: Store, image: str) -> dict:
    """Who and where the image's command is, as the container's own shell says."""
    container = store.run("from", image)
    try:
        told = store.run("run", container, "--", "python", "-c", WHO)
    finally:
        store.run("rm", container)
    return json.loads(told)


WHO = """
import json, os
facts = {"uid": os.getuid(), "home": os.path.expanduser("~"), "left": os.listdir("/tmp")}
os.makedirs(os.environ["HF_HOME"])
import torch
facts["cuda"] = torch.version.cuda
facts["writes_app"] = os.access("/app", os.W_OK)
print(json.dumps(facts))
"""
