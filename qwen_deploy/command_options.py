"""The options of the commands that look after endpoints, and how each of these commands is told which one is meant.

Decides nothing. Knows nothing of what a deployment may be told.
"""

import argparse
from math import inf
from pathlib import Path
from typing import Any, Protocol

from .records import default_folder

MODELS_HELP = "hub ids, each perhaps with @revision, or the word recommended"
RAM_GB = 32  # of a worker, which RunPod's catalogue does not name


class Group(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...


class StateOptions(argparse.Namespace):
    """What every command knows. In these classes None stands for an option that was not given."""

    state: Path  # folder of saved configurations


class TargetOptions(StateOptions):
    """An endpoint by its id or by its name; neither for the account's only one."""

    endpoint_id: str | None
    name: str | None


class StatusOptions(TargetOptions):
    pass


class ListOptions(StateOptions):
    pass


class SpentOptions(TargetOptions):
    days: int


class OpenOptions(TargetOptions):
    pass


class PauseOptions(TargetOptions):
    yes: bool


class ResumeOptions(PauseOptions):
    workers_max: int | None


class DeleteOptions(PauseOptions):
    pass


COMMANDS = {
    "list": "all endpoints: their image, cards and workers",
    "spent": "what RunPod has billed, by endpoint or by day",
    "pause": "no workers until `resume`: nothing but volumes is paid for",
    "resume": "workers again, as many as there were before `pause`",
    "delete": "an endpoint, for good; its volumes stay",
    "open": "the address of an endpoint's page in RunPod's console",
}
KINDS: dict[str, type[StateOptions]] = {
    "list": ListOptions, "spent": SpentOptions, "pause": PauseOptions, "resume": ResumeOptions,
    "delete": DeleteOptions, "open": OpenOptions,
}  # fmt: skip


def add_command(name: str, parser: argparse.ArgumentParser) -> None:
    """The options of a command of `COMMANDS`."""
    if name == "list":
        add_state(parser)
        return
    unnamed = {"spent": "all", "delete": None}.get(name, "the account's only one")
    add_target(parser, unnamed)
    if name == "spent":
        parser.add_argument(
            "--days", type=positive_count, default=30, help="days until now, in UTC (default: %(default)s)"
        )
    if name in ("pause", "resume", "delete"):
        parser.add_argument("--yes", action="store_true", help="do not ask")
    if name == "resume":
        parser.add_argument("--workers-max", type=int, help="most workers (default: as many as before the pause)")


def add_target(parser: argparse.ArgumentParser, unnamed: str | None = "the account's only one") -> None:
    """`unnamed`: which endpoint is meant where none is named; None where one has to be."""
    choice = parser.add_mutually_exclusive_group(required=unnamed is None)
    default = f" (default: {unnamed})" if unnamed else ""
    choice.add_argument("--endpoint-id", metavar="ID", help=f"the endpoint by its id{default}")
    choice.add_argument("--name", help="the endpoint by its name")
    add_state(parser)


def add_ram(group: Group) -> None:
    group.add_argument(
        "--ram-gb",
        type=positive_number,
        default=RAM_GB,
        help="RAM that a worker is taken to have, in GB (default: %(default)s)",
    )


def add_state(group: Group) -> None:
    group.add_argument(
        "--state", type=Path, default=default_folder(), metavar="FOLDER",
        help="folder of saved configurations (default: %(default)s)",
    )  # fmt: skip


def positive_number(word: str) -> float:
    """A number above 0. Raises `ArgumentTypeError` for another word."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {word!r}")
    return value


def positive_count(word: str) -> int:
    """A whole number from 1 to a billion. Raises `ArgumentTypeError` for another word."""
    try:
        value = int(word)
    except ValueError:
        value = 0
    if not 1 <= value <= 10**9:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {word!r}")
    return value
