"""A model's weights as safetensors shards, in the order in which they are read.

Quantized weights are taken apart. The shards have not the names that the libraries look for: they lack the weights
that a plan does without, and only our reader knows how to load them. Imports torch: import it inside functions. Knows
nothing of plans.
"""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..checkpoints.files import CHECKSUMS, INDEX_SUFFIX, PREPARED_STEM, SUFFIX
from . import quantized as quantized_weights
from .staging import checksum_of

SHARD_BYTES = 4_000_000_000  # that are gathered in RAM before they are written


def write_model(model: torch.nn.Module, folder: Path) -> None:
    """Write the model's parameters and stored buffers into `folder`. Raises `OSError`."""
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}  # the shard's file, by the tensor's name
    entries: dict[str, quantized_weights.QuantizedEntry] = {}
    for name, tensor in named_weights(model):
        tensors, entry = quantized_weights.flatten(name, tensor)
        if entry:
            entries[name] = entry
        shard |= {part: value.detach().cpu().contiguous() for part, value in tensors.items()}
        if sum(value.nbytes for value in shard.values()) >= SHARD_BYTES:
            write_shard(shard, weight_map, folder)
    write_shard(shard, weight_map, folder)
    (folder / f"{PREPARED_STEM}{INDEX_SUFFIX}").write_text(json.dumps({"weight_map": weight_map}, indent=1))
    quantized_weights.write_entries(folder, entries)


def named_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters, and the buffers that belong into a file."""
    stored = set(model.state_dict())
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)


def write_shard(shard: dict[str, torch.Tensor], weight_map: dict[str, str], folder: Path) -> None:
    """Write and empty the shard, if it holds anything, and add its tensors to the map."""
    if shard:
        name = f"{PREPARED_STEM}-{len(set(weight_map.values())) + 1:05}{SUFFIX}"
        save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
        shard.clear()


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file with the sum of every tensor, through to the disk. Raises `OSError`."""
    sums = {name: int(checksum_of(tensor)) for name, tensor in tensors.items()}
    try:
        save_file(tensors, file, {CHECKSUMS: json.dumps(sums)})
    except SafetensorError as error:
        raise OSError(errno.EIO, f"{file.name} cannot be written: {error}") from None
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
