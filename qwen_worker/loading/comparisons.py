"""Each optimisation of a loaded transformer beside the plain way, on the loaded weights: how far apart the results are.

A comparison computes what a job of 64 picture tokens would, with one block of the transformer, so that the figures of
5 blocks and of 60 mean the same. It changes nothing that outlives it. Where the plain way needs weights that were not
loaded, those rows alone are read from the checkpoint's folder. `component_comparisons.py` has VAE and text
encoder.

Imports torch and diffusers: import it inside functions. Knows nothing of when comparisons are made, or of what follows.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..lora.adapters import Adapters
from ..lora.file import LoraUse, open_lora
from ..lora.ranks import RANK_MULTIPLE
from ..model.modulation import STREAMS, ModulationTable, bfloat16_timesteps, parameter_names
from ..model.quantization import is_matrix
from ..model_settings import Precision, Speedup
from ..speed import guidance
from ..speed.attention import RealRotary
from ..speed.compiled import SHORT_TEXT
from .subject import FEATURES, Subject
from .tolerances import COPY, MATRIX, ROW, distance, pass_tolerance

PICTURE_TOKENS, SIDE = 64, 8  # a pass's picture: 128 x 128 pixels by a VAE that compresses eightfold
SAMPLED = 4096  # numbers of a tensor that are compared, at its beginning and at its end
TIMESTEPS = (0.0, 1.0, 20.0, 137.0, 250.0, 500.0, 712.0, 1000.0)  # whose rows are compared, the table's ends among them
TEXT_TOKENS = 20  # more than the few rows for which INT8 has code of its own
RANK = 4

Inputs = dict[str, Any]


class Result(NamedTuple):
    distance: float
    tolerance: float


def compare_table(subject: Subject) -> Result | None:
    """Every block's rows as a pass looks them up, beside the first outputs of its modulation layers."""
    table = cast(ModulationTable, subject.table)
    blocks = subject.transformer.transformer_blocks
    layers = [(block, stream) for block in range(len(blocks)) for stream in range(len(STREAMS))]
    weights = subject.read_first_rows(name for layer in layers for name in parameter_names(*layer))
    if len(weights) < 2 * len(layers):
        return None  # a prepared checkpoint has the rows alone
    timesteps = torch.tensor(TIMESTEPS).to(subject.plan.device, subject.dtype) / 1000
    if subject.dtype is torch.bfloat16:
        require_listed(timesteps)
    conditions = [torch.nn.functional.silu(table.embed(value.view(1))) for value in timesteps]
    conditions = torch.cat(conditions).float()  # (timesteps, dim)
    table.prepare(timesteps)
    table.choose_rows(timesteps)
    apart: list[float] = []
    for number, stream in layers:
        _, kwargs = table.replace_temb(number, blocks[number], (), {})
        rows = getattr(blocks[number], STREAMS[stream])(kwargs["temb"])[:, :FEATURES]  # (timesteps, FEATURES)
        weight, bias = (weights[name] for name in parameter_names(number, stream))
        plain = torch.nn.functional.linear(conditions, weight, bias)
        apart += [distance(*pair) for pair in zip(rows, plain, strict=True)]
    return Result(furthest(apart), ROW[subject.dtype])


def require_listed(timesteps: torch.Tensor) -> None:
    """Raises `ValueError` where a pipeline could not ask for one of these."""
    if not torch.isin(timesteps.cpu(), bfloat16_timesteps()).all():
        raise ValueError("the timesteps of the self-check are none of bfloat16's")


