"""A few-step LoRA to time preset `fast` with: the tiny checkpoint's own, or random weights in Lightning's layout.

It draws nothing of use, and costs what any of its rank and layers does. Imports torch inside functions.
"""

from pathlib import Path

from qwen_worker.lora_names import BLOCK_LAYERS

from .full_size import DEVIATION, TINY

FILE = "few-step/random-8steps.safetensors"
RANK = 64  # of the published ones
LAYERS = [layer for layer in BLOCK_LAYERS if "_mod" not in layer]  # that they change, in every block


def lora_for(folder: Path) -> Path:
    """The LoRA for the checkpoints below the folder, written there at first."""
    if folder == TINY:
        return folder / "few-step/tiny-qwen-image-4steps.safetensors"
    file = folder / FILE
    if not file.exists():
        write(folder / "generate/transformer", file)
    return file


def write(transformer: Path, file: Path) -> None:
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
