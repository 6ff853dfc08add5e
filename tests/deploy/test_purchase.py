"""--gpu auto goes by what a picture takes and costs; what cannot be bought so is said before anything is paid."""

import json
import re

import pytest

from benchmarks.rates import CARDS, PRICES
from qwen_deploy.estimates import SecondsTable

from .conftest import NEW, OLD, SHIP, only, settable_fields
from .fake_runpod import Build, Fault, draws

PAGE = [(f"NVIDIA {card.name}", card.pool, card.memory, PRICES[card.pool], "HIGH") for card in CARDS
        if card.pool in PRICES]  # fmt: skip
H100 = ("NVIDIA H100 80GB HBM3", "ADA_80_PRO", 80, 4.18, "HIGH")


def numbered(text):
    """The pools that the plan takes, best first, each with its line."""
    lines = (re.match(r"(\d) +(\w+)(.*)", line) for line in text.splitlines())
    return {match[2]: match[3] for match in lines if match}


def test_auto_takes_a_pool_whose_picture_ends_within_thirty_seconds(runpod, command):
    runpod.gpus = PAGE
    code, text = command(*SHIP)
    assert code == 0, text
    taken = numbered(text)
    assert list(taken) == ["HOPPER_141", "ADA_80_PRO"] and sorted(taken) == only(runpod)["gpu"]["pools"]
    for line in taken.values():
        seconds, dollars, edit = re.search(r"~(\d+) s, ~\$([\d.]+) a picture; edit ~(\d+) s; computed", line).groups()
        assert int(seconds) <= 30 and float(dollars) < 0.038 and int(edit) <= 300
    assert "AMPERE_16" not in taken  # the cheapest an hour
    assert any("whichever of these pools has a card" in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("preference", "first"), [("price", "ADA_80_PRO"), ("latency", "BLACKWELL_180"), ("hourly", "BLACKWELL_96")]
)
def test_what_is_preferred_decides_among_the_pools_that_are_fast_enough(runpod, command, preference, first):
    slow_or_dear = ("NVIDIA H100 PCIe", "NVIDIA B200")
    runpod.gpus = [card for card in PAGE if card[0] not in slow_or_dear]
    runpod.gpus.append(("NVIDIA B200", "BLACKWELL_180", 180, 20.00, "HIGH"))
    cu130 = ("--build-arg", "TORCH_INDEX=https://download.pytorch.org/whl/cu130")
    code, text = command(*SHIP, *cu130, "--prefer", preference)
    assert code == 0 and next(iter(numbered(text))) == first, text


def test_the_cheapest_hour_is_preferred_where_that_is_asked_for(runpod, command):
    runpod.gpus = [*runpod.gpus, H100]
    code, text = command(*SHIP, "--prefer", "hourly", "--seconds", "60", "--execution-timeout", "400")
    assert code == 0 and next(iter(numbered(text))) == "AMPERE_48", text


def test_a_wish_that_no_pool_keeps_to_is_said_with_the_nearest_before_any_yes(runpod, command):
    code, text = command(*SHIP, "--seconds", "2")
    assert code == 1 and not runpod.writes
    assert re.search(r"No pool .* draws a picture in 2 s and an edit in 300 s\. The nearest is HOPPER_141: ~11 s", text)
    again = re.search(r"(--seconds \d+) takes it", text)[1].split()
    assert command(*SHIP, *again)[0] == 0 and only(runpod)["gpu"]["pools"] == ["HOPPER_141"]


def test_edits_that_outlast_the_limit_rule_a_pool_out(runpod, command):
    code, text = command(*SHIP, "--execution-timeout", "20")
    assert code == 1 and "--execution-timeout 30 takes it" in text and not runpod.writes


def test_the_preset_that_is_served_decides(runpod, command):
    lora = "lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-8steps-V1.1.safetensors"
    fast = ("--tasks", "generate", "--env", f"QWEN_IMAGE_FAST_LORA={lora}", "--env", "QWEN_PRESET=fast")
    code, text = command(*SHIP, *fast, "--prefer", "hourly")
    assert code == 0 and next(iter(numbered(text))) != "HOPPER_141", text


def test_the_second_pool_draws_where_the_first_is_throttled(runpod, command):
    runpod.gpus = [*runpod.gpus, H100]
    runpod.throttled = {"ADA_80_PRO"}
    code, text = command(*SHIP)
    assert list(numbered(text)) == ["ADA_80_PRO", "HOPPER_141"]
    assert code == 0 and "generate: 4.0 s on NVIDIA H200" in text, text


