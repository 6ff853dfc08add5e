"""An answer of another shape than RunPod's API has ends in a sentence that names what is wrong with it."""

import pytest

from qwen_deploy.errors import ApiError
from qwen_deploy.runpod.schemas import GpuType, Volume, WorkerList
from qwen_deploy.runpod.shapes import read_shape

from ..conftest import SHIP, settable_fields
from ..fake_runpod import Fault
from ..fake_runpod.routes import respond

VOLUME = {"id": "v", "name": "n", "size": 110, "dataCenter": "US-KS-2"}
COMMANDS = [
    (("list",), "/v2/serverless$"), (("status",), "/workers$"), (("status",), "/releases$"),
    (("open",), "/v2/serverless$"), (("spent",), "/v2/billing/serverless$"),
    (("spent",), "/v2/billing/network-volumes$"), (("cost",), "/v2/catalog/gpus$"),
    (("send", "a fox"), "/v2/serverless$"), (("volume", "list"), "/v2/network-volumes$"),
    (("volume", "list"), "/v2/pods$"), (("volume", "create", "new", "--yes"), "/v2/catalog/datacenters$"),
    (("registry", "list"), "/v2/registries$"),
]  # fmt: skip


@pytest.mark.parametrize("value, words", [
    ([], "the answer is list"), ({**VOLUME, "size": "110"}, "size is str"), ({**VOLUME, "size": True}, "size is bool"),
    ({**VOLUME, "name": None}, "name is NoneType"), ({"id": "v"}, "name is missing"),
])  # fmt: skip
def test_what_does_not_fit_is_named(value, words):
    with pytest.raises(ApiError, match=f"RunPod answered volumes in a shape that is not its API's: {words}"):
        read_shape(value, Volume, "volumes")


def test_a_list_says_which_of_its_items_does_not_fit():
    worker = {"id": "w", "gpuCount": 1, "status": "IDLE", "isStale": False}
    nameless = {name: held for name, held in worker.items() if name != "status"}
    with pytest.raises(ApiError, match=r"workers\[1\].status is missing"):
        read_shape({"summary": {}, "workers": [worker, nameless]}, WorkerList, "workers")


def test_what_is_new_or_null_where_nothing_is_needed_does_no_harm():
    card = {"id": "c", "name": "c", "pool": None, "manufacturer": "NVIDIA", "memory": 24, "price": {"serverless": None}}
    assert read_shape({**card, "availability": None, "new": [1]}, GpuType, "cards") == {**card, "new": [1]}


@pytest.mark.parametrize("body", [{}, {"unheard": "of"}, {"EVERY LIST": ["x"]}, {"EVERY LIST": [None]}])
@pytest.mark.parametrize("arguments, path", COMMANDS)
def test_a_command_says_so(runpod, command, arguments, path, body):
    runpod.add()
    names = (
        "endpoints",
        "workers",
        "releases",
        "records",
        "gpus",
        "networkVolumes",
        "pods",
        "registries",
        "dataCenters",
    )
    answer = (
        dict.fromkeys((*names, "dataCenters"), body["EVERY LIST"])
        if "EVERY LIST" in body
        else body or {"nothing": None}
    )
    runpod.faults = [Fault("GET", path, 200, body=answer) for _ in range(5)]
    code, text = command(*arguments)
    assert code == 1 and "RunPod answered" in text and not runpod.writes_to("/v2")


def test_a_deployment_is_rolled_back_with_that_reason(runpod, command):
    endpoint = runpod.add()
    before = settable_fields(dict(endpoint))
    runpod.faults = [Fault("GET", "/workers", 200, body={"unheard": "of"})]
    code, text = command(*SHIP)
    assert code == 1 and "the workers of endpoint ep1 in a shape that is not its API's: workers is missing" in text
    assert settable_fields(endpoint) == before


def test_one_card_that_is_described_otherwise_does_not_hide_the_others(runpod, command):
    _, catalogue = respond(runpod, "GET", "/v2/catalog/gpus", None, {})
    cards = [{"id": "new", "pool": "NEW_1", "price": None}, *catalogue["gpus"]]
    runpod.faults = [Fault("GET", "/v2/catalog/gpus", 200, body={"gpus": cards})]
    code, text = command("cost")
    assert code == 0 and "--gpu auto takes HOPPER_141" in text and "NEW_1" not in text
