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


@pytest.mark.parametrize("words", [
    "deploy --ram-gb nan", "deploy --ram-gb inf", "models --ram-gb -1", "cost --ram-gb 0", "cost --per-day -5",
    "deploy --wait -1", "deploy --capacity-wait 0", "deploy --test-steps -1", "deploy --test-size -7",
    "deploy --gpu-count 0", "send x --timeout -1", "send x --timeout 0", "logs --tail -4", "spent --days 0",
    "spent --days 99999999999999999999999", "volume fill x --wait -1", "play --price nan", "deploy --seconds ☃",
])  # fmt: skip
def test_a_number_that_can_be_none_is_refused_with_the_option_and_the_value(capsys, words):
    command, *arguments = words.split()
    with pytest.raises(SystemExit) as ended:
        read_options(command, arguments, "")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"argument {arguments[-2]}: must be a " in said and repr(arguments[-1]) in said


@pytest.mark.parametrize("option, value", [
    ("--gpu", ","), ("--gpu", ""), ("--name", ""), ("--name", " "), ("--min-cuda", "banana"), ("--min-cuda", ""),
])  # fmt: skip
def test_an_empty_word_is_not_taken_for_a_default(runpod, command, option, value):
    runpod.add()
    code, text = command(*SHIP, option, value)
    assert code == 2 and f"{option} must" in text and repr(value) in text and not runpod.writes