def pass_inputs(subject: Subject, rows: int = 1, tokens: int = TEXT_TOKENS, seed: int = 0) -> Inputs:
    """What a pass gets: noise, and text of `tokens` tokens, of which all rows but the first end early."""
    config = subject.transformer.config
    half = (1, SIDE, SIDE // 2)
    shapes = [half, half] if subject.edits else [(1, SIDE, SIDE)]
    mask = torch.ones(rows, tokens, dtype=torch.bool, device=subject.plan.device)
    mask[1:, -3:] = False
    second = subject.second_input(rows)
    return ({} if second is None else {"additional_t_cond": second}) | {
        "hidden_states": subject.random(rows, PICTURE_TOKENS, config.in_channels, seed=seed),
        "encoder_hidden_states": subject.random(rows, tokens, config.joint_attention_dim, seed=seed + 1),
        "encoder_hidden_states_mask": mask if rows > 1 else None,
        "timestep": torch.full((rows,), 500.0).to(subject.plan.device, subject.dtype) / 1000,
        "img_shapes": [shapes] * rows,
        "attention_kwargs": {},
        "guidance": None,
        "return_dict": False,
    }


@contextmanager
def blocks_replaced(subject: Subject, *blocks: torch.nn.Module) -> Iterator[None]:
    """Within, the transformer has these blocks in place of its own, uncompiled, and the table's rows are there.

    The table's rows stay those of the timestep that `pass_inputs` names until the next schedule.
    """
    transformer, own = subject.transformer, subject.transformer.transformer_blocks
    if subject.table:
        subject.table.prepare(pass_inputs(subject)["timestep"])
    transformer.transformer_blocks = torch.nn.ModuleList(blocks)
    try:
        with subject.speed.blocks.pause() if subject.speed.blocks else nullcontext():
            yield
    finally:
        transformer.transformer_blocks = own


class Recorder(torch.nn.Module):
    """Stands where a block stood: keeps what it gets, and passes it on as it came."""

    def forward(self, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.inputs = inputs
        return inputs["encoder_hidden_states"], inputs["hidden_states"]


def block_inputs(subject: Subject, rows: int = 1, tokens: int = TEXT_TOKENS) -> Inputs:
    """What the first block gets in a pass."""
    recorder = Recorder()
    with blocks_replaced(subject, recorder):
        subject.transformer(**pass_inputs(subject, rows, tokens))
    if subject.table:
        return subject.table.replace_temb(0, recorder, (), recorder.inputs)[1]
    return recorder.inputs


def joined(results: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([result.flatten() for result in results])


def furthest(distances: Iterable[float]) -> float:
    """The largest, NaN where one is."""
    found = list(distances)
    return math.nan if any(map(math.isnan, found)) else max(found)


def passes(subject: Subject) -> list[tuple[int, int]]:
    """(rows, tokens of text) of the passes that jobs are drawn by: alone, sharing a pass, with a short prompt."""
    short = [(1, SHORT_TEXT)] if subject.plan.precision is Precision.INT8 and not subject.edits else []
    shared = [(2, TEXT_TOKENS)] if subject.speed.has(Speedup.GUIDANCE) and not subject.edits else []
    return [(1, TEXT_TOKENS), *shared, *short]


def compare_compiled(subject: Subject) -> Result | None:
    """A block's compiled code beside the code that it was compiled from."""
    blocks = subject.speed.blocks
    if blocks is None:
        return None
    block, apart = subject.transformer.transformer_blocks[0], []
    with subject.drawn_with():
        for rows, tokens in passes(subject):
            inputs = block_inputs(subject, rows, tokens)
            ours = joined(block(**inputs))
            with blocks.pause():
                apart.append(distance(ours, joined(block(**inputs))))
    return Result(furthest(apart), pass_tolerance(subject.plan))


def attention_inputs(inputs: Inputs) -> Inputs:
    """What a block's attention is given to compare it, from what its block gets."""
    names = ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "image_rotary_emb")
    return {name: inputs[name] for name in names}


def compare_rotary(subject: Subject) -> Result:
    """Our attention processor beside stock's, which multiplies complex numbers."""
    attention = subject.transformer.transformer_blocks[0].attn
    rotary, stock = cast(RealRotary, subject.transformer.pos_embed), QwenDoubleStreamAttnProcessor2_0()
    given, shapes = attention_inputs(block_inputs(subject, 2)), pass_inputs(subject, 2)["img_shapes"]
    angles = rotary.stock(shapes, max_txt_seq_len=TEXT_TOKENS, device=torch.device(subject.plan.device))
    ours = joined(attention.processor(attention, **given))
    plain = joined(stock(attention, **given | {"image_rotary_emb": angles}))
    return Result(distance(ours, plain), pass_tolerance(subject.plan))


def compare_attention(subject: Subject) -> Result:
    """A block's attention by the preferred kernels beside torch's plain one, with and without a mask."""
    attention, apart = subject.transformer.transformer_blocks[0].attn, []
    for rows in (1, 2):
        given = attention_inputs(block_inputs(subject, rows))
        with subject.speed.attention_order():
            ours = joined(attention.processor(attention, **given))
        with sdpa_kernel(SDPBackend.MATH):
            apart.append(distance(ours, joined(attention.processor(attention, **given))))
    return Result(furthest(apart), pass_tolerance(subject.plan))


def compare_guidance(subject: Subject) -> Result | None:
    """Guidance's two passes in one call beside two calls, in the second step, where they are first shared."""
    if subject.edits:
        return None  # whose passes are never shared
    texts = [pass_inputs(subject, tokens=tokens, seed=tokens) for tokens in (TEXT_TOKENS, SHORT_TEXT)]

    def step(number: int) -> torch.Tensor:
        latents = pass_inputs(subject, seed=number)["hidden_states"]
        return joined(subject.transformer(**text | {"hidden_states": latents})[0] for text in texts)

    block = subject.transformer.transformer_blocks[0]
    with blocks_replaced(subject, block):
        plain = step(2)
    with guidance.share_passes(subject.transformer) as sharing:
        with blocks_replaced(subject):  # the first step shows the two prompts, and need not be computed
            step(1)
        with blocks_replaced(subject, block):
            ours = step(2)
    if sharing.shared != 1:
        raise RuntimeError("guidance's passes were not shared")
    return Result(distance(ours, plain), pass_tolerance(subject.plan))


def compare_quantized(subject: Subject) -> Result | None:
    """The products of quantized matrices beside those of the stored ones: of the first block, and text encoder layer.

    For many rows, as a picture has, and for the few of a short prompt.
    """
    block = "transformer_blocks.0"
    layers = dict(linear_layers(subject.transformer, block, "transformer"))
    apart = products_apart(subject, layers, subject.read_first_rows(weights_of(layers)))
    if subject.plan.text_encoder == "quantized" and "text_encoder" not in subject.shared:
        prefix = "model.language_model.layers.0"
        layers = dict(linear_layers(subject.pipe.text_encoder, prefix, "text_encoder"))
        # transformers renames stored tensors as it loads them.
        stored_names = {name: name.replace("model.language_model.", "model.") for name in weights_of(layers)}
        stored = subject.read_first_rows([*stored_names, *stored_names.values()], "text_encoder")
        stored = {name: stored[old] for name, old in stored_names.items() if old in stored} | stored
        apart += products_apart(subject, layers, stored)
    return Result(furthest(apart), MATRIX[subject.plan.precision]) if apart else None


def linear_layers(model: Any, prefix: str, component: str) -> Iterator[tuple[str, Any]]:
    """(name, layer) of the layers below `prefix` whose matrices are quantized, also where they are layers of NF4."""
    for name, module in model.get_submodule(prefix).named_modules(prefix=prefix):
        plain = torch.nn.Linear(1, 1, device="meta") if isinstance(module, torch.nn.Linear) else module
        if is_matrix(plain, component, name):
            yield name, module


def weights_of(layers: Iterable[str]) -> list[str]:
    return [f"{name}.weight" for name in layers]


def products_apart(subject: Subject, layers: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> list[float]:
    """The distances of the layers' first outputs from those by the `stored` rows, without layers that lack them."""
    apart: list[float] = []
    for name, layer in layers.items():
        weight = stored.get(f"{name}.weight")
        if weight is None:
            continue
        bias = None if layer.bias is None else layer.bias[:FEATURES].float()
        for rows in (PICTURE_TOKENS, SHORT_TEXT):
            x = subject.random(1, rows, layer.in_features)
            apart.append(distance(layer(x)[..., :FEATURES], torch.nn.functional.linear(x.float(), weight, bias)))
    return apart


def compare_lora(subject: Subject) -> Result:
    """A layer with a LoRA beside it, in either form that a job has it in, beside the layer and the merged product."""
    name, scale, alpha = "transformer_blocks.0.attn.to_q", 0.75, 2.0 * RANK  # which together are not 1
    layer = subject.transformer.get_submodule(name)
    down = subject.random(RANK, layer.in_features, seed=1) / layer.in_features**0.5
    x = subject.random(1, PICTURE_TOKENS, layer.in_features)
    base = layer(x)
    up = subject.random(layer.out_features, RANK, seed=2) * base.float().std().to(subject.dtype)
    merged = scale * alpha / RANK * up.float() @ down.float()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        save_file({f"{name}.{part}": tensor.cpu().contiguous() for part, tensor in tensors.items()}, file)
        adapters = Adapters(subject.transformer, subject.table, subject.dtype, subject.plan.device)
        use = LoraUse(open_lora(file, "self-check", "the self-check's LoRA"), scale, "the self-check")
        ours: list[torch.Tensor] = []
        for rank in (0, RANK_MULTIPLE):  # peft's layer, and ours that compiled blocks take
            with adapters.apply([use], rank=rank):
                ours.append(subject.transformer.get_submodule(name)(x))
    plain = base.float() + torch.nn.functional.linear(x.float(), merged)
    return Result(furthest(distance(one, plain) for one in ours), pass_tolerance(subject.plan))


def compare_swapped(subject: Subject) -> Result | None:
    """The transformer's tensors on the card beside their homes in host memory, by samples of each."""
    swap = subject.swap
    if swap is None or swap.active != subject.model:
        return None
    apart: list[float] = []
    for home in swap.homes[subject.model]:
        there = getattr(home.owner, home.attribute).reshape(-1)
        waiting = home.tensor.reshape(-1)
        ours, plain = (torch.cat([tensor[:SAMPLED], tensor[-SAMPLED:]]) for tensor in (there, waiting))
        apart.append(distance(ours, plain))
    return Result(furthest(apart), COPY)
