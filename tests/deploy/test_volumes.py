"""Volumes: what is said before they cost, where they are, what is refused, and that nothing is made twice."""

import os
import signal

import pytest

from qwen_deploy.volumes import monthly_price

from .conftest import NEW, SHIP, only, settable_fields
from .fake_runpod import Build, Fault, stands_in

CREATE = ("volume", "create", "qwen-weights", "--yes")
FILL = ("volume", "fill", "qwen-weights", "--yes")


def test_without_a_yes_no_volume_is_made_and_its_price_is_said(runpod, command):
    code, text = command(*CREATE[:-1])
    assert code == 2 and "$7.70 a month" in text and not runpod.writes


def test_a_new_volume_is_where_the_most_pools_hold_the_models(runpod, command):
    runpod.absent = {("EU-RO-1", "NVIDIA H200"), ("EU-RO-1", "NVIDIA A40"), ("EU-RO-1", "NVIDIA RTX A6000")}
    code, text = command(*CREATE)
    assert code == 0, text
    (volume,) = runpod.storage.volumes.values()
    assert (volume["dataCenter"], volume["size"]) == ("US-KS-2", 110)
    row = next(line for line in text.splitlines() if line.startswith("*"))
    assert "US-KS-2" in row and "HOPPER_141" in row and "EU-CZ-1" not in text  # which has no volumes


def test_a_connection_that_drops_makes_no_second_volume(runpod, command):
    runpod.faults = [Fault("POST", "/v2/network-volumes$", drop="after")]
    assert command(*CREATE)[0] == 0 and len(runpod.storage.volumes) == 1


def test_the_same_command_again_makes_no_second_volume(runpod, command):
    runpod.storage.add_volume()
    code, text = command(*CREATE)
    assert code == 0 and "is there already" in text and not runpod.writes


def test_a_volume_is_made_larger_for_a_price_that_is_said(runpod, command):
    runpod.storage.add_volume(size=50)
    code, text = command(*CREATE, "--size", "200")
    assert code == 0 and "$14.00 a month in place of $3.50" in text
    assert [volume["size"] for volume in runpod.storage.volumes.values()] == [200]


@pytest.mark.parametrize("arguments, sentence", [
    (("--size", "20"), "--size must be at least 50"),
    (("--size", "9"), "--size must be from 10 to 4096 GB, not 9"),
    (("--data-center", "EU-RO-1"), "is in US-KS-2, and cannot move"),
    (("--models", "Org/Unknown"), "--size is needed"),
])  # fmt: skip
def test_what_a_volume_cannot_be_is_refused(runpod, command, arguments, sentence):
    runpod.storage.add_volume(size=50)
    code, text = command(*CREATE, *arguments)
    assert code == 2 and sentence in text and not runpod.writes


def test_a_data_centre_without_volumes_is_refused_with_those_that_have_them(runpod, command):
    code, text = command(*CREATE, "--data-center", "EU-CZ-1")
    assert code == 2 and "not EU-CZ-1: EU-RO-1, US-KS-2" in text and not runpod.writes


def test_the_price_falls_beyond_a_terabyte():
    assert monthly_price(1000) == pytest.approx(70) and monthly_price(2000) == pytest.approx(120)


def test_a_volume_brings_its_data_centre_and_cards_of_others_are_not_taken(runpod, command):
    runpod.absent = {("EU-RO-1", name) for name, pool, *_ in runpod.gpus if pool != "HOPPER_141"}
    runpod.storage.add_volume(data_center="EU-RO-1")
    code, text = command(*SHIP, "--volume", "qwen-weights")
    assert code == 0, text
    endpoint = only(runpod)
    assert endpoint["dataCenterIds"] == ["EU-RO-1"] and endpoint["gpu"]["pools"] == ["HOPPER_141"]


def test_a_pool_without_a_card_in_the_volume_s_data_centre_is_said_so(runpod, command):
    runpod.absent = {("EU-RO-1", "NVIDIA H200")}
    runpod.storage.add_volume(data_center="EU-RO-1")
    code, text = command(*SHIP, "--volume", "qwen-weights", "--gpu", "HOPPER_141", "--dry-run")
    assert code == 0 and "No card of HOPPER_141 is to be had in EU-RO-1 now" in text


def test_a_volume_in_another_data_centre_is_refused(runpod, command):
    runpod.storage.add_volume()
    code, text = command(*SHIP, "--volume", "qwen-weights", "--data-centers", "EU-RO-1")
    assert code == 2 and "is in US-KS-2, and --data-centers names EU-RO-1" in text and not runpod.writes


def test_an_endpoint_does_not_leave_its_volume_s_data_centre_unnoticed(runpod, command):
    runpod.add(networkVolumes=[runpod.storage.add_volume()["id"]])
    code, text = command(*SHIP, "--data-centers", "EU-RO-1")
    assert code == 2 and "is in US-KS-2" in text and not runpod.writes


def test_a_volume_is_taken_off_and_the_data_centre_stays_as_is_said(runpod, command):
    endpoint = runpod.add()
    code, text = command(*SHIP, "--volume", "")
    assert code == 0 and endpoint["networkVolumes"] == [] and "--data-centers '' lifts that" in text


def test_a_change_of_volume_that_does_not_serve_is_rolled_back(runpod, command):
    endpoint = runpod.add()
    before = settable_fields(dict(endpoint))
    runpod.builds[NEW] = Build(stands_in("v1"))
    runpod.storage.add_volume(data_center="EU-RO-1")
    code, text = command(*SHIP, "--volume", "qwen-weights")
    assert code == 1 and ("networkVolumes", ["vol1"]) in runpod.writes_to("/v2/serverless")[0][2].items(), text
    assert settable_fields(endpoint) == before and runpod.storage.volumes  # what is on a volume is not undone


