"""`play` runs the page's own Python on the endpoint's address; the key goes by the environment alone."""

import stat

import pytest

from qwen_deploy import play

from .fake_runpod import KEY


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A program in place of the page's Python, which writes down how it was called."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\necho "$RUNPOD_API_KEY" >{tmp_path}/key\nexit 3\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(play, "PYTHON", program)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    return tmp_path


def test_the_page_gets_the_address_by_an_option_and_the_key_by_its_environment(runpod, command, page):
    runpod.add()
    code, text = command("play", "--endpoint-id", "ep1", "--port", "7870", "--price", "1.5")
    assert code == 3, "the page's own exit code"
    url = runpod.endpoints["ep1"]["requestUrls"]["run"].removesuffix("/run")
    wanted = f"-m qwen_play --url {url} --host 127.0.0.1 --port 7870 --price 1.5\n"
    assert (page / "arguments").read_text() == wanted
    assert (page / "key").read_text().strip() == KEY and KEY not in text


def test_a_page_that_is_not_installed_is_told_with_the_command_that_installs_it(runpod, command, page):
    runpod.add()
    (page / "python").unlink()
    code, text = command("play", "--endpoint-id", "ep1")
    assert code == 2 and "make .venv-play/installed" in text
