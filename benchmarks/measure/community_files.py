"""A transformer of diffusers in one file, as the community writes it: ComfyUI's names, fp8 with scales, GGUF.

Written by safetensors and by the `gguf` package, which also quantizes; what it cannot quantize stays in 16 bits, as
city96's converter leaves it.
"""

import json

import numpy
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file, save_file

PREFIX = "model.diffusion_model."
FP8_MAX = 448.0  # of e4m3
FILE = "diffusion_pytorch_model.safetensors"
# Layers that community files leave in 16 bits.
KEPT = ("img_in", "txt_in", "time_text_embed", "norm_out", "proj_out", "norm")


def weights_of(checkpoint):
    """The transformer's weights of a checkpoint's folder."""
    return load_file(checkpoint / "transformer" / FILE)


def is_kept(name, weight):
    return weight.dim() != 2 or any(part in name for part in KEPT)


def write_plain(weights, file, dtype=torch.bfloat16, prefix=PREFIX, metadata=None, **more):
    """All weights cast to a dtype; `more`: other tensors, by name without the prefix."""
    stored = {f"{prefix}{name}": weight.to(dtype) for name, weight in weights.items()}
    save_file(stored | {f"{prefix}{name}": tensor for name, tensor in more.items()}, file, metadata)
    return file


def write_scaled(weights, file, style="scale_weight", by_row=False, prefix=PREFIX):
    """Matrices in fp8 with a scale: of the first style with `scaled_fp8`, of the second with `comfy_quant`.

    `by_row`: a scale for each row in place of one for the matrix.
    """
    stored, layers = {}, {}
    for name, weight in weights.items():
        if is_kept(name, weight):
            stored[name] = weight.to(torch.bfloat16)
            continue
        most = weight.float().abs().amax(dim=1, keepdim=True) if by_row else weight.float().abs().amax()
        scale = (most / FP8_MAX).clamp(min=1e-12)  # a row may be all zeros
        layer = name.removesuffix(".weight")
        stored[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        if style == "scale_weight":
            stored[f"{layer}.scale_weight"] = scale
            stored[f"{layer}.scale_input"] = torch.ones(1)
        else:
            stored[f"{layer}.weight_scale"] = scale
            stored[f"{layer}.input_scale"] = torch.ones(())
            text = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            layers[f"{prefix}{layer}"] = {"format": "float8_e4m3fn"}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})} if layers else None
    stored = {f"{prefix}{name}": tensor for name, tensor in stored.items()}
    if style == "scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(stored, file, metadata)
    return file


def write_gguf(weights, file, encoding, architecture="qwen_image"):
    """Matrices in blocks of this type, as far as their rows have whole blocks, the others in BF16 or F32."""
    kind = GGMLQuantizationType[encoding]
    writer = GGUFWriter(file, architecture)
    for name, weight in weights.items():
        numbers = weight.float().numpy()
        own = GGMLQuantizationType.F32 if weight.dim() < 2 else GGMLQuantizationType.BF16
        if not is_kept(name, weight) and weight.shape[1] % quants.GGML_QUANT_SIZES[kind][0] == 0:
            own = kind
        data = numbers if own is GGMLQuantizationType.F32 else quants.quantize(numbers, own)
        writer.add_tensor(name, numpy.ascontiguousarray(data), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
