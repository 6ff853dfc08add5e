"""The vision tower's first layer as the matrix product that it is: a convolution whose patches do not overlap.

Torch does not give three-dimensional convolutions in bfloat16 to cuDNN 9.8 to 9.14, which torch for CUDA 12.6 brings,
for a fault of these versions. Its own code goes patch by patch: 5,476 of them for a picture of a megapixel, for the
prompt and again for the negative one. Equal up to the order of sums: 3e-5 in bfloat16, by the layer's real shape.

Imports torch: import it inside functions. Knows nothing of what the tower is a part of.
"""

from typing import Any

import torch

SLOW_CUDNN = range(90800, 91500)  # versions, as torch numbers them


class PatchProjection(torch.nn.Conv3d):
    """A convolution of single patches, each as large as the kernel.

    A subclass, because diffusers streams the layers that it knows by their classes.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(patches, in, frames, height, width) -> (patches, out, 1, 1, 1)"""
        return project(input, self.weight)[:, :, None, None, None]


def project(patches: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(patches, in, frames, height, width), (out, in, frames, height, width) -> (patches, out)"""
    return torch.nn.functional.linear(patches.flatten(1), weight.flatten(1))


def convolves_slowly() -> bool:
    """Whether torch has a convolution of patches in bfloat16 computed by its own code on a card."""
    return (torch.backends.cudnn.version() or 0) in SLOW_CUDNN


def project_patches(tower: Any) -> None:
    """Have a vision tower's patches multiplied by a matrix: the weights of the convolution, which has no bias."""
    tower.patch_embed.proj.__class__ = PatchProjection
