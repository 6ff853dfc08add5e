"""Checkpoints of the released architecture with random weights: everything real but the picture.

Sizes, dtypes, layers and shards are those of Qwen/Qwen-Image and Qwen/Qwen-Image-Edit; the tokenizer is the tiny
checkpoint's, its special tokens entered in the text encoder's config. Takes 57.7 GB: the edit folder is made of hard
links. Written shard by shard, and gone on with where an earlier call was ended. Beside them a few-step LoRA to time
preset `fast` with: random weights in Lightning's layout, which draw nothing of use and cost what any of their rank and
layers do. Imports torch inside functions.
"""

import argparse
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qwen_worker.errors import LoadError
from qwen_worker.lora.architectures import BLOCK_LAYERS
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Machine, free_disk_bytes

TINY = Path(__file__).parents[2] / "models/tiny-qwen-image"
NAME = "full size, random weights"
TEXT = {
    "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128_000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
SEEN_PIXELS = {"shortest_edge": 3136, "longest_edge": 12_845_056}  # of the released image processor
SHARD_BYTES = 5_000_000_000
RANDOM_BYTES = 1 << 27
WRITERS = 4
DEVIATION = 0.02  # of the random weights, as such models are initialised
FEW_STEP = "few-step/random-8steps.safetensors"
RANK = 64  # of the published few-step LoRAs
LAYERS = [layer for layer in BLOCK_LAYERS if "_mod" not in layer]  # that they change, in every block


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--full-size",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="serve the released architecture with random weights (57.7 GB), written to the first folder with room",
    )
    parser.add_argument("--tiny", action="store_true", help="serve the tiny checkpoint on the GPU, to try the command")


def folder_for(options: argparse.Namespace, real: Machine) -> tuple[Path | None, str]:
    """(the folder with the checkpoints to serve on this machine's GPU, empty) or (None, why there is none)."""
    if real.gpu is None:
        return None, "there is no GPU here"
    if options.tiny:
        return TINY, ""
    if not options.full_size:
        return None, "no --full-size folder was named"
    try:
        return (None, "only listed") if options.list else (ready_folder(options.full_size), "")
    except LoadError as refused:
        return None, refused.reason


def ready_folder(folders: list[Path]) -> Path:
    """The first folder that holds the checkpoints; else they are written to the first with room for them.

    Raises `LoadError` where no folder has room.
    """
    for folder in folders:
        if (folder / "edit").exists():
            return folder
    models = empty_models()
    needed = sum(tensor.numel() * 2 for model in models.values() for tensor in model.state_dict().values())
    refusals = []
    for folder in folders:
        held = sum(file.stat().st_size for file in folder.rglob("generate/*/*.safetensors"))
        try:
            placement.require_disk("the full-size checkpoint", max(0, needed - held), free_disk_bytes(folder))
        except LoadError as refused:
            refusals.append(refused.reason)
            continue
        write_checkpoints(folder, models)
        return folder
    raise LoadError("; ".join(refusals))


def write_checkpoints(folder: Path, models: dict[str, Any]) -> None:
    """Write `folder/generate` and, last, `folder/edit`: where `edit` is, both are whole."""
    generate = folder / "generate"
    skip = shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")
    shutil.copytree(TINY / "generate", generate, ignore=skip, dirs_exist_ok=True)
    pool, shards = random_pool(), []
    for name, model in models.items():
        config = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
        text = json.dumps(config | {"_class_name": type(model).__name__})
        (generate / name / "config.json").write_text(text)
        shards += plan_shards(generate / name, model.state_dict())
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(lambda shard: write_shard(*shard, pool), shards))
    edit = folder / "edit.partial"
    shutil.rmtree(edit, ignore_errors=True)
    shutil.copytree(generate, edit, copy_function=os.link)
    shutil.copytree(TINY / "edit/processor", edit / "processor")
    (edit / "model_index.json").unlink()
    shutil.copy(TINY / "edit/model_index.json", edit / "model_index.json")
    see_whole_pictures(edit / "processor")
    edit.rename(folder / "edit")


