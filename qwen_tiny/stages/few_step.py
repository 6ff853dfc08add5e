"""Distils a LoRA that draws in 4 steps at guidance 1 what the base draws in many at guidance 4.

The teacher's paths from noise to picture are walked once; the adapter learns the straight jumps between the four
noise levels of Qwen-Image-Lightning's schedule. Its file has Lightning's layout: 12 modules a block, no modulation.
Knows nothing about the VAE.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from ..training import auxiliary, forward
from ..world import tasks
from .pools import Size
from .transformer import CLEAR_BELOW, choose_tokens, gather_tokens, token_shape

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

    from .text_encoder import Embedder

LEVELS = (1.0, 0.9, 0.75, 0.5, 0.0)  # 4 even steps shifted by 3
# The scheduler's settings for those levels, as Lightning sets them: base_shift and max_shift are ln 3.
SCHEDULER = {"base_shift": 1.0986122886681098, "max_shift": 1.0986122886681098, "shift_terminal": None}
GUIDANCE = 4.0
TEACHER_STEPS = 6  # for each jump
RANK = 16
PATHS = 96  # batches of them, over the sizes by their shares
TOKENS_AT_ONCE = 2048  # of a batch of paths
MODULES = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip


@dataclass(frozen=True)
class TeacherPaths:
    """A batch of the teacher's paths."""

    size: Size
    states: torch.Tensor  # (5, B, N, 64): latents at LEVELS
    prompt: torch.Tensor  # (B, T, 128)
    mask: torch.Tensor  # (B, T)
    outlines: torch.Tensor  # (B, N) bool


def add_adapter(transformer: "QwenImageTransformer2DModel") -> list[torch.nn.Parameter]:
    """Put the trainable adapter on every block; returns its parameters."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    blocks = range(len(transformer.transformer_blocks))
    names = [f"transformer_blocks.{block}.{module}" for block in blocks for module in MODULES]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def walk_paths(
    transformer: "QwenImageTransformer2DModel", embedder: "Embedder", sizes: Sequence[Size], seed: int
) -> list[TeacherPaths]:
    """`PATHS` batches of the teacher's paths, of random `sizes`."""
    shares = [size.share for size in sizes]
    paths = []
    for index in range(PATHS):
        rng = Random(f"{seed} paths {index}")
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        size = rng.choices(sizes, shares)[0]
        with torch.no_grad():
            paths.append(_walk_batch(transformer, embedder, size, rng, generator))
    return paths


def loss(
    transformer: "QwenImageTransformer2DModel", paths: Sequence[TeacherPaths], step: int, seed: int
) -> tuple[torch.Tensor, float]:
    """Squared error of one batch's velocities against the teacher's jumps, every picture at a random level.

    The loss twice: a scalar to go down, and a float to show.
    """
    rng = Random(f"{seed} jumps {step}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    path = rng.choice(paths)
    count, total = path.states.shape[1:3]
    levels, each = torch.tensor(LEVELS), torch.arange(count)
    level = torch.randint(len(LEVELS) - 1, (count,), generator=generator)
    gap = (levels[level + 1] - levels[level]).view(-1, 1, 1)
    outlines = path.outlines & (levels[level] < CLEAR_BELOW).unsqueeze(-1)
    chosen, log_counts = choose_tokens(outlines, min(total, path.size.tokens), generator)
    start, end = (gather_tokens(path.states[index, each], chosen) for index in (level, level + 1))
    shapes = [token_shape(path.size.width, path.size.height)]
    places = forward.TokenPlaces.build(transformer, shapes, path.mask.shape[1], chosen, log_counts)
    device = transformer.device
    inputs = (value.to(device) for value in (start, levels[level], path.prompt, path.mask, places))
    with torch.autocast(device.type, torch.bfloat16):
        velocity, _ = forward.velocity(transformer, *inputs)
    value = (velocity - ((end - start) / gap).to(device)).square().mean()
    return value, value.item()


def save(transformer: "QwenImageTransformer2DModel", path: Path) -> None:
    """Write the adapter with Lightning's names: `<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    tensors = {}
    for name, parameter in transformer.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            module, kind = name.split(".lora_")
            direction = "down" if kind.startswith("A") else "up"
            tensors[f"{module}.lora_{direction}.weight"] = parameter.detach().bfloat16().cpu().contiguous()
            tensors[f"{module}.alpha"] = torch.tensor(float(RANK), dtype=torch.bfloat16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _walk_batch(
    transformer: "QwenImageTransformer2DModel",
    embedder: "Embedder",
    size: Size,
    rng: Random,
    generator: torch.Generator,
) -> TeacherPaths:
    _, rows, columns = token_shape(size.width, size.height)
    count = max(1, TOKENS_AT_ONCE // (rows * columns))
    drawn = [tasks.training_scene(rng) for _ in range(count)]
    prompts = embedder.embed_prompts([tasks.describe(rng, scene)[0] for scene in drawn])
    empty = embedder.embed_prompts([" "] * count)
    latents = torch.randn((count, rows * columns, 64), generator=generator)
    states = [latents]
    for start, end in zip(LEVELS[:-1], LEVELS[1:], strict=True):
        gap = (end - start) / TEACHER_STEPS
        for index in range(TEACHER_STEPS):
            sigma = torch.full((count,), start + index * gap)
            latents = latents + gap * _guided_velocity(transformer, latents, sigma, prompts, empty, size)
        states.append(latents)
    outlines = torch.stack([auxiliary.outline_tokens(scene, size.width, size.height) for scene in drawn])
    return TeacherPaths(size, torch.stack(states), prompts[0].float(), prompts[1], outlines)


def _guided_velocity(
    transformer: "QwenImageTransformer2DModel",
    latents: torch.Tensor,
    sigma: torch.Tensor,
    prompts: tuple[torch.Tensor, torch.Tensor],
    empty: tuple[torch.Tensor, torch.Tensor],
    size: Size,
) -> torch.Tensor:
    """True CFG with the pipelines' rescaling to the conditional prediction's norm, (B, N, 64) on the CPU.

    `prompts` and `empty`: states and mask, as an `Embedder` gives them.
    """
    shapes = [[token_shape(size.width, size.height)]] * len(latents)
    with torch.autocast(transformer.device.type, torch.bfloat16):
        with_prompt, without = (
            transformer(
                hidden_states=latents.to(transformer.device),
                timestep=sigma.to(transformer.device),
                encoder_hidden_states=states.float().to(transformer.device),
                encoder_hidden_states_mask=mask.to(transformer.device),
                img_shapes=shapes,
                return_dict=False,
            )[0].float().cpu()
            for states, mask in (prompts, empty)
        )  # fmt: skip
    combined = without + GUIDANCE * (with_prompt - without)
    return combined * (with_prompt.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