def test_where_every_pool_is_throttled_the_old_version_stays(runpod, command):
    endpoint = runpod.add()
    before = json.loads(json.dumps(settable_fields(endpoint)))
    runpod.throttled = {"HOPPER_141", "ADA_24"}
    code, text = command(*SHIP, "--gpu", "auto", "--capacity-wait", "10")
    assert code == 1 and "no card for the workers" in text and settable_fields(endpoint) == before


@pytest.mark.parametrize("price", [0, -1, float("nan"), float("inf"), "4.18", None])
def test_a_pool_without_a_price_is_not_taken_and_not_sold(runpod, command, price):
    runpod.gpus = [*runpod.gpus, ("NVIDIA H100 PCIe", "ADA_80_PRO", 80, price, "HIGH")]
    code, text = command(*SHIP, "--dry-run")
    assert code == 0 and list(numbered(text)) == ["HOPPER_141"]
    code, text = command(*SHIP, "--gpu", "ADA_80_PRO")
    assert code == 2 and "names no price for it" in text and not runpod.writes
    runpod.wrong = []  # what the catalogue answers here is against the document on purpose


def test_a_new_card_is_not_bought_unseen(runpod, command):
    runpod.gpus = [*runpod.gpus, ("NVIDIA RTX 9090", "ADA_90", 90, 0.10, "HIGH")]
    code, text = command(*SHIP, "--dry-run")
    assert code == 0 and list(numbered(text)) == ["HOPPER_141"] and "no seconds known" in text
    runpod.gpus = [*runpod.gpus, ("NVIDIA H900", "HOPPER_141", 141, 5.58, "HIGH")]
    code, text = command(*SHIP, "--dry-run")
    assert code == 0 and "HOPPER_141 has cards whose seconds are not known here" in text and "NVIDIA H900" in text


def test_models_that_nobody_counted_are_bought_by_the_hour_and_that_is_said(runpod, command):
    code, text = command(*SHIP, "--tasks", "generate", "--env", "QWEN_IMAGE_MODEL=Qwen/Qwen-Image-2.1", "--dry-run")
    assert code == 0 and "is not known for these models and cards, and so not what it costs" in text


def test_workers_of_two_cards_cost_twice_and_take_half_and_both_ways_are_shown(runpod, command):
    """A picture of 50 steps has 100 passes, of which 49 are computed beside others; an edit the same."""
    code, text = command(*SHIP, "--gpu-count", "2", "--dry-run")
    assert code == 0 and "$11.16/h" in numbered(text)["HOPPER_141"]
    row = next(row for row in SecondsTable().rows.values() if (row["card"], row["plan"]) == ("H200", "bf16"))
    one = row["generate"]["quality"]
    two = one - 49 * row["generate"]["pass"]
    plain = " ".join(text.split())
    words = f"~{two:.1f} s and ${two * 11.16 / 3600:.4f} on two cards, ~{one:.1f} s and ${one * 5.58 / 3600:.4f} on one"
    assert f"HOPPER_141: a picture takes {words} (computed)" in plain, plain
    assert "HOPPER_141: an edit takes ~" in plain and 0.5 < two / one < 0.6


def test_workers_of_two_cards_are_told_to_draw_on_both(runpod, command):
    _, text = command(*SHIP, "--gpu-count", "2", "--dry-run")
    assert re.search(r"env.QWEN_GPUS +\(none\) +2\b", text), text
    _, text = command(*SHIP, "--gpu-count", "2", "--env", "QWEN_GPUS=auto", "--dry-run")
    assert re.search(r"env.QWEN_GPUS +\(none\) +auto\b", text), text
    _, text = command(*SHIP, "--dry-run")
    assert "QWEN_GPUS" not in text


def test_an_endpoint_that_goes_back_to_one_card_is_told_so(runpod, command):
    endpoint = runpod.add()
    endpoint["env"]["QWEN_GPUS"] = "2"
    _, text = command("--registry", "docker.io/you", "--tag", "v1", "--gpu-count", "1", "--dry-run")
    assert re.search(r"env.QWEN_GPUS +2 +1\b", text), text


