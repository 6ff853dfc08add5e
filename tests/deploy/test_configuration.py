"""What an endpoint shall be and what that changes, field by field."""

import pytest

from qwen_deploy import configuration
from qwen_deploy.errors import UsageError

ENDPOINT = {
    "id": "ep1", "createdAt": "x", "name": "qwen-image -fb", "image": "docker.io/you/qwen-image:v0", "env": {"A": "1"},
    "gpu": {"pools": ["B", "A"], "excludedTypes": ["X"], "count": 1, "allowedCudaVersions": ["12.8"],
            "minCudaVersion": None},
    "workers": {"min": 0, "max": 3, "idleTimeout": 10}, "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    "dataCenterIds": [], "networkVolumes": [], "timeout": 300000, "flashboot": "FLASHBOOT", "registry": None,
}  # fmt: skip
PRESENT = configuration.flatten(ENDPOINT)


def wanted(asked=None, env=None, unset=(), present=PRESENT):
    return configuration.build_target(present, asked or {}, env or {}, unset)


def test_nothing_asked_changes_nothing():
    assert configuration.changes(PRESENT, wanted()) == [] and configuration.patch_body(PRESENT, wanted()) == {}


@pytest.mark.parametrize("asked", [{"gpu.pools": ["A", "B"]}, {"name": "qwen-image"}, {"registry": None}])
def test_another_order_or_the_platform_s_own_suffix_is_no_change(asked):
    assert configuration.changes(PRESENT, wanted(asked)) == []


def test_exclusions_never_go_without_their_pools():
    saved = configuration.flatten(ENDPOINT | {"gpu": ENDPOINT["gpu"] | {"excludedTypes": ["Y"]}})
    assert configuration.patch_body(PRESENT, saved) == {"gpu": {"pools": ["A", "B"], "excludedTypes": ["Y"]}}


def test_pools_never_go_without_exclusions_that_stay():
    saved = configuration.flatten(ENDPOINT | {"gpu": ENDPOINT["gpu"] | {"pools": ["C"]}})
    assert configuration.patch_body(PRESENT, saved) == {"gpu": {"pools": ["C"], "excludedTypes": ["X"]}}


def test_a_cuda_floor_takes_the_place_of_a_set_and_back():
    floor = wanted({"gpu.minCudaVersion": "12.6"})
    assert configuration.patch_body(PRESENT, floor) == {"gpu": {"minCudaVersion": "12.6", "allowedCudaVersions": []}}
    assert configuration.patch_body(floor, PRESENT) == {"gpu": {"minCudaVersion": "", "allowedCudaVersions": ["12.8"]}}


def test_a_version_that_a_variable_claims_is_removed():
    claimed = configuration.flatten(ENDPOINT | {"env": {"A": "1", "QWEN_WORKER_VERSION": "v9"}})
    assert configuration.patch_body(claimed, wanted(present=claimed)) == {"env": {"A": "1"}}


def test_variables_are_added_replaced_and_removed():
    assert wanted(env={"B": "2"}, unset=("A",))["env"] == {"B": "2"} and wanted(env={"A": "3"})["env"] == {"A": "3"}


def test_an_idle_timeout_is_refused_where_it_has_no_meaning():
    counting = PRESENT | {"scaling": {"type": "REQUEST_COUNT", "requestCount": 1}}
    with pytest.raises(UsageError, match="--idle-timeout"):
        wanted({"workers.idleTimeout": 5}, present=counting)


def test_what_the_target_does_not_name_stays():
    assert configuration.changes(PRESENT | {"disk": 50}, {name: PRESENT[name] for name in ("image", "env")}) == []


def test_hidden_values_are_told_apart_by_name_only():
    rows = configuration.describe_changes(
        configuration.changes(PRESENT, wanted(env={"A": "2", "QWEN_FALLBACK": "allow"}))
    )
    assert rows == [["env.A", "***", "***"], ["env.QWEN_FALLBACK", "(none)", "allow"]]