def test_a_name_of_two_volumes_or_of_none_is_refused(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.add_volume(data_center="EU-RO-1")
    code, text = command(*SHIP, "--volume", "qwen-weights")
    assert code == 2 and "vol1 in US-KS-2, vol2 in EU-RO-1" in text
    code, text = command(*SHIP, "--volume", "other")
    assert code == 2 and "there is no such volume" in text and "qwen-weights (vol1)" in text and not runpod.writes


def test_a_new_endpoint_without_weights_says_what_each_worker_downloads(runpod, command):
    code, text = command(*SHIP)
    assert code == 0 and "every new worker downloads 98.6 GB" in text
    model = "https://huggingface.co/Qwen/Qwen-Image:main"
    assert f"runpodctl serverless update {only(runpod)['id']} --model-reference {model}" in text
    runpod.storage.add_volume()
    code, text = command(*SHIP, "--volume", "qwen-weights")
    assert code == 0 and "downloads" not in text and "runpodctl" not in text


def test_a_volume_that_is_too_small_is_refused_before_a_pod_is_made(runpod, command):
    runpod.storage.add_volume(size=50)
    code, text = command(*FILL)
    assert code == 2 and "has 50 GB, and the models need 98.6 GB" in text and "--size 99" in text and not runpod.writes


def test_without_a_yes_no_pod_is_made_and_its_price_is_said(runpod, command):
    runpod.storage.add_volume()
    code, text = command(*FILL[:-1])
    assert code == 2 and "$0.06/h" in text and not runpod.writes


def test_hardware_that_is_gone_gives_way_to_the_next_that_was_named(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.full = {"cpu3c"}
    runpod.storage.unpullable = {"python:x"}
    code, text = command(*FILL, "--image", "python:x")
    assert code == 1 and "2 vCPUs of cpu5c, $0.08/h" in text, text


def test_no_hardware_at_all_leaves_nothing_behind(runpod, command):
    runpod.storage.add_volume()
    runpod.faults = [Fault("POST", "/v2/pods$", 400) for _ in range(5)]
    code, text = command(*FILL)
    assert code == 1 and "RunPod gave no Pod in US-KS-2" in text and not runpod.storage.pods


def test_a_pod_that_is_dearer_than_was_said_is_deleted_at_once(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.dearer = 0.5
    code, text = command(*FILL)
    assert code == 1 and "would cost $0.56/h, and $0.06/h was said" in text and not runpod.storage.pods


def test_a_registry_that_refuses_the_pod_s_image_ends_the_pod(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.unpullable = {"python:x"}
    code, text = command(*FILL, "--image", "python:x")
    assert code == 1 and "cannot be pulled" in text and "pull access denied" in text and not runpod.storage.pods


def test_a_pod_that_does_not_move_is_given_up(runpod, command, clock):
    runpod.storage.add_volume()
    runpod.storage.pod_env["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the pretended clock runs ahead of any process
    code, text = command(*FILL, "--wait", "60")
    assert code == 1 and not runpod.storage.pods
    assert "Nothing has moved for 60 s" in text or "is not filled" in text, text


def test_a_connection_that_drops_makes_no_second_pod(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.unpullable = {"python:x"}
    runpod.faults = [Fault("POST", "/v2/pods$", drop="after")]
    code, text = command(*FILL, "--image", "python:x")
    assert code == 1 and "cannot be pulled" in text and not runpod.storage.pods
    assert runpod.storage.count == 2  # the volume, and one Pod


def test_ctrl_c_while_a_pod_is_being_made_leaves_none(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.unpullable = {"python:x"}

    def stop(method, path):
        if (method, path) == ("POST", "/v2/pods"):
            os.kill(os.getpid(), signal.SIGINT)

    runpod.on_request = stop
    code, text = command(*FILL, "--image", "python:x")
    assert code == 130 and runpod.storage.count == 2 and not runpod.storage.pods, text


def test_a_pod_that_somebody_deletes_is_said_to_be_gone(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.unpullable = {"python:x"}

    def delete(method, path):
        if method == "GET" and path.startswith("/v2/pods/") and runpod.storage.pods:
            runpod.storage.delete_pod(path.split("/")[3])

    runpod.on_request = delete
    code, text = command(*FILL, "--image", "python:x")
    assert code == 1 and "is gone before it said that the volume is filled: run this again" in text


def test_a_pod_that_cannot_be_deleted_is_named_with_what_it_costs(runpod, command):
    runpod.storage.add_volume()
    runpod.storage.unpullable = {"python:x"}
    runpod.faults = [Fault("DELETE", "/v2/pods/", 403)]
    code, text = command(*FILL, "--image", "python:x")
    assert code == 1 and "qwen-fill-vol1 could not be deleted" in text and "It costs until it is" in text


@pytest.mark.parametrize("arguments, path", [
    (CREATE, "/v2/network-volumes$"), (FILL, "/v2/pods$"),
    (("volume", "delete", "vol1", "--yes"), "/v2/network-volumes/"),
])  # fmt: skip
def test_a_key_without_the_right_is_told_which_it_lacks(runpod, command, arguments, path):
    if arguments is not CREATE:
        runpod.storage.add_volume()
    runpod.faults = [Fault(method, path, 403) for method in ("POST", "DELETE") for _ in range(5)]
    code, text = command(*arguments)
    assert code == 1 and "volumes, Pods and registries all of the REST API" in text and not runpod.storage.pods
