"""The VAE of Qwen-Image for pictures: one frame is not a video.

`AutoencoderKLQwenImage` is a video VAE whose causal feature cache keeps a copy of every layer's input for the frame
that follows. After a single frame nothing follows: `decoder(post_quant_conv(z)).clamp(-1, 1)` and
`quant_conv(encoder(x))` are bit-equal to the cached way, and take 1.32 instead of 3.38 GiB to decode 1024 x 1024.

`use_2d_convolutions` is the second, separate step: a causal convolution pads with zeros in front of the first frame, so
only the last slice of its kernel in time meets the picture. The sum is that of a 2-D convolution, in another order
(1e-6 in float32). The step also drops the weights that no single frame reaches, after which videos do not work.

Imports torch and diffusers: import it inside functions. Covers neither tiles, which stay diffusers' own, nor
AutoencoderKLQwenImage21.
"""

import types
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage, QwenImageCausalConv3d
from diffusers.models.autoencoders.vae import DecoderOutput


def skip_feature_cache(vae: AutoencoderKLQwenImage) -> None:
    """Make `vae` encode and decode single frames without the feature cache; videos and tiles go the stock way."""
    vae._encode = types.MethodType(_encode, vae)
    vae._decode = types.MethodType(_decode, vae)


def _encode(self: AutoencoderKLQwenImage, x: torch.Tensor) -> torch.Tensor:
    """(B, 3, 1, H, W) -> mean and log variance, (B, 2 z_dim, 1, H / f, W / f)."""
    tiled = self.use_tiling and (x.shape[4] > self.tile_sample_min_width or x.shape[3] > self.tile_sample_min_height)
    if x.shape[2] != 1 or tiled:
        # A tensor, though the annotation of diffusers' tiled_encode says otherwise.
        return cast(torch.Tensor, AutoencoderKLQwenImage._encode(self, x))
    return self.quant_conv(self.encoder(x))


def _decode(
    self: AutoencoderKLQwenImage, z: torch.Tensor, return_dict: bool = True
) -> DecoderOutput | tuple[torch.Tensor] | torch.Tensor:
    """(B, z_dim, 1, h, w) -> (B, 3, 1, f h, f w) in [-1, 1]."""
    factor = self.spatial_compression_ratio
    wide, high = self.tile_sample_min_width // factor, self.tile_sample_min_height // factor
    if z.shape[2] != 1 or (self.use_tiling and (z.shape[4] > wide or z.shape[3] > high)):
        return AutoencoderKLQwenImage._decode(self, z, return_dict=return_dict)
    sample = self.decoder(self.post_quant_conv(z)).clamp(-1.0, 1.0)
    return DecoderOutput(sample=sample) if return_dict else (sample,)


class SingleFrameConv(QwenImageCausalConv3d):
    """A causal convolution of which only the last slice in time is left, (out, in, 1, kh, kw).

    A subclass, because the tiled way counts the causal convolutions to size its cache, and passes one.
    """

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        """(B, in, 1, H, W) -> (B, out, 1, H', W'). Raises `ValueError` for more than one frame."""
        if x.shape[2] != 1:
            raise ValueError(f"this VAE is prepared for pictures: 1 frame, not {x.shape[2]}")
        # Conv3d's padding may be a word by its annotation; that of this class is made of numbers.
        left, _, top, *_ = cast(tuple[int, ...], self._padding)
        stride = self.stride[1], self.stride[2]
        plane = torch.nn.functional.conv2d(x[:, :, 0], self.weight[:, :, 0], self.bias, stride, (top, left))
        return plane.unsqueeze(2)


def use_2d_convolutions(vae: AutoencoderKLQwenImage) -> None:
    """Turn every causal 3-D convolution into the 2-D one that a single frame sees, and drop the rest of its weights."""
    for name, module in vae.named_modules():
        if not isinstance(module, QwenImageCausalConv3d):
            continue
        if name.endswith("time_conv"):  # between frames: counted for the tiled way's cache, never called for one frame
            module.register_parameter("weight", None)
            module.register_parameter("bias", None)
            continue
        module.weight = torch.nn.Parameter(module.weight[:, :, -1:].contiguous(), requires_grad=False)
        module.kernel_size = (1, *module.kernel_size[1:])
        module.__class__ = SingleFrameConv
