"""Build the Dockerfile with buildah on a Debian of our own, and have the image's worker draw and edit a picture.

The tiny checkpoint stands in for the weights: a hub on loopback serves it under the names of the 20B models, as gated
ones, so that the build needs its secret. Needs root, buildah and debootstrap, Debian's and Python's packages, and no
container registry. Prints the layers; fails where one is too large or holds what it should not.
"""

import argparse
import base64
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qwen_bake.contents import GB, LAYER_BYTES
from qwen_deploy import image as deploy_image
from qwen_deploy.options import parser as deploy_parser

from ..conftest import ROOT, picture_of, serve
from ..support.control_plane import ControlPlane, addresses
from ..support.local_hub import LocalHub
from . import pip_settings
from .layers import Image
from .store import Store, make_base
from .worker import started, user_of

BASE, NAME, TAG = "localhost/image-test-base:bookworm", "image-test", "t1"
TOKEN = "hf_image-test-secret-token"
TINY = ROOT / "models/tiny-qwen-image"
FREE_GB = {"overlay": 40, "vfs": 120}  # disk that a run may need for a while
SMALL = {"width": 256, "height": 256, "num_inference_steps": 4, "seed": 7}
BUILD_TOOLS = ("usr/bin/g++", "usr/bin/make", "usr/bin/git")  # Triton needs gcc when blocks are compiled


def main(options) -> None:
    require_tools()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="image-test-"))
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder)
    try:
        require_disk(folder, FREE_GB[store.driver])
        print(f"Layers by {store.driver} in {folder}.")
        if not store.has(BASE):
            timed("base image", lambda: make_base(store, BASE, folder / "base", options.mirror))
        hub = LocalHub({"Qwen/Qwen-Image": TINY / "generate", "Qwen/Qwen-Image-Edit": TINY / "edit"},
                       gated=["Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit"], token=TOKEN)  # fmt: skip
        reference = timed("build", lambda: build(store, folder, hub, options.torch_index))
        pushed = folder / "pushed"
        shutil.rmtree(pushed, ignore_errors=True)
        timed("push", lambda: store.run("push", "--disable-compression", reference, f"dir:{pushed}"))
        image = Image(pushed)
        timed("layers", lambda: judge(image))
        shutil.rmtree(pushed)
        timed("jobs", lambda: serve_jobs(store, reference, image, hub))
    finally:
        store.close(keep=options.folder is not None)
    print("The image is built and serves.")


def require_tools() -> None:
    missing = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    if missing:
        sys.exit(f"{' and '.join(missing)} is needed: apt-get install -y {' '.join(missing)}")
    if os.getuid():
        sys.exit("root is needed, for debootstrap and for mounts in the build")


def require_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free / GB
    if free < needed:
        sys.exit(f"{needed} GB of disk are needed in {folder}, and {free:.0f} GB are free; --folder names another")


def timed(what: str, step):
    print(f"== {what}", flush=True)
    begun = time.monotonic()
    result = step()
    print(f"== {what}: {time.monotonic() - begun:.0f} s", flush=True)
    return result


def build(store: Store, folder: Path, hub: LocalHub, torch_index: str) -> str:
    """By the command of `deploy_qwen.py`, with what this machine needs beside it."""
    secret = folder / "token"
    secret.write_text(TOKEN)
    server = serve(hub)
    arguments = [
        "BAKE=yes",
        f"BASE_IMAGE={BASE}",
        f"TORCH_INDEX={torch_index}",
        f"HF_ENDPOINT=http://127.0.0.1:{server.server_port}",
    ]
    asked = ["--image-name", NAME, "--registry", "localhost", "--build-secret", f"id=hf_token,src={secret}"]
    options = deploy_parser("").parse_args(asked + [part for one in arguments for part in ("--build-arg", one)])
    one = deploy_image.parse_image(NAME, TAG, "localhost")
    command = deploy_image.build_command("buildah", one, options)
    mounts = [part for volume in pip_settings.volumes(folder) for part in ("--volume", volume)]
    try:
        subprocess.run([*command[:-1], *mounts, command[-1]], cwd=ROOT, env=store.env, check=True)
    finally:
        server.shutdown()
        server.server_close()
    if hub.tokens_elsewhere:
        sys.exit("The token went to another host than the hub.")
    return one.reference


