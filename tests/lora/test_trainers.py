"""Every trainer's file adds to the layers what its trainer added, by numbers that are computed here from the file's.

A row is one way in which a trainer or a converter writes a file. What it means is computed with numpy alone: alpha /
rank x B A, and for LyCORIS' kinds their own products. It is compared with what the adapted layers really add.
"""

import dataclasses
import json
from collections.abc import Callable

import numpy
import pytest
import torch
from safetensors.torch import save_file

from qwen_worker.lora.adapters import Adapters
from qwen_worker.lora.file import LoraUse
from qwen_worker.lora.loras import open_found
from qwen_worker.lora.places import local_file
from qwen_worker.network.fetch import FetchTarget

from ..model.test_savings import small_transformer

Q, MLP, MOD, OUT = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2", "transformer_blocks.0.img_mod.1", "proj_out"  # fmt: skip  # noqa: E501
LAYERS = (Q, MLP, MOD, OUT)
KOHYA = {"ss_network_module": "networks.lora_qwen_image", "ss_network_dim": "4", "ss_network_alpha": "8"}
DOWN_UP, A_B = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")


def alphas(value):
    """The same alpha for each layer, as a tensor of its own."""
    return lambda layer, rank: torch.tensor(float(value))


@dataclasses.dataclass(frozen=True)
class Row:
    """A trainer's file of LoRA matrices. `scaling(layer, rank)`: what the trainer multiplies B A with."""

    prefix: str
    suffixes: tuple[str, str]
    scaling: Callable[[str, int], float]
    flat: bool = False
    alpha: Callable[[str, int], torch.Tensor] | None = None
    metadata: dict | None = None
    config: dict | None = None
    name: str = "lora.safetensors"
    dtype: torch.dtype = torch.float32
    ranks: dict | None = None  # by layer; 4 for all others
    more: dict | None = None  # tensors of something else

    def write(self, folder, shapes):
        """The file, and what it adds to each layer."""
        random, tensors, added = numpy.random.default_rng(0), dict(self.more or {}), {}
        for layer, (outputs, inputs) in shapes.items():
            rank = (self.ranks or {}).get(layer, 4)
            down = torch.tensor(random.normal(size=(rank, inputs))).to(self.dtype)
            up = torch.tensor(random.normal(size=(outputs, rank))).to(self.dtype)
            name = self.prefix + (layer.replace(".", "_") if self.flat else layer)
            tensors[name + self.suffixes[0]], tensors[name + self.suffixes[1]] = down, up
            if self.alpha:
                tensors[f"{name}.alpha"] = self.alpha(layer, rank)
            added[layer] = self.scaling(layer, rank) * up.double().numpy() @ down.double().numpy()
        return save(folder, self.name, tensors, self.metadata, self.config), added


def save(folder, name, tensors, metadata=None, config=None):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name, metadata=metadata)
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


@dataclasses.dataclass(frozen=True)
class Lycoris:
    """A file of LoKrs or LoHas. `matrices(random, outputs, inputs)`: the tensors of a layer by part, and what is added
    before the scaling; `scaling`: as of LyCORIS.
    """

    prefix: str
    matrices: Callable
    scaling: float
    flat: bool = False
    alpha: float | None = None
    config: dict | None = None
    name: str = "lora.safetensors"
    suffix: str = ""

    def write(self, folder, shapes):
        random, tensors, added = numpy.random.default_rng(0), {}, {}
        for layer, (outputs, inputs) in shapes.items():
            parts, product = self.matrices(random, outputs, inputs)
            name = self.prefix + (layer.replace(".", "_") if self.flat else layer)
            for part, matrix in parts.items():
                tensors[f"{name}.{part}{self.suffix}"] = torch.tensor(matrix, dtype=torch.float32)
            if self.alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(self.alpha)
            added[layer] = self.scaling * product
        return save(folder, self.name, tensors, None, self.config), added


