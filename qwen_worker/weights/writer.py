"""A model's weights as safetensors shards, in the order in which they are read. Imports torch: inside functions.

Quantized weights are taken apart. The names are not those that the libraries look for: what is written here lacks what
a plan does without, and is for our reader.
"""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..checkpoints.files import CHECKSUMS
from . import quantized as quantized_weights
from .staging import checksum_of

SHARD = 4_000_000_000  # bytes that are gathered in RAM before they are written


def write(model: torch.nn.Module, folder: Path) -> None:
    """The model's parameters and stored buffers into `folder`."""
    shard: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    entries: dict[str, dict] = {}
    for name, tensor in weights(model):
        tensors, entry = quantized_weights.flattened(name, tensor)
        if entry:
            entries[name] = entry
        shard |= {part: value.detach().cpu().contiguous() for part, value in tensors.items()}
        if sum(value.nbytes for value in shard.values()) >= SHARD:
            flush(shard, where, folder)
    flush(shard, where, folder)
    (folder / "weights.safetensors.index.json").write_text(json.dumps({"weight_map": where}, indent=1))
    quantized_weights.write_entries(folder, entries)


def weights(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    stored = set(model.state_dict())
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)


def flush(shard: dict[str, torch.Tensor], where: dict[str, str], folder: Path) -> None:
    if shard:
        name = f"weights-{len(set(where.values())) + 1:05}.safetensors"
        save(shard, folder / name)
        where |= dict.fromkeys(shard, name)
        shard.clear()


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file to the disk itself, with the sum of every tensor."""
    sums = {name: int(checksum_of(tensor)) for name, tensor in tensors.items()}
    try:
        save_file(tensors, file, {CHECKSUMS: json.dumps(sums)})
    except SafetensorError as error:
        raise OSError(errno.EIO, f"{file.name} cannot be written: {error}") from None
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
