"""Prepare a checkpoint: write what a plan keeps of it, for starts that read less and compute nothing.

    python -m qwen_worker.prepare Qwen/Qwen-Image Qwen/Qwen-Image-Edit --output /runpod-volume/models

Writes OUTPUT/prepared/NAME.LAYOUT for each model: the modulation as a table in place of its weights, the text encoder
without its language head unless it writes captions for layers (and, with --no-vision, without its vision tower), the
matrices quantized if --precision says so. The worker finds it where OUTPUT is one of QWEN_MODEL_ROOTS or the folder
that the checkpoint lies in. Run it on a card like the workers': another card may round otherwise what a table or a
quantization computes. Which layout a worker wants is in its log and in `health`.
"""

import argparse
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .checkpoints import search
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.classes import WEIGHTS
from .checkpoints.files import read_json
from .checkpoints.sharing import SHAREABLE, as_model, component_digest
from .errors import LoadError, hide_secrets
from .loading import libraries, prepared
from .memory.footprint import GB, LOSSY, TIMESTEPS, Plan
from .memory.machine import free_disk_bytes, read_machine
from .model_settings import Precision, Saving
from .settings import read_settings


class Options(argparse.Namespace):
    """What the command line holds."""

    models: list[str]
    output: Path
    precision: str
    no_table: bool
    no_vision: bool
    language_head: bool
    quantize_text_encoder: bool
    device: str | None


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments, Options())
    roots = read_settings().QWEN_MODEL_ROOTS
    for model in options.models:
        try:
            checkpoint = search.find(model, roots)
            if checkpoint is None:
                raise LoadError("It is not below QWEN_MODEL_ROOTS, nor in the hub's cache: download it first")
            folder = prepare(checkpoint, plan_of(checkpoint, options), options.output / prepared.FOLDER)
        except (LoadError, OSError, RuntimeError) as failure:
            sys.exit(f"{hide_secrets(model)} cannot be prepared. {reason_of(failure)}.")
        source_bytes = weight_bytes(checkpoint.local_folder)
        print(f"{folder}: {weight_bytes(folder) / GB:.2f} GB, from {source_bytes / GB:.2f} GB", flush=True)


def reason_of(failure: LoadError | OSError | RuntimeError) -> str:
    """The failure in a sentence. Raises it again where it comes from a fault of the program."""
    if isinstance(failure, LoadError):
        return failure.reason
    if isinstance(failure, OSError):
        return failure.strerror or type(failure).__name__
    import torch

    if not isinstance(failure, torch.OutOfMemoryError):
        raise failure
    return "Its transformer, which a card computes on, does not fit in this one's free memory; --device cpu needs none"


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        "python -m qwen_worker.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    precisions = [precision.value for precision in (Precision.BF16, *LOSSY)]
    command.add_argument("models", nargs="+", help="as QWEN_IMAGE_MODEL: hub ids that are on this machine, or folders")
    command.add_argument("--output", type=Path, required=True, help="a model root; the files go below its prepared/")
    command.add_argument("--precision", choices=precisions, default="bf16", help="of the plan (default: %(default)s)")
    command.add_argument("--no-table", action="store_true", help="for plans that compute the modulation")
    command.add_argument("--no-vision", action="store_true", help="for workers that edit nothing")
    command.add_argument("--language-head", action="store_true", help="for workers that have a layered model too")
    command.add_argument("--quantize-text-encoder", action="store_true", help="for plans that say so")
    command.add_argument("--device", choices=("cuda", "cpu"), help="where to compute (default: on the card, if any)")
    return command


def plan_of(checkpoint: Checkpoint, options: Options) -> Plan:
    """The plan that the files are for, as far as it shows in them. Raises `LoadError`."""
    if "modulation" not in checkpoint.parts:
        raise LoadError(f"Nothing of a {checkpoint.class_name} of this architecture can be prepared")
    if checkpoint.packed:
        raise LoadError("It is stored quantized already, and would be loaded no faster")
    if options.quantize_text_encoder and Precision(options.precision) not in LOSSY:
        raise LoadError(f"--quantize-text-encoder needs a quantized --precision, not {options.precision}")
    model = as_model(checkpoint, [])
    model = replace(model, edits=not options.no_vision, captions=model.captions or options.language_head)
    return Plan(
        options.device or ("cuda" if read_machine().gpu else "cpu"),
        Precision(options.precision),
        (model,),
        frozenset({Saving.TRIM}),
        not options.no_table,
        text_encoder="quantized" if options.quantize_text_encoder else "resident",
    )


def prepare(checkpoint: Checkpoint, plan: Plan, output: Path) -> Path:
    """Write the prepared checkpoint below `output`, whole or not at all; returns its folder. Raises `LoadError`."""
    if output.resolve().is_relative_to(checkpoint.local_folder.resolve()):
        raise LoadError("--output lies in its own folder, and what is written there would change it")
    (model,) = plan.models
    table_bytes = model.parts["modulation_outputs"] * 2 * TIMESTEPS if plan.table else 0
    component_bytes = plan.transformer_bytes(model) + plan.text_encoder_bytes(model) + plan.vae_bytes(model)
    require_disk(component_bytes + table_bytes, output)
    libraries.import_all()
    target = output / f"{checkpoint.name.replace('/', '--')}.{layout_name(prepared.layout_of(plan))}"
    output.mkdir(parents=True, exist_ok=True)
    with lock(output):
        return write_in_place(checkpoint, plan, target)


