"""What `health` says of speed-ups: `on` only where pictures are drawn by them, and else why not."""

import dataclasses
import json

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from qwen_worker.model_settings import Speedup
from qwen_worker.speed import compiled, gelu, speedups

from ..support.lora_files import matrices, write


@pytest.fixture
def uncompiled(monkeypatch):
    """Has a CPU have all speed-ups, of which nothing is compiled."""
    monkeypatch.setattr(speedups, "decide", lambda *_: dict.fromkeys(Speedup, speedups.ON))
    monkeypatch.setattr(compiled.CompiledBlocks, "warm", lambda *_: None)
    monkeypatch.setattr(compiled, "compiled_forward", lambda block_class: block_class.forward)


@pytest.fixture
def own(tmp_path, tiny):
    """own(*layers): the setting of a LoRA of these layers of every block."""
    base = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer", dtype=torch.float32)

    def of(*layers):
        names = [f"transformer_blocks.{n}.{layer}" for n in range(len(base.transformer_blocks)) for layer in layers]
        path = write(tmp_path / f"{len(layers)}.safetensors", matrices(base, names))
        return json.dumps([{"path": str(path), "scale": 1}])

    return of


def states(loaded):
    return loaded.report()["speedups"]


def test_gelu_is_not_on_where_every_picture_has_loras_beside_its_matrices(cold_worker, uncompiled, own, monkeypatch):
    every, some = ["img_mlp.net.0.proj", "txt_mlp.net.0.proj"], ["img_mlp.net.0.proj"]
    loaded = cold_worker(QWEN_LORAS=own(*some)).pipelines.load("generate")  # padded: beside all matrices
    assert "QWEN_LORAS" in states(loaded)["gelu"] and states(loaded)["compile"] == "on"
    assert not any(isinstance(each, gelu.ActivatedProduct) for each in gelu.first_layers(loaded.pipe.transformer))
    monkeypatch.setattr("qwen_worker.loading.pipelines.rank_of", lambda loras, plan: 0)  # as those of other kinds
    for layers, words in ((every, "every picture has LoRAs"), (some, "on"), ([], "on")):
        settings = {"QWEN_LORAS": own(*layers)} if layers else {}
        loaded = cold_worker(**settings).pipelines.load("generate")
        assert states(loaded)["gelu"].startswith(words), layers


def test_gelu_is_not_on_where_no_matrix_allows_it(cold_worker, uncompiled, monkeypatch):
    monkeypatch.setattr(gelu, "layers", lambda transformer: [])  # as in a transformer with another activation
    assert states(cold_worker().pipelines.load("generate"))["gelu"] == "no matrix allows it"


def test_guidance_in_one_pass_is_not_on_for_edits_and_on_two_cards(cold_worker, uncompiled, monkeypatch):
    worker = cold_worker()
    assert "passes of edits" in states(worker.pipelines.load("edit"))["guidance"]
    loaded = worker.pipelines.load("generate")
    assert states(loaded)["guidance"] == "on"
    monkeypatch.setattr(type(loaded), "active_second_card", property(lambda loaded: loaded))
    assert "card of its own" in states(loaded)["guidance"]


def test_compile_is_not_on_where_the_loras_of_every_picture_do_not_compile(cold_worker, uncompiled, own):
    loaded = cold_worker(QWEN_LORAS=own("attn.to_q")).pipelines.load("generate")
    loaded.speed.stand_down_loras("no kernel for PRESET")
    assert states(loaded)["compile"].endswith("no kernel for PRESET") and "QWEN_LORAS" in states(loaded)["compile"]
    without = dataclasses.replace(loaded, adapters=cold_worker().pipelines.load("generate").adapters)
    assert states(without)["compile"] == "on"  # only jobs with LoRAs of their own go without
