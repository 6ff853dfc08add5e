"""The command line of `volume`, `registry` and `models`. Decides nothing."""

import argparse

from .command_options import MODELS_HELP, StateOptions, add_ram, add_state, positive_count

COMMANDS = {
    "volume": "create, fill, list or delete a network volume that holds the weights",
    "registry": "add or list credentials of private image registries, kept by RunPod",
    "models": "the released checkpoints: size, licence, and the cards that each fits on",
}


class VolumeListOptions(StateOptions):
    action: str


class VolumeOptions(VolumeListOptions):
    volume: str  # its name or id
    yes: bool


class CreateVolumeOptions(VolumeOptions):
    size: int | None  # GB
    data_center: str | None
    models: list[str] | None


class FillOptions(VolumeOptions):
    models: list[str] | None
    env: list[str]  # NAME=VALUE or NAME
    image: str | None
    wait: int  # seconds


class RegistryListOptions(StateOptions):
    action: str


class AddRegistryOptions(RegistryListOptions):
    registry_name: str
    username: str


class ModelsOptions(StateOptions):
    ram_gb: float


# By command and, where it has some, by action.
KINDS: dict[str, type[StateOptions]] = {
    "volume list": VolumeListOptions, "volume create": CreateVolumeOptions, "volume fill": FillOptions,
    "volume delete": VolumeOptions, "registry list": RegistryListOptions, "registry add": AddRegistryOptions,
    "models": ModelsOptions,
}  # fmt: skip
PURPOSES = {
    "volume list": "The volumes, what each costs a month, and what mounts it.",
    "volume create": "Make a volume in the data centre that has the most cards for the models; or make one larger.",
    "volume fill": "Download models to a volume by a Pod, which is deleted at the end. Goes on where a run ended.",
    "volume delete": "Delete a volume and all that it holds, for good.",
    "registry list": "The credentials that RunPod keeps, by name and id.",
    "registry add": "Give RunPod a user and a token for a private registry. REGISTRY_PASSWORD holds the token.",
}


def actions(command: str) -> list[str]:
    """The actions of a command, none for a command without."""
    return [name.split()[1] for name in KINDS if name.startswith(f"{command} ")]


def command_parser(command: str) -> argparse.ArgumentParser:
    """Of a command of `COMMANDS`; its options hold `action`, where it has actions."""
    description = f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}."
    parser = argparse.ArgumentParser(prog=f"deploy_qwen.py {command}", description=description)
    if not actions(command):
        add_options(command, parser)
        return parser
    steps = parser.add_subparsers(dest="action", required=True, metavar="|".join(actions(command)))
    for action in actions(command):
        purpose = PURPOSES[f"{command} {action}"]
        add_options(f"{command} {action}", steps.add_parser(action, help=purpose, description=purpose))
    return parser


def parse(command: str, arguments: list[str]) -> argparse.Namespace:
    """The options of a command, in its action's own class. Ends the process where they are wrong, or with --help."""
    names = [f"{command} {word}" for word in arguments if word in actions(command)] or [f"{command} list", command]
    kind = next(KINDS[name] for name in names if name in KINDS)
    return command_parser(command).parse_args(arguments, kind())


def add_options(name: str, parser: argparse.ArgumentParser) -> None:
    add_state(parser)
    if name in ("volume create", "volume fill", "volume delete"):
        parser.add_argument("volume", metavar="NAME", help="the volume by its name" + " or id" * ("create" not in name))
        parser.add_argument("--yes", action="store_true", help="do not ask")
    if name in ("volume create", "volume fill"):
        parser.add_argument(
            "--models",
            nargs="+",
            metavar="ID",
            help=f"{MODELS_HELP} (default: the two 20B models)",
        )
    if name == "volume create":
        parser.add_argument("--size", type=int, metavar="GB", help="(default: the models and a tenth)")
        parser.add_argument("--data-center", metavar="ID", help="(default: the one with the most cards for the models)")
    if name == "volume fill":
        parser.add_argument(
            "--env", action="append", default=[], metavar="NAME[=VALUE]", help="for the Pod, e.g. HF_TOKEN; repeatable"
        )
        parser.add_argument("--image", help="an image with Python for the Pod (default: the Dockerfile's base)")
        parser.add_argument(
            "--wait",
            type=positive_count,
            default=900,
            help="seconds without any progress until it gives up (default: %(default)s)",
        )
    if name == "registry add":
        parser.add_argument("registry_name", metavar="NAME", help="what RunPod shall call it")
        parser.add_argument("--username", required=True, help="of the registry")
    if name == "models":
        add_ram(parser)
