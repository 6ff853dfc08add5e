"""The Pod that fills a network volume: what it runs, where it can run and for how much, and what its log says.

Its code travels in its environment, so that a public Python image does. Sends nothing.
"""

import base64
import io
import re
import shlex
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_bake.volume import MARK

from .cards import known_price
from .errors import DeployError
from .runpod.schemas import Availability, CpuType, GpuType, JsonObject, Volume
from .session import ROOT

MOUNT = "/runpod-volume"  # where serverless workers have it too
DISK_GB = 10  # the hub's client; the weights go to the volume
VCPUS = 2
# Enough of each for one that is taken while it is asked for.
MOST_CPUS, MOST_CARDS = 3, 2
CODE = ("qwen_bake/*.py", "qwen_worker/errors.py", "qwen_worker/network/hub.py")
# What the container runs: it unpacks the code beside itself and goes on with that. Without single quotes, so that
# those of the shell's form are the only ones.
START = (
    "import base64,io,os,sys,tempfile,zipfile;"
    "home=tempfile.mkdtemp();"
    'zipfile.ZipFile(io.BytesIO(base64.b64decode(os.environ["QWEN_FILL_CODE"]))).extractall(home);'
    "os.chdir(home);"
    'os.execv(sys.executable,[sys.executable,"-m","qwen_bake.pod"])'
)


@dataclass(frozen=True)
class Place:
    """Hardware that the Pod could have. `price` is dollars an hour; `compute` the API's field."""

    label: str
    price: float
    compute: JsonObject


def places(cpus: Sequence[CpuType], cards: Sequence[GpuType], data_center: str) -> list[Place]:
    """Where the Pod could run in that data centre now: the cheapest CPUs, then the cheapest cards.

    Raises `DeployError` where there is nothing.
    """
    on_cpus: list[Place] = []
    for cpu in cpus:
        count = max(VCPUS, cpu["vcpu"]["min"])
        price = known_price(cpu["price"].get("securePerVcpu")) * count
        if price > 0 and is_stocked(cpu.get("dataCenters", []), data_center):
            compute: JsonObject = {"cpu": {"id": cpu["id"], "vcpuCount": count}}
            on_cpus.append(Place(f"{count} vCPUs of {cpu['id']}", price, compute))
    on_cards = [
        Place(card["name"], price, {"gpu": {"id": card["id"], "count": 1}})
        for card in cards
        if (price := known_price(card["price"].get("secure"))) > 0
        and is_stocked(card.get("dataCenters", []), data_center)
    ]
    found = sort_by_price(on_cpus)[:MOST_CPUS] + sort_by_price(on_cards)[:MOST_CARDS]
    if not found:
        raise DeployError(f"No Pod could run in {data_center} now: RunPod has neither CPUs nor cards there. Try later.")
    return found


def sort_by_price(found: Sequence[Place]) -> list[Place]:
    return sorted(found, key=lambda place: place.price)


def is_stocked(levels: Sequence[Availability], data_center: str) -> bool:
    return any(place["id"] == data_center and place["availability"] != "NONE" for place in levels)


def pod_name(volume: Volume) -> str:
    """By which a later run finds the Pod of one that was killed."""
    return f"qwen-fill-{volume['id']}"


def pod_body(
    volume: Volume, models: Sequence[str], image: str, place: Place, env: dict[str, str], api_base: str
) -> JsonObject:
    """The request that makes the Pod. `env`: variables beside those that say what to do, such as HF_TOKEN."""
    own = {
        "QWEN_FILL_CODE": packed_code(ROOT),
        "QWEN_FILL_MODELS": " ".join(models),
        "QWEN_FILL_ROOT": MOUNT,
        "QWEN_FILL_PINS": hub_pin(ROOT),
        "QWEN_FILL_API": api_base,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return {
        "name": pod_name(volume),
        "image": image,
        "args": shlex.join(["python", "-c", START]),
        "disk": DISK_GB,
        "env": {**env, **own},
        "dataCenterIds": [volume["dataCenter"]],
        "mounts": {"network": [{"volumeId": volume["id"], "path": MOUNT}]},
        **place.compute,
    }


def packed_code(root: Path) -> str:
    """The modules that the Pod runs, as a zip in base64: some 20 kB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for pattern in CODE:
            for file in sorted(root.glob(pattern)):
                archive.write(file, file.relative_to(root))
    return base64.b64encode(buffer.getvalue()).decode()


def hub_pin(root: Path) -> str:
    lines = (root / "requirements.txt").read_text().splitlines()
    return next(line.split()[0] for line in lines if line.startswith("huggingface_hub=="))


def python_image(root: Path) -> str:
    """The base image of the Dockerfile, by its tag."""
    found = re.search(r"^ARG BASE_IMAGE=([^@\s]+)", (root / "Dockerfile").read_text(), re.M)
    if found is None:
        raise DeployError("The Dockerfile names no BASE_IMAGE: name an image with Python by --image.")
    return found.group(1)


@dataclass(frozen=True)
class Report:
    """What the Pod's log says: bytes done and in all, and the sentence of the end, once there is one."""

    done: int = 0
    total: int = 0
    success: str | None = None
    failure: str | None = None


def read_report(lines: Sequence[str]) -> Report:
    """By the last of the lines that begin with the mark."""
    for line in reversed(lines):
        if found := re.match(rf"{MARK} (done|failed): (.*)", line):
            return Report(success=found[2]) if found[1] == "done" else Report(failure=found[2])
        if found := re.match(rf"{MARK} (\d+) of (\d+) bytes", line):
            return Report(int(found[1]), int(found[2]))
    return Report()
