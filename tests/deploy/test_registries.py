"""Credentials of private registries: kept by RunPod, named by name, their password seen by nobody else."""

import io

import pytest
from rich.console import Console

import deploy_qwen
from qwen_deploy import storage_commands

from .conftest import SHIP, only
from .fake_runpod import KEY, Build, Fault

ADD = ("registry", "add", "github", "--username", "me")
PASSWORD = "ghp_a_token_of_the_registry"


@pytest.fixture(autouse=True)
def password(monkeypatch):
    monkeypatch.setenv("REGISTRY_PASSWORD", PASSWORD)


def test_a_credential_is_kept_listed_and_used_by_its_name(runpod, command):
    code, text = command(*ADD)
    assert code == 0 and PASSWORD not in text
    ((_, _, body),) = runpod.writes_to("/v2/registries")
    assert body == {"name": "github", "username": "me", "password": PASSWORD}
    code, text = command("registry", "list")
    assert code == 0 and "github" in text and "reg1" in text
    assert command(*SHIP, "--registry-credential", "github")[0] == 0 and only(runpod)["registry"] == "reg1"


def test_a_credential_that_is_not_there_is_refused_before_anything_is_sent(runpod, command):
    code, text = command(*SHIP, "--registry-credential", "gitlab")
    assert code == 2 and "--registry-credential gitlab: there is no such credential" in text and not runpod.writes


def test_a_key_for_endpoints_alone_may_name_a_credential_by_its_id(runpod, command):
    runpod.faults = [Fault("GET", "/v2/registries$", 403)]
    assert command(*SHIP, "--registry-credential", "reg7")[0] == 0 and only(runpod)["registry"] == "reg7"


def test_the_password_is_asked_for_where_nobody_sees_it(runpod, command, monkeypatch):
    monkeypatch.delenv("REGISTRY_PASSWORD")
    code, text = command(*ADD)
    assert code == 2 and "REGISTRY_PASSWORD is not set" in text and not runpod.writes


def test_on_a_terminal_the_password_is_typed_unseen(runpod, monkeypatch, tmp_path):
    monkeypatch.delenv("REGISTRY_PASSWORD")
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(console, "input", lambda question, password=False: PASSWORD if password else "")
    environment = {"RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url}
    assert deploy_qwen.main([*ADD, "--state", str(tmp_path)], environment, console) == 0
    assert runpod.writes_to("/v2/registries")[0][2]["password"] == PASSWORD


def test_a_name_that_is_taken_is_refused(runpod, command):
    assert command(*ADD)[0] == 0
    code, text = command(*ADD)
    assert code == 2 and "is there already (reg1)" in text and len(runpod.storage.registries) == 1


def test_a_refusal_does_not_repeat_the_password(runpod, command):
    errors = ["$.password: must be longer", "$.username: unknown"]
    runpod.faults = [Fault("POST", "/v2/registries$", 422, body={"title": "x", "status": 422, "errors": errors})]
    code, text = command(*ADD)
    assert code == 1 and "password: must be longer" in text and PASSWORD not in text and "'me'" not in text


def test_a_registry_that_refuses_the_worker_s_image_is_told_with_the_way_out(runpod, command):
    runpod.add()
    runpod.builds["docker.io/you/qwen-image:v1"] = Build(unpullable=True)
    code, text = command(*SHIP)
    assert code == 1 and "cannot be pulled" in text and "`registry add`" in text
    assert only(runpod)["image"] == "docker.io/you/qwen-image:v0"  # as it was


def test_every_action_has_its_story():
    assert set(storage_commands.ACTIONS) == {"volume", "registry", "models"}
