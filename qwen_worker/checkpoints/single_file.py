"""A transformer in one file, as ComfyUI's community shares it: safetensors or GGUF, by the file's header alone.

Qwen's own names are diffusers' ones, behind `model.diffusion_model.` perhaps. A weight in fp8 may have a scale beside
it (ComfyUI's `scale_weight`, later `weight_scale`; for activations `scale_input` or `input_scale`, which decoding has
no use for), and the file or the layer says so (`scaled_fp8`, `comfy_quant`, `_quantization_metadata`:
https://github.com/comfyanonymous/ComfyUI/blob/master/QUANTIZATION.md). What cannot be read is refused by the tensor's
name. Knows nothing of torch, of where files come from, nor of which architecture the weights must be of.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ..errors import LoadError
from . import gguf_file
from .encoded import EncodedWeight, first_part
from .files import (
    METADATA,
    SINGLE_FILE,
    SUFFIX,
    Json,
    StoredTensor,
    explain_read_errors,
    read_header,
    read_json,
    stored_tensor,
    stored_tensors,
)

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
SCALES = (".scale_weight", ".weight_scale")
INPUT_SCALES = (".scale_input", ".input_scale")
LAYER_FORMAT = ".comfy_quant"  # JSON beside a layer's weight: {"format": "float8_e4m3fn"}
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
FORMAT_BYTES = 1000
QUANTIZATION = "_quantization_metadata"  # of a safetensors header: the same of all layers, by their names
SCALED_MARK = "scaled_fp8"
# ComfyUI's mark of Edit-2511, whose input pictures are modulated as at timestep 0.
ZERO_TIMESTEP_MARK = "__index_timestep_zero__"
FP8 = tuple(FORMATS.values())
# By safetensors' name of a dtype, what people call it.
WORDS = {
    "BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)",
}  # fmt: skip
FUSED = (".img_mlp.gate_up.weight", (".img_mlp.gate_layer.weight", ".img_mlp.proj.weight"))  # ComfyUI's of 2.1
BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")
# By a pattern of the names, what a file is that holds no transformer which can be read.
OTHERS = {
    r"(^|[._])(lora_[AB]|lora_(down|up)|lora[AB]|lokr_w\d|hada_w\d)|\.alpha$": (
        "a LoRA: name it in QWEN_LORAS or in a job's loras, and a transformer here"
    ),
    r"\.(qweight|wscales|wtscale|smooth_factor(_orig)?)$": "a file of Nunchaku (SVDQuant), which is not read",
    r"\.(absmax|quant_map|quant_state\.bitsandbytes__\w+)$": (
        "a file of bitsandbytes: a folder of the transformer, with its config.json, can be read"
    ),
}


@dataclass(frozen=True)
class SingleFile:
    """What a file's header says. `config`: of the transformer's fields those that the file settles."""

    weights: Mapping[str, EncodedWeight]  # by name, in the order of their bytes
    kind: str  # as "fp8 (e4m3) with scales, bf16"
    config: Json = field(default_factory=dict[str, Any])


def weights_of(folder: Path, component: str) -> Mapping[str, EncodedWeight]:
    """The component's weights by name, in the order of their bytes, also of one that a single file stands for.

    Raises `LoadError`.
    """
    if (folder / component / SINGLE_FILE).is_file():
        return read_linked(folder / component).weights
    tensors = stored_tensors(folder, component)
    return {name: EncodedWeight(name, tensor.shape, tensor.dtype, (tensor,)) for name, tensor in tensors.items()}


def read_linked(place: Path) -> SingleFile:
    """The file that stands for the component in the folder `place`, by its `single_file.json`. Raises `LoadError`."""
    name = read_json(place.parent, f"{place.name}/{SINGLE_FILE}").get("file")
    if not isinstance(name, str) or not (place / name).is_file():
        raise LoadError(f"{place.name}/{SINGLE_FILE} names no file of its folder")
    return read(place / name, name)


def read(file: Path, label: str) -> SingleFile:
    """The transformer in a file, by its header. `label`: the file's name in errors. Raises `LoadError`.

    The header alone is needed: the file may be a sparse one that has nothing else.
    """
    if is_gguf(file, label):
        header = gguf_file.read_header(file, label)
        stored = {tensor.stored.name: tensor for tensor in header.tensors}
        names = plain_names(stored, label, header.architecture)
        weights = [
            EncodedWeight(plain, stored[name].shape, stored[name].encoding, (replace(stored[name].stored, name=plain),))
            for plain, name in names.items()
            if plain != ZERO_TIMESTEP_MARK
        ]
        kind = "GGUF " + ", ".join(by_size(weights))
    else:
        weights, names = safetensors_weights(file, label)
        scaled = " with scales" * any(weight.has_scale for weight in weights)
        kind = ", ".join(WORDS[name] + scaled * (name in FP8) for name in by_size(weights))
    layers = {int(match[1]) for weight in weights if (match := BLOCK.match(weight.name))}
    config: Json = {"num_layers": max(layers, default=-1) + 1}
    if ZERO_TIMESTEP_MARK in names:
        config["zero_cond_t"] = True
    by_name = {part.name: part for weight in weights for part in split_fused(weight)}
    return SingleFile(by_name, kind, config)


def is_gguf(file: Path, label: str) -> bool:
    with explain_read_errors(label), file.open("rb") as stream:
        return stream.read(len(gguf_file.MAGIC)) == gguf_file.MAGIC


def plain_names(names: Iterable[str], label: str, architecture: str = "") -> dict[str, str]:
    """By the names of a transformer's tensors those that the file has for them, behind a prefix perhaps.

    Of a checkpoint that holds other models too, their tensors are left out. Raises `LoadError` for what is no
    transformer of Qwen-Image.
    """
    names = list(names)
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)), "")
    plain = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    for pattern, words in OTHERS.items():
        if found := next((name for name in plain if re.search(pattern, name)), None):
            raise LoadError(f"{label} holds {found[:120]} and is {words}")
    if not any(BLOCK.match(name) for name in plain) or not {"img_in.weight", "proj_out.weight"} <= plain.keys():
        says = f", by its own words of the architecture {architecture}" if architecture else ""
        example = min(plain)[:120] if plain else "no tensors"
        raise LoadError(f"{label} is no transformer of Qwen-Image{says}: it holds {example}")
    return plain


def safetensors_weights(file: Path, label: str) -> tuple[list[EncodedWeight], dict[str, str]]:
    """The weights in a safetensors file, in the order of their bytes, and `plain_names`. Raises `LoadError`."""
    with explain_read_errors(label), file.open("rb") as stream:
        header, data_start = read_header(stream, file.stat().st_size, label)
    metadata = header.pop(METADATA, None)
    names = plain_names(header, label)
    try:
        tensors = {
            plain: replace(stored_tensor(name, file, data_start, header[name]), name=plain)
            for plain, name in names.items()
        }
    except (ValueError, KeyError, TypeError):
        raise LoadError(f"{label} is corrupt: its safetensors header cannot be read") from None
    formats = layer_formats(metadata, tensors, label)
    weights: list[EncodedWeight] = []
    scales = {owner_of(name, SCALES): tensor for name, tensor in tensors.items() if name.endswith(SCALES)}
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        name = tensor.name
        if name in (SCALED_MARK, ZERO_TIMESTEP_MARK) or name.endswith((*SCALES, LAYER_FORMAT)):
            continue
        if name.endswith(INPUT_SCALES):
            require_scale(tensor, (), label)
            continue
        weights.append(encoded(tensor, scales.pop(name, None), formats.get(name), label))
    if scales:
        owner, scale = next(iter(scales.items()))
        raise LoadError(f"{label} holds {scale.name[:120]}, and no {owner[:120]} that it would scale")
    require_all_scaled(weights, label)
    return weights, names


def owner_of(name: str, suffixes: Iterable[str]) -> str:
    """The name of the weight that a tensor beside it belongs to."""
    return next(name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)) + ".weight"


def encoded(tensor: StoredTensor, scale: StoredTensor | None, layer_format: str | None, label: str) -> EncodedWeight:
    """A weight with its scale. Raises `LoadError` naming the tensor where it is not stored as it must be."""
    name = tensor.name
    if tensor.dtype not in WORDS or (layer_format is not None and FORMATS.get(layer_format) != tensor.dtype):
        how = f"by ComfyUI's {layer_format[:40]}" if layer_format else f"as {tensor.dtype[:20]}"
        raise LoadError(
            f"{label} holds {name[:120]} {how}, which is not read; read are {', '.join(WORDS.values())}, in fp8 with "
            "scales too"
        )
    if scale is None:
        return EncodedWeight(name, tensor.shape, tensor.dtype, (tensor,))
    if tensor.dtype not in FP8:
        raise LoadError(f"{label} holds {scale.name[:120]}, where {name[:120]} is {tensor.dtype} and needs no scale")
    require_scale(scale, tensor.shape[:1], label)
    return EncodedWeight(name, tensor.shape, tensor.dtype, (tensor, scale))


def require_scale(scale: StoredTensor, rows: tuple[int, ...], label: str) -> None:
    """Refuse a scale that is neither one number nor one for each row. `rows`: () where it must be one number."""
    possible = {(), (1,), rows, (*rows, 1)} if len(rows) else {(), (1,)}
    if scale.shape not in possible or scale.dtype not in ("F32", "F16", "BF16"):
        have = "x".join(map(str, scale.shape)) or "one number"
        needed = f"one number or {rows[0]} of them, one for each row" if rows else "one number"
        raise LoadError(f"{label} holds {scale.name[:120]} as {scale.dtype[:20]} in the shape {have}, not {needed}")


def require_all_scaled(weights: Iterable[EncodedWeight], label: str) -> None:
    """Refuse matrices in fp8 without a scale where others have one: they would be too large by some factor."""
    matrices = [weight for weight in weights if weight.encoding in FP8 and len(weight.shape) == 2]
    bare = [weight.name for weight in matrices if not weight.has_scale]
    if bare and len(bare) < len(matrices):
        raise LoadError(
            f"{label} holds {bare[0][:120]} in fp8 without a scale, where {len(matrices) - len(bare)} others have one"
        )


def layer_formats(metadata: Any, tensors: Mapping[str, StoredTensor], label: str) -> dict[str, str]:
    """By a weight's name the format that ComfyUI calls its layer's. Raises `LoadError` where that cannot be read.

    It stands in the header, or in a tensor beside the weight, which a sparse file has not: there its bytes are zero.
    """
    formats: dict[str, str] = {}
    text = cast(Json, metadata).get(QUANTIZATION) if isinstance(metadata, dict) else None
    if text is not None:
        try:
            layers: Any = json.loads(text)["layers"]
            for layer, entry in layers.items():
                prefix = next((prefix for prefix in PREFIXES if layer.startswith(prefix)), "")
                name = entry if isinstance(entry, str) else entry["format"]
                formats[f"{layer.removeprefix(prefix)}.weight"] = str(name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LoadError(f"{label} is corrupt: {QUANTIZATION} of its header cannot be read") from None
    beside = [tensor for name, tensor in tensors.items() if name.endswith(LAYER_FORMAT)]
    for tensor in beside:
        with explain_read_errors(label), tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            content = stream.read(min(tensor.size, FORMAT_BYTES))
        if not content.strip(b"\0"):
            continue
        try:
            name = json.loads(content)["format"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LoadError(f"{label} is corrupt: {tensor.name[:120]} cannot be read") from None
        formats[owner_of(tensor.name, (LAYER_FORMAT,))] = str(name)
    return formats


def split_fused(weight: EncodedWeight) -> list[EncodedWeight]:
    """The weights that ComfyUI stores as one: the gate's rows, then those of the projection. Else the weight alone."""
    fused, (gate, projection) = FUSED
    if not weight.name.endswith(fused):
        return [weight]
    rows, stem = weight.shape[0], weight.name.removesuffix(fused)
    halves: list[EncodedWeight] = []
    for name, start in ((stem + gate, 0), (stem + projection, rows // 2)):
        tensors = [
            first_part(tensor, rows, rows // 2, start) if tensor.shape[:1] == (rows,) else tensor
            for tensor in weight.tensors
        ]
        named = tuple(replace(tensor, name=name + ".scale" * place) for place, tensor in enumerate(tensors))
        halves.append(EncodedWeight(name, (rows // 2, *weight.shape[1:]), weight.encoding, named))
    return halves


def by_size(weights: Iterable[EncodedWeight]) -> list[str]:
    """The encodings, that of the most bytes first."""
    sizes: Counter[str] = Counter()
    for weight in weights:
        sizes[weight.encoding] += weight.tensors[0].size
    return [encoding for encoding, _ in sizes.most_common()]


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file which may hold a transformer."""
    return name.lower().endswith((SUFFIX, gguf_file.SUFFIX))
