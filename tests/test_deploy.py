"""`deploy_qwen.py` against RunPod on loopback: what it sends, what it leaves behind, what it tells the operator."""

import contextlib
import io
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import deploy_qwen
from qwen_deploy import rollout

from .conftest import ROOT
from .fake_runpod import KEY, Build, FakeRunPod, Fault, draws, stands_in

NEW = "docker.io/you/qwen-image:v1"
OLD = "docker.io/you/qwen-image:v0"
SHIP = ("--registry", "docker.io/you", "--tag", "v1", "--skip-build", "--yes")


@pytest.fixture
def runpod(monkeypatch):
    monkeypatch.setattr(rollout, "LOG_EVERY_SECONDS", 0)
    fake = FakeRunPod()
    fake.builds = {NEW: Build(draws("v1")), OLD: Build(draws("v0"))}
    yield fake
    fake.close()
    assert not fake.wrong, "the fake answered against RunPod's document"


@pytest.fixture
def command(runpod, tmp_path):
    """command(*arguments): (exit code, everything printed) of `deploy_qwen.py`; the fake's time does not wait."""
    runpod.state = tmp_path / "state"
    runpod.pauses = []

    def run(*arguments, key=KEY):
        screen = io.StringIO()
        console = Console(file=screen, width=300, highlight=False)
        environment = {"RUNPOD_API_KEY": key, "RUNPOD_API_URL": runpod.url}
        folders = ["--state", str(runpod.state)]
        if not arguments or arguments[0] in ("send",) or arguments[0].startswith("-"):
            folders += ["--output", str(tmp_path / "out")]
        code = deploy_qwen.main([*arguments, *folders], environment, console, runpod.pauses.append)
        text = screen.getvalue()
        assert KEY not in text
        return code, text

    return run


def only(runpod):
    (endpoint,) = runpod.endpoints.values()
    return endpoint


def asked(runpod):
    """The tasks of the jobs in order, repetitions once: old workers are asked past."""
    return [task for task, _ in itertools.groupby(job["input"]["task"] for job in runpod.jobs.values())]


# From nothing to an endpoint that serves.


