"""Distils a LoRA that draws in 4 steps at guidance 1 what the base draws in many at guidance 4.

The teacher's paths from noise to picture are walked once; the adapter learns the straight jumps between the four
noise levels of Qwen-Image-Lightning's schedule. Its file has Lightning's layout: 12 modules a block, no modulation.
Knows nothing about the VAE.
"""

import random

import torch
from safetensors.torch import save_file

from . import dataset, flow, text

LEVELS = (1.0, 0.9, 0.75, 0.5, 0.0)  # 4 even steps shifted by 3
# The scheduler's settings for those levels, as Lightning sets them: base_shift and max_shift are ln 3.
SCHEDULER = {"base_shift": 1.0986122886681098, "max_shift": 1.0986122886681098, "shift_terminal": None}
GUIDANCE = 4.0
TEACHER_STEPS = 6  # for each jump
RANK = 16
PATHS = 64  # batches of them
SIZES = ((256, 256), (256, 256), (384, 256), (256, 384), (512, 512))
MODULES = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip


def add_adapter(transformer):
    """Put the trainable adapter on every block; returns its parameters."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    names = [f"transformer_blocks.{i}.{m}" for i in range(len(transformer.transformer_blocks)) for m in MODULES]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    return [p for p in transformer.parameters() if p.requires_grad]


def paths(transformer, tokenizer, text_encoder, seed):
    """Batches of the teacher's paths: each (size, states at LEVELS (5, B, N, 64), embeddings, mask)."""
    walked = []
    for index in range(PATHS):
        rng = random.Random(f"{seed} paths {index}")
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        size = rng.choice(SIZES)
        batch = max(2, flow.TOKENS_AT_ONCE["cpu"] // (size[0] * size[1] // 1024))
        prompts = [dataset.describe(rng, dataset.training_scene(rng))[0] for _ in range(batch)]
        with torch.no_grad(), flow.quick(transformer.device, size):
            walked.append((size, *_walk(transformer, tokenizer, text_encoder, prompts, size, generator)))
    return walked


def loss(transformer, walked, step, seed):
    """Squared error of one batch's velocities against the teacher's jumps; every picture at a random level."""
    rng = random.Random(f"{seed} jumps {step}")
    size, states, embeddings, mask = rng.choice(walked)
    count = states.shape[1]
    levels = torch.tensor(LEVELS, device=states.device)
    here = torch.tensor([rng.randrange(len(LEVELS) - 1) for _ in range(count)], device=states.device)
    each = torch.arange(count, device=states.device)
    gap = (levels[here + 1] - levels[here]).view(-1, 1, 1)
    wanted = (states[here + 1, each] - states[here, each]) / gap
    with flow.quick(states.device, size):
        velocity = flow.predict(transformer, states[here, each], levels[here], embeddings, mask, [flow.shape(*size)])
    value = (velocity.float() - wanted).square().mean()
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


def _walk(transformer, tokenizer, text_encoder, prompts, size, generator):
    device = next(transformer.parameters()).device
    asked = _embed(tokenizer, text_encoder, prompts, device)
    empty = _embed(tokenizer, text_encoder, [" "] * len(prompts), device)
    latents = torch.randn((len(prompts), size[0] * size[1] // 1024, 64), generator=generator).to(device)
    states = [latents]
    for start, end in zip(LEVELS[:-1], LEVELS[1:], strict=True):
        gap = (end - start) / TEACHER_STEPS
        for i in range(TEACHER_STEPS):
            sigma = torch.full((len(prompts),), start + i * gap, device=device)
            latents = latents + gap * _guided(transformer, latents, sigma, asked, empty, size)
        states.append(latents)
    return torch.stack(states), *asked


def _guided(transformer, latents, sigma, asked, empty, size):
    """True CFG with the pipelines' rescaling to the conditional prediction's norm."""
    with_prompt = flow.predict(transformer, latents, sigma, *asked, [flow.shape(*size)])
    without = flow.predict(transformer, latents, sigma, *empty, [flow.shape(*size)])
    combined = without + GUIDANCE * (with_prompt - without)
    return combined * (with_prompt.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


def _embed(tokenizer, text_encoder, prompts, device):
    return text.embed(text_encoder, text.on(text.tokens(tokenizer, prompts), device), "generate")
