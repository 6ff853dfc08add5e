"""`make run` draws what it is asked for with the tiny checkpoint, and says so where that cannot be."""

import shutil
import subprocess
import sys

import pytest
from PIL import Image

from examples import quickstart
from qwen_tiny.world import judge

from ..conftest import ROOT, TINY_WARNING


@pytest.fixture
def folder(tmp_path):
    """The repository with an `out/` of its own."""
    for name in ("examples", "qwen_local", "qwen_tiny", "qwen_worker", "models", "runpod_handler.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "examples").unlink()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def printed_by(folder, *arguments):
    command = [sys.executable, "-m", "examples.quickstart", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_own_prompt_is_drawn_with_the_file_told_and_no_base64(folder):
    printed = printed_by(folder, quickstart.EXAMPLES[0])
    assert "out/generate.png (512x512" in printed and "drawing" in printed and TINY_WARNING in printed
    assert len(printed) < 1000 and "does not know" not in printed
    reading = judge.read(Image.open(folder / "out/generate.png"))
    assert (reading.colour, reading.shape, reading.background) == ("yellow", "diamond", "green")


def test_an_own_picture_is_edited(local_endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "OUT", tmp_path / "out")
    job = quickstart.own_job("make the background blue", ROOT / "examples/red-circle.png")["edit"]
    quickstart.draw(local_endpoint, "edit", job | {"num_inference_steps": 5})
    reading = judge.read(Image.open(tmp_path / "out/edit.png"))
    assert (reading.colour, reading.shape, reading.background) == ("red", "circle", "blue")


def test_every_example_is_of_words_that_it_knows():
    for prompt in (*quickstart.EXAMPLES, *quickstart.EDIT_EXAMPLES):
        assert quickstart.unknown_words(prompt) == []


def test_words_that_it_does_not_know_are_told_with_its_vocabulary_and_three_prompts(capsys):
    unknown = quickstart.unknown_words("A fox in the snow, on a red background: snow!")
    assert unknown == ["fox", "snow"]
    quickstart.explain_vocabulary(unknown)
    told = capsys.readouterr().out
    assert "does not know: fox, snow." in told and "purple" in told and "diamond" in told
    assert [f'make run PROMPT="{prompt}"' in told for prompt in quickstart.EXAMPLES] == [True] * 3
