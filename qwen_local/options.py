"""The options of `python -m qwen_local`, and the variables that a worker process gets. Reads no file."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from .workers import ROOT

TINY = ROOT / "models/tiny-qwen-image"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*)?")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_WORKERS = 16
# Of the shell: what would lead the worker away from this server. Its own settings go on to it.
STEERING = (
    "RUNPOD_WEBHOOK_",
    "RUNPOD_REALTIME_",
    "RUNPOD_POD_",
    "RUNPOD_ENDPOINT_",
    "RUNPOD_AI_API_KEY",
    "SERVER_MODE",
)


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Ends the process where an option cannot be used, with a sentence that names it."""
    parser = argparse.ArgumentParser(
        prog="python -m qwen_local",
        description="A RunPod endpoint at home: RunPod's API on this machine, in front of the worker's real process. "
        "The worker's settings (QWEN_*, STREAM, BUCKET_*) are taken from the environment.",
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="an address other than loopback needs a token (default: %(default)s)"
    )
    parser.add_argument("--token", help="what clients must send as Authorization: Bearer TOKEN")
    parser.add_argument("--workers", type=int, default=1, help="how many worker processes (default: %(default)s)")
    parser.add_argument(
        "--model", help="for generate: a folder or ORG/NAME (default: QWEN_IMAGE_MODEL, or the tiny checkpoint)"
    )
    parser.add_argument(
        "--edit-model", help="for edits: a folder or ORG/NAME (default: QWEN_EDIT_MODEL, or the tiny checkpoint)"
    )
    parser.add_argument(
        "--playground", metavar="URL", help="the address of the playground, for a link on the start page"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print the workers' logs, instead of writing them to files"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be from 0 to 65535, not {options.port}")
    if not 1 <= options.workers <= MOST_WORKERS:
        parser.error(f"--workers must be from 1 to {MOST_WORKERS}, not {options.workers}")
    for name in ("model", "edit_model"):
        model = getattr(options, name)
        if model and not Path(model).is_dir() and not HUB_NAME.fullmatch(model):
            parser.error(f"--{name.replace('_', '-')} must be a folder that is there or ORG/NAME, not {model}")
    if options.token is not None and (len(options.token) < 8 or not options.token.isascii() or " " in options.token):
        parser.error("--token must have at least 8 characters of ASCII, without spaces")
    if options.playground and urlsplit(str(options.playground)).scheme not in ("http", "https"):
        parser.error(f"--playground must begin with http:// or https://, not {options.playground}")
    return options


def models_of(options: argparse.Namespace, shell: Mapping[str, str]) -> dict[str, str]:
    """The settings that name the two models."""
    found: dict[str, str] = {}
    for setting, given, tiny in (
        ("QWEN_IMAGE_MODEL", options.model, TINY / "generate"),
        ("QWEN_EDIT_MODEL", options.edit_model, TINY / "edit"),
    ):
        model: str = given or shell.get(setting) or str(tiny)
        found[setting] = os.path.abspath(model) if Path(model).is_dir() else model
    return found


def worker_settings(models: Mapping[str, str], shell: Mapping[str, str]) -> dict[str, str]:
    """A worker's variables beside those that lead it to the plane."""
    kept = {name: value for name, value in shell.items() if not name.startswith(STEERING)}
    defaults = {"QWEN_SHUTDOWN_SECONDS": "1", "PYTHONUNBUFFERED": "1"}
    if all(is_tiny(model) for model in models.values()):
        defaults["QWEN_PRELOAD"] = "generate,edit"  # seconds; of a large model the first job that needs it waits
    # A proxy of the shell is not asked for this machine.
    direct = ",".join(filter(None, [kept.get("NO_PROXY") or kept.get("no_proxy"), "127.0.0.1", "localhost"]))
    return {**defaults, **kept, **models, "NO_PROXY": direct, "no_proxy": direct}


def is_tiny(model: str) -> bool:
    return Path(model).is_relative_to(TINY)
