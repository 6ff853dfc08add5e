"""Stock diffusers pipelines, loaded as its documentation says: resident, offloaded by model or layer; or beside ours.

The memory of each way is computed from the parameter counts that placement uses. Imports torch inside functions.
"""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_worker.checkpoints.files import read_json, shards
from qwen_worker.memory.footprint import CONTEXT_BYTES, GIB, MEGAPIXEL, UNALLOCATED_BYTES, Model, Plan
from qwen_worker.model_settings import Precision

RESIDENT, BY_MODEL, BY_LAYER = "resident", "offloaded by model", "offloaded by layer"


def peaks(model: Model, side: int, images: int) -> dict[str, int]:
    """The predicted peak in bytes of each way, the fastest first. None of our worker's savings counts: stock has none.

    The job is `side` pixels square and has `images` input pictures.
    """
    whole = Plan("cuda", Precision.BF16, (replace(model, shared=()),))
    pixels, need = side * side / MEGAPIXEL, model.working
    denoise = need.denoise_edit * (pixels + images) if images else need.denoise * pixels
    vae = max(need.decode * pixels, need.encode * images)
    sizes = {name: 2 * count for name, count in model.parameters.items()}
    by_model = max(sizes["transformer"] + denoise * GIB, sizes["vae"] + vae * GIB, sizes["text_encoder"])
    beside = CONTEXT_BYTES + UNALLOCATED_BYTES
    largest_layer = 2 * model.parts.get("embedding", 0)
    return {
        RESIDENT: whole.peak_bytes(side, side, images),
        BY_MODEL: round(beside + by_model),
        BY_LAYER: round(beside + max(largest_layer, max(denoise, vae) * GIB)),
    }


def load(folder: Path, device: str, way: str) -> Any:
    """The checkpoint's own pipeline, in bfloat16 on CUDA and float32 on a CPU."""
    import diffusers
    import torch

    options = {"dtype": torch.bfloat16 if device == "cuda" else torch.float32, "local_files_only": True}
    if way == RESIDENT:
        return diffusers.DiffusionPipeline.from_pretrained(folder, device_map=device, **options)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    if way == BY_MODEL:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def load_beside(pipe: Any, folder: Path, device: str) -> Any:
    """A stock pipeline on the device that shares the weights of `pipe`, ours, where both have them: both fit one card.

    Weights that ours has dropped are read from the checkpoint. A component whose weights ours holds in another form
    (quantized, on another device) is loaded whole, and so is the VAE: ours has another shape.
    """
    import diffusers
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    kinds = read_json(folder, "model_index.json")
    shared = {}
    for name in ("transformer", "text_encoder"):
        library, class_name = kinds[name]
        kind = getattr(importlib.import_module(library), class_name)
        if (twin := twin_of(getattr(pipe, name), kind, folder / name, device)) is not None:
            shared[name] = twin
    return diffusers.DiffusionPipeline.from_pretrained(
        folder, dtype=dtype, device_map=device, local_files_only=True, **shared
    )


def twin_of(module: Any, kind: type, folder: Path, device: str) -> Any:
    """A module of the class `kind` around the weights of `module`; None where they cannot be shared.

    `folder`: the component's, from which weights are read that `module` has not.
    """
    from accelerate import init_empty_weights

    held = dict(module.named_parameters()) | dict(module.named_buffers())
    with init_empty_weights():
        twin = kind(module.config) if hasattr(module.config, "to_dict") else kind.from_config(module.config)
    wanted = twin.state_dict()
    plain = [value for name, value in held.items() if name in wanted]
    if not plain or any(tensor.device.type != device or type(tensor.data).__name__ != "Tensor" for tensor in plain):
        return None
    state = {name: held[name].data for name in wanted if name in held and held[name].shape == wanted[name].shape}
    missing = [name for name in wanted if name not in state]
    if missing:
        stored = stored_tensors(folder, missing)
        if stored is None:
            return None
        state |= {name: value.to(device, plain[0].dtype) for name, value in stored.items()}
    twin.load_state_dict(state, assign=True)
    return twin.to(device).eval().requires_grad_(False)


def stored_tensors(folder: Path, names: list[str]) -> dict[str, Any] | None:
    """The tensors of these names in a component's files; None where a name is not there."""
    from safetensors import safe_open

    stored = {}
    for file in shards(folder.parent, folder.name):
        with safe_open(file, "pt") as stream:
            stored |= {name: stream.get_tensor(name) for name in set(names) & set(stream.keys())}
    return stored if len(stored) == len(names) else None
