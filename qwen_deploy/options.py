"""The command line: every option with its unit, and what follows from leaving it out. Decides nothing."""

import argparse
from collections.abc import Callable
from pathlib import Path

from . import command_options, storage_options
from .command_options import (
    MODELS_HELP,
    Group,
    StateOptions,
    StatusOptions,
    TargetOptions,
    add_ram,
    add_state,
    add_target,
    positive_count,
    positive_number,
)
from .image import TOOLS

COMMANDS = {
    "deploy": "build, push, create or update an endpoint, prove it (what is done without a command)",
    "rollback": "put an endpoint back to a configuration that was saved before a change",
    "status": "an endpoint's configuration, workers and queue, and why its jobs do not get done",
    "logs": "what the workers wrote",
    "send": "one job from here, with its progress and its pictures saved",
    "play": "a page in the browser that draws on an endpoint",
    "cost": "dollars an image on each pool of cards, and which of them the models fit",
    **command_options.COMMANDS,
    **storage_options.COMMANDS,
}
EXAMPLES = """\
examples:
  export RUNPOD_API_KEY=...                                     # console.runpod.io, Settings, API Keys
  %(prog)s volume create qwen-weights                     # and then: volume fill qwen-weights
  %(prog)s --image ghcr.io/OWNER/qwen-image:TAG --volume qwen-weights   # an endpoint, without docker
  %(prog)s --registry docker.io/you                       # build, push, make an endpoint, test it
  %(prog)s --registry docker.io/you --dry-run             # what that would do; changes nothing
  %(prog)s --registry docker.io/you --endpoint-id ID      # the same for an endpoint that exists
  %(prog)s --image-name my-server --build-only            # only build
  %(prog)s rollback --endpoint-id ID                      # the configuration before the last change
  %(prog)s send --endpoint-id ID "a fox in the snow"      # a picture into out/

commands (each has its own --help):
"""
FORM = argparse.RawDescriptionHelpFormatter
# The words that --flashboot takes, and the API's values for them; the API's own names are taken as well.
FLASHBOOT = {"off": "OFF", "on": "FLASHBOOT", "priority": "PRIORITY_FLASHBOOT"}


class ProofOptions(StateOptions):
    """What a command knows that changes an endpoint and proves the change."""

    dry_run: bool
    yes: bool
    no_test: bool
    wait: int  # seconds
    capacity_wait: int  # seconds


class FitOptions(StateOptions):
    """What decides which cards do, and which of them are taken."""

    models: list[str] | None
    tasks: list[str] | None
    ram_gb: float
    seconds: float | None  # that a picture may take
    prefer: str


class DeployOptions(ProofOptions, FitOptions):
    image: str | None  # of a registry, with its tag
    image_name: str
    tag: str | None
    registry: str
    build_only: bool
    push_only: bool
    skip_build: bool
    builder: str
    dockerfile: str
    build_arg: list[str]  # NAME=VALUE
    build_secret: list[str]  # id=..,src=..
    worker_version: str | None
    endpoint_id: str | None
    name: str | None
    gpu: str | None  # pools, comma-separated, or auto
    gpu_count: int | None
    min_cuda: str | None
    no_fit_check: bool
    workers_min: int | None
    workers_max: int | None
    idle_timeout: int | None  # seconds
    execution_timeout: int | None  # seconds
    flashboot: str | None  # the API's value
    disk: int | None  # GB
    volume: list[str] | None
    data_centers: str | None  # comma-separated
    env: list[str]  # NAME=VALUE or NAME
    unset_env: list[str]
    registry_credential: str | None
    test_steps: int | None
    test_size: int | None  # pixels
    output: Path


class RollbackOptions(ProofOptions, TargetOptions):
    list: bool
    to: Path | None


class LogsOptions(TargetOptions):
    worker: str | None
    source: str | None
    tail: int
    follow: bool


class SendOptions(TargetOptions):
    prompt: str | None
    task: str | None
    image: list[Path]
    mask: Path | None
    field: list[str]  # NAME=JSON
    timeout: int | None  # seconds
    output: Path


class PlayOptions(TargetOptions):
    host: str
    port: int
    price: float | None  # dollars an hour


class CostOptions(FitOptions, TargetOptions):
    per_day: int | None  # pictures
    env: list[str]
    min_cuda: str | None


def parser(description: str) -> argparse.ArgumentParser:
    """Of `deploy`, whose options need no command before them. `description` opens its --help."""
    epilog = EXAMPLES + "\n".join(f"  {name:<9} {purpose}" for name, purpose in COMMANDS.items())
    usage = "%(prog)s [COMMAND] [options]"
    result = argparse.ArgumentParser("deploy_qwen.py", usage, description, epilog, formatter_class=FORM)
    add_image(result.add_argument_group("image"))
    add_endpoint(result.add_argument_group("endpoint (what is not given stays as it is; on a new one the default)"))
    add_proof(result.add_argument_group("how it goes"))
    return result


