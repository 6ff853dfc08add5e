"""Distils a LoRA that draws in 4 steps at guidance 1 what the base draws in many at guidance 4.

The teacher's paths from noise to picture are walked once; the adapter learns the straight jumps between the four
noise levels of Qwen-Image-Lightning's schedule. Its file has Lightning's layout: 12 modules a block, no modulation.
Knows nothing about the VAE.
"""

import random
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

from ..training import auxiliary as hints
from ..training import forward
from ..world import tasks as dataset
from . import transformer as flow

LEVELS = (1.0, 0.9, 0.75, 0.5, 0.0)  # 4 even steps shifted by 3
# The scheduler's settings for those levels, as Lightning sets them: base_shift and max_shift are ln 3.
SCHEDULER = {"base_shift": 1.0986122886681098, "max_shift": 1.0986122886681098, "shift_terminal": None}
GUIDANCE = 4.0
TEACHER_STEPS = 6  # for each jump
RANK = 16
PATHS = 96  # batches of them, over the sizes by their shares
TOKENS_OF_A_PATH = 2048
MODULES = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip


@dataclass(frozen=True)
class Walked:
    """A batch of the teacher's paths."""

    size: flow.Size
    states: torch.Tensor  # (5, B, N, 64): latents at LEVELS
    prompt: torch.Tensor  # (B, T, 128)
    mask: torch.Tensor  # (B, T)
    outlines: torch.Tensor  # (B, N) bool


def add_adapter(transformer):
    """Put the trainable adapter on every block; returns its parameters."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    names = [f"transformer_blocks.{i}.{m}" for i in range(len(transformer.transformer_blocks)) for m in MODULES]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    return [p for p in transformer.parameters() if p.requires_grad]


def paths(transformer, reader, seed):
    """Batches of the teacher's paths; `reader` is a `text.Embedder`."""
    shares = [size.share for size in flow.GENERATE_SIZES]
    walked = []
    for index in range(PATHS):
        rng = random.Random(f"{seed} paths {index}")
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        size = rng.choices(flow.GENERATE_SIZES, shares)[0]
        with torch.no_grad():
            walked.append(_walk(transformer, reader, size, rng, generator))
    return walked


def loss(transformer, walked, step, seed):
    """Squared error of one batch's velocities against the teacher's jumps; every picture at a random level."""
    rng = random.Random(f"{seed} jumps {step}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    path = rng.choice(walked)
    count, total = path.states.shape[1:3]
    levels, each = torch.tensor(LEVELS), torch.arange(count)
    here = torch.randint(len(LEVELS) - 1, (count,), generator=generator)
    gap = (levels[here + 1] - levels[here]).view(-1, 1, 1)
    near = path.outlines & (levels[here] < flow.CLEAR).unsqueeze(-1)
    chosen, counts = flow.choose(near, min(total, path.size.tokens), generator)
    start, end = (flow.take(path.states[level, each], chosen) for level in (here, here + 1))
    shapes = [flow.shape(path.size.width, path.size.height)]
    places = forward.Places.of(transformer, shapes, path.mask.shape[1], chosen, counts)
    device = transformer.device
    moved = (one.to(device) for one in (start, levels[here], path.prompt, path.mask, places))
    with torch.autocast(device.type, torch.bfloat16):
        velocity, _ = forward.velocity(transformer, *moved)
    value = (velocity - ((end - start) / gap).to(device)).square().mean()
    return value, value.item()


def save(transformer, path):
    """Write the adapter with Lightning's names: `<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    tensors = {}
    for name, parameter in transformer.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            module, kind = name.split(".lora_")
            way = "down" if kind.startswith("A") else "up"
            tensors[f"{module}.lora_{way}.weight"] = parameter.detach().bfloat16().cpu().contiguous()
            tensors[f"{module}.alpha"] = torch.tensor(float(RANK), dtype=torch.bfloat16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _walk(transformer, reader, size, rng, generator):
    rows, columns = flow.shape(size.width, size.height)[1:]
    count = max(1, TOKENS_OF_A_PATH // (rows * columns))
    scenes = [dataset.training_scene(rng) for _ in range(count)]
    asked = reader.prompts([dataset.describe(rng, scene)[0] for scene in scenes])
    empty = reader.prompts([" "] * count)
    latents = torch.randn((count, rows * columns, 64), generator=generator)
    states = [latents]
    for start, end in zip(LEVELS[:-1], LEVELS[1:], strict=True):
        gap = (end - start) / TEACHER_STEPS
        for index in range(TEACHER_STEPS):
            sigma = torch.full((count,), start + index * gap)
            latents = latents + gap * _guided(transformer, latents, sigma, asked, empty, size)
        states.append(latents)
    outlines = torch.stack([hints.outlines(scene, size.width, size.height) for scene in scenes])
    return Walked(size, torch.stack(states), asked[0].float(), asked[1], outlines)


def _guided(transformer, latents, sigma, asked, empty, size):
    """True CFG with the pipelines' rescaling to the conditional prediction's norm."""
    shapes = [[flow.shape(size.width, size.height)]] * len(latents)
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
            for states, mask in (asked, empty)
        )  # fmt: skip
    combined = without + GUIDANCE * (with_prompt - without)
    return combined * (with_prompt.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