def test_a_new_endpoint_is_made_proved_and_left_as_it_was_asked_for(runpod, command, tmp_path):
    code, text = command(*SHIP, "--execution-timeout", "400")
    assert code == 0, text
    endpoint = only(runpod)
    assert endpoint["image"] == NEW and endpoint["name"] == "qwen-image" and endpoint["type"] == "QUEUE"
    assert endpoint["workers"] == {"min": 0, "max": 3, "idleTimeout": 10} and endpoint["timeout"] == 400_000
    assert endpoint["flashboot"] == "FLASHBOOT" and endpoint["gpu"]["minCudaVersion"] == "13.0"
    assert endpoint["env"]["SERVER_MODE"] == "runpod" and "QWEN_FALLBACK" not in endpoint["env"]
    assert asked(runpod) == ["health", "generate", "edit", "health"]
    assert (tmp_path / "out/generate.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "out/edit.png").exists()
    assert f"Endpoint {endpoint['id']} serves {NEW}" in text


def test_falling_back_is_forbidden_while_the_test_jobs_run(runpod, command):
    seen = []
    runpod.builds[NEW].answer = lambda fields, env: (
        seen.append((fields["task"], env.get("QWEN_FALLBACK"))) or draws("v1")(fields, env)
    )
    assert command(*SHIP, "--env", "QWEN_FALLBACK=allow")[0] == 0
    assert list(dict.fromkeys(seen)) == [
        ("health", "forbid"), ("generate", "forbid"), ("edit", "forbid"), ("health", "allow"),
    ]  # fmt: skip


def test_a_second_run_changes_nothing(runpod, command):
    assert command(*SHIP)[0] == 0
    before, sent = json.dumps(only(runpod)), len(runpod.writes_to("/v2"))
    code, text = command(*SHIP)
    assert code == 0 and "nothing to change" in text
    assert len(runpod.writes_to("/v2")) == sent and json.dumps(only(runpod)) == before


def test_an_update_sends_what_differs_and_keeps_what_the_console_set(runpod, command):
    endpoint = runpod.add()
    kept = {name: endpoint[name] for name in ("scaling", "timeout", "dataCenterIds", "networkVolumes", "disk")}
    assert command(*SHIP, "--workers-max", "7")[0] == 0
    first = runpod.writes_to("/v2")[0][2]
    assert first == {
        "image": NEW,
        "env": {"QWEN_FALLBACK": "forbid", "HF_TOKEN": "hf_secret_of_the_endpoint"},
        "workers": {"max": 7},
    }
    assert {name: endpoint[name] for name in kept} == kept and endpoint["gpu"]["excludedTypes"] == ["NVIDIA L4"]
    assert endpoint["workers"] == {"min": 1, "max": 7, "idleTimeout": 60}
    assert endpoint["env"] == {"QWEN_FALLBACK": "allow", "HF_TOKEN": "hf_secret_of_the_endpoint"}


def test_a_change_of_scaling_alone_replaces_no_worker(runpod, command):
    runpod.add(NEW)
    assert command(*SHIP, "--workers-max", "9")[0] == 0
    assert [body for _, _, body in runpod.writes_to("/v2")] == [{"workers": {"max": 9}}]


def test_other_pools_drop_the_exclusions_of_the_old_ones(runpod, command):
    endpoint = runpod.add(NEW)
    assert command(*SHIP, "--gpu", "AMPERE_80,HOPPER_141", "--min-cuda", "12.8")[0] == 0
    assert sorted(endpoint["gpu"]["pools"]) == ["AMPERE_80", "HOPPER_141"]
    assert endpoint["gpu"]["excludedTypes"] == [] and endpoint["gpu"]["minCudaVersion"] == "12.8"


def test_the_old_version_s_answers_are_asked_past_during_a_rollout(runpod, command):
    runpod.add()
    runpod.old_ticks = 4
    code, text = command(*SHIP)
    assert code == 0 and "worker version v0 answered" in text


# What it sends when it must not send.


def test_a_dry_run_sends_nothing_but_reads(runpod, command, docker):
    runpod.add()
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--dry-run")
    assert code == 0 and not runpod.writes and not docker.calls()[1:]
    assert "PATCH /v2/serverless/ep1" in text and "docker push docker.io/you/qwen-image:v1" in text
    assert "hf_secret" not in text


def test_without_a_yes_nothing_is_sent(runpod, command):
    code, text = command(*SHIP[:-1])
    assert code == 2 and "--yes" in text and not runpod.writes


def test_a_dry_run_of_a_rollback_sends_nothing_but_reads(runpod, command):
    runpod.add()
    command(*SHIP)
    sent = len(runpod.writes)
    code, text = command("rollback", "--endpoint-id", "ep1", "--dry-run")
    assert code == 0 and OLD in text and len(runpod.writes) == sent


# What does not serve is rolled back.


def configuration(endpoint):
    return {name: value for name, value in endpoint.items() if name not in ("id", "createdAt", "requestUrls")}


def fallen_back(runpod, command, *arguments):
    """The text of a deployment that must fail and leave the old endpoint as it was, field by field."""
    endpoint = runpod.add()
    before = json.loads(json.dumps(configuration(endpoint)))
    asked = ("--gpu", "AMPERE_80", "--workers-min", "2", "--disk", "99", "--volume", "", "--data-centers", "")
    changed = ("--env", "EXTRA=1", "--unset-env", "HF_TOKEN", "--flashboot", "flashboot", "--idle-timeout", "30")
    code, text = command(*SHIP, *asked, *changed, *arguments)
    assert code == 1 and "verified field by field" in text, text
    assert configuration(endpoint) == before
    assert len(runpod.writes_to("/v2")) >= 2  # it was changed, and changed back
    return text


def test_a_worker_that_stands_in_is_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(stands_in("v1"))
    assert "backend must be qwen-image, not pil-fallback: no weights" in fallen_back(runpod, command)


def test_another_build_than_the_deployed_one_is_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(draws("v0.9"))
    text = fallen_back(runpod, command)
    assert "worker_version must be v1, not v0.9" in text


def test_a_picture_by_another_build_is_rolled_back(runpod, command):
    def answer(fields, env):
        return draws("v1" if fields["task"] == "health" else "v0.9")(fields, env)

    runpod.builds[NEW] = Build(answer)
    assert "generate: worker_version must be v1, not v0.9" in fallen_back(runpod, command)


def test_a_model_that_does_not_load_is_rolled_back(runpod, command):
    def answer(fields, env):
        if fields["task"] == "edit":
            return {"error": "model_unavailable: transformer/model-2.safetensors is corrupt", "success": False}
        return draws("v1")(fields, env)

    runpod.builds[NEW] = Build(answer)
    assert "edit: the job is FAILED: model_unavailable: transformer/model-2" in fallen_back(runpod, command)


@pytest.mark.parametrize("image", ["bm90IGEgcGljdHVyZQ==", "%%%", "", None])
def test_a_reply_without_a_picture_is_rolled_back(runpod, command, image):
    def answer(fields, env):
        return draws("v1")(fields, env) | ({"image": image} if fields["task"] == "generate" else {})

    runpod.builds[NEW] = Build(answer)
    assert "The reply" in fallen_back(runpod, command)


def test_a_crash_loop_is_found_in_the_logs_and_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(crashes=True, log=("Traceback ...", "QWEN_FALLBACK=forbid: no model can be served"))
    text = fallen_back(runpod, command)
    assert "Crash loop: worker" in text and "QWEN_FALLBACK=forbid: no model can be served" in text


def test_an_image_that_cannot_be_pulled_is_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(unpullable=True)
    assert "The image cannot be pulled: error pulling image" in fallen_back(runpod, command)


def test_workers_that_get_no_card_are_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(state="THROTTLED")
    assert "no card for the workers" in fallen_back(runpod, command, "--capacity-wait", "0")


def test_unhealthy_workers_are_rolled_back(runpod, command, monkeypatch):
    monkeypatch.setattr(rollout, "UNHEALTHY_SECONDS", 0)
    runpod.builds[NEW] = Build(state="UNHEALTHY")
    assert "is unhealthy" in fallen_back(runpod, command)


def test_workers_that_never_come_up_are_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(state="INITIALIZING")
    assert "do not serve after" in fallen_back(runpod, command, "--wait", "1")


def test_a_field_that_runpod_does_not_keep_is_rolled_back(runpod, command):
    runpod.ignores = {"flashboot"}
    endpoint = runpod.add()
    code, text = command(*SHIP, "--flashboot", "priority_flashboot")
    assert code == 1 and "flashboot is OFF, not PRIORITY_FLASHBOOT" in text and endpoint["image"] == OLD


def test_the_jobs_of_a_failed_proof_are_cancelled(runpod, command):
    runpod.builds[NEW] = Build(crashes=True)
    runpod.old_ticks = 0  # no old worker is left to take the job
    fallen_back(runpod, command)
    assert [job["status"] for job in runpod.jobs.values()][:1] == ["CANCELLED"]


def test_a_new_endpoint_that_does_not_serve_is_left_without_workers(runpod, command):
    runpod.builds[NEW] = Build(stands_in("v1"))
    code, text = command(*SHIP)
    assert code == 1 and "it costs nothing" in text
    assert only(runpod)["workers"] | {"idleTimeout": 0} == {"min": 0, "max": 0, "idleTimeout": 0}


def test_a_failed_check_of_an_unchanged_endpoint_changes_nothing(runpod, command):
    runpod.add(NEW, env={})
    runpod.builds[NEW] = Build(stands_in("v1"))
    code, text = command(*SHIP)
    assert code == 1 and "nothing to roll back" in text and not runpod.writes_to("/v2")


# Interruptions: the old version serves, or it says what is where.


@pytest.mark.parametrize("method, path, times", [
    ("GET", "/releases", 1), ("PATCH", "/serverless/", 1), ("POST", "/run", 1), ("GET", "/status/", 1),
    ("GET", "/workers", 3), ("POST", "/run", 2), ("GET", "/status/", 5), ("PATCH", "/serverless/", 2),
])  # fmt: skip
def test_ctrl_c_in_any_phase_leaves_the_old_version(runpod, command, method, path, times):
    endpoint = runpod.add()
    before = json.loads(json.dumps(configuration(endpoint)))
    count = [0]

    def interrupt(now, where):
        count[0] += now == method and path in where
        if count[0] == times:
            count[0] += 1
            # As the kernel does it: to the process, in the middle of its request.
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    runpod.on_request = interrupt
    code, text = command(*SHIP)
    assert code == 130 and "Interrupted" in text
    assert configuration(endpoint) == before
    assert all(job["status"] != "IN_QUEUE" for job in runpod.jobs.values())


def test_a_rollback_that_fails_says_what_is_where(runpod, command):
    runpod.add()
    runpod.builds[NEW] = Build(stands_in("v1"))
    runpod.on_request = lambda method, path: (
        runpod.faults.append(Fault("PATCH", "/serverless/", 403)) if path.endswith("/run") else None
    )
    code, text = command(*SHIP)
    assert code == 1 and "Rolling back failed: RUNPOD_API_KEY may not do this" in text
    again = re.search(r"deploy_qwen.py (rollback --endpoint-id ep1 --to \S+)", text).group(1).split()
    runpod.faults, runpod.on_request = [], lambda method, path: None
    assert command(*again, "--yes")[0] == 0 and only(runpod)["image"] == OLD


# What the network does.


def test_a_connection_that_drops_during_an_update_does_not_matter(runpod, command):
    runpod.add()
    runpod.faults = [Fault("PATCH", "/serverless/", drop="before"), Fault("PATCH", "/serverless/", drop="after")]
    assert command(*SHIP)[0] == 0 and only(runpod)["image"] == NEW


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_connection_that_drops_during_a_creation_makes_one_endpoint(runpod, command, drop):
    runpod.faults = [Fault("POST", "/v2/serverless$", drop=drop)]
    assert command(*SHIP)[0] == 0 and only(runpod)["image"] == NEW


def test_a_retry_after_is_waited_for(runpod, command):
    runpod.add()
    runpod.faults = [Fault("PATCH", "/serverless/", 429, {"Retry-After": "12"}), Fault("GET", "/workers", 503)]
    code, text = command(*SHIP)
    assert code == 0 and 12.0 in runpod.pauses and "RunPod answered 429; trying again in 12 s" in text


def test_a_retry_after_as_a_date_is_waited_for(runpod, command):
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 40))
    runpod.faults = [Fault("GET", "/v2/serverless$", 429, {"Retry-After": later})]
    assert command(*SHIP)[0] == 0 and any(30 < pause <= 40 for pause in runpod.pauses)


