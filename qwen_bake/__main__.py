"""Lay checkpoints into an image: `plan` what goes where, `fetch` one layer after the other, `link` the checkpoints.

Each is a step of the Dockerfile of its own, so that a build that failed goes on with the layer that failed. `fill` does
all of it at once, on a network volume, which has no layers. Knows nothing of what is in the files.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_worker.errors import LoadError

from . import contents, fetch, links, listing, volume
from .contents import GB, Blob, Model

SECRET = Path("/run/secrets/hf_token")  # where the build secret of this name is mounted


class Options(argparse.Namespace):
    """What the command line holds. `step` is the function of the step; which of the others are set depends on it."""

    step: "Callable[[Options], None]"
    contents: Path  # the file that says what goes where
    models: list[str]
    layers: int
    failure: str  # "fail" or "leave-out"
    root: Path
    layer: int
    partial: Path


def plan(options: Options) -> None:
    """Settle the commits, and print what will be in each layer."""
    models: list[Model] = []
    blobs: dict[str, Blob] = {}
    for name in options.models:
        try:
            model, files = listing.look_up(name, token())
        except LoadError as failure:
            give_up_or_leave_out(options.failure == "leave-out", failure.reason)
            continue
        models.append(model)
        blobs |= {blob.digest: blob for blob in files if blob.digest not in blobs}
        print(f"{model.hub_id} at {model.commit}: {total_bytes(files) / GB:.2f} GB in {len(files)} files")
    settled = contents.settle(options.failure == "leave-out", models, blobs, options.layers)
    options.contents.write_text(settled.to_json())
    sizes = [total_bytes([blobs[digest] for digest in layer]) for layer in settled.layers if layer]
    figures = " ".join(f"{size / GB:.2f}" for size in sizes)
    print(f"{sum(sizes) / GB:.2f} GB in all, each file once, in {len(sizes)} layers: {figures}")


def fetch_layer(options: Options) -> None:
    """Fetch the blobs of one layer."""
    settled = contents.from_json(options.contents.read_text())
    if not settled.layers[options.layer]:
        return  # no folder either: the step leaves an empty layer
    folder = links.layer_folder(options.root, options.layer)
    folder.mkdir(parents=True, exist_ok=True)
    options.partial.mkdir(parents=True, exist_ok=True)
    for digest in settled.layers[options.layer]:
        try:
            fetch.fetch(settled.blobs[digest], folder, options.partial, token())
        except LoadError as failure:
            give_up_or_leave_out(settled.optional, failure.reason)


def link_models(options: Options) -> None:
    """Lay out every model whose blobs are there."""
    settled = contents.from_json(options.contents.read_text())
    for model in settled.models:
        if missing := links.missing(settled, model, options.root):
            give_up_or_leave_out(settled.optional, f"{model.hub_id} lacks {', '.join(missing)}")
        else:
            links.link(settled, model, options.root)


def fill_volume(options: Options) -> None:
    """Fill a network volume. The last line begins with `FILL done:` or `FILL failed:`."""
    try:
        volume.say(f"done: {volume.fill(options.models, options.root, token())}")
    except LoadError as failure:
        volume.say(f"failed: {failure.reason}")
        sys.exit(1)


def give_up_or_leave_out(optional: bool, reason: str) -> None:
    """End the build, or go on without the model where it is optional."""
    if not optional:
        sys.exit(f"The weights cannot be laid into the image. {reason}.")
    print(f"WARNING: left out of the image: {reason}.", flush=True)


def total_bytes(blobs: Sequence[Blob]) -> int:
    """The bytes of the distinct ones."""
    return sum({blob.digest: blob.size for blob in blobs}.values())


def token() -> str | None:
    """The hub's token, from the build secret: arguments and variables of a build stay in the image's history."""
    return SECRET.read_text().strip() if SECRET.is_file() else os.environ.get("HF_TOKEN") or None


def parser() -> argparse.ArgumentParser:
    """The defaults are the places in the Dockerfile."""
    command = argparse.ArgumentParser("python -m qwen_bake", description=__doc__)
    steps = command.add_subparsers(required=True)
    for name, function in {"plan": plan, "fetch": fetch_layer, "link": link_models}.items():
        step = steps.add_parser(name)
        step.set_defaults(step=function)
        step.add_argument("--contents", type=Path, default="contents.json", help="of what goes where (%(default)s)")
        if name == "plan":
            step.add_argument("--layers", type=int, required=True, help="how many there are for the weights")
            step.add_argument("--failure", choices=("fail", "leave-out"), default="fail", help="of a download")
            step.add_argument("models", nargs="*", help="hub ids, each perhaps with @revision")
        else:
            step.add_argument("--root", type=Path, default="/opt/qwen-image", help="of the weights (%(default)s)")
        if name == "fetch":
            step.add_argument("layer", type=int, help="its number, from 0")
            step.add_argument("--partial", type=Path, default="/partial", help="what is not whole yet (%(default)s)")
    step = steps.add_parser("fill")
    step.set_defaults(step=fill_volume)
    step.add_argument("--root", type=Path, required=True, help="where the volume is mounted")
    step.add_argument("models", nargs="+", help="hub ids, each perhaps with @revision")
    return command


if __name__ == "__main__":
    chosen = parser().parse_args(namespace=Options())
    try:
        chosen.step(chosen)
    except contents.TooLarge as error:
        sys.exit(str(error))
