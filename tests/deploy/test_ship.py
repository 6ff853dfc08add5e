"""From nothing, or from another version, to an endpoint that serves; and what is sent when nothing may be."""

import json

from .conftest import NEW, OLD, SHIP, job_tasks, only
from .fake_runpod import draws


def test_a_new_endpoint_is_made_proved_and_left_as_it_was_asked_for(runpod, command, tmp_path):
    code, text = command(*SHIP, "--execution-timeout", "400")
    assert code == 0, text
    endpoint = only(runpod)
    assert endpoint["image"] == NEW and endpoint["name"] == "qwen-image" and endpoint["type"] == "QUEUE"
    assert endpoint["workers"] == {"min": 0, "max": 3, "idleTimeout": 10} and endpoint["timeout"] == 400_000
    assert endpoint["flashboot"] == "FLASHBOOT" and endpoint["gpu"]["minCudaVersion"] == "12.6"
    assert endpoint["env"]["SERVER_MODE"] == "runpod" and "QWEN_FALLBACK" not in endpoint["env"]
    assert job_tasks(runpod) == ["health", "generate", "edit", "health"]
    pictures = [tmp_path / f"out/proof-{endpoint['id']}-{task}.png" for task in ("generate", "edit")]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert f"Endpoint {endpoint['id']} serves {NEW}" in text


def test_only_a_change_that_was_saved_is_offered_to_be_undone(runpod, command):
    offered = ["undo it:" in command(*SHIP, *more)[1] for more in ((), (), ("--workers-max", "4"))]
    assert offered == [False, False, True]


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
        "workers": {"min": 1, "max": 7, "idleTimeout": 60},
    }
    assert {name: endpoint[name] for name in kept} == kept and endpoint["gpu"]["excludedTypes"] == ["NVIDIA L4"]
    assert endpoint["workers"] == {"min": 1, "max": 7, "idleTimeout": 60}
    assert endpoint["env"] == {"QWEN_FALLBACK": "allow", "HF_TOKEN": "hf_secret_of_the_endpoint"}


def test_a_change_of_scaling_alone_replaces_no_worker(runpod, command):
    runpod.add(NEW)
    assert command(*SHIP, "--workers-max", "9")[0] == 0
    assert [body for _, _, body in runpod.writes_to("/v2")] == [{"workers": {"min": 1, "max": 9, "idleTimeout": 60}}]


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


def test_workers_count_as_old_until_the_platform_has_counted_the_update(runpod, command):
    runpod.add()
    runpod.lag = 3
    code, text = command(*SHIP)
    assert code == 0, text


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


def test_without_a_test_nothing_is_claimed(runpod, command):
    runpod.add()
    code, text = command(*SHIP, "--no-test")
    assert code == 0 and "nobody knows whether it serves" in text and not runpod.jobs
    assert only(runpod)["env"]["QWEN_FALLBACK"] == "allow"
