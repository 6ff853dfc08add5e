"""The local test script tells a picture from a gradient and from noise, and a stand-in fails it."""

import argparse
import os
import sys

import pytest
from PIL import Image

import test_qwen_integration as script
from qwen_worker.pictures import fallback

from ..support.patience import run_to_its_end


def test_pytest_does_not_collect_the_script():
    assert not [name for name in vars(script) if name.startswith("test_")]


@pytest.mark.parametrize("side", [256, 512])
def test_every_stand_in_is_a_gradient(side):
    for seed in range(30):
        stand_in = fallback.gradient("a small white square on the left, on a purple background", (side, side), seed)
        assert script.gradient_share(stand_in) > script.GRADIENT_SHARE


def test_a_scene_is_neither_gradient_nor_noise():
    picture, _ = script.scene(256)
    assert script.gradient_share(picture) < script.GRADIENT_SHARE and script.smoothness(picture) > script.SMOOTHNESS


def test_noise_is_not_smooth():
    assert script.smoothness(Image.effect_noise((256, 256), 80)) < script.SMOOTHNESS
    assert script.smoothness(Image.new("RGB", (256, 256), "black")) == 0


def test_a_kept_subject_overlaps_and_a_lost_one_does_not():
    picture, mask = script.scene(256)
    inside = mask.point(lambda value: 255 * (value > 250))
    assert script.subject_overlap(picture, picture, mask, inside) > 0.95
    assert script.subject_overlap(picture, Image.new("RGB", picture.size, "green"), mask, inside) < 0.05


def test_pictures_are_found_whatever_the_endpoint_s_replies_look_like(cold_worker, tmp_path):
    options = argparse.Namespace(size=256, steps=2, output=tmp_path)
    drawn, metadata = script.Run(cold_worker(QWEN_RESPONSE_SHAPE="fal"), options).job("one", prompt="a red circle")
    assert drawn.size == (256, 256) and metadata["backend"] == "qwen-image"


def test_a_worker_that_falls_back_fails_every_criterion(tmp_path):
    command = [sys.executable, "test_qwen_integration.py", "--size", "256", "--output", str(tmp_path)]
    done = run_to_its_end(command, env={**os.environ, "QWEN_FALLBACK": "force"})
    assert done.returncode == 1
    assert done.stdout.count("FAIL") == 5 and "PASS" not in done.stdout
    assert (tmp_path / "contact-sheet.png").is_file()
