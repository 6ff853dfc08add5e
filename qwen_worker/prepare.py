"""Prepare a checkpoint: write what a plan keeps of it, for starts that read less and compute nothing.

    python -m qwen_worker.prepare Qwen/Qwen-Image Qwen/Qwen-Image-Edit --output /runpod-volume/models

Writes OUTPUT/prepared/NAME.LAYOUT for each model: the modulation as a table in place of its weights, the text encoder
without its language head (and, with --no-vision, without its vision tower), the matrices quantized if --precision says
so. The worker finds it where OUTPUT is one of QWEN_MODEL_ROOTS or the folder that the checkpoint lies in. Run it on a
card like the workers': what a table or a quantization computes, another card may round otherwise. Which layout a worker
wants is in its log and in `health`.
"""

import argparse
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .checkpoints import checkpoint as checkpoints
from .checkpoints.checkpoint import WEIGHTS, Checkpoint
from .checkpoints.files import read_json
from .checkpoints.sharing import SHAREABLE, as_model, digest_of
from .errors import LoadError
from .loading import libraries, prepared
from .memory.footprint import GB, LOSSY, TIMESTEPS, Plan
from .memory.machine import disk_free, read_machine
from .settings import Precision, Saving, read_settings


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    roots = read_settings().QWEN_MODEL_ROOTS
    for model in options.models:
        try:
            found = checkpoints.find(model, roots)
            if found is None:
                raise LoadError("It is not below QWEN_MODEL_ROOTS, nor in the hub's cache: download it first")
            folder = prepare(found, plan_of(found, options), options.output / prepared.FOLDER)
        except (LoadError, OSError, RuntimeError) as failure:
            sys.exit(f"{model} cannot be prepared. {reason_of(failure)}.")
        print(f"{folder}: {size_of(folder) / GB:.2f} GB, from {size_of(found.folder) / GB:.2f} GB", flush=True)


def reason_of(failure: LoadError | OSError | RuntimeError) -> str:
    """In a sentence. Raises the failure again where it is none of the machine's."""
    if isinstance(failure, LoadError):
        return failure.reason
    if isinstance(failure, OSError):
        return failure.strerror or type(failure).__name__
    import torch

    if not isinstance(failure, torch.OutOfMemoryError):
        raise failure
    return "Its transformer, which a card computes on, does not fit in this one's free memory; --device cpu needs none"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "python -m qwen_worker.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    precisions = [one.value for one in (Precision.BF16, *LOSSY)]
    found.add_argument("models", nargs="+", help="as QWEN_IMAGE_MODEL: hub ids that are on this machine, or folders")
    found.add_argument("--output", type=Path, required=True, help="a model root; the files go below its prepared/")
    found.add_argument("--precision", choices=precisions, default="bf16", help="of the plan (default: %(default)s)")
    found.add_argument("--no-table", action="store_true", help="for plans that compute the modulation")
    found.add_argument("--no-vision", action="store_true", help="for workers that edit nothing")
    found.add_argument("--quantize-text-encoder", action="store_true", help="for plans that say so")
    found.add_argument("--device", choices=("cuda", "cpu"), help="where to compute (default: on the card, if any)")
    return found


def plan_of(found: Checkpoint, options: argparse.Namespace) -> Plan:
    """The plan that the files are for, as far as it shows in them."""
    if not found.parts:
        raise LoadError(f"Nothing of a {found.class_name} of this architecture can be prepared")
    text = "quantized" if options.quantize_text_encoder else "resident"
    if options.quantize_text_encoder and Precision(options.precision) not in LOSSY:
        raise LoadError(f"--quantize-text-encoder needs a quantized --precision, not {options.precision}")
    model = replace(as_model(found, []), edits=not options.no_vision)
    device = options.device or ("cuda" if read_machine().gpu else "cpu")
    return Plan(
        device,
        Precision(options.precision),
        (model,),
        frozenset({Saving.TRIM}),
        not options.no_table,
        text_encoder=text,
    )


def prepare(found: Checkpoint, plan: Plan, output: Path) -> Path:
    """Write the prepared checkpoint below `output`, whole or not at all; returns its folder."""
    if output.resolve().is_relative_to(found.folder.resolve()):
        raise LoadError("--output lies in its own folder, and what is written there would change it")
    (model,) = plan.models
    rows = model.parts["modulation_outputs"] * 2 * TIMESTEPS if plan.table else 0
    require_disk(plan.transformer(model) + plan.text(model) + plan.vae(model) + rows, output)
    libraries.import_all()
    layout = prepared.layout_of(plan)
    target = output / f"{found.name.replace('/', '--')}.{name_of(layout)}"
    output.mkdir(parents=True, exist_ok=True)
    with alone(output):
        return replaced(found, plan, target)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within, no other process prepares anything there. Raises `LoadError` where one does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it with the process
    except BlockingIOError:
        os.close(descriptor)
        raise LoadError(f"Another process is preparing a checkpoint in {folder}") from None
    except OSError:
        pass  # a network volume without locks
    try:
        yield
    finally:
        os.close(descriptor)


