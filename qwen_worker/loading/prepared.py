"""Prepared checkpoints: what a plan keeps of a checkpoint, written once, so that a start reads and computes less.

Each is a folder below `prepared/` in a model root or beside the checkpoint, complete in itself, with a manifest of what
it was made of, for which layout, on which card and by which versions. This module finds one and compares its manifest
with what is wanted: it is used when all of that matches, else there is a reason. `python -m qwen_worker.prepare` writes
prepared checkpoints. Reads the small files only: the weights' own checksums are compared as they are loaded. Knows
nothing of how a checkpoint is loaded.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TypedDict, cast

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.classes import WEIGHTS
from ..checkpoints.files import Json, explain_read_errors, is_folder, read_json, shards
from ..errors import LoadError
from ..memory.footprint import Plan
from ..memory.machine import Gpu
from ..model_settings import Precision, Prepared, Saving
from ..network.hub import is_same_repository

FOLDER = "prepared"
MANIFEST = "prepared.json"
FORMAT = 1
# The libraries whose versions decide what is computed, and what tensors are called.
LIBRARIES = ("torch", "diffusers", "transformers")
SAMPLES, SAMPLE_BYTES = 32, 4096  # of each file of a source's weights: how many samples, and the size of each
QUANTIZERS = {Precision.FP8: "torchao", Precision.INT8: "torchao", Precision.NF4: "bitsandbytes"}


@dataclass(frozen=True)
class Layout:
    """What of a plan is settled in the files."""

    precision: str  # of the transformer's matrices
    table: bool
    text_encoder: str  # the precision of its matrices
    head: bool  # whether the text encoder has its language head
    vision: bool  # and its vision tower


class FileFacts(TypedDict):
    """A file of a prepared checkpoint. `sha256`: None for weights, which have checksums of their own."""

    size: int  # bytes
    sha256: str | None


class Device(TypedDict):
    """What decides how sums are rounded. `capability`: None for a CPU."""

    name: str
    capability: list[int] | None


class Manifest(TypedDict):
    """A prepared checkpoint's manifest. One that is read may hold anything else."""

    format: int
    source: Json  # the fields of its `Checkpoint`, without the folder
    sample: str  # of the source's weights
    layout: Json  # the fields of its `Layout`
    made_on: Device
    versions: dict[str, str]
    files: dict[str, FileFacts]


def layout_of(plan: Plan) -> Layout:
    text_encoder = plan.precision if plan.text_encoder == "quantized" else plan.base_precision
    trimmed = Saving.TRIM in plan.savings
    return Layout(plan.precision.value, plan.table, text_encoder.value, not trimmed, plan.vision)


def find(
    checkpoint: Checkpoint, plan: Plan, roots: Iterable[Path], gpu: Gpu | None, allowed: Prepared
) -> tuple[Path | None, str]:
    """(the folder to load in the checkpoint's place, its name) or (None, why none is used)."""
    if allowed is Prepared.OFF:
        return None, "not looked for: QWEN_PREPARED=off"
    reasons: list[str] = []
    for folder in folders(roots, checkpoint.folder):
        try:
            manifest = read_manifest(folder)
            if not is_prepared_from(manifest["source"], checkpoint):
                continue
            reason = mismatch(manifest, checkpoint, plan, gpu, allowed) or damage(folder, manifest)
        except LoadError as error:
            reason = error.reason
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"its {MANIFEST} cannot be read ({type(error).__name__})"
        if reason is None:
            return folder, folder.name
        reasons.append(f"{folder.name} is not used: {reason}")
    return None, "; ".join(reasons) or "none"


def folders(roots: Iterable[Path], source: Path | None) -> Iterator[Path]:
    """Every prepared checkpoint below the roots and beside the source."""
    manifests: set[Path] = set()
    for place in [*roots, *([source.parent] if source else [])]:
        for manifest in sorted((place / FOLDER).glob(f"*/{MANIFEST}")):
            # A folder that is being written, or was when its writer was killed, has a name with a dot.
            if manifest.resolve() not in manifests and not manifest.parent.name.startswith("."):
                manifests.add(manifest.resolve())
                yield manifest.parent


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared checkpoint. Raises `LoadError` where there is no JSON object.

    Whoever reads its fields expects `KeyError`, `TypeError`, `ValueError` and `AttributeError` of a damaged one.
    """
    return cast(Manifest, read_json(folder, MANIFEST))  # not checked: see above


def is_prepared_from(source: Json, checkpoint: Checkpoint) -> bool:
    """Whether a manifest's source is this model, in any revision. A plain folder is known by its revision alone."""
    if checkpoint.hub_id is None or source["hub_id"] is None:
        return source["hub_id"] == checkpoint.hub_id and source["revision"] == checkpoint.revision
    return is_same_repository(source["hub_id"], checkpoint.hub_id)


