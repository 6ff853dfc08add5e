"""What `make image-test` judges by: a secret anywhere in an image is found, and pip's settings reach a build whole."""

import configparser
import io
import json
import tarfile

import pytest

from . import pip_settings
from .layers import Image


@pytest.fixture
def image(tmp_path):
    """image(layer=..., config=...): an image of one layer with one file, and of that configuration."""

    def make(layer=b"", config=None):
        with tarfile.open(tmp_path / "layer", "w") as archive:
            entry = tarfile.TarInfo("./etc/file")
            entry.size = len(layer)
            archive.addfile(entry, io.BytesIO(layer))
        step = "|1 A=b /bin/sh -c --mount=type=cache,target=/x fetch 1"
        history = [{"created_by": step}, {"created_by": "CMD", "empty_layer": True}]
        (tmp_path / "config").write_text(json.dumps({"history": history} | (config or {})))
        manifest = {"config": {"digest": "sha256:config"}, "layers": [{"digest": "sha256:layer"}]}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return Image(tmp_path)

    return make


def test_a_secret_is_found_in_a_layer_and_in_the_configuration(image):
    assert image(b"nothing").holding("hf_secret") == []
    assert image(b"x" * 100_000 + b"hf_secret").holding("hf_secret") == ["fetch 1"]
    assert image(config={"config": {"Env": ["TOKEN=hf_secret"]}}).holding("hf_secret") == ["config"]


def test_a_layer_is_named_by_its_step_and_lists_its_files(image):
    (layer,) = image(b"12345").layers
    assert layer.step == "fetch 1" and layer.files["etc/file"].size == 5 and layer.size >= 5


def test_pip_s_settings_reach_the_build_with_what_they_name(monkeypatch, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "index" / "simple").mkdir(parents=True)
    own = {"find-links": f"{tmp_path}/wheels", "timeout": "180", "index-url": "https://pypi.org/simple",
           "extra-index-url": f"file://{tmp_path}/index/simple"}  # fmt: skip
    monkeypatch.setattr(pip_settings, "settings", lambda: own)
    mounts = dict(volume.rsplit(":", 2)[:2] for volume in pip_settings.volumes(tmp_path))
    assert mounts == {
        f"{tmp_path}/pip.conf": "/etc/pip.conf", f"{tmp_path}/wheels": "/run/pip/0", f"{tmp_path}/index": "/run/pip/1",
    }  # fmt: skip
    conf = configparser.RawConfigParser()
    conf.read(tmp_path / "pip.conf")
    assert dict(conf["global"]) == {
        "find-links": "/run/pip/0", "timeout": "180", "index-url": "https://pypi.org/simple",
        "extra-index-url": "file:///run/pip/1/simple",
    }  # fmt: skip