def replaced(found: Checkpoint, plan: Plan, target: Path) -> Path:
    """Write the prepared checkpoint in the place of what is there."""
    partial, old = target.parent / f".{target.name}.partial", target.parent / f".{target.name}.old"
    for left in (partial, old):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        manifest = write(found, plan, partial)
        (partial / prepared.MANIFEST).write_text(json.dumps(manifest, indent=1))
        if target.exists():
            target.rename(old)  # never half deleted under its name
        partial.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def write(found: Checkpoint, plan: Plan, target: Path) -> dict:
    """Write everything but the manifest, which is returned."""
    digests = {name: digest_of(found.folder / name) for name in SHAREABLE if (found.folder / name).is_dir()}
    source = {key: value for key, value in asdict(replace(found, digests=digests)).items() if key != "folder"}
    sample = prepared.sample_of(found.folder)
    for name in ("model_index.json", *found.pipeline_class.components):
        copy(found.folder / name, target / name)
    copied = replace(plan, device="cpu")  # for what is written as it is read: it may not fit the card
    write_component(found, "vae", copied, target)
    write_transformer(found, plan, target)
    if same := twin(target.parent, digests["text_encoder"], plan):
        copy(same, target / "text_encoder")
    else:
        write_component(found, "text_encoder", plan if plan.text_encoder == "quantized" else copied, target)
    return {
        "format": prepared.FORMAT,
        "source": source,
        "sample": sample,
        "layout": asdict(prepared.layout_of(plan)),
        "made_on": prepared.card(plan.device, read_machine().gpu),
        "versions": prepared.versions(plan.precision),
        "files": prepared.facts_of(target),
    }


def require_disk(needed: int, output: Path) -> None:
    free_bytes = disk_free(output)
    if needed > free_bytes:
        raise LoadError(f"It needs {needed / GB:.1f} GB of disk and {free_bytes / GB:.1f} GB are free")


def write_transformer(found: Checkpoint, plan: Plan, target: Path) -> None:
    from .loading.components import tabulate
    from .memory.cuda import forget
    from .weights import modulation_rows

    model = write_component(found, "transformer", plan, target)
    if table := tabulate(model, found, plan):
        modulation_rows.write(table, target)
    del model, table
    forget(plan.device)


def write_component(found: Checkpoint, name: str, plan: Plan, target: Path) -> Any:
    """Load a component, write what the plan keeps of it, and return it."""
    from .loading.components import load_component, trim
    from .weights import writer as weight_writer

    (target / name).mkdir()
    copy(found.folder / name / "config.json", target / name / "config.json")
    model = load_component(found, name, read_json(found.folder, "model_index.json")[name], plan)
    if name == "text_encoder":
        trim(model, name, plan)
    weight_writer.write_model(model, target / name)
    return model


def twin(output: Path, digest: str, plan: Plan) -> Path | None:
    """The folder of an equal text encoder that was prepared before, to be linked to: the 20B models share theirs."""
    layout = prepared.layout_of(plan)
    wanted = (digest, layout.text_encoder, layout.head, layout.vision, prepared.versions(plan.precision))
    made_on = prepared.card(plan.device, read_machine().gpu)
    for folder in prepared.folders((output.parent,), None):
        try:
            manifest = read_json(folder, prepared.MANIFEST)
            there = prepared.Layout(**manifest["layout"])
            content = manifest["source"]["digests"]["text_encoder"]
            exact = there.text_encoder == Precision.BF16.value or manifest["made_on"] == made_on
            facts = (content, there.text_encoder, there.head, there.vision, manifest["versions"])
            if exact and facts == wanted and manifest["format"] == prepared.FORMAT:
                if prepared.what_lacks(folder, manifest) is None:
                    return folder / "text_encoder"
        except (LoadError, KeyError, TypeError):
            continue  # not ours to mend
    return None


def name_of(layout: prepared.Layout) -> str:
    parts = [layout.precision, "table" * layout.table, "vision" * layout.vision]
    parts.append(f"text-{layout.text_encoder}" if layout.text_encoder != "bf16" else "")
    return "-".join(filter(None, parts))


def copy(entry: Path, target: Path) -> None:
    """A file or folder, by hard links where the disk allows: what is linked to is never changed."""
    if entry.is_dir():
        target.mkdir()
        for one in entry.iterdir():
            copy(one, target / one.name)
        return
    try:
        os.link(entry.resolve(), target)
    except OSError:
        shutil.copyfile(entry, target)


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def size_of(folder: Path) -> int:
    weights = (file for name in WEIGHTS for file in files_of(folder / name))
    return sum(file.stat().st_size for file in (*weights, *folder.glob("*.safetensors")))


if __name__ == "__main__":
    main()