def command_parser(name: str) -> argparse.ArgumentParser:
    """Of a command that is named before its options."""
    if name in storage_options.COMMANDS:
        return storage_options.command_parser(name)
    description = f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}."
    result = argparse.ArgumentParser(prog=f"deploy_qwen.py {name}", description=description)
    adders: dict[str, Callable[[argparse.ArgumentParser], None]] = {
        "rollback": add_rollback, "status": add_target, "logs": add_logs, "send": add_send, "play": add_play,
        "cost": add_cost,
    }  # fmt: skip
    if name in adders:
        adders[name](result)
    else:
        command_options.add_command(name, result)
    return result


def read_options(name: str, arguments: list[str], description: str) -> argparse.Namespace:
    """The options of command `name`, in its own class. Ends the process where they are wrong, or with --help."""
    if name in storage_options.COMMANDS:
        return storage_options.parse(name, arguments)
    kinds: dict[str, type[argparse.Namespace]] = {
        "deploy": DeployOptions, "rollback": RollbackOptions, "status": StatusOptions, "logs": LogsOptions,
        "send": SendOptions, "play": PlayOptions, "cost": CostOptions, **command_options.KINDS,
    }  # fmt: skip
    command = parser(description) if name == "deploy" else command_parser(name)
    return command.parse_args(arguments, kinds[name]())


def add_image(group: Group) -> None:
    group.add_argument(
        "--image", metavar="REGISTRY/NAME:TAG", help="an image that is there, e.g. of a release: nothing is built here"
    )
    group.add_argument("--image-name", default="qwen-image", help="name of the image (default: %(default)s)")
    group.add_argument(
        "--tag", help="tag, and version that the workers report (default: the commit, and what is changed)"
    )
    group.add_argument("--registry", default="", help="where to push, e.g. docker.io/you or ghcr.io/you")
    group.add_argument("--build-only", action="store_true", help="build, then stop; needs no account")
    group.add_argument("--push-only", action="store_true", help="push what was built, then stop; needs no account")
    group.add_argument("--skip-build", action="store_true", help="the image is in the registry: neither build nor push")
    group.add_argument(
        "--builder", choices=("auto", *TOOLS), default="auto", help="build tool (default: the first found)"
    )
    group.add_argument("--dockerfile", default="Dockerfile", help="(default: %(default)s)")
    group.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="passed on; repeatable")
    group.add_argument(
        "--build-secret", action="append", default=[], metavar="id=..", help="as docker's --secret; repeatable"
    )
    group.add_argument("--worker-version", help="version that the image reports, where it is not its tag")


def add_endpoint(group: Group) -> None:
    group.add_argument("--endpoint-id", help="the endpoint to update (default: the one of this --name, else a new one)")
    group.add_argument("--name", help="the endpoint's name (default: the image's)")
    group.add_argument("--gpu", help="pools of cards, e.g. ADA_24,AMPERE_48; auto: by --seconds and --prefer")
    add_fit(group)
    group.add_argument(
        "--gpu-count", type=positive_count, help="cards a worker, 1 or 2; one picture is drawn on both (default: 1)"
    )
    group.add_argument("--min-cuda", help="least CUDA version of a host's driver (default: of the torch in the image)")
    group.add_argument("--no-fit-check", action="store_true", help="take pools that the models do not fit")
    group.add_argument("--workers-min", type=int, help="workers that always run, and are paid for (default: 0)")
    group.add_argument("--workers-max", type=int, help="(default: 3)")
    group.add_argument("--idle-timeout", type=int, help="seconds that an idle worker stays, paid for (default: 10)")
    group.add_argument(
        "--execution-timeout", type=int, help="seconds that a job may run (default: 300, or what the cards need)"
    )
    group.add_argument(
        "--flashboot", type=flashboot, metavar="{" + ",".join(FLASHBOOT) + "}",
        help="RunPod's shorter cold starts (default: on)",
    )  # fmt: skip
    group.add_argument("--disk", type=int, help="container disk in GB (default: 120)")
    group.add_argument(
        "--volume",
        action="append",
        metavar="NAME",
        help="volume to mount, by name or id; repeatable; '' for none",
    )
    group.add_argument("--data-centers", help="comma-separated, '' for any (default: the volume's own, else any)")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="variable of the worker; NAME alone takes this shell's, to keep a secret off the process list; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--unset-env", action="append", default=[], metavar="NAME", help="variable to remove; repeatable"
    )
    group.add_argument(
        "--registry-credential", metavar="NAME", help="of a private registry, as `registry list` has it; '' for none"
    )


