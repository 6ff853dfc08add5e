"""The rows of the modulation table: computed from the stored weights, or read from a file that holds them.

A prepared checkpoint has the file in place of the weights: 5.5 GB for 20B where the weights are 13.6, and nothing left
to compute. Imports torch and diffusers: import it inside functions.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from ..checkpoints.files import stored_tensors, tensors_in
from ..errors import LoadError
from ..model.modulation import STREAMS, StoredRows, Table, embedding, every_timestep, parameters_of, shape_of_rows
from ..settings import LOAD_THREADS
from .reader import WeightReader
from .writer import save

FILE = "modulation.safetensors"


@torch.no_grad()
def build(
    transformer: QwenImageTransformer2DModel,
    folder: Path,
    changes: Mapping[str, torch.Tensor] | None = None,
    threads: int = LOAD_THREADS,
) -> Table:
    """The table of a `TabledTransformer`, from the weights in the checkpoint's `folder`.

    `changes`: what a LoRA adds to a modulation weight, by the weight's name, (6 dim, dim). Few layers' weights are on
    the device at a time. Raises `LoadError` where the checkpoint lacks one.
    """
    device, dtype = transformer.device, torch.bfloat16
    embed = embedding(transformer)
    conditions = [torch.nn.functional.silu(embed(value.to(device).view(1))) for value in every_timestep()]
    there = stored_tensors(folder, "transformer")
    layers = [(block, number) for block in range(len(transformer.transformer_blocks)) for number in range(len(STREAMS))]
    names = {layer: parameters_of(*layer) for layer in layers}
    if missing := [name for pair in names.values() for name in pair if name not in there]:
        raise LoadError(f"transformer/ lacks {len(missing)} of its weights, {missing[0]} among them")
    layers.sort(key=lambda layer: (there[names[layer][0]].file, there[names[layer][0]].start))  # as they come
    pinned = device.type == "cuda"
    rows = torch.empty(shape_of_rows(transformer), dtype=dtype, pin_memory=pinned)
    wanted = [there[name] for layer in layers for name in names[layer]]
    with WeightReader(wanted, str(device), threads) as reader:

        def take(name: str) -> torch.Tensor:
            tensor = reader.take(name).to(dtype)
            return tensor + changes[name].to(device, dtype) if changes and name in changes else tensor

        for block, number in layers:
            weight, bias = map(take, names[block, number])
            computed = [torch.nn.functional.linear(condition, weight, bias) for condition in conditions]
            rows[:, block, number] = torch.cat(computed).cpu()
    return Table(transformer, StoredRows(rows))


def exists(folder: Path) -> bool:
    return (folder / FILE).is_file()


def write(table: Table, folder: Path) -> None:
    """Write the rows of a table of all timesteps."""
    save({"rows": table.source.rows}, folder / FILE)


def read(transformer: QwenImageTransformer2DModel, folder: Path, threads: int) -> Table:
    """The table, its rows in host memory from where a card fetches."""
    tensors = tensors_in(folder / FILE, FILE)
    shapes, wanted = [one.shape for one in tensors], shape_of_rows(transformer)
    if shapes != [wanted]:
        raise LoadError(f"{FILE} holds the shapes {shapes} where the transformer asks for {wanted}")
    with WeightReader(tensors, "cpu", threads, pinned=transformer.device.type == "cuda") as reader:
        rows = reader.take(tensors[0].name)
        reader.verify()
    return Table(transformer, StoredRows(rows))
