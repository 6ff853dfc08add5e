"""LoRA files for the tiny checkpoint: one set of random matrices in the layout of each trainer."""

import json

import torch
from safetensors.torch import save_file

from qwen_worker.lora.architectures import BLOCK_LAYERS
from qwen_worker.lora.file import LoraLayer
from qwen_worker.lora.names import Kind

# Of one block and of the second stream's modulation, so that a table's rows change too.
LAYERS = [f"transformer_blocks.{block}.{layer}" for block in (0, 3) for layer in BLOCK_LAYERS]
PLAIN = [layer for layer in LAYERS if "_mod." not in layer]
OTHERS = ["img_in", "txt_in", "proj_out", "norm_out.linear"]
RANK = 4


def flat(layer):
    return layer.replace(".", "_")


# By name: what stands before a layer's name, how it is written, what follows for the two matrices, whether with alpha.
FORMATS = {
    "lightning": ("", str, ".lora_down.weight", ".lora_up.weight", True),
    "diffusers": ("transformer.", str, ".lora_A.weight", ".lora_B.weight", False),
    "diffusers, first": ("transformer.", str, ".lora.down.weight", ".lora.up.weight", False),
    "peft": ("base_model.model.", str, ".lora_A.weight", ".lora_B.weight", False),
    "diffsynth": ("", str, ".lora_A.default.weight", ".lora_B.default.weight", False),
    "ai-toolkit, ComfyUI": ("diffusion_model.", str, ".lora_A.weight", ".lora_B.weight", False),
    "ComfyUI": ("diffusion_model.", str, ".lora_down.weight", ".lora_up.weight", True),
    "ComfyUI, transformer": ("transformer.", str, ".lora_down.weight", ".lora_up.weight", True),
    "kohya, musubi": ("lora_unet_", flat, ".lora_down.weight", ".lora_up.weight", True),
    "OneTrainer": ("lora_transformer_", flat, ".lora_down.weight", ".lora_up.weight", True),
}


def size_of(transformer, layer):
    """(outputs, inputs) of a layer, from a stock transformer."""
    module = transformer.get_submodule(layer)
    return module.out_features, module.in_features


def matrices(transformer, layers, seed=0, strength=0.3, rank=RANK):
    """By layer: (rank, inputs) and (outputs, rank)."""
    random = torch.Generator().manual_seed(seed)
    made = {}
    for layer in layers:
        outputs, inputs = size_of(transformer, layer)
        down = torch.randn(rank, inputs, generator=random) / inputs**0.5
        made[layer] = down, torch.randn(outputs, rank, generator=random) * strength / rank
    return made


def write(path, weights, form="diffusers", alpha=RANK, metadata=None, dtype=torch.float32):
    prefix, spell, down_part, up_part, with_alpha = FORMATS[form]
    tensors = {}
    for layer, (down, up) in weights.items():
        name = prefix + spell(layer)
        tensors[name + down_part], tensors[name + up_part] = down.to(dtype), up.to(dtype)
        if with_alpha:
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    header = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=header)
    return path


def lora_layer(rank, inputs, outputs):
    """A layer of a LoRA that no file holds."""
    return LoraLayer(Kind.LORA, {}, {"down": (rank, inputs), "up": (outputs, rank)}, inputs, outputs, rank)
