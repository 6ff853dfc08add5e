"""Checkpoints of the released architecture whose weight files are holes: true headers, no bytes, a megabyte of disk.

`generate/`, `edit/` (one reference) and `edit_plus/` (up to three) are of full size, as is the LoRA; weights read as
zeros. The same three in `tabled/` hold the rows of the modulation too, as a prepared checkpoint does: those are read,
and not computed. Imports torch inside functions. Knows nothing of the worker.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

from .card import cache_folder, put_in_place

LIBRARIES = ("diffusers", "transformers")  # whose classes name the tensors
RANK = 16
LORA = "lora.safetensors"
PLUS = "QwenImageEditPlusPipeline"
TIMESTEPS, STREAMS = 1249, 2  # of the modulation's rows: those that bfloat16 can tell apart, and the layers of a block
READ_BYTES = 1 << 16  # a read of so many is one of weights, and no header's


def folder() -> Path:
    """The folder of the checkpoints, written where it is missing."""
    from benchmarks.measure import full_size

    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    sources = [Path(full_size.__file__).read_text(), Path(__file__).read_text()]
    digest = hashlib.sha256("\n".join([*versions, *sources]).encode()).hexdigest()
    found = cache_folder() / f"checkpoints-{digest[:16]}"
    if not found.is_dir():
        found.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found.parent) as place:
            write(Path(place) / "checkpoints")
            put_in_place(Path(place) / "checkpoints", found)
    return found


def write(folder: Path) -> None:
    """What `folder()` has; the full-size benchmarks' own writer, its bytes left out."""
    from benchmarks.measure import full_size

    folder.mkdir()
    models = full_size.empty_models()
    with (
        mock.patch.object(full_size, "write_shard", lambda path, tensors, pool: write_hole(path, shapes_of(tensors))),
        mock.patch.object(full_size, "random_pool", lambda: None),
    ):
        full_size.write_checkpoints(folder, models)
    shutil.copytree(folder / "edit", folder / "edit_plus", copy_function=os.link)
    index = folder / "edit_plus/model_index.json"
    text = json.dumps(json.loads(index.read_text()) | {"_class_name": PLUS})
    index.unlink()  # a link to the other's
    index.write_text(text)
    rows = TIMESTEPS, len(models["transformer"].transformer_blocks), STREAMS, 6 * models["transformer"].inner_dim
    for name in ("generate", "edit", "edit_plus"):
        shutil.copytree(folder / name, folder / "tabled" / name, copy_function=os.link)
        write_hole(folder / "tabled" / name / "modulation.safetensors", [("rows", rows)])
    write_hole(folder / LORA, lora_shapes(models["transformer"]))


def shapes_of(tensors: dict[str, Any]) -> Iterable[tuple[str, tuple[int, ...]]]:
    return ((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def lora_shapes(transformer: Any) -> Iterable[tuple[str, tuple[int, ...]]]:
    """A LoRA of every linear layer of the blocks, the modulation's too."""
    import torch

    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("transformer_blocks."):
            yield f"transformer.{name}.lora_A.weight", (RANK, module.in_features)
            yield f"transformer.{name}.lora_B.weight", (module.out_features, RANK)


def write_hole(path: Path, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file in bfloat16 with these tensors: its header, and a hole in place of the rest."""
    header, end = {}, 0
    for name, shape in shapes:
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + end)


def skip_holes() -> None:
    """Reads of sparse files fill no memory any more: the zeros of 57 GB would take a minute, and pinned ones stay."""
    read = os.preadv

    def preadv(descriptor: int, views: Any, offset: int, *flags: int) -> int:
        size = sum(map(len, views))
        if size >= READ_BYTES:
            file = os.fstat(descriptor)
            if file.st_blocks * 512 < file.st_size // 2:
                return max(0, min(size, file.st_size - offset))
        return read(descriptor, views, offset, *flags)

    os.preadv = preadv