def lokr(factor, first_rank=0, second_rank=0):
    """Matrices of a LoKr: w1 (factor, factor) and w2, each whole or of two factors of a rank."""

    def matrices(random, outputs, inputs):
        parts, wholes = {}, []
        for part, (rows, columns), rank in (
            ("lokr_w1", (factor, factor), first_rank),
            ("lokr_w2", (outputs // factor, inputs // factor), second_rank),
        ):
            if rank:
                parts[f"{part}_a"], parts[f"{part}_b"] = random.normal(size=(rows, rank)), random.normal(size=(rank, columns))  # fmt: skip  # noqa: E501
                wholes.append(parts[f"{part}_a"] @ parts[f"{part}_b"])
            else:
                parts[part] = random.normal(size=(rows, columns))
                wholes.append(parts[part])
        return parts, numpy.kron(*wholes)

    return matrices


def loha(rank):
    def matrices(random, outputs, inputs):
        parts = {}
        for number in (1, 2):
            parts[f"hada_w{number}_a"] = random.normal(size=(outputs, rank))
            parts[f"hada_w{number}_b"] = random.normal(size=(rank, inputs))
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return parts, product

    return matrices


def one(layer, rank):
    return 1.0


def peft(**facts):
    return {"peft_type": "LORA", "r": 4, "target_modules": ["to_q"], **facts}


def inside(**facts):
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in facts.items()})}


