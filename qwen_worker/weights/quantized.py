"""Quantized weights in safetensors: each as the plain tensors that it consists of, and back.

What they belong to is in `quantized.json` beside the file: by parameter, the names of its tensors and what else its
library needs. Formats are the libraries' own, so that both ends must run on the same versions of them.
Imports torch; the libraries inside functions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.files import read_json

FILE = "quantized.json"


def entries(folder: Path) -> dict[str, dict]:
    """What of the component in `folder` is stored quantized, by the parameter's name."""
    return read_json(folder.parent, f"{folder.name}/{FILE}") if (folder / FILE).is_file() else {}


def write_entries(folder: Path, found: Mapping[str, dict]) -> None:
    if found:
        (folder / FILE).write_text(json.dumps(found, indent=1))


def flattened(name: str, parameter: torch.nn.Parameter) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors to store, by name, and the parameter's entry; no entry for one that is not quantized."""
    if type(parameter.data) is torch.Tensor and not hasattr(parameter, "quant_state"):
        return {name: parameter.detach()}, {}
    if hasattr(parameter, "quant_state"):
        state = parameter.quant_state.as_dict(packed=True)
        tensors = {name: parameter.data} | {f"{name}.{key}": tensor for key, tensor in state.items()}
        return tensors, {"library": "bitsandbytes", "tensors": list(tensors)}
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, metadata = flatten_tensor_state_dict({name: parameter.data})
    return tensors, {"library": "torchao", "tensors": list(tensors), "metadata": metadata[name]}


def assembled(
    model: torch.nn.Module, name: str, entry: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> torch.nn.Parameter:
    """The parameter for its place in `model`, whose layer is made into what it needs."""
    if entry["library"] == "bitsandbytes":
        import bitsandbytes

        from ..model.quantization import nf4_layer

        return bitsandbytes.nn.Params4bit.from_prequantized(
            data=tensors[name],
            quantized_stats={part: tensor for part, tensor in tensors.items() if part != name},
            device=tensors[name].device,
            module=nf4_layer(model, name.rpartition(".")[0]),
        )
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    metadata = {name: entry["metadata"], "tensor_names": json.dumps([name])}
    found, _ = unflatten_tensor_state_dict(dict(tensors), metadata)
    return torch.nn.Parameter(found[name], requires_grad=False)