REFUSALS = [
    (401, "RunPod does not accept RUNPOD_API_KEY (401: on purpose)"),
    (402, "balance does not cover this (402: on purpose). Add credit"),
    (403, "It needs to read and write Serverless"),
    (404, "the new endpoint does not exist or belongs to another account"),
    (409, "the new endpoint is being changed by something else"),
    (429, "takes no more requests for now (429: on purpose). Wait 900 s"),
    (500, "RunPod is failing (500: on purpose)"),
]


@pytest.mark.parametrize("status, sentence", REFUSALS)
def test_each_refusal_has_its_sentence(runpod, command, status, sentence):
    runpod.faults = [Fault("POST", "/v2/serverless$", status, {"Retry-After": "900"})]
    code, text = command(*SHIP)
    assert code == 1 and sentence in text and not runpod.endpoints and "Traceback" not in text


def test_a_failing_runpod_is_asked_five_times(runpod, command):
    runpod.faults = [Fault("GET", "/v2/serverless$", 502) for _ in range(9)]
    code, text = command(*SHIP)
    assert code == 1 and "RunPod is failing (502" in text and len(runpod.requests) == 5
    assert runpod.pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("arguments, sentence", [
    (("--disk", "7", "--flashboot", "off"), "disk: must be at least 8, not 7"),
    (("--env", "SECRET_THING=1234567"), "env.SECRET_THING: too short"),
])  # fmt: skip
def test_a_refused_field_is_named_with_its_rule_and_value(runpod, command, arguments, sentence):
    entry = "$.disk: must be at least 8" if "--disk" in arguments else "$.env.SECRET_THING: too short"
    body = {"title": "Unprocessable Entity", "status": 422, "detail": "Request validation failed.", "errors": [entry]}
    runpod.faults = [Fault("POST", "/v2/serverless$", 422, body=body)]
    code, text = command(*SHIP, *arguments)
    assert code == 1 and f"RunPod refused the new endpoint (422): {sentence}" in text and "1234567" not in text


