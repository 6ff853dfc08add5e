"""Prepared checkpoints: what a plan keeps of a checkpoint, written once, so that a start reads and computes less.

Each is a folder below `prepared/` in a model root or beside the checkpoint, complete in itself, with a manifest of what
it was made of, for which layout, on which card and by which versions. Here one is found and judged: used when all of
that is right, else there is a reason. `python -m qwen_worker.prepare` writes them. Reads the small files; the weights'
own checksums are looked at as they are loaded.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import WEIGHTS, Checkpoint
from ..checkpoints.files import explain_read_errors, is_folder, read_json, shards
from ..errors import LoadError
from ..memory.footprint import Plan
from ..memory.machine import Gpu
from ..settings import Precision, Prepared, Saving

FOLDER = "prepared"
MANIFEST = "prepared.json"
FORMAT = 1
# Whose versions decide what is computed, and what tensors are called.
LIBRARIES = ("torch", "diffusers", "transformers")
SAMPLES, SAMPLE = 32, 4096  # of each file of a source's weights: how many, and their bytes
QUANTIZERS = {Precision.FP8: "torchao", Precision.INT8: "torchao", Precision.NF4: "bitsandbytes"}


@dataclass(frozen=True)
class Layout:
    """What of a plan is settled in the files."""

    precision: str  # of the transformer's matrices
    table: bool
    text_encoder: str  # the precision of its matrices
    head: bool  # whether the text encoder has its language head
    vision: bool  # and its vision tower


def layout_of(plan: Plan) -> Layout:
    text = plan.precision if plan.text_encoder == "quantized" else plan.base_precision
    trimmed = Saving.TRIM in plan.savings
    return Layout(plan.precision.value, plan.table, text.value, not trimmed, plan.vision)


def find(
    found: Checkpoint, plan: Plan, roots: Iterable[Path], gpu: Gpu | None, allowed: Prepared
) -> tuple[Path | None, str]:
    """(the folder to load in the checkpoint's place, its name) or (None, why none is used)."""
    if allowed is Prepared.OFF:
        return None, "not looked for: QWEN_PREPARED=off"
    reasons = []
    for folder in folders(roots, found.folder):
        try:
            manifest = read_json(folder, MANIFEST)
            if not is_of(manifest["source"], found):
                continue
            reason = why_not(manifest, found, plan, gpu, allowed) or what_lacks(folder, manifest)
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
    seen = set()
    for place in [*roots, *([source.parent] if source else [])]:
        for manifest in sorted((place / FOLDER).glob(f"*/{MANIFEST}")):
            # One that is being written, or was when its writer was killed, has a name with a dot.
            if manifest.resolve() not in seen and not manifest.parent.name.startswith("."):
                seen.add(manifest.resolve())
                yield manifest.parent


def is_of(source: dict, found: Checkpoint) -> bool:
    """Whether it was made of this model, whatever the revision; folders have no other name than their content's."""
    return source["hub_id"] == found.hub_id and (found.hub_id is not None or source["revision"] == found.revision)


def why_not(manifest: dict, found: Checkpoint, plan: Plan, gpu: Gpu | None, allowed: Prepared) -> str | None:
    """Why it may not be loaded for this plan, None where it may."""
    source, layout, wanted = manifest["source"], Layout(**manifest["layout"]), layout_of(plan)
    if found.revision and not source["revision"].startswith(found.revision):
        return f"it is of revision {source['revision'][:12]}, not {found.revision[:12]}"
    if manifest["format"] != FORMAT:
        return f"its format is {manifest['format']}, not {FORMAT}"
    if found.folder and sample_of(found.folder) != manifest["sample"]:
        return "the weights of its source have changed since"
    have, want = asdict(layout), asdict(wanted)
    # More of the text encoder than is wanted is not read.
    differ = [name for name in want if have[name] != want[name] and not (name in ("head", "vision") and have[name])]
    if differ:
        made, asked = (", ".join(f"{name} {one[name]}" for name in differ) for one in (have, want))
        return f"it was made for {made}, where the plan is for {asked}"
    for name, version in versions(plan.precision).items():
        if manifest["versions"].get(name) != version:
            return f"it was made with {name} {manifest['versions'].get(name)}, where {version} is installed"
    made_on, here = manifest["made_on"], card(plan.device, gpu)
    computed = layout.table or plan.precision in QUANTIZERS
    # A CPU has no products of fp8: what is quantized there is only stored in it.
    other_kind = plan.precision is Precision.FP8 and (made_on["capability"] is None) != (here["capability"] is None)
    if computed and made_on != here and (other_kind or allowed is not Prepared.ANY_CARD):
        return f"it was computed on {made_on['name']}, where {here['name']} may round otherwise"
    return None


def what_lacks(folder: Path, manifest: dict) -> str | None:
    """What of its files is not as it was written, as far as it shows without reading the weights."""
    for name, wanted in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != wanted["size"]:
            return f"{name} is missing or cut short"
        if wanted["sha256"] and digest_of_file(file, name) != wanted["sha256"]:
            return f"{name} is not what was written"
    return None


def facts_of(folder: Path) -> dict[str, dict]:
    """The files of a prepared checkpoint by name, for its manifest. Weights have checksums of their own."""
    facts = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name, weights = str(file.relative_to(folder)), file.suffix == ".safetensors"
        digest = None if weights else digest_of_file(file, name)
        facts[name] = {"size": file.stat().st_size, "sha256": digest}
    return facts


def digest_of_file(file: Path, label: str) -> str:
    with explain_read_errors(label), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sample_of(folder: Path) -> str:
    """A digest of samples all over a checkpoint's weights: weights saved anew in the same folder are others."""
    digest = hashlib.sha256()
    for file in (file for name in WEIGHTS for file in shards(folder, name)):
        with explain_read_errors(f"{file.parent.name}/{file.name}"), file.open("rb", buffering=0) as stream:
            size = stream.seek(0, 2)
            for number in range(SAMPLES):
                stream.seek(size * number // SAMPLES)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def card(device: str, gpu: Gpu | None) -> dict[str, Any]:
    """What decides how sums are rounded, as the manifest has it."""
    if device == "cpu" or gpu is None:
        return {"name": "a CPU", "capability": None}
    return {"name": gpu.name, "capability": list(gpu.capability)}


def versions(precision: Precision) -> dict[str, str]:
    names = [*LIBRARIES, *([QUANTIZERS[precision]] if precision in QUANTIZERS else [])]
    return {name: metadata.version(name) for name in names}


def describe(model: str, roots: Iterable[Path]) -> Checkpoint | None:
    """A hub's checkpoint of which only a prepared form is on this machine, or None."""
    hub_id, _, revision = model.partition("@")
    if is_folder(model):
        return None
    for folder in folders(roots, None):
        try:
            source = read_json(folder, MANIFEST)["source"]
            if source["hub_id"] == hub_id and source["revision"].startswith(revision):
                return Checkpoint(**source)
        except (LoadError, KeyError, TypeError):
            continue
    return None