def mismatch(manifest: Manifest, checkpoint: Checkpoint, plan: Plan, gpu: Gpu | None, allowed: Prepared) -> str | None:
    """Why a prepared checkpoint may not be loaded for this plan, None where it may."""
    source, layout = manifest["source"], Layout(**manifest["layout"])
    if checkpoint.revision and not source["revision"].startswith(checkpoint.revision):
        return f"it is of revision {source['revision'][:12]}, not {checkpoint.revision[:12]}"
    if manifest["format"] != FORMAT:
        return f"its format is {manifest['format']}, not {FORMAT}"
    if checkpoint.folder and weights_sample(checkpoint.folder) != manifest["sample"]:
        return "the weights of its source have changed since"
    made, wanted = asdict(layout), asdict(layout_of(plan))
    # Parts of the text encoder that the plan does not want are not read.
    differing = [
        name for name in wanted if made[name] != wanted[name] and not (name in ("head", "vision") and made[name])
    ]
    if differing:
        made_for, plan_is_for = (", ".join(f"{name} {each[name]}" for name in differing) for each in (made, wanted))
        return f"it was made for {made_for}, where the plan is for {plan_is_for}"
    for name, version in versions(plan.precision).items():
        if manifest["versions"].get(name) != version:
            return f"it was made with {name} {manifest['versions'].get(name)}, where {version} is installed"
    made_on, device = manifest["made_on"], device_of(plan.device, gpu)
    computed = layout.table or plan.precision in QUANTIZERS
    # A CPU has no products of fp8: matrices quantized there are only stored in it.
    other_kind = plan.precision is Precision.FP8 and (made_on["capability"] is None) != (device["capability"] is None)
    if computed and made_on != device and (other_kind or allowed is not Prepared.ANY_CARD):
        return f"it was computed on {made_on['name']}, where {device['name']} may round otherwise"
    return None


def damage(folder: Path, manifest: Manifest) -> str | None:
    """Which file is not as it was written, as far as it shows without reading the weights; None where all are."""
    for name, facts in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != facts["size"]:
            return f"{name} is missing or cut short"
        if facts["sha256"] and file_digest(file, name) != facts["sha256"]:
            return f"{name} is not what was written"
    return None


def file_facts(folder: Path) -> dict[str, FileFacts]:
    """The files of a prepared checkpoint by name, for its manifest."""
    facts: dict[str, FileFacts] = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name, weights = str(file.relative_to(folder)), file.suffix == ".safetensors"
        digest = None if weights else file_digest(file, name)
        facts[name] = {"size": file.stat().st_size, "sha256": digest}
    return facts


def file_digest(file: Path, label: str) -> str:
    """SHA-256 in hexadecimal. `label`: the file's name in errors. Raises `LoadError`."""
    with explain_read_errors(label), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sample(folder: Path) -> str:
    """A digest of samples all over a checkpoint's weights: it differs for weights saved anew in the same folder."""
    digest = hashlib.sha256()
    for file in (file for name in WEIGHTS for file in shards(folder, name)):
        with explain_read_errors(f"{file.parent.name}/{file.name}"), file.open("rb", buffering=0) as stream:
            size = stream.seek(0, 2)
            for number in range(SAMPLES):
                stream.seek(size * number // SAMPLES)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def device_of(device: str, gpu: Gpu | None) -> Device:
    """The plan's device as manifests have it. `device`: "cuda" or "cpu"."""
    if device == "cpu" or gpu is None:
        return {"name": "a CPU", "capability": None}
    return {"name": gpu.name, "capability": list(gpu.capability)}


def versions(precision: Precision) -> dict[str, str]:
    """The installed versions of the libraries that compute what a precision stores."""
    names = [*LIBRARIES, *([QUANTIZERS[precision]] if precision in QUANTIZERS else [])]
    return {name: metadata.version(name) for name in names}


def find_source(model: str, roots: Iterable[Path]) -> Checkpoint | None:
    """A hub's checkpoint, without a folder, of which only a prepared form is on this machine; None without one."""
    hub_id, _, revision = model.partition("@")
    if is_folder(model):
        return None
    for folder in folders(roots, None):
        try:
            source = read_manifest(folder)["source"]
            if is_same_repository(source["hub_id"] or "", hub_id) and source["revision"].startswith(revision):
                return Checkpoint(**source)
        except (LoadError, KeyError, TypeError, AttributeError):
            continue
    return None
