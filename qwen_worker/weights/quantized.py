"""Quantized weights in safetensors: each as the plain tensors that it consists of, and back.

`quantized.json` beside the weights says for each quantized parameter which tensors it consists of and what else its
library needs; of a checkpoint that bitsandbytes has stored in 4 bits the tensors' names say it. Formats are the
libraries' own, so that writer and reader must have the same versions of them.
Imports torch; the libraries inside functions.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch

from ..checkpoints.files import read_json
from ..checkpoints.stored_quantization import nf4_parts
from ..errors import LoadError

FILE = "quantized.json"


class QuantizedEntry(TypedDict):
    """One parameter's entry. `tensors`: the names under which its parts are stored."""

    library: str  # bitsandbytes or torchao
    tensors: list[str]
    metadata: NotRequired[Any]  # of torchao


def read_entries(folder: Path) -> dict[str, QuantizedEntry]:
    """What of the component in `folder` is stored quantized, by the parameter's name. Raises `LoadError`."""
    return read_json(folder.parent, f"{folder.name}/{FILE}") if (folder / FILE).is_file() else {}


def entries_of(names: Iterable[str]) -> dict[str, QuantizedEntry]:
    """The entries of a component that bitsandbytes has stored in 4 bits. `names`: of its tensors."""
    return {name: {"library": "bitsandbytes", "tensors": parts} for name, parts in nf4_parts(names).items()}


def write_entries(folder: Path, entries: Mapping[str, QuantizedEntry]) -> None:
    if entries:
        (folder / FILE).write_text(json.dumps(entries, indent=1))


def flatten(name: str, parameter: torch.Tensor) -> tuple[dict[str, torch.Tensor], QuantizedEntry | None]:
    """The tensors to store, by name, and the parameter's entry; None for one that is not quantized."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        parts = state.as_dict(packed=True)
        tensors = {name: parameter.data} | {f"{name}.{key}": tensor for key, tensor in parts.items()}
        return tensors, {"library": "bitsandbytes", "tensors": list(tensors)}
    if type(parameter.data) is torch.Tensor:
        return {name: parameter.detach()}, None
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    state_dict: Any = {name: parameter.data}  # torchao annotates a dict of dicts, and takes this one
    tensors, metadata = flatten_tensor_state_dict(state_dict)
    return tensors, {"library": "torchao", "tensors": list(tensors), "metadata": metadata[name]}


def require_shape(name: str, parameter: Any, layer: torch.nn.Linear) -> None:
    """Refuse a weight in 4 bits that is none of its layer: its product would fail in every job. Raises `LoadError`."""
    if (have := tuple(parameter.quant_state.shape)) != (need := (layer.out_features, layer.in_features)):
        raise LoadError(f"{name} is stored in the shape {have} where the component's config asks for {need}")


def assemble(
    model: torch.nn.Module, name: str, entry: QuantizedEntry, tensors: Mapping[str, torch.Tensor]
) -> torch.nn.Parameter:
    """The parameter from its parts, for its place in `model`: its layer becomes the kind that the parameter needs."""
    if entry["library"] == "bitsandbytes":
        from bitsandbytes.nn.modules import Params4bit

        from ..model.quantization import insert_nf4_layer

        make: Any = Params4bit.from_prequantized  # which annotates the device as text, and takes torch's
        layer = insert_nf4_layer(model, name.rpartition(".")[0])
        parameter = make(
            data=tensors[name],
            quantized_stats={part: tensor for part, tensor in tensors.items() if part != name},
            device=tensors[name].device,
            module=layer,
        )
        require_shape(name, parameter, layer)
        return parameter
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    metadata = {name: entry.get("metadata"), "tensor_names": json.dumps([name])}
    parameters, _ = unflatten_tensor_state_dict(dict(tensors), metadata)
    return torch.nn.Parameter(cast(torch.Tensor, parameters[name]), requires_grad=False)
