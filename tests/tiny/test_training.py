"""The one command goes through its stages and goes on where it was stopped: a few steps of each, on few pictures.

What whole training comes to is in the model card, for it takes two hours.
"""

import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from qwen_tiny import CHECKPOINT, CONTROL, evaluate, train
from qwen_tiny.stages import control, few_step, layered, sheets, transformer, vae
from qwen_tiny.training import forward

STEPS = {"vae": 1, "text": 1, "generate": 2, "edit": 2, "few_step": 2, "mistaken": 2}
BASE = "generate/transformer"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Runs the command, until the named stage; gives the weights it leaves, path -> bytes."""
    few = {"pictures": 2, "wordings": 4, "tokens": 32, "share": 1}
    monkeypatch.setattr(train, "GENERATE_SIZES", (transformer.Size(256, 256, **few),))
    monkeypatch.setattr(train, "EDIT_SIZES", (transformer.Size(256, 256, **few),))
    monkeypatch.setattr(few_step, "PATHS", 1)
    monkeypatch.setattr(few_step, "TOKENS_AT_ONCE", 128)
    monkeypatch.setitem(transformer.TOKENS_AT_ONCE, "cpu", 128)
    monkeypatch.setattr(vae, "MEASURED", 2)
    for name, count in {"PROMPTS": 1, "EDITS": 1, "STEPS": 2}.items():
        monkeypatch.setattr(sheets, name, count)
    monkeypatch.setattr(forward, "compiled", lambda function: function)  # to compile takes longer than these steps

    def run(until):
        steps = [word for name, count in STEPS.items() for word in (f"--{name.replace('_', '-')}", str(count))]
        command = ["train", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--until", until, *steps]
        monkeypatch.setattr(sys, "argv", command)
        train.main()
        weights = (tmp_path / "out").rglob("*.safetensors")
        return {str(path.parent.relative_to(tmp_path / "out")): path.read_bytes() for path in weights}

    return run


def test_the_one_command_goes_through_its_stages_and_on_where_it_was_stopped(trained, tmp_path, monkeypatch):
    until_the_lora = trained("few_step")
    assert {path.stem for path in (tmp_path / "work").glob("*.pt")} == set(STEPS) - {"mistaken"}
    whole = trained("mistaken")
    assert {path.stem for path in (tmp_path / "work").glob("*.pt")} == set(STEPS)
    changed = {name for name, weights in whole.items() if weights != until_the_lora[name]}
    assert changed == {BASE}, "mistaken captions are learnt by the generate transformer alone"
    for part in ("text_encoder", "vae"):
        assert whole[f"generate/{part}"] == whole[f"edit/{part}"]
    again = trained("mistaken")
    assert again == whole, "a finished run is loaded, not repeated"
    assert trained("vae") == whole, "a run that stops early does not write what it has not trained"
    monkeypatch.setattr(train, "KEPT_CHANGE", 0.0)
    assert trained("mistaken") == until_the_lora, "the mistaken captions are mixed into the weights before them"
    pipeline = evaluate.load_pipeline(tmp_path / "out" / "generate", lora=True)
    assert len(evaluate.draw_prompts(pipeline, evaluate.sample_prompts(1, size=(256, 256)), 1, 1.0)) == 1


def test_layers_are_learnt_from_a_checkpoint_that_is_there_and_share_its_text_encoder(tmp_path, monkeypatch):
    out, few = tmp_path / "out", {"pictures": 2, "wordings": 0, "tokens": 32, "share": 1}
    out.mkdir()
    (out / "edit").symlink_to(CHECKPOINT / "edit")
    monkeypatch.setattr(train, "LAYERED_SIZES", (transformer.Size(256, 256, **few),))
    monkeypatch.setattr(layered, "TOKENS_AT_ONCE", {"cpu": 128})
    monkeypatch.setattr(layered, "PROMPTS", 2)
    monkeypatch.setattr(forward, "compiled", lambda function: function)
    command = ["train", "--only", "layered_vae", "layered", "--layered-vae", "1", "--layered", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--work", str(tmp_path / "work")])
    train.main()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out / "layered", dtype=torch.float32)
    assert type(pipeline) is diffusers.QwenImageLayeredPipeline and pipeline.vae.config.input_channels == 4
    assert (out / "layered/text_encoder").resolve() == CHECKPOINT / "edit/text_encoder"
    before = load_file(CHECKPOINT / "edit/transformer/diffusion_pytorch_model.safetensors")
    after = load_file(out / "layered/transformer/diffusion_pytorch_model.safetensors")
    assert set(after) - set(before) == {"time_text_embed.addition_t_embedding.weight"}
    assert not torch.equal(after["img_in.weight"], before["img_in.weight"])
    once_more = ["train", "--only", "layered_decoder", "--layered-decoder", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*once_more, "--work", str(tmp_path / "work")])
    train.main()
    trained = load_file(out / "layered/vae/diffusion_pytorch_model.safetensors")
    old = pipeline.vae.state_dict()
    moved = {name.partition(".")[0] for name in old if not torch.equal(trained[name].float(), old[name])}
    assert moved == {"decoder"} and (out / "layered/text_encoder").resolve() == CHECKPOINT / "edit/text_encoder"


def test_the_controlnet_goes_on_from_the_one_that_is_there(tmp_path):
    load = diffusers.QwenImageTransformer2DModel.from_pretrained
    model = load(CHECKPOINT / "generate/transformer", dtype=torch.float32)
    stored = load_file(CHECKPOINT / CONTROL / "diffusion_pytorch_model.safetensors")
    built = control.build(model, CHECKPOINT / CONTROL).state_dict()
    assert all(torch.equal(built[name], weight.float()) for name, weight in stored.items())
    assert not control.build(model, tmp_path / "none").controlnet_blocks[0].weight.any()
