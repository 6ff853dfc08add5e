"""The rows of the modulation table: computed from the stored weights, or read from a file that holds them.

A prepared checkpoint has the file in place of the weights: 5.5 GB for 20B where the weights are 13.6 GB, and nothing is
left to compute. Imports torch and diffusers: import it inside functions. Knows nothing of when a table is used.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from ..checkpoints.files import tensors_in
from ..checkpoints.single_file import weights_of
from ..errors import LoadError
from ..model.host_memory import pinning
from ..model.modulation import (
    STREAMS,
    ModulationTable,
    StoredRows,
    bfloat16_timesteps,
    parameter_names,
    stored_rows_shape,
    timestep_embedding,
)
from ..model_settings import LOAD_THREADS
from . import decoding
from .reader import WeightReader, dtype_of
from .writer import save

FILE = "modulation.safetensors"
# (shape, dtype, whether a card fetches from it) -> an uninitialized tensor in host memory, for the rows.
RowMemory = Callable[[Sequence[int], torch.dtype, bool], torch.Tensor]


@torch.no_grad()
def build(
    transformer: QwenImageTransformer2DModel,
    folder: Path,
    changes: Mapping[str, torch.Tensor] | None = None,
    threads: int = LOAD_THREADS,
    memory: RowMemory | None = None,
) -> ModulationTable:
    """The table of a `TabledTransformer`, from the weights in the checkpoint's `folder`.

    `changes`: what a LoRA adds to modulation weights (6 dim, dim), by the weight's name. Few layers' weights are on the
    device at a time. Raises `LoadError` where the checkpoint lacks a modulation weight.
    """
    device, dtype = transformer.device, torch.bfloat16
    embed = timestep_embedding(transformer)
    conditions = [torch.nn.functional.silu(embed(value.to(device).view(1))) for value in bfloat16_timesteps()]
    stored = weights_of(folder, "transformer")
    layers = [(block, number) for block in range(len(transformer.transformer_blocks)) for number in range(len(STREAMS))]
    names = {layer: parameter_names(*layer) for layer in layers}
    if missing := [name for pair in names.values() for name in pair if name not in stored]:
        raise LoadError(f"transformer/ lacks {len(missing)} of its weights, {missing[0]} among them")
    weights = {layer: stored[names[layer][0]].tensors[0] for layer in layers}
    layers.sort(key=lambda layer: (weights[layer].file, weights[layer].start))  # the order of the bytes on the disk
    pinned = device.type == "cuda"
    rows = (memory or pinning.empty)(stored_rows_shape(transformer), dtype, pinned)
    wanted = [tensor for layer in layers for name in names[layer] for tensor in stored[name].tensors]
    with WeightReader(wanted, str(device), threads) as reader:

        def read_changed(name: str) -> torch.Tensor:
            tensor = decoding.read(reader, stored[name]).to(dtype)
            return tensor + changes[name].to(device, dtype) if changes and name in changes else tensor

        def rows_of(layer: tuple[int, int]) -> torch.Tensor:
            """(1249, 6 dim) on the host. What it takes of the card is free before the next layer is waited for."""
            weight, bias = map(read_changed, names[layer])
            return torch.cat([torch.nn.functional.linear(condition, weight, bias) for condition in conditions]).cpu()

        for block, number in layers:
            rows[:, block, number] = rows_of((block, number))
    return ModulationTable(transformer, StoredRows(rows))


def exists(folder: Path) -> bool:
    return (folder / FILE).is_file()


def write(table: ModulationTable, folder: Path) -> None:
    """Write the rows of a table that has those of all timesteps. Raises `OSError`."""
    assert isinstance(table.source, StoredRows)
    save({"rows": table.source.rows}, folder / FILE)


def read(
    transformer: QwenImageTransformer2DModel, folder: Path, threads: int, memory: RowMemory | None = None
) -> ModulationTable:
    """The table from the file, its rows in host memory from where a card fetches.

    Raises `LoadError` for a file that is damaged or another transformer's.
    """
    tensors = tensors_in(folder / FILE, FILE)
    shapes, needed = [tensor.shape for tensor in tensors], stored_rows_shape(transformer)
    if shapes != [needed]:
        raise LoadError(f"{FILE} holds the shapes {shapes} where the transformer asks for {needed}")
    pinned = transformer.device.type == "cuda"
    with WeightReader(tensors, "cpu", threads, pinned=pinned) as reader:
        if memory:
            reader.place(tensors[0].name, memory(needed, dtype_of(tensors[0]), pinned))
        rows = reader.pop(tensors[0].name)
        reader.verify()
    return ModulationTable(transformer, StoredRows(rows))