def test_no_network_is_said_so(command, runpod, monkeypatch, tmp_path):
    screen = io.StringIO()
    environment = {"RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": "http://127.0.0.1:9"}  # nothing listens there
    console = Console(file=screen, width=300)
    assert deploy_qwen.main([*SHIP, "--state", str(tmp_path)], environment, console, lambda seconds: None) == 1
    assert "This machine cannot reach 127.0.0.1: no network" in screen.getvalue()


def test_a_wrong_key_is_refused_before_anything_is_built(runpod, command, docker):
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--yes", key="rpa_WRONGKEY000000000")
    assert code == 1 and "RunPod does not accept RUNPOD_API_KEY" in text and not docker.calls()


@pytest.mark.parametrize("key, sentence", [("", "is not set"), ("short", "not 5"), ("two words here", "one printable")])
def test_a_missing_or_impossible_key_is_said_so(command, key, sentence):
    code, text = command(*SHIP, key=key)
    assert code == 2 and "RUNPOD_API_KEY" in text and sentence in text
    assert not key or key not in text


# The key.


def test_the_key_is_in_no_output_file_or_process_list(runpod, tmp_path, docker):
    runpod.add(env={"LEAK": KEY, "QWEN_FALLBACK": "forbid"})
    runpod.builds[NEW] = Build(draws("v1"), log=(f"the worker prints {KEY}",), crashes=True)
    environment = {**os.environ, "RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url, "XDG_STATE_HOME": str(tmp_path)}
    seen = []

    def look(method, path):
        for folder in os.listdir("/proc"):
            if folder.isdigit():
                with contextlib.suppress(OSError):  # gone meanwhile
                    seen.append(Path(f"/proc/{folder}/cmdline").read_bytes())

    runpod.on_request = look
    done = subprocess.run(
        [sys.executable, "deploy_qwen.py", "--registry", "docker.io/you", "--tag", "v1", "--yes"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "the worker prints ***" in done.stdout, done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    assert any(b"deploy_qwen.py" in line for line in seen) and not any(KEY.encode() in line for line in seen)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("qwen-deploy" in str(file) for file in files)
    assert not any(KEY.encode() in file.read_bytes() for file in files)
    assert only(runpod)["env"]["LEAK"] == KEY  # and the rollback has put it back
    assert docker.calls() and not any("RUNPOD_API_KEY" in call["environment"] for call in docker.calls())


def test_saved_configurations_are_readable_by_the_operator_alone(runpod, command):
    runpod.add()
    command(*SHIP)
    (file,) = (runpod.state / "ep1").glob("*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_key_goes_to_runpod_alone(runpod, command):
    endpoint = runpod.add(NEW)
    endpoint["requestUrls"]["run"] = "https://jobs.example.com/run"
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert code == 2 and "not to https://jobs.example.com" in text


# Building.


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Tools on PATH that write down how they were called; `works` says which of them do."""

    class Tools:
        log = tmp_path / "calls.jsonl"

        def calls(self):
            return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

        def install(self, *names, failing=()):
            for old in folder.glob("*"):
                old.unlink()
            for name in names:
                (folder / name).write_text(
                    f"#!{sys.executable}\nimport json, os, sys\n"
                    f"open({str(self.log)!r}, 'a').write(json.dumps({{'command': [os.path.basename(sys.argv[0])] + "
                    "sys.argv[1:], 'environment': dict(os.environ)}) + '\\n')\n"
                    f"sys.exit(any(word in sys.argv for word in {list(failing)!r}) and 'it broke')\n"
                )
                (folder / name).chmod(0o755)

    folder = tmp_path / "bin"
    folder.mkdir()
    system = os.pathsep.join(one for one in ("/usr/bin", "/bin") if os.path.isdir(one))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{system}")
    tools = Tools()
    tools.install("docker")
    return tools


def commands_of(docker):
    return [call["command"] for call in docker.calls()]


def test_build_only_needs_no_key_and_builds_for_runpod_s_hosts(docker, command):
    code, text = command("--build-only", "--tag", "v1", "--build-arg", "BAKE_MODELS=", key="")
    assert code == 0, text
    build = commands_of(docker)[-1]
    assert build[:3] == ["docker", "buildx", "build"] and ["--platform", "linux/amd64"] == build[4:6]
    assert "WORKER_VERSION=v1" in build and "BAKE_MODELS=" in build and "qwen-image:v1" in build


def test_the_seed_s_command_builds_and_says_what_is_missing(docker, command):
    code, text = command("--image-name", "artyx-qwen-server", "--tag", "v1", key="")
    assert code == 0 and "--registry" in text
    assert [one[:3] for one in commands_of(docker)] == [["docker", "buildx", "ls"], ["docker", "buildx", "build"]]


def test_a_deployment_builds_pushes_and_ships(docker, runpod, command):
    assert command("--registry", "docker.io/you", "--tag", "v1", "--yes")[0] == 0
    assert ["docker", "push", NEW] in commands_of(docker) and only(runpod)["image"] == NEW


def test_a_build_that_fails_leaves_the_endpoint_alone(docker, runpod, command):
    docker.install("docker", failing=["build"])
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--yes")
    assert code == 1 and "ended with 1" in text and not runpod.writes


@pytest.mark.parametrize("names, failing, first", [
    (["docker", "podman"], ["buildx"], ["docker", "build"]),
    (["docker", "podman"], ["buildx", "info"], None),
    (["podman"], [], ["podman", "build"]),
    (["buildah"], [], ["buildah", "build"]),
])  # fmt: skip
def test_the_first_tool_that_works_builds(docker, command, names, failing, first):
    docker.install(*names, failing=failing)
    code, text = command("--build-only", "--tag", "v1")
    if first is None:
        assert code == 1 and "buildx does not work here (it broke)" in text and "buildah is not installed" in text
    else:
        assert code == 0 and commands_of(docker)[-1][:2] == first


@pytest.mark.parametrize("arguments, sentence", [
    (["--image-name", "Upper"], "--image-name must match"),
    (["--tag=-x"], "--tag must match"),
    (["--registry", "https://docker.io"], "--registry must match"),
    (["--registry", "docker.io/you", "--tag", "latest"], "--tag must not be latest"),
])  # fmt: skip
def test_a_name_that_no_registry_takes_is_refused(command, docker, arguments, sentence):
    code, text = command("--dry-run", *arguments)
    assert code == 2 and sentence in text


# Cards.


def test_auto_takes_the_cheapest_pool_that_holds_the_models_and_has_a_card(runpod, command):
    assert command(*SHIP)[0] == 0 and only(runpod)["gpu"]["pools"] == ["AMPERE_16"]


@pytest.mark.parametrize("arguments, pool", [
    (["--env", "QWEN_PRECISION=bf16"], "AMPERE_80"),  # both exact: 73 GB
    (["--env", "QWEN_PRECISION=bf16", "--tasks", "generate"], "AMPERE_48"),
    (["--env", "QWEN_PRECISION=fp8", "--tasks", "generate"], "ADA_24"),  # AMPERE_24 has no fp8, and no card now
    (["--env", "QWEN_PRECISION=bf16", "--env", "QWEN_SAVINGS=none"], "HOPPER_141"),
    (["--env", "QWEN_PRECISION=bf16", "--ram-gb", "128"], "AMPERE_48"),  # transformers in turns, from RAM
])  # fmt: skip
def test_auto_goes_by_the_worker_s_own_placement(runpod, command, arguments, pool):
    assert command(*SHIP, *arguments)[0] == 0 and only(runpod)["gpu"]["pools"] == [pool]


def test_a_task_that_is_not_wanted_is_given_no_model(runpod, command):
    assert command(*SHIP, "--tasks", "generate")[0] == 0
    assert only(runpod)["env"]["QWEN_EDIT_MODEL"] == "/none"
    assert asked(runpod) == ["health", "generate", "health"]
    assert command(*SHIP, "--tasks", "generate", "edit")[0] == 0 and "QWEN_EDIT_MODEL" not in only(runpod)["env"]


@pytest.mark.parametrize("arguments, sentence", [
    (["--gpu", "AMPERE_16", "--env", "QWEN_PRECISION=bf16"], "--gpu AMPERE_16: too small"),
    (["--gpu", "NVIDIA RTX 4090"], "--gpu must name pools among AMPERE_16"),
    (["--env", "QWEN_PRECISION=fp7"], "QWEN_PRECISION"),
    (["--env", "QWEN_WORKER_VERSION=v1"], "would let any image pass"),
    (["--env", "RUNPOD_API_KEY"], "--env RUNPOD_API_KEY"),
    (["--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
    (["--env", "QWEN_IMAGE_MODEL=you/finetune"], "whose size is not known here"),
    (["--workers-min", "4"], "--workers-min must be at most --workers-max, 3, not 4"),
    (["--workers-max", "0"], "--workers-max must be at least 1"),
    (["--idle-timeout", "4000"], "--idle-timeout must be from 1 to 3600, not 4000"),
])  # fmt: skip
def test_a_mistake_is_refused_before_anything_is_sent(runpod, command, arguments, sentence):
    code, text = command(*SHIP, *arguments)
    assert code == 2 and sentence in text and not runpod.writes


def test_no_pool_that_fits_is_said_with_the_reasons(runpod, command):
    code, text = command(*SHIP, "--env", "QWEN_VRAM_GB=5")
    assert code == 1 and "No pool holds the models" in text and not runpod.writes


# The other commands.


def test_rollback_goes_back_to_what_was_before(runpod, command):
    endpoint = runpod.add()
    before = json.loads(json.dumps(configuration(endpoint)))
    assert command(*SHIP, "--disk", "77")[0] == 0 and endpoint["image"] == NEW
    code, text = command("rollback", "--endpoint-id", "ep1", "--yes")
    assert code == 0 and "health: version v0 answers" in text and configuration(endpoint) == before
    code, text = command("rollback", "--endpoint-id", "ep1", "--list")
    assert code == 0 and NEW in text and OLD in text


def test_rollback_without_a_saved_configuration_is_refused(runpod, command):
    runpod.add()
    code, text = command("rollback", "--endpoint-id", "ep1", "--yes")
    assert code == 1 and "no other saved configuration" in text


def test_status_shows_everything_but_secrets(runpod, command):
    runpod.add()
    code, text = command("status", "--endpoint-id", "ep1")
    assert code == 0 and OLD in text and "QWEN_FALLBACK" in text and "hf_secret" not in text and "idle" in text


def test_an_endpoint_that_is_not_there_is_said_so(command):
    code, text = command("status", "--endpoint-id", "epX")
    assert code == 1 and "endpoint epX does not exist" in text


def test_logs_are_those_of_the_workers(runpod, command):
    runpod.add()
    code, text = command("logs", "--endpoint-id", "ep1", "--source", "container")
    assert code == 0 and "Worker ready." in text and "start container" not in text


def test_send_saves_the_picture_and_says_what_drew_it(runpod, command, tmp_path):
    runpod.add(NEW)
    code, text = command("send", "--endpoint-id", "ep1", "a fox", "--field", "num_images=1", "--field", "size=64x64")
    assert code == 0 and "seed 7" in text and len(list((tmp_path / "out").glob("*.png"))) == 1
    (job,) = runpod.jobs.values()
    assert job["input"] == {"task": "generate", "prompt": "a fox", "num_images": 1, "size": "64x64"}
    runpod.builds[NEW] = Build(stands_in("v1"))
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert "A stand-in, not a picture by the model: no weights" in text


def test_cost_multiplies_the_live_price_with_measured_seconds_only(runpod, command):
    runpod.add(NEW)
    command("send", "--endpoint-id", "ep1", "a fox")  # 4 s on a 4090, of which 1 s load
    code, text = command("cost", "--endpoint-id", "ep1")
    row = next(line for line in text.splitlines() if line.startswith("ADA_24"))
    assert code == 0 and f"${1.12 / 3600 * 3:.4f}" in row and "not measured" in row
    assert "not measured" in next(line for line in text.splitlines() if line.startswith("HOPPER_141"))


@pytest.mark.parametrize("arguments", [[], ["rollback"], ["status"], ["logs"], ["send"], ["cost"]])
def test_help_needs_no_key_and_no_torch(arguments):
    program = "import sys, deploy_qwen\ntry: deploy_qwen.main(sys.argv[1:])\nexcept SystemExit as e: code = e.code\n"
    program += "assert code == 0 and not {'torch', 'diffusers', 'transformers', 'runpod', 'PIL'} & set(sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "RUNPOD_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout or arguments
