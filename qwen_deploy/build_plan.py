"""What a build takes, said before it begins: the image's size, disk, minutes; and what is done with the image or not.

Also where workers will have the weights from. Computes and words only.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from .cards import MODEL_SETTINGS, NO_MODEL
from .configuration import Configuration
from .environment import worker_settings
from .image import Image
from .options import DeployOptions
from .released import DEFAULT_MODELS, RESEARCH_SENTENCE, download_bytes, gigabytes, research_only
from .runpod.schemas import Endpoint
from .screen import Screen

IMAGE_GB = 7  # without weights: 6.6 was measured with PyPI's torch
WORK_GB = 18  # that a build takes beside the image, for its cache and its stages
PACKAGES_GB = 3.5  # compressed: what a build downloads and a push uploads, without weights
LINE_RATE = 12.5e6  # bytes a second of an assumed line of 100 Mbit/s
UNPACK_MINUTES = 5  # for unpacking, byte code and the picture that the build draws
# Where the tools keep images; the first that is there tells how much room there is.
STORES = ("/var/lib/docker", "/var/lib/containers", "~/.local/share/containers", "~/.local/share/docker")


def baked_models(options: DeployOptions) -> list[str]:
    """The models whose weights the build lays into the image."""
    arguments: dict[str, str] = {}
    for argument in options.build_arg:
        name, _, value = argument.partition("=")
        arguments[name] = value
    if arguments.get("BAKE") != "yes":
        return []
    return arguments["BAKE_MODELS"].split() if "BAKE_MODELS" in arguments else list(DEFAULT_MODELS)


def show_build(screen: Screen, options: DeployOptions, image: Image) -> None:
    """Sizes, free disk and minutes of the build and of the push."""
    models = baked_models(options)
    weights = download_bytes(models)
    screen.heading(f"Build {image.reference}")
    if weights is None:
        screen.say(f"The weights of {', '.join(models)} are laid in; their size is not known here.")
        return
    held = (
        f"with the weights of {', '.join(models)}" if models else "without weights (--build-arg BAKE=yes lays them in)"
    )
    size = round(IMAGE_GB + weights / 1e9)
    minutes = (PACKAGES_GB * 1e9 + weights) / LINE_RATE / 60
    place = image_store()
    free = shutil.disk_usage(place).free / 1e9
    screen.say(f"Size:    {size} GB, {held}")
    screen.say(f"Disk:    {size + WORK_GB} GB are needed, {free:.0f} GB are free on the disk of {place}")
    push = f", push {minutes:.0f} min" if image.pullable and not options.build_only else ""
    screen.say(f"Minutes: build {minutes + UNPACK_MINUTES:.0f} min{push}; computed for a line of 100 Mbit/s")
    if free < size + WORK_GB:
        screen.warn("The disk seems too small. Without a build here: --image takes an image of a release.")


def image_store() -> Path:
    places = [Path(name).expanduser() for name in STORES]
    return next((place for place in places if place.is_dir()), Path.cwd())


def show_local_build(screen: Screen, options: DeployOptions, image: Image) -> None:
    """What a build for this machine alone does, and what it does not."""
    show_build(screen, options, image)
    screen.say("This builds the image on this machine. It pushes nothing, deploys nothing and costs nothing at RunPod.")
    if not options.build_only:
        screen.say(
            "To deploy: --registry docker.io/<you> pushes it there first; --image deploys one that is there already."
        )


def weights_notes(options: DeployOptions, target: Configuration, tasks: Sequence[str]) -> list[str]:
    """Where the workers will have the weights from, and what may not be done with them."""
    names = served_models(target["env"], tasks)
    notes = [f"{name} {RESEARCH_SENTENCE}" for name in research_only(names)]
    size = download_bytes(names)
    if target.get("networkVolumes") or baked_models(options) or not size:
        return notes
    each = "the models" if len(names) > 1 else names[0]
    return [
        *notes,
        f"No volume is mounted: unless the image or RunPod's model cache holds {each}, every new worker downloads "
        f"{gigabytes(size)} before its first picture, and is paid for. A volume avoids that: `volume create`.",
    ]


def served_models(env: Mapping[str, str], tasks: Sequence[str]) -> list[str]:
    """The models that these variables give the tasks, each once."""
    settings = worker_settings(env)
    names = [str(getattr(settings, MODEL_SETTINGS[task])) for task in tasks]
    return list(dict.fromkeys(name for name in names if name != NO_MODEL))


def show_cache_hint(screen: Screen, endpoint: Endpoint, env: Mapping[str, str], tasks: Sequence[str]) -> None:
    """How to have RunPod keep a model near the workers of an endpoint without a volume: its REST API v2 cannot."""
    names = [name for name in served_models(env, tasks) if download_bytes([name])]
    if endpoint.get("networkVolumes") or not names:
        return
    screen.say("  cache:   RunPod can keep one model on its hosts: Model in the endpoint's settings in the console, or")
    model = f"https://huggingface.co/{names[0].replace('@', ':') if '@' in names[0] else names[0] + ':main'}"
    screen.say(f"           runpodctl serverless update {endpoint['id']} --model-reference {model}")
