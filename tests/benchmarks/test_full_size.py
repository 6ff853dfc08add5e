"""Checkpoints of the released architecture with random weights, written whole or gone on with."""

import math

import pytest

from benchmarks.measure import full_size, layouts
from benchmarks.measure.contenders import Ours
from qwen_worker.errors import LoadError

from .conftest import GB

SMALL = {
    "transformer": {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 256},
    "text": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 1},
    "vision": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 256},
    "vae": {"base_dim": 8},
}  # fmt: skip


def test_the_full_size_architecture_is_what_placement_counts_with(released_models):
    from qwen_worker.checkpoints.checkpoint import count_parts
    from qwen_worker.checkpoints.classes import PARTS_20B, SIZE_20B

    held = {
        name: {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        for name, model in released_models.items()
    }
    assert {name: sum(map(math.prod, shapes.values())) for name, shapes in held.items()} == SIZE_20B
    assert count_parts(held) == PARTS_20B


def test_a_checkpoint_of_random_weights_goes_on_where_it_was_ended_and_is_served(tmp_path, monkeypatch, quiet):
    from safetensors import safe_open

    monkeypatch.setattr(full_size, "SHARD_BYTES", 20_000_000)
    models = full_size.empty_models(SMALL)
    written, stock_write = [], full_size.write_shard

    def cut_off(path, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        stock_write(path, *rest)

    monkeypatch.setattr(full_size, "WRITERS", 1)
    monkeypatch.setattr(full_size, "write_shard", cut_off)
    with pytest.raises(KeyboardInterrupt):
        full_size.write_checkpoints(tmp_path, models)
    assert not (tmp_path / "edit").exists()
    times = [path.stat().st_mtime_ns for path in written]
    monkeypatch.setattr(full_size, "write_shard", stock_write)
    full_size.write_checkpoints(tmp_path, models)
    assert [path.stat().st_mtime_ns for path in written] == times
    assert (tmp_path / "generate/text_encoder/model.safetensors.index.json").exists()
    for file in tmp_path.glob("generate/*/*.safetensors"):
        assert file.samefile(tmp_path / "edit" / file.relative_to(tmp_path / "generate"))
    assert full_size.ready_folder([tmp_path]) == tmp_path

    lora = full_size.lora_for(tmp_path)
    written = lora.stat().st_mtime_ns
    assert full_size.lora_for(tmp_path) == lora and lora.stat().st_mtime_ns == written
    with safe_open(lora, "pt") as tensors:  # every layer that the published ones change
        assert len(list(tensors.keys())) == 2 * 12 * SMALL["transformer"]["num_layers"]

    ours = Ours(tmp_path, layouts.TASKS, QWEN_IMAGE_FAST_LORA=str(lora))
    ours.load("generate")
    ours.load("edit")
    assert set(ours.shared("edit")) == {"text_encoder", "vae", "tokenizer"}
    assert ours.draw("generate", 256, num_inference_steps=1) == 1
    assert ours.draw("generate", 256, preset="fast") == 8


def test_the_full_size_checkpoint_asks_for_its_disk(tmp_path, monkeypatch, released_models):
    monkeypatch.setattr(full_size, "empty_models", lambda: released_models)
    monkeypatch.setattr(full_size, "free_disk_bytes", lambda folder: 20 * GB)
    monkeypatch.setattr(full_size, "write_checkpoints", lambda *_: pytest.fail("it was written"))
    with pytest.raises(LoadError, match="the full-size checkpoint needs 57.7 GB of disk; 20.0 GB are free"):
        full_size.ready_folder([tmp_path])
    assert list(tmp_path.iterdir()) == []