PEFT = {"name": "adapter_model.safetensors"}
TEXT = {f"text_encoder.layers.0.q_proj.lora_{part}.weight": torch.ones(4, 4) for part in ("down", "up")}
ROWS = {
    "sd-scripts": Row("lora_unet_", DOWN_UP, lambda layer, rank: 1 / 4, flat=True, alpha=alphas(1)),
    "sd-scripts, resized to a rank for each layer": Row(
        "lora_unet_", DOWN_UP, lambda layer, rank: 0.5, flat=True, ranks={Q: 2, MLP: 8},
        alpha=lambda layer, rank: torch.tensor(rank / 2),
        metadata=KOHYA | {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"},
    ),
    "musubi-tuner": Row("lora_unet_", DOWN_UP, lambda layer, rank: 2.0, flat=True, alpha=alphas(8), metadata=KOHYA,
                        dtype=torch.bfloat16),
    "musubi-tuner, converted: alphas are in the matrices": Row("diffusion_model.", A_B, one, metadata=KOHYA),
    "musubi-tuner, converted with an adapter's name": Row(
        "", (".lora_A.default.weight", ".lora_B.default.weight"), one, metadata=KOHYA,
    ),
    "musubi-tuner, converted back: whole alphas": Row(
        "lora_unet_", DOWN_UP, one, flat=True, alpha=lambda layer, rank: torch.tensor(rank),
    ),
    "musubi-tuner, alphas lost but for the metadata": Row(
        "lora_unet_", DOWN_UP, lambda layer, rank: 2.0, flat=True, metadata=KOHYA,
    ),
    "ai-toolkit": Row("diffusion_model.", A_B, one, dtype=torch.bfloat16, metadata={"format": "pt", "version": "0.5"}),
    "ai-toolkit, first": Row("transformer.", A_B, one, dtype=torch.float16),
    "diffusers": Row("transformer.", A_B, one),
    "diffusers, with its metadata": Row(
        "transformer.", A_B, lambda layer, rank: 4.0, metadata=inside(r=4, lora_alpha=16),
    ),
    "diffusers, rslora": Row(
        "transformer.", A_B, lambda layer, rank: 16 / rank**0.5, metadata=inside(r=4, lora_alpha=16, use_rslora=True),
    ),
    "diffusers, patterns": Row(
        "transformer.", A_B, lambda layer, rank: {Q: 3 / 2, MLP: 8 / 4}.get(layer, 4 / 4), ranks={Q: 2},
        metadata=inside(r=4, lora_alpha=4, rank_pattern={"to_q": 2}, alpha_pattern={"^" + Q: 3, "img_mlp.net.2": 8}),
    ),
    "diffusers, first": Row("transformer.", (".lora.down.weight", ".lora.up.weight"), one),
    "peft": Row("base_model.model.", A_B, lambda layer, rank: 4.0, config=peft(lora_alpha=16), **PEFT),
    "peft, the file renamed": Row(
        "base_model.model.", A_B, lambda layer, rank: 4.0, config=peft(lora_alpha=16), name="style.safetensors",
    ),
    "peft, rslora": Row(
        "base_model.model.", A_B, lambda layer, rank: 8.0, config=peft(lora_alpha=16, use_rslora=True), **PEFT,
    ),
    "peft, patterns": Row(
        "base_model.model.", A_B, lambda layer, rank: {Q: 5 / 8, MLP: 6 / 4}.get(layer, 16 / 4), ranks={Q: 8},
        config=peft(lora_alpha=16, rank_pattern={r".*\.attn\.to_q": 8}, alpha_pattern={Q: 5, "net.2$": 6}), **PEFT,
    ),
    "peft, a compiled transformer": Row(
        "base_model.model._orig_mod.", A_B, lambda layer, rank: 0.5, config=peft(lora_alpha=2), **PEFT,
    ),
    "peft, an adapter's name with digits and hyphens": Row(
        "base_model.model.", (".lora_A.my-style_2.weight", ".lora_B.my-style_2.weight"), one,
    ),
    "SimpleTuner": Row("transformer.", A_B, lambda layer, rank: 2.0, metadata=inside(r=4, lora_alpha=8)),
    "SimpleTuner, for ComfyUI": Row("diffusion_model.", A_B, lambda layer, rank: 2.0, alpha=alphas(8)),
    "DiffSynth": Row("", (".lora_A.default.weight", ".lora_B.default.weight"), one, dtype=torch.bfloat16),
    "DiffSynth, the whole pipeline's": Row("pipe.dit.", A_B, one),
    "OneTrainer": Row("transformer.", DOWN_UP, lambda layer, rank: 0.25, alpha=alphas(1)),
    "OneTrainer, flat": Row("lora_transformer_", DOWN_UP, lambda layer, rank: 0.25, flat=True, alpha=alphas(1)),
    "OneTrainer, with the text encoder": Row(
        "transformer.", DOWN_UP, lambda layer, rank: 0.25, alpha=alphas(1), more=TEXT,
    ),
    "fal": Row("transformer.", (".lora_A.default.weight", ".lora_B.default.weight"), one, dtype=torch.bfloat16),
    "ComfyUI": Row("diffusion_model.", DOWN_UP, lambda layer, rank: 2.0, alpha=alphas(8), dtype=torch.float16),
    "ComfyUI, fp8": Row("diffusion_model.", DOWN_UP, one, alpha=alphas(4), dtype=torch.float8_e4m3fn),
    "fp8 of the other kind": Row("transformer.", A_B, one, dtype=torch.float8_e5m2),
    "Lightning": Row("", DOWN_UP, lambda layer, rank: 2.0, alpha=alphas(8)),
    "double precision, alphas in 8 bits": Row(
        "", DOWN_UP, lambda layer, rank: 2.0, alpha=lambda layer, rank: torch.tensor(8, dtype=torch.uint8),
        dtype=torch.float64,
    ),
    "LyCORIS LoCon": Row("lycoris_", DOWN_UP, lambda layer, rank: 0.5, flat=True, alpha=alphas(2)),
    "sd-scripts, a compiled transformer": Row(
        "lora_unet__orig_mod_", DOWN_UP, lambda layer, rank: 0.5, flat=True, alpha=alphas(2),
    ),
    "plain metadata, lora_alpha": Row(
        "transformer.", A_B, lambda layer, rank: 4.0, metadata={"lora_alpha": "16", "rank": "4"},
    ),
    "plain metadata, network_alpha": Row(
        "diffusion_model.", DOWN_UP, lambda layer, rank: 0.25, metadata={"network_alpha": "1.0"},
    ),
    "plain metadata, ss_network_alpha": Row(
        "transformer.", A_B, lambda layer, rank: 4.0, metadata={"ss_network_alpha": "16", "ss_network_dim": "4"},
    ),
    "LyCORIS LoKr of whole matrices": Lycoris("lycoris_", lokr(2), 1.0, flat=True, alpha=16.0),
    "LyCORIS LoKr": Lycoris("lycoris_", lokr(4, second_rank=2), 3 / 2, flat=True, alpha=3.0),
    "LyCORIS LoKr through sd-scripts, both decomposed": Lycoris(
        "lora_unet_", lokr(8, first_rank=2, second_rank=2), 0.5, flat=True, alpha=1.0,
    ),
    "SimpleTuner LoKr": Lycoris("lycoris_", lokr(16, second_rank=1), 1.0, flat=True, alpha=1.0),
    "ai-toolkit LoKr": Lycoris("diffusion_model.", lokr(4), 1.0, alpha=9999999999.0),
    "ai-toolkit LoKr of a rank": Lycoris("diffusion_model.", lokr(4, second_rank=2), 4.0, alpha=8.0),
    "peft LoKr": Lycoris(
        "base_model.model.", lokr(4, second_rank=2), 4.0, config={"peft_type": "LOKR", "r": 2, "alpha": 8}, **PEFT,
    ),
    "peft LoKr of whole matrices": Lycoris(
        "base_model.model.", lokr(4), 4.0, config={"peft_type": "LOKR", "r": 2, "alpha": 8}, **PEFT,
    ),
    "LyCORIS LoHa": Lycoris("lora_unet_", loha(4), 0.5, flat=True, alpha=2.0),
    "LyCORIS LoHa, dotted": Lycoris("transformer.", loha(2), 1.0),
    "peft LoHa": Lycoris(
        "base_model.model.", loha(4), 2.0, config={"peft_type": "LOHA", "r": 4, "alpha": 8}, **PEFT,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def transformer():
    return small_transformer().float()


@pytest.fixture(scope="module")
def adapters(transformer):
    return Adapters(transformer, None, torch.float32, "cpu", "small")


@pytest.mark.parametrize("row", ROWS)
def test_a_file_adds_what_its_trainer_adds(transformer, adapters, tmp_path, row):
    shapes = {layer: tuple(transformer.get_submodule(layer).weight.shape) for layer in LAYERS}
    path, added = ROWS[row].write(tmp_path / "lora", shapes)
    use = LoraUse(open_found(local_file(path, FetchTarget("loras[0]", 10**9)), "loras[0]"), -0.5, "loras[0]")
    adapters.require_made_for_model([use])
    for layer, (_, inputs) in shapes.items():
        rows = torch.eye(inputs)
        with torch.no_grad():
            before = transformer.get_submodule(layer)(rows)
            with adapters.apply([use]):
                found = (transformer.get_submodule(layer)(rows) - before).T.double().numpy()
        expected = -0.5 * added[layer]
        assert numpy.abs(found - expected).max() < 1e-4 * numpy.abs(expected).max(), layer
    adapters.drop(use.file.key)


def peft_configs():
    import peft

    targets = {"target_modules": ["attn.to_q", "img_mlp.net.2", "img_mod.1"], "init_weights": False}
    lora = {"target_modules": targets["target_modules"], "init_lora_weights": False}
    return {
        "LoRA": peft.LoraConfig(r=4, lora_alpha=12, rank_pattern={"img_mod.1": 2}, alpha_pattern={Q: 3}, **lora),
        "rslora": peft.LoraConfig(r=4, lora_alpha=12, use_rslora=True, **lora),
        "LoKr": peft.LoKrConfig(r=2, alpha=6, decompose_factor=4, rank_pattern={"img_mod.1": 1}, **targets),
        "LoKr, whole": peft.LoKrConfig(r=64, alpha=32, decompose_factor=8, **targets),
        "LoKr, both decomposed": peft.LoKrConfig(r=1, alpha=2, decompose_both=True, decompose_factor=8, **targets),
        "LoHa": peft.LoHaConfig(r=4, alpha=6, alpha_pattern={"net.2": 1}, **targets),
    }


def require_equal_to_peft(theirs, name, adapters, ours, use):
    """A layer with the file's adapter beside the layer of the model that wrote the file."""
    their_layer, rows = theirs.get_submodule(name), torch.eye(ours.get_submodule(name).in_features)
    with torch.no_grad(), adapters.apply([use]):
        found, expected = ours.get_submodule(name)(rows), their_layer(rows)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), name
        assert (their_layer.base_layer(rows) - expected).abs().max() > 0.01 * expected.abs().max(), name


@pytest.mark.parametrize("kind", ["LoRA", "rslora", "LoKr", "LoKr, whole", "LoKr, both decomposed", "LoHa"])
def test_what_peft_itself_writes_is_what_peft_computes(transformer, adapters, tmp_path, kind):
    import peft

    theirs = peft.get_peft_model(small_transformer().float(), peft_configs()[kind]).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    file = open_found(local_file(tmp_path / "adapter_model.safetensors", FetchTarget("loras[0]", 10**9)), "loras[0]")
    assert len(file.layers) == 6 and not file.warnings
    for name in file.layers:
        require_equal_to_peft(theirs.base_model.model, name, adapters, transformer, LoraUse(file, 1.0, "loras[0]"))
    adapters.drop(file.key)


def test_what_diffusers_itself_writes_is_what_it_computes(transformer, adapters, tmp_path):
    theirs = small_transformer().float()
    theirs.add_adapter(peft_configs()["LoRA"])
    theirs.save_lora_adapter(tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    file = open_found(local_file(path, FetchTarget("loras[0]", 10**9)), "loras[0]")
    assert len(file.layers) == 6 and file.scalings == (0.75, 6.0)
    for name in file.layers:
        require_equal_to_peft(theirs, name, adapters, transformer, LoraUse(file, 1.0, "loras[0]"))
    adapters.drop(file.key)