def random_pool() -> Any:
    """The random numbers that the weights are cut from."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.empty(RANDOM_BYTES // 2).normal_(0, DEVIATION, generator=generator).bfloat16()


def empty_models(layers: dict[str, dict] | None = None) -> dict[str, Any]:
    """The three models by component, without memory for weights. `layers`: sizes that differ from the released."""
    import diffusers
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    layers = layers or {}
    text, vision = TEXT | layers.get("text", {}), VISION | layers.get("vision", {})
    tiny = json.loads((TINY / "generate/text_encoder/config.json").read_text())
    # The ids by which the tiny checkpoint's tokenizer marks pictures in a text.
    ids = {name: tiny[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    with init_empty_weights():
        return {
            "transformer": diffusers.QwenImageTransformer2DModel(**layers.get("transformer", {})),
            "vae": diffusers.AutoencoderKLQwenImage(**layers.get("vae", {})),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        }


def see_whole_pictures(folder: Path) -> None:
    """Let the processor in the folder take as many pixels as the released one, not as few as the tiny checkpoint's."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_text())
            config.get("image_processor", config)["size"] = SEEN_PIXELS
            (folder / name).write_text(json.dumps(config))


def plan_shards(folder: Path, tensors: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """(file, its tensors) for each shard; where there are several, the index that names them is written."""
    shards: list[dict[str, Any]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and 2 * (tensor.numel() + sum(held.numel() for held in shards[-1].values())) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    stem = "model" if folder.name == "text_encoder" else "diffusion_pytorch_model"
    if len(shards) == 1:
        return [(folder / f"{stem}.safetensors", shards[0])]
    files = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(2 * tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return [(folder / file, shard) for file, shard in zip(files, shards, strict=True)]


def write_shard(path: Path, tensors: dict[str, Any], pool: Any) -> None:
    """Write a safetensors file in bfloat16, unless it is there: norms are 1, biases 0, the rest is cut from `pool`."""
    import torch

    if path.exists():
        return
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in tensors.items():
            norm = "gamma" in name or ("norm" in name and tensor.dim() == 1)
            for start in range(0, tensor.numel(), pool.numel()):
                piece = pool[: min(pool.numel(), tensor.numel() - start)]
                if name.endswith("bias") or norm:
                    piece = torch.full_like(piece, float(norm and not name.endswith("bias")))
                stream.write(memoryview(piece.view(torch.uint8).numpy()))
        stream.flush()
        os.fsync(stream.fileno())  # for cold reads: the page cache drops only pages that are on the disk
    partial.rename(path)


def lora_for(folder: Path) -> Path:
    """The few-step LoRA for the checkpoints below the folder: the tiny one's own, or random weights, written once."""
    if folder == TINY:
        return folder / "few-step/tiny-qwen-image-4steps.safetensors"
    file = folder / FEW_STEP
    if not file.exists():
        write_lora(folder / "generate/transformer", file)
    return file


def write_lora(transformer: Path, file: Path) -> None:
    import torch
    from accelerate import init_empty_weights
    from diffusers import QwenImageTransformer2DModel
    from safetensors.torch import save_file

    with init_empty_weights():
        model = QwenImageTransformer2DModel.from_config(QwenImageTransformer2DModel.load_config(transformer))
    generator, tensors = torch.Generator().manual_seed(0), {}
    for block in range(len(model.transformer_blocks)):
        for layer in LAYERS:
            name = f"transformer_blocks.{block}.{layer}"
            linear = model.get_submodule(name)
            for part, shape in (("down", (RANK, linear.in_features)), ("up", (linear.out_features, RANK))):
                weights = torch.empty(shape, dtype=torch.bfloat16).normal_(0, DEVIATION, generator=generator)
                tensors[f"{name}.lora_{part}.weight"] = weights
    file.parent.mkdir(exist_ok=True)
    save_file(tensors, file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)
