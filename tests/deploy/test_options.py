"""The command line takes what people type and what the documentation names."""

import re
from typing import get_type_hints

import pytest

from qwen_deploy.configuration import DEFAULTS
from qwen_deploy.options import COMMANDS, parser, read_options

from ..conftest import ROOT
from .conftest import SHIP, only

PAGE = (ROOT / "docs/deploying.md").read_text()


@pytest.mark.parametrize(("word", "value"), [
    ("on", "FLASHBOOT"), ("off", "OFF"), ("priority", "PRIORITY_FLASHBOOT"), ("On", "FLASHBOOT"),
    ("flashboot", "FLASHBOOT"), ("priority_flashboot", "PRIORITY_FLASHBOOT"), ("OFF", "OFF"),
])  # fmt: skip
def test_flashboot_takes_the_words_that_people_type_and_the_api_s_own(word, value):
    assert parser("").parse_args(["--flashboot", word]).flashboot == value


def test_flashboot_on_reaches_the_endpoint(runpod, command):
    runpod.add()  # with FlashBoot off
    code, text = command(*SHIP, "--flashboot", "on")
    assert code == 0, text
    assert only(runpod)["flashboot"] == "FLASHBOOT"


@pytest.mark.parametrize("word", ["yes", "1", "", "priority-flashboot"])
def test_another_word_for_flashboot_is_refused_with_the_rule_and_the_value(capsys, word):
    with pytest.raises(SystemExit) as ended:
        parser("").parse_args([f"--flashboot={word}"])
    assert ended.value.code == 2
    assert f"argument --flashboot: must be off, on, priority, not {word!r}" in capsys.readouterr().err


def test_the_page_s_flashboot_is_the_default_of_a_new_endpoint():
    default = re.search(r"^\| `--flashboot` \| `(\w+)`", PAGE, re.MULTILINE).group(1)
    assert parser("").parse_args(["--flashboot", default]).flashboot == DEFAULTS["flashboot"]


# What a command needs to be said, with its action where it has some.
CALLED = {
    "delete": ["--endpoint-id ep1"], "volume": ["list", "create x", "fill x", "delete x"], 
    "registry": ["list", "add x --username me"],
}  # fmt: skip
CALLS = [(name, words.split()) for name in COMMANDS for words in CALLED.get(name, [""])]


@pytest.mark.parametrize(("name", "needed"), CALLS)
def test_a_command_s_options_are_those_that_its_class_declares(name, needed):
    options = read_options(name, needed, "")
    assert set(vars(options)) == set(get_type_hints(type(options)))
