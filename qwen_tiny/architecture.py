"""Builds the tiny checkpoint with random weights: every component of the two pipelines, from a seed.

Knows how large everything is and how the two diffusers folders are written. Knows nothing about training.
The classes are those of Qwen/Qwen-Image and Qwen/Qwen-Image-Edit; only the sizes differ.
"""

import functools
import inspect
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .world import wordings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, QwenImageEditPipeline, QwenImageLayeredPipeline
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

# Latents have 1/16 of the picture's side and the transformer's patches 2 x 2 of them, so sides are multiples of 32:
# the finest grid on which the edit pipeline's sides (rounded to 32) always fit.
VAE = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 1, 2, 4, 8],
    "num_res_blocks": 1,
    "temperal_downsample": [False, False, True, True],  # sic: the class spells it so
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
TRANSFORMER = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 5,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 128,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 14, 14),
}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    "tie_word_embeddings": False,
}
VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 128,
    "window_size": 112,
    "fullatt_block_indexes": [1],
}
# Of Qwen/Qwen-Image-Layered: opacity as a fourth channel, a layer's number as its place in depth, and an embedding that
# is added to the timestep's.
LAYERED_VAE = {"input_channels": 4}
LAYERED_TRANSFORMER = {"use_additional_t_cond": True, "use_layer3d_rope": True}
SHARED_WITH_EDIT = ("text_encoder", "tokenizer", "processor")  # parts of the layered folder: links, not copies
VISION_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}  # at most 16 tokens a picture
# The scheduler of Qwen/Qwen-Image, unchanged.
SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
# The added tokens of the Qwen2.5-VL tokenizer, in its order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TEMPLATE_TOKENS = {"generate": 34, "edit": 64}  # what the pipelines drop before the user's words


def build_pipelines(seed: int = 0) -> "dict[str, DiffusionPipeline]":
    """Both pipelines with random weights, as `{"generate": ..., "edit": ...}`; they share all but the transformer."""
    import diffusers

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    shared = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        "vae": diffusers.AutoencoderKLQwenImage(**VAE),
        "text_encoder": build_text_encoder(tokenizer),
        "tokenizer": tokenizer,
    }
    generate = diffusers.QwenImagePipeline(transformer=diffusers.QwenImageTransformer2DModel(**TRANSFORMER), **shared)
    edit = diffusers.QwenImageEditPipeline(
        transformer=diffusers.QwenImageTransformer2DModel(**TRANSFORMER), processor=build_processor(tokenizer), **shared
    )
    return {"generate": generate, "edit": edit}


def build_layered(edit: "QwenImageEditPipeline") -> "QwenImageLayeredPipeline":
    """A layered pipeline that starts where the edit pipeline stands, with a fourth channel in the VAE for opacity.

    The VAE reads and writes opaque pictures as before, and the transformer knows nothing of layers yet. Scheduler, text
    encoder, tokenizer and processor are those of `edit`.
    """
    import diffusers

    vae = diffusers.AutoencoderKLQwenImage(**VAE | LAYERED_VAE)
    vae.register_to_config(**{name: edit.vae.config[name] for name in ("latents_mean", "latents_std")})
    weights = edit.vae.state_dict()
    old = weights["encoder.conv_in.weight"]  # (dim, 3, frames, rows, columns)
    weights["encoder.conv_in.weight"] = torch.cat([old, torch.zeros_like(old[:, :1])], dim=1)
    old = weights["decoder.conv_out.weight"]  # (3, dim, frames, rows, columns)
    weights["decoder.conv_out.weight"] = torch.cat([old, torch.zeros_like(old[:1])])
    weights["decoder.conv_out.bias"] = torch.cat([weights["decoder.conv_out.bias"], torch.ones(1)])  # opaque
    vae.load_state_dict(weights)
    transformer = diffusers.QwenImageTransformer2DModel(**TRANSFORMER | LAYERED_TRANSFORMER)
    transformer.load_state_dict(edit.transformer.state_dict(), strict=False)
    torch.nn.init.zeros_(transformer.time_text_embed.addition_t_embedding.weight)
    shared = {name: edit.components[name] for name in ("scheduler", *SHARED_WITH_EDIT)}
    return diffusers.QwenImageLayeredPipeline(vae=vae, transformer=transformer, **shared)


def save(pipelines: "dict[str, DiffusionPipeline]", folder: Path) -> None:
    """Write each pipeline to `folder/<name>`, weights in bfloat16; the same weights give the same bytes."""
    for name, pipeline in pipelines.items():
        target = folder / name
        pipeline.to(dtype=torch.bfloat16)
        pipeline.tokenizer.backend_tokenizer.no_truncation()  # drawing samples leaves its own length behind
        for link in filter(Path.is_symlink, map(target.joinpath, SHARED_WITH_EDIT)):  # of an earlier save
            link.unlink()
        pipeline.save_pretrained(target, safe_serialization=True)
        index = target / "model_index.json"  # the worker warns by this key that other pictures are not to be expected
        content = json.loads(index.read_text()) | {"_draws_only": "coloured shapes"}
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        remove_origins(target)
        if name == "layered":
            link_to_edit(target)


def remove_origins(folder: Path) -> None:
    """Remove what libraries stamp into configs of where they loaded from: it is no part of a checkpoint."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def link_to_edit(layered: Path) -> None:
    """Put links to the edit pipeline's folder in the place of the parts that both share."""
    for part in SHARED_WITH_EDIT:
        shutil.rmtree(layered / part)
        (layered / part).symlink_to(Path("../edit") / part)


def build_text_encoder(tokenizer: "PreTrainedTokenizerBase") -> "Qwen2_5_VLForConditionalGeneration":
    """Qwen2.5-VL in small: (batch, tokens) ids and (patches, 1176) pixels -> (batch, tokens, 128) states."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": token("endoftext"),
        "eos_token_id": token("im_end"),
        "pad_token_id": token("endoftext"),
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION,
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def build_processor(tokenizer: "PreTrainedTokenizerBase") -> "Qwen2VLProcessor":
    """The edit pipeline's processor: the tokenizer beside an image processor that keeps to 16 tokens a picture."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=VISION_PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    )


def build_tokenizer() -> "PreTrainedTokenizerBase":
    """A byte-level BPE with Qwen2's splitting, in which every word of the templates and of the world is one token.

    The pipelines drop a fixed 34 or 64 template tokens, counts that hold for any vocabulary with whole words.
    """
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=8192, min_frequency=1, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    bpe.train_from_iterator(_training_text(), trainer)
    model = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        padding_side="right",
    )


@functools.cache
def templates() -> dict[str, str]:
    """The prompt templates of the three pipelines, by class name, read from diffusers; `{}` is the user's prompt."""
    import diffusers

    prompt_templates = {}
    for name in ("QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"):
        pipeline_class = getattr(diffusers, name)
        parts = list(inspect.signature(pipeline_class.__init__).parameters)[1:]  # less `self`
        prompt_templates[name] = pipeline_class(**dict.fromkeys(parts)).prompt_template_encode
    return prompt_templates


def _training_text() -> list[str]:
    lines = [template.format("") for template in templates().values()]
    for token in SPECIAL_TOKENS:  # the tokenizer cuts these out before the BPE sees the text
        lines = [part for line in lines for part in line.split(token)]
    return [*lines, "Picture 1: 2: 3:", *wordings.corpus()]
