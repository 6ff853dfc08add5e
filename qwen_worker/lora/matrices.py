"""The matrices of one LoRA: in host memory between jobs, and on the card during them, all together or block by block.

Imports torch: import it inside functions. Knows nothing of the layers that compute with them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from ..errors import InvalidInput
from ..model.residency import pin
from .file import LoraUse, streamed_block


@dataclass(frozen=True)
class LoraWeights:
    """One LoRA's matrices, by layer and part.

    `host_tensors`: what they hold between jobs; none of a LoRA that host memory has no room for, whose matrices are
    made on the card and go at the job's end.
    """

    matrices: Mapping[str, Mapping[str, torch.nn.Parameter]]
    host_tensors: Mapping[torch.nn.Parameter, torch.Tensor]

    @property
    def host_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.host_tensors.values())

    def of_block(self, block: str) -> "list[torch.nn.Parameter]":
        """The parameters of one block, or with an empty name those that no single block needs."""
        layers = (parts for name, parts in self.matrices.items() if streamed_block(name) == block)
        return [parameter for parts in layers for parameter in parts.values()]

    def load(self, device: torch.device, parameters: Collection[torch.nn.Parameter] | None = None) -> None:
        """Have the parameters hold copies on the device, which are still on their way when this returns."""
        for parameter in self.host_tensors if parameters is None else parameters:
            parameter.data = self.host_tensors[parameter].to(device, non_blocking=True)

    def unload(self, parameters: Collection[torch.nn.Parameter] | None = None) -> None:
        for parameter in self.host_tensors if parameters is None else parameters:
            parameter.data = self.host_tensors[parameter]


def read_weights(use: LoraUse, dtype: torch.dtype, device: torch.device, kept: bool) -> LoraWeights:
    """The file's weights: in host memory, or, if they are not to be kept there, on the device.

    Raises `InvalidInput` where a number is NaN or infinite, which would spoil the picture without a word, and where
    the file was written since it was opened; `JobError` where the disk does not give it.
    """
    file = use.file
    host_tensors: dict[torch.nn.Parameter, torch.Tensor] = {}

    def read_parameter(name: str) -> torch.nn.Parameter:
        tensor = file.tensors.read_tensor(name).to(dtype)
        if not tensor.isfinite().all():
            raise InvalidInput(f"{use.label} holds infinite numbers, or none, in {name}")
        tensor = pin(tensor, device) if kept else tensor.to(device)
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        if kept:
            host_tensors[parameter] = parameter.data
        return parameter

    matrices = {
        name: {part: read_parameter(tensor) for part, tensor in layer.names.items()}
        for name, layer in file.layers.items()
    }
    if file.is_changed():
        raise InvalidInput(f"{use.label} was written anew before it was read; send the job again")
    return LoraWeights(matrices, host_tensors)
