"""Lay checkpoints into an image: `plan` what goes where, `fetch` one layer after the other, `link` the checkpoints.

Each is a step of the Dockerfile of its own, so that a build that failed goes on with the layer that failed.
"""

import argparse
import os
import sys
from pathlib import Path

from qwen_worker.errors import LoadError

from . import contents, fetch, links, listing
from .contents import GB, Blob

SECRET = Path("/run/secrets/hf_token")  # where the build secret of this name is mounted


def plan(options) -> None:
    """Settle the commits, and print what will be in each layer."""
    models, blobs = [], {}
    for asked in options.models:
        try:
            model, found = listing.look_up(asked, token())
        except LoadError as failure:
            give_up_or_leave_out(options.failure == "leave-out", failure.reason)
            continue
        models.append(model)
        blobs |= {blob.digest: blob for blob in found if blob.digest not in blobs}
        print(f"{model.hub_id} at {model.commit}: {total(found) / GB:.2f} GB in {len(found)} files")
    settled = contents.settle(options.failure == "leave-out", models, blobs, options.layers)
    options.contents.write_text(settled.to_json())
    sizes = [total([blobs[one] for one in layer]) for layer in settled.layers if layer]
    print(f"{sum(sizes) / GB:.2f} GB in all, each file once, in {len(sizes)} layers: {gigabytes(sizes)}")


def fetch_layer(options) -> None:
    held = contents.from_json(options.contents.read_text())
    if not held.layers[options.layer]:
        return  # no folder either: the step leaves an empty layer
    folder = links.layer_folder(options.root, options.layer)
    folder.mkdir(parents=True, exist_ok=True)
    options.partial.mkdir(parents=True, exist_ok=True)
    for digest in held.layers[options.layer]:
        try:
            fetch.fetch(held.blobs[digest], folder, options.partial, token())
        except LoadError as failure:
            give_up_or_leave_out(held.optional, failure.reason)


def link_models(options) -> None:
    held = contents.from_json(options.contents.read_text())
    for model in held.models:
        if lacking := links.missing(held, model, options.root):
            give_up_or_leave_out(held.optional, f"{model.hub_id} lacks {', '.join(lacking)}")
        else:
            links.link(held, model, options.root)


def give_up_or_leave_out(optional: bool, reason: str) -> None:
    if not optional:
        sys.exit(f"The weights cannot be laid into the image. {reason}.")
    print(f"WARNING: left out of the image: {reason}.", flush=True)


def total(blobs: list[Blob]) -> int:
    return sum({blob.digest: blob.size for blob in blobs}.values())


def gigabytes(sizes: list[int]) -> str:
    return " ".join(f"{size / GB:.2f}" for size in sizes)


def token() -> str | None:
    """From the build secret: an argument or a variable of the build would stay in the image's history."""
    return SECRET.read_text().strip() if SECRET.is_file() else os.environ.get("HF_TOKEN") or None


def parser() -> argparse.ArgumentParser:
    """The defaults are the places in the Dockerfile."""
    found = argparse.ArgumentParser("python -m qwen_bake", description=__doc__)
    steps = found.add_subparsers(required=True)
    for name, story in {"plan": plan, "fetch": fetch_layer, "link": link_models}.items():
        step = steps.add_parser(name)
        step.set_defaults(story=story)
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
    return found


if __name__ == "__main__":
    chosen = parser().parse_args()
    try:
        chosen.story(chosen)
    except contents.TooLarge as error:
        sys.exit(str(error))
