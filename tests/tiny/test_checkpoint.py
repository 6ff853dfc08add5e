"""The committed tiny checkpoint is what the pipelines and the worker take it for."""

import copy
import hashlib

import diffusers
import pytest
import torch
from PIL import Image

from qwen_tiny import CHECKPOINT, architecture
from qwen_tiny.stages import pools, text_encoder, transformer, vae
from qwen_worker.model.vision import mark_picture_tokens

MEGABYTE = 1_000_000


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def autoencoder():
    return diffusers.AutoencoderKLQwenImage.from_pretrained(CHECKPOINT / "generate" / "vae")


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae"])
def test_both_folders_share_byte_for_byte(part):
    shared = digests(CHECKPOINT / "generate" / part)
    assert shared and shared == digests(CHECKPOINT / "edit" / part)


def test_the_whole_folder_is_small():
    assert sum(p.stat().st_size for p in CHECKPOINT.rglob("*") if p.is_file()) <= 45 * MEGABYTE


@pytest.mark.parametrize(
    ("folder", "name"),
    [("generate", "QwenImagePipeline"), ("edit", "QwenImageEditPipeline")],
)
def test_the_folder_names_its_pipeline(folder, name):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(CHECKPOINT / folder, dtype=torch.float32)
    assert type(pipeline).__name__ == name
    assert not pipeline.transformer.config.guidance_embeds


def test_edit_plus_loads_by_class_change_only():
    diffusers.QwenImageEditPlusPipeline.from_pretrained(CHECKPOINT / "edit", dtype=torch.float32)


def test_template_tokens_are_those_the_pipelines_drop():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT / "generate" / "tokenizer")
    for folder, name, dropped in (
        ("generate", "QwenImagePipeline", 34),
        ("edit", "QwenImageEditPipeline", 64),
        ("edit", "QwenImageEditPlusPipeline", 64),
    ):
        pipeline = getattr(diffusers, name).from_pretrained(CHECKPOINT / folder, dtype=torch.float32)
        before = pipeline.prompt_template_encode.split("{}")[0].split("<|vision_start|>")[0]
        assert len(tokenizer(before).input_ids) == dropped, name
        assert pipeline.prompt_template_encode_start_idx == architecture.TEMPLATE_TOKENS[folder] == dropped, name


def test_random_weights_depend_on_the_seed_alone(tmp_path):
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        architecture.save(architecture.build_pipelines(seed), tmp_path / name)
    assert digests(tmp_path / "one") == digests(tmp_path / "again") != digests(tmp_path / "other")


def test_single_frames_through_2d_convolutions_equal_the_video_path(autoencoder):
    pixels = vae.draw_crops(2, 64, 0)
    with torch.no_grad():
        mean, _ = vae.encode(autoencoder, pixels)
        assert torch.allclose(mean, autoencoder.encode(pixels[:, :, None]).latent_dist.mean[:, :, 0], atol=1e-4)
        drawn = vae.decode(autoencoder, mean).clamp(-1, 1)
        assert torch.allclose(drawn, autoencoder.decode(mean[:, :, None]).sample[:, :, 0], atol=1e-4)


def test_remembered_latents_are_those_of_this_vae_and_these_scenes(autoencoder, tmp_path):
    edit = diffusers.DiffusionPipeline.from_pretrained(CHECKPOINT / "edit", dtype=torch.float32)
    embedder = text_encoder.Embedder(edit.text_encoder, edit.processor)
    size = transformer.Size(256, 256, 2, 1, 64, 1)

    def latents(autoencoder, seed):
        return pools.make_generate_pool(autoencoder, embedder, size, seed, tmp_path).latents

    first = latents(autoencoder, 0)
    assert torch.equal(first, latents(autoencoder, 0))
    assert len(list(tmp_path.iterdir())) == 1
    changed = copy.deepcopy(autoencoder)
    with torch.no_grad():
        changed.quant_conv.bias.add_(1.0)
    assert not torch.equal(first, latents(changed, 0))
    assert not torch.equal(first, latents(autoencoder, 1))


def test_an_instruction_is_embedded_for_training_as_the_worker_embeds_it():
    """With the picture's tokens in rows and columns, which diffusers' pipeline alone would put into one row."""
    edit = diffusers.DiffusionPipeline.from_pretrained(CHECKPOINT / "edit", dtype=torch.float32)
    picture = torch.randint(0, 256, (3, 112, 168), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ours, mask = text_encoder.Embedder(edit.text_encoder, edit.processor).embed_instructions(["a"], [picture])
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())

    def distance():
        with torch.no_grad():
            theirs, _ = edit.encode_prompt(prompt="a", image=image)
        return float((ours[:, mask[0]].float() - theirs).norm() / theirs.norm())

    alone = distance()
    mark_picture_tokens(edit.text_encoder)
    assert distance() < 1e-3 < 1e-2 < alone  # kept in float16


def test_packing_is_that_of_the_pipelines():
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(pools.pack(latents), diffusers.QwenImagePipeline._pack_latents(latents, 2, 16, 8, 12))