@contextmanager
def lock(folder: Path) -> Generator[None]:
    """Within, no other process prepares anything in the folder. Raises `LoadError` where one does already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
    except BlockingIOError:
        os.close(descriptor)
        raise LoadError(f"Another process is preparing a checkpoint in {folder}") from None
    except OSError:
        pass  # a network volume without locks
    try:
        yield
    finally:
        os.close(descriptor)


def write_in_place(checkpoint: Checkpoint, plan: Plan, target: Path) -> Path:
    """Write the prepared checkpoint in the place of an earlier one, if any; returns `target`."""
    partial, old = target.parent / f".{target.name}.partial", target.parent / f".{target.name}.old"
    for leftover in (partial, old):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        manifest = write_files(checkpoint, plan, partial)
        (partial / prepared.MANIFEST).write_text(json.dumps(manifest, indent=1))
        if target.exists():
            target.rename(old)  # under its own name it is never half deleted
        partial.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def write_files(checkpoint: Checkpoint, plan: Plan, target: Path) -> prepared.Manifest:
    """Write everything but the manifest, which is returned."""
    folder = checkpoint.local_folder
    digests = {name: component_digest(folder / name) for name in SHAREABLE if (folder / name).is_dir()}
    facts = asdict(replace(checkpoint, digests=digests))
    source = {key: value for key, value in facts.items() if key not in ("folder", "transformer")}
    sample = prepared.weights_sample(folder)
    for name in ("model_index.json", *checkpoint.pipeline_class.components):
        link_or_copy(folder / name, target / name)
    cpu_plan = replace(plan, device="cpu")  # for components that are written as they are read: a card may be too small
    write_component(checkpoint, "vae", cpu_plan, target)
    write_transformer(checkpoint, plan, target)
    if equal := equal_text_encoder(target.parent, digests["text_encoder"], plan):
        link_or_copy(equal, target / "text_encoder")
    else:
        quantized = plan.text_encoder == "quantized"
        write_component(checkpoint, "text_encoder", plan if quantized else cpu_plan, target)
    return {
        "format": prepared.FORMAT,
        "source": source,
        "sample": sample,
        "layout": asdict(prepared.layout_of(plan)),
        "made_on": prepared.device_of(plan.device, read_machine().gpu),
        "versions": prepared.versions(plan.precision),
        "files": prepared.file_facts(target),
    }


def require_disk(needed_bytes: int, output: Path) -> None:
    """Refuse what the disk of `output` has no room for. Raises `LoadError`."""
    free_bytes = free_disk_bytes(output)
    if needed_bytes > free_bytes:
        raise LoadError(f"It needs {needed_bytes / GB:.1f} GB of disk and {free_bytes / GB:.1f} GB are free")


def write_transformer(checkpoint: Checkpoint, plan: Plan, target: Path) -> None:
    """Write the transformer, and its modulation table where the plan has one."""
    from .loading.components import tabulate
    from .memory.cuda import release_unused
    from .weights import modulation_rows

    model = write_component(checkpoint, "transformer", plan, target)
    if table := tabulate(model, checkpoint.local_folder, plan):
        modulation_rows.write(table, target)
    del model, table
    release_unused(plan.device)


def write_component(checkpoint: Checkpoint, name: str, plan: Plan, target: Path) -> Any:
    """Load a component, write what the plan keeps of it, and return it."""
    from .loading.components import load_component, trim
    from .weights import writer as weight_writer

    folder = checkpoint.local_folder
    (target / name).mkdir()
    link_or_copy(folder / name / "config.json", target / name / "config.json")
    model = load_component(checkpoint, name, read_json(folder, "model_index.json")[name], plan)
    if name == "text_encoder":
        trim(model, name, plan)
    weight_writer.write_model(model, target / name)
    return model


def equal_text_encoder(output: Path, digest: str, plan: Plan) -> Path | None:
    """The folder of an equal text encoder that was prepared before, to be linked to: the 20B models share theirs.

    `digest`: of the content of the source's text encoder.
    """
    layout = prepared.layout_of(plan)
    wanted = (digest, layout.text_encoder, layout.head, layout.vision, prepared.versions(plan.precision))
    device = prepared.device_of(plan.device, read_machine().gpu)
    for folder in prepared.folders((output.parent,), None):
        try:
            manifest = prepared.read_manifest(folder)
            other = prepared.Layout(**manifest["layout"])
            other_digest = manifest["source"]["digests"]["text_encoder"]
            exact = other.text_encoder == Precision.BF16.value or manifest["made_on"] == device
            facts = (other_digest, other.text_encoder, other.head, other.vision, manifest["versions"])
            if exact and facts == wanted and manifest["format"] == prepared.FORMAT:
                if prepared.damage(folder, manifest) is None:
                    return folder / "text_encoder"
        except (LoadError, KeyError, TypeError):
            continue  # a manifest that cannot be read is of no use here
    return None


def layout_name(layout: prepared.Layout) -> str:
    """What a prepared checkpoint's folder is called by its layout."""
    parts = [layout.precision, "table" * layout.table, "vision" * layout.vision, "head" * layout.head]
    parts.append(f"text-{layout.text_encoder}" if layout.text_encoder != "bf16" else "")
    return "-".join(filter(None, parts))


def link_or_copy(entry: Path, target: Path) -> None:
    """A file or folder, by hard links where the disk allows: nobody changes a linked file in its place."""
    if entry.is_dir():
        target.mkdir()
        for inner in entry.iterdir():
            link_or_copy(inner, target / inner.name)
        return
    try:
        os.link(entry.resolve(), target)
    except OSError:
        shutil.copyfile(entry, target)


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def weight_bytes(folder: Path) -> int:
    """The bytes of a checkpoint's weights, the modulation table among them."""
    weights = (file for name in WEIGHTS for file in files_of(folder / name))
    return sum(file.stat().st_size for file in (*weights, *folder.glob("*.safetensors")))


if __name__ == "__main__":
    main()
