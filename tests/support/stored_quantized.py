"""Components of a checkpoint folder stored quantized in their place, as their own libraries would have stored them.

Knows nothing of the worker.
"""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "bfloat16",
}


def edit_config(folder, component, entry):
    file = folder / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": entry}))


def store_transformer_nf4(folder):
    """As diffusers saves it, the modulation too: with scales that are quantized themselves in every second matrix."""
    import bitsandbytes.functional as bnb

    stored, nested = {}, False
    for name, weight in load_file(folder / TRANSFORMER).items():
        if weight.ndim == 2 and "transformer_blocks" in name:
            nested = not nested
            stored[name], state = bnb.quantize_4bit(
                weight.to(torch.bfloat16).contiguous(), quant_type="nf4", compress_statistics=nested
            )
            stored |= {f"{name}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        else:
            stored[name] = weight
    save_file(stored, folder / TRANSFORMER)
    edit_config(folder, "transformer", NF4)


def store_transformer_int8(folder):
    """By torchao, as diffusers saves it."""
    from diffusers import QwenImageTransformer2DModel, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    how = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["img_mod", "txt_mod", "norm_out", "proj_out"])
    model = QwenImageTransformer2DModel.from_pretrained(
        folder / "transformer", quantization_config=how, dtype=torch.bfloat16
    )
    shutil.rmtree(folder / "transformer")
    model.save_pretrained(folder / "transformer")


def store_text_encoder_nf4(folder):
    from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder / "text_encoder", quantization_config=how, dtype=torch.bfloat16
    )
    shutil.rmtree(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder")


def store_transformer_llm_int8(folder):
    """In 8 bits of bitsandbytes, as diffusers saves it: each row with its scale."""
    stored = {}
    for name, weight in load_file(folder / TRANSFORMER).items():
        if weight.ndim == 2 and "transformer_blocks" in name:
            scales = weight.float().abs().amax(dim=1)
            stored[name] = (weight.float() * 127 / scales[:, None]).round().to(torch.int8)
            stored[f"{name.removesuffix('weight')}SCB"] = scales
        else:
            stored[name] = weight
    save_file(stored, folder / TRANSFORMER)
    edit_config(folder, "transformer", {"quant_method": "bitsandbytes", "load_in_8bit": True})