def flashboot(word: str) -> str:
    """The API's value for a word of --flashboot, in upper or lower case. Raises `ArgumentTypeError` for another."""
    value = FLASHBOOT.get(word.lower(), word.upper())
    if value not in FLASHBOOT.values():
        raise argparse.ArgumentTypeError(f"must be {', '.join(FLASHBOOT)}, not {word!r}")
    return value


def add_fit(group: Group) -> None:
    tasks = ("generate", "edit", "layers")
    group.add_argument("--models", nargs="+", metavar="ID", help=f"{MODELS_HELP}: Qwen-Image-2512 and Edit-2511")
    group.add_argument("--tasks", nargs="+", choices=tasks, help="what it shall serve (default: all with a model)")
    add_ram(group)

    group.add_argument(
        "--seconds", type=positive_number, metavar="S",
        help="that a picture may take with --gpu auto (default: 30); an edit may take as long as a job may run",
    )  # fmt: skip
    group.add_argument(
        "--prefer", choices=("price", "latency", "hourly"), default="price",
        help="what --gpu auto takes of what is fast enough: least dollars a picture, seconds, or dollars an hour",
    )  # fmt: skip


def add_proof(group: Group) -> None:
    group.add_argument("--dry-run", action="store_true", help="show what would be done; only reads are sent")
    group.add_argument("--yes", action="store_true", help="do not ask")
    group.add_argument(
        "--no-test", action="store_true", help="send no test jobs: then nothing is proved or rolled back"
    )
    add_waits(group, "new workers must serve")
    group.add_argument("--test-steps", type=positive_count, help="steps of the test pictures (default: the endpoint's)")
    group.add_argument(
        "--test-size", type=positive_count, help="side of the test pictures in pixels (default: the worker's)"
    )
    group.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures (default: %(default)s)")
    add_state(group)


def add_rollback(group: argparse.ArgumentParser) -> None:
    add_target(group)
    group.add_argument("--list", action="store_true", help="list the saved configurations")
    group.add_argument("--to", type=Path, metavar="FILE", help="one of them (default: the newest that differs)")
    group.add_argument("--dry-run", action="store_true", help="show what would change; only reads are sent")
    group.add_argument("--yes", action="store_true", help="do not ask")
    add_waits(group, "workers must answer")
    group.add_argument("--no-test", action="store_true", help="do not ask the workers for their health")


def add_waits(group: Group, aim: str) -> None:
    group.add_argument("--wait", type=positive_count, default=1800, help=f"seconds until {aim} (default: %(default)s)")
    group.add_argument(
        "--capacity-wait", type=positive_count, default=300, help="seconds to wait for a card (default: %(default)s)"
    )


def add_logs(group: argparse.ArgumentParser) -> None:
    add_target(group)
    group.add_argument("--worker", help="of one worker (default: all)")
    group.add_argument("--source", choices=("container", "system"), help="the worker's own lines, or the host's")
    group.add_argument("--tail", type=positive_count, default=100, help="lines of each worker (default: %(default)s)")
    group.add_argument("--follow", action="store_true", help="go on with what is written; of one worker")


def add_send(group: argparse.ArgumentParser) -> None:
    add_target(group)
    group.add_argument("prompt", nargs="?", help="without it: the worker's health")
    group.add_argument("--task", choices=("generate", "edit", "background_replacement", "layers", "health", "debug"))
    group.add_argument("--image", action="append", default=[], type=Path, help="picture to edit; repeatable")
    group.add_argument("--mask", type=Path, help="white is repainted")
    group.add_argument(
        "--field", action="append", default=[], metavar="NAME=JSON", help="e.g. num_images=4; repeatable"
    )
    group.add_argument(
        "--timeout", type=positive_count, help="seconds to wait (default: 900 beside what a job may run)"
    )
    group.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures (default: %(default)s)")


def add_play(group: argparse.ArgumentParser) -> None:
    add_target(group)
    group.add_argument("--port", type=int, default=7860, help="of the page (default: %(default)s)")
    group.add_argument(
        "--host", default="127.0.0.1", help="address of the page; one that others reach needs PLAY_PASSWORD"
    )
    group.add_argument(
        "--price", type=positive_number, help="dollars an hour of a worker: results then say what they cost"
    )


def add_cost(group: argparse.ArgumentParser) -> None:
    add_target(group, "none; the jobs measured on it count")
    group.add_argument(
        "--per-day", type=positive_count, metavar="N", help="dollars a day for N pictures, and for N edits"
    )
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="as for deploy, e.g. QWEN_PRECISION"
    )
    group.add_argument("--min-cuda", help="least CUDA version of a host's driver")
    add_fit(group)
