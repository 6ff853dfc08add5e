"""The savings of a loaded pipeline's VAE and text encoder beside the plain way, on the loaded weights.

Stock's VAE is read anew from the checkpoint's folder, since ours may have dropped weights that its way needs. A
streamed text encoder is not touched: diffusers learns the order of its layers in its first pass, and jobs depend on
that. A copy of one layer is streamed in its place. Imports torch and diffusers: import it inside functions. Knows
nothing of when comparisons are made, or of what follows.
"""

from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

from ..model import residency, vision
from ..model import vae as single_frame
from ..model_settings import Saving
from .comparisons import Result, furthest
from .subject import Subject
from .tolerances import PASS, PICTURE, distance

LATENT_SIDE = 16
TEXT_TOKENS = 32
PATCHES = 16


def stock_vae(subject: Subject) -> AutoencoderKLQwenImage | None:
    """The checkpoint's VAE as diffusers loads it; None where its files are not on this machine."""
    folder = subject.checkpoint.folder
    if folder is None:
        return None
    vae = AutoencoderKLQwenImage.from_pretrained(folder / "vae", dtype=subject.dtype, local_files_only=True)
    return cast(Any, vae).to(subject.plan.device)  # a decorator of diffusers hides its annotations


def there_and_back(subject: Subject, vae: Any) -> list[torch.Tensor]:
    """A picture that the VAE decodes, (1, 3, 1, H, W), and what it encodes noise of that size to."""
    latent = subject.random(1, vae.config.z_dim, 1, LATENT_SIDE, LATENT_SIDE)
    picture = vae.decode(latent).sample
    noise = subject.random(*picture.shape, seed=1).clamp(-1, 1)
    return [picture, vae.encode(noise).latent_dist.mean]


def compare_vae(subject: Subject, saving: Saving) -> Result | None:
    """One frame by the VAE with a saving beside stock's way.

    With both savings, the first is seen on stock's VAE alone, and the second on the loaded one beside the first.
    """
    plain = stock_vae(subject)
    if plain is None:
        return None
    vae = subject.pipe.vae
    if {Saving.SINGLE_FRAME, Saving.CONV2D} <= subject.plan.savings:
        before = there_and_back(subject, plain)
        single_frame.skip_feature_cache(plain)
        if saving is Saving.SINGLE_FRAME:
            return Result(pictures_apart(there_and_back(subject, plain), before), PICTURE[subject.dtype])
    ours = there_and_back(subject, vae)
    return Result(pictures_apart(ours, there_and_back(subject, plain)), PICTURE[subject.dtype])


def pictures_apart(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> float:
    return furthest(distance(*pair) for pair in zip(ours, plain, strict=True))


def compare_patches(subject: Subject) -> Result | None:
    """Patches of a picture by the vision tower's matrix beside its convolution; None where it has the convolution."""
    layer = subject.pipe.text_encoder.model.visual.patch_embed.proj
    if not isinstance(layer, vision.PatchProjection):
        return None
    weight = layer.weight.detach().to(subject.plan.device)
    patches = subject.random(PATCHES, *weight.shape[1:])
    plain = torch.nn.functional.conv3d(patches, weight).flatten(1)
    return Result(distance(vision.project(patches, weight), plain), PASS[subject.dtype])


def compare_streamed(subject: Subject) -> Result:
    """A layer of the text encoder that is streamed from host memory beside the same layer on the device.

    Twice: in its second pass the next weights are fetched while the present ones compute.
    """
    language = subject.pipe.text_encoder.model.language_model
    config, device = language.layers[0].self_attn.config, subject.plan.device
    resident, streamed = (copy_layer(language.layers[0]) for _ in range(2))
    resident.to(device)
    residency.stream(streamed, device)
    hidden = subject.random(1, TEXT_TOKENS, config.hidden_size)
    places = torch.arange(TEXT_TOKENS, device=device).expand(3, 1, TEXT_TOKENS)  # in time, height and width
    angles = type(language.rotary_emb)(config).to(device)(hidden, places)
    plain = resident(hidden, position_embeddings=angles) - hidden  # what the layer adds may be small beside its input
    apart = [distance(streamed(hidden, position_embeddings=angles) - hidden, plain) for _ in range(2)]
    return Result(furthest(apart), PASS[subject.dtype])


def copy_layer(layer: Any) -> Any:
    """A layer with the same weights, copied, in host memory and without hooks."""
    with torch.device("meta"):
        copy = type(layer)(layer.self_attn.config, layer.self_attn.layer_idx)
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in layer.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy.eval().requires_grad_(False)