def test_ram_for_one_process_alone_is_said_before_a_second_card_is_paid(runpod, command):
    options = ("--gpu", "AMPERE_48", "--gpu-count", "2", "--ram-gb", "90")
    code, text = command(*SHIP, *options, "--dry-run")
    plain = " ".join(text.split())
    assert "AMPERE_48: one of the two cards would draw alone: two processes would pin" in plain, plain


@pytest.mark.parametrize("more", [(), ("--env", "QWEN_GPUS=2")])
def test_more_than_two_cards_are_refused(runpod, command, more):
    code, text = command(*SHIP, "--gpu-count", "3", *more, "--dry-run")
    assert code == 2 and "--gpu-count must be 1 or 2, not 3" in " ".join(text.split())


@pytest.mark.parametrize(("later", "sentence"), [
    ([], "Pool HOPPER_141 is no longer in RunPod's catalogue"),
    ([("NVIDIA H200", "HOPPER_141", 141, 6.50, "HIGH")], "Pool HOPPER_141 costs $6.50/h now, and $5.58/h in the plan"),
])  # fmt: skip
def test_a_pool_that_changes_between_plan_and_request_is_not_paid(runpod, command, docker, later, sentence):
    endpoint = runpod.add()
    before = json.loads(json.dumps(settable_fields(endpoint)))
    looks = []

    def meddle(method, path):
        if path.startswith("/v2/catalog"):
            looks.append(path)
            if len(looks) == 2:
                runpod.gpus = later

    runpod.on_request = meddle
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--yes", "--gpu", "auto")
    assert code == 1 and sentence in text and "--skip-build" in text
    assert not runpod.writes and settable_fields(endpoint) == before


def test_a_pool_that_runpod_refuses_leaves_the_old_version(runpod, command):
    endpoint = runpod.add()
    refused = {"title": "Bad Request", "status": 400, "detail": "pool HOPPER_141 is not available"}
    runpod.faults = [Fault("PATCH", "/serverless/", 400, body=refused)]
    code, text = command(*SHIP, "--gpu", "auto")
    assert code == 1 and "pool HOPPER_141 is not available" in text and endpoint["image"] == OLD


def test_the_endpoint_s_own_seconds_count_before_computed_ones(runpod, command):
    runpod.add(NEW, gpu={"pools": ["HOPPER_141"]})
    runpod.builds[NEW] = Build(draws("v1", side=1024), seconds={"generate": 60})
    assert command("send", "--endpoint-id", "ep1", "a fox")[0] == 0
    code, text = command("cost", "--endpoint-id", "ep1")
    lines = text.splitlines()
    row = next(number for number, line in enumerate(lines) if re.match(r" *\d? *HOPPER_141", line))
    assert code == 0 and "~59 s" in lines[row] and "measured on this endpoint" in lines[row]
    assert f"${5.58 / 3600 * 59:.4f}" in lines[row + 1]  # one second of the 60 was the load
    code, text = command(*SHIP, "--gpu", "auto", "--dry-run")
    assert code == 1 and "The nearest is" in text and "HOPPER_141: ~11 s" not in text


def test_test_pictures_of_another_size_are_no_measure(runpod, command):
    runpod.add(NEW, gpu={"pools": ["HOPPER_141"]})
    command("send", "--endpoint-id", "ep1", "a fox")  # 64x64
    assert "measured" not in command("cost", "--endpoint-id", "ep1")[1].split("--gpu auto takes")[0]


def test_a_day_costs_idle_seconds_and_cold_starts_too(runpod, command):
    code, text = command("cost", "--per-day", "100", "--tasks", "generate")
    assert code == 0 and "100 jobs a day" in text and "computed" in text
    low, high = re.search(r"HOPPER_141 +\$([\d.]+) to \$([\d.]+)", text).groups()
    drawn, cold = map(int, re.search(r"HOPPER_141 .*high +~(\d+) s +~(\d+) s", text).groups())
    price = 5.58 / 3600
    assert float(low) == pytest.approx(price * (cold + 100 * drawn + 10), rel=0.05)
    assert float(high) == pytest.approx(price * 100 * (cold + drawn + 10), rel=0.05)


def test_workers_that_always_run_cost_the_whole_day(runpod, command):
    runpod.add(NEW)["workers"] = {"min": 1, "max": 3, "idleTimeout": 5}
    text = command("cost", "--endpoint-id", "ep1", "--per-day", "10")[1]
    assert f"${24 * 5.58:.2f} to ${24 * 5.58:.2f}" in text
