"""An image classifier is found where checkpoints are, or fetched; what is none is refused before it is downloaded."""

import json
import shutil

import pytest

from qwen_worker.checkpoints import classifier
from qwen_worker.errors import LoadError

from ..support.local_hub import LocalHub
from ..support.scene_classifier import FOLDER


@pytest.fixture
def hub(web, monkeypatch, tmp_path):
    """A hub that holds the classifier as Org/Name, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    served = LocalHub({"Org/Name": FOLDER})
    monkeypatch.setenv("HF_ENDPOINT", web(served))
    return served


@pytest.fixture
def copied(tmp_path):
    """A folder of the classifier that a test may spoil."""
    return shutil.copytree(FOLDER, tmp_path / "copied/classifier")


def rewrite_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refusal(model, *roots):
    with pytest.raises(LoadError) as caught:
        classifier.fetch(str(model), roots)
    assert "/tmp" not in str(caught.value)
    return caught.value


def test_a_folder_says_what_it_tells_apart_and_how_large_it_is():
    found = classifier.fetch(str(FOLDER), ())
    assert (found.name, found.labels) == ("support/scene-classifier", ("safe", "unsafe"))
    stored = (FOLDER / "model.safetensors").stat().st_size
    assert not found.several_at_once and 1.5 * stored < found.ram_bytes < 2 * stored  # float16 becomes float32


@pytest.mark.parametrize("shards", ["whole", "one is missing"])
def test_weights_may_lie_in_several_files(copied, shards):
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors"} | (
        {"b": "model-00002-of-00002.safetensors"} if shards != "whole" else {}
    )
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    if shards == "whole":
        assert classifier.fetch(str(copied), ()).ram_bytes == classifier.fetch(str(FOLDER), ()).ram_bytes
    else:
        assert "model-00002-of-00002.safetensors is named by the index and missing" in refusal(copied).reason


def test_a_folder_of_another_kind_is_refused_by_what_it_is(copied, tiny, tmp_path):
    assert refusal(tiny / "generate").reason == "tiny-qwen-image/generate holds no readable config.json"
    assert refusal("/none/there").reason == "none/there holds no readable config.json"
    assert "is no image classifier of transformers, but Qwen2_5_VL" in refusal(tiny / "generate/text_encoder").reason
    for names, words in (([], "of no class"), (["BertForSequenceClassification"], "BertForSequenceClassification")):
        rewrite_config(copied, architectures=names)
        assert refusal(copied).reason == (f"copied/classifier is no image classifier of transformers, but {words}")
    rewrite_config(copied, architectures=["ViTForImageClassification"])
    for labels in ({}, {"0": "nsfw"}, {"0": "safe", "2": "nsfw"}, {"0": 1, "1": 2}, ["safe", "nsfw"]):
        rewrite_config(copied, id2label=labels)
        assert "names no two labels (id2label in its config.json)" in refusal(copied).reason
    (copied / "config.json").write_text("{")
    assert refusal(copied).reason == "config.json is corrupt: not JSON"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("preprocessor_config.json", "holds no readable preprocessor_config.json"),
        ("model.safetensors", "holds no model.safetensors: weights of other formats are not read"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(copied, missing, words):
    (copied / missing).unlink()
    (copied / "pytorch_model.bin").write_bytes(b"x")
    assert words in refusal(copied).reason


def test_weights_that_are_cut_short_are_refused(copied):
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[:-100])
    assert "model.safetensors is corrupt: its header describes" in refusal(copied).reason


def test_a_root_has_it_in_any_spelling_and_the_hub_is_not_asked(hub, tmp_path):
    cached = tmp_path / "root/models--org--name"
    shutil.copytree(FOLDER, cached / "snapshots/abc")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    for model in ("Org/Name", "org/NAME", "Org/Name@abc"):
        assert classifier.fetch(model, (tmp_path / "root",)).folder == cached / "snapshots/abc"
    assert hub.paths == []


def test_it_is_downloaded_once_without_files_that_nobody_reads(hub, copied):
    hub.repos["Org/Name"] = copied
    for name in ("pytorch_model.bin", "onnx/model.safetensors", "README.md"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_bytes(b"x" * 100)
    found = classifier.fetch("Org/Name", ())
    assert (found.name, found.folder.name) == ("Org/Name", hub.commit("Org/Name"))
    assert {file.name for file in found.folder.iterdir()} == {
        "config.json", "preprocessor_config.json", "model.safetensors",
    }  # fmt: skip
    hub.paths.clear()
    assert classifier.fetch("Org/Name", ()) == found and hub.paths == []


def test_of_another_kind_on_the_hub_nothing_but_the_config_is_downloaded(hub, copied):
    hub.repos["Org/Name"] = copied
    rewrite_config(copied, architectures=["Qwen3ForCausalLM"])
    assert "Org/Name is no image classifier of transformers, but Qwen3ForCausalLM" in refusal("Org/Name").reason
    assert not any("safetensors" in path for path in hub.paths)
    (copied / "model.safetensors").unlink()
    assert "holds no model.safetensors or model.safetensors.index.json" in refusal("Org/Name").reason


def test_what_the_hub_does_not_give_is_told_and_a_later_try_may_help(hub):
    assert "does not exist on the hub" in refusal("Org/Other").reason
    hub.status = 503
    assert refusal("Org/Name").transient
    assert "is neither a folder here nor a hub id" in refusal("what is this").reason


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(hub, monkeypatch):
    monkeypatch.setattr(classifier, "free_disk_bytes", lambda folder: 10)
    assert "Org/Name needs 0.0 GB of disk" in refusal("Org/Name").reason
    assert not any("model.safetensors" in path for path in hub.paths)
