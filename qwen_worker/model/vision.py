"""How the text encoder sees an input picture: where its tokens lie, and its patches as a matrix product.

transformers gives a picture's tokens positions in rows and columns (M-RoPE), as the released models were trained, only
if `mm_token_type_ids` tells it which tokens they are. The processor returns that field, and the edit pipelines of
diffusers 0.42 drop it: the tokens then lie in one long row, and the tiny checkpoint's embeddings are 2.8 % off.

The vision tower's first layer is a convolution of patches that do not overlap. Torch does not give three-dimensional
convolutions in bfloat16 to cuDNN 9.8 to 9.14, which torch for CUDA 12.6 brings, for a fault of these versions. Its own
code goes patch by patch: 5,476 of them for a picture of a megapixel, for the prompt and again for the negative one.
Equal up to the order of sums: 3e-5 in bfloat16, by the layer's real shape.

Imports torch: import it inside functions. Knows nothing of how a prompt is put together, nor of what draws from it.
"""

from typing import Any

import torch

TEXT, PICTURE = 0, 1  # types of tokens, as transformers' `get_rope_index` numbers them
SLOW_CUDNN = range(90800, 91500)  # versions, as torch numbers them


def mark_picture_tokens(text_encoder: torch.nn.Module) -> None:
    """From now on each call with a picture says which of its tokens are the picture's, unless the caller says so."""
    text_encoder.register_forward_pre_hook(add_token_types, with_kwargs=True)


def add_token_types(
    text_encoder: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the text encoder's `forward`, with the type of each token of `input_ids`, (B, tokens)."""
    if named.get("pixel_values") is None or named.get("mm_token_type_ids") is not None:
        return arguments, named
    pictures = named["input_ids"] == text_encoder.config.image_token_id
    return arguments, named | {"mm_token_type_ids": torch.where(pictures, PICTURE, TEXT)}


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
