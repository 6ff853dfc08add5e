"""Checkpoints of the released architecture with random weights: everything real but the picture.

Sizes, dtypes and layers are those of Qwen/Qwen-Image and Qwen/Qwen-Image-Edit; the tokenizer is the tiny checkpoint's,
its special tokens entered in the text encoder's config. Writes 57.7 GB: the edit folder is made of hard links.
"""

import json
import os
import shutil
from pathlib import Path

import torch

TINY = Path(__file__).parents[1] / "models/tiny-qwen-image"
TEXT = {
    "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128_000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
SEEN_PIXELS = {"shortest_edge": 3136, "longest_edge": 12_845_056}  # of the released image processor
RANDOM_BYTES = 1 << 27


def write(folder: Path) -> None:
    """`folder/generate` and `folder/edit`."""
    generate = folder / "generate"
    shutil.copytree(TINY / "generate", generate, ignore=shutil.ignore_patterns("*.safetensors"))
    pool = torch.empty(RANDOM_BYTES // 2).normal_(0, 0.02, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name, model in architecture().items():
        for stale in (generate / name).glob("*.json"):
            stale.unlink()
        config = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
        (generate / name / "config.json").write_text(json.dumps(config | {"_class_name": type(model).__name__}))
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write_weights(generate / name / f"{stem}.safetensors", model.state_dict(), pool)
    shutil.copytree(generate, folder / "edit", copy_function=os.link)
    shutil.copytree(TINY / "edit/processor", folder / "edit/processor")
    (folder / "edit/model_index.json").unlink()
    shutil.copy(TINY / "edit/model_index.json", folder / "edit/model_index.json")
    see_whole_pictures(folder / "edit/processor")


def architecture() -> dict[str, torch.nn.Module]:
    """The three models without memory for their weights."""
    import diffusers
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False, **special_tokens())
    with init_empty_weights():
        return {
            "transformer": diffusers.QwenImageTransformer2DModel(),
            "vae": diffusers.AutoencoderKLQwenImage(),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        }


def special_tokens() -> dict[str, int]:
    config = json.loads((TINY / "generate/text_encoder/config.json").read_text())
    return {name: config[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id")}


def see_whole_pictures(folder: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_text())
            config.get("image_processor", config)["size"] = SEEN_PIXELS
            (folder / name).write_text(json.dumps(config))


def write_weights(path: Path, tensors: dict[str, torch.Tensor], pool: torch.Tensor) -> None:
    """A safetensors file in bfloat16: norms one, biases zero, the rest cut from `pool` over and over."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in tensors.items():
            for start in range(0, tensor.numel(), pool.numel()):
                piece = pool[: min(pool.numel(), tensor.numel() - start)]
                if name.endswith("bias"):
                    piece = torch.zeros_like(piece)
                elif "norm" in name or "gamma" in name:
                    piece = torch.ones_like(piece)
                stream.write(memoryview(piece.view(torch.uint8).numpy()))