def judge(image: Image) -> None:
    for layer in image.layers:
        print(f"{layer.size / 1e6:9.1f} MB  {layer.step[:90]}")
    print(f"{sum(layer.size for layer in image.layers) / 1e6:9.1f} MB in {len(image.layers)} layers, uncompressed")
    if found := [*faults_of_layers(image), *faults_of_files(image)]:
        sys.exit("\n".join(found))


def faults_of_layers(image: Image) -> Iterator[str]:
    for layer in image.layers:
        if layer.size > LAYER_BYTES:
            yield f"{layer.step} has {layer.size / GB:.1f} GB"
    for place in image.holding(TOKEN):
        yield f"the token is in {place}"


def faults_of_files(image: Image) -> Iterator[str]:
    files = {name: one.size for layer in image.layers for name, one in layer.files.items() if one.isfile()}
    for name, size in files.items():
        # Mount points stay as empty files and folders; what was mounted must not.
        if name in BUILD_TOOLS or (size and name.startswith(("run/", "partial/", "bake/", "tmp/"))):
            yield f"{name} is in the image"
    stored = sum(size for name, size in files.items() if name.startswith("opt/qwen-image/weights/"))
    distinct = {
        file.read_bytes() for part in ("generate", "edit") for file in (TINY / part).rglob("*") if file.is_file()
    }
    if stored != sum(map(len, distinct)):
        yield f"the weights take {stored} bytes, and their distinct files {sum(map(len, distinct))}"
    for module in (ROOT / "qwen_worker").glob("*.py"):
        if not any(name.startswith(f"app/qwen_worker/__pycache__/{module.stem}.") for name in files):
            yield f"{module.name} is not there as byte code"


def serve_jobs(store: Store, reference: str, image: Image, hub: LocalHub) -> None:
    """Falling back forbidden, no hub to be reached: the picture and the edit are drawn with what is in the image."""
    who = user_of(store, reference)
    print(f"runs as {who}")
    if who["uid"] == 0 or who["writes_app"] or who["left"]:
        sys.exit("The worker must not be root, write its code, or find files in /tmp.")
    plane = ControlPlane()
    server = serve(plane)
    env = {
        **addresses(f"http://127.0.0.1:{server.server_port}"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "QWEN_FALLBACK": "forbid",
    }
    picture = (ROOT / "examples/red-circle.png").read_bytes()
    plane.put("one", {"prompt": "a large red circle in the center, on a blue background", **SMALL})
    plane.put(
        "two", {"task": "edit", "prompt": "make the circle green", "image": base64.b64encode(picture).decode(), **SMALL}
    )
    command = [*(image.config["config"].get("Entrypoint") or []), *image.config["config"]["Cmd"]]
    with started(store, reference, command, env):
        replies = [plane.result(job) for job in ("one", "two")]
    server.shutdown()
    for reply, model in zip(replies, ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit"), strict=True):
        if "error" in reply:
            sys.exit(reply["error"])
        facts = reply["output"]["metadata"]
        found = {name: facts[name] for name in ("backend", "model", "revision", "worker_version")}
        wanted = {"backend": "qwen-image", "model": model, "revision": hub.commit(model), "worker_version": TAG}
        if found != wanted or picture_of(reply["output"]["image"]).size != (256, 256):
            sys.exit(f"The reply must be of {wanted}, not {found}")
        print(f"{facts['model']} drew {facts['dimensions']} in {facts['processing_time']} s")


if __name__ == "__main__":
    found = argparse.ArgumentParser("python -m tests.image", description=__doc__)
    found.add_argument(
        "--folder", type=Path, help="where to build, kept with its layers for the next time (default: one that goes)"
    )
    found.add_argument("--mirror", default="http://deb.debian.org/debian", help="of Debian (default: %(default)s)")
    found.add_argument(
        "--torch-index", default="https://pypi.org/simple", help="where torch comes from (default: %(default)s)"
    )
    main(found.parse_args())
