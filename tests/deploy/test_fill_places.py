"""Where a Pod that fills a volume may run: on hardware whose price RunPod names, and on no other."""

import pytest

from qwen_deploy.errors import DeployError
from qwen_deploy.fill_pod import places

STOCK = [{"id": "US-KS-2", "availability": "HIGH"}]


def cpu(name, price):
    return {"id": name, "vcpu": {"min": 2, "max": 4}, "price": {"securePerVcpu": price}, "dataCenters": STOCK}


def card(name, price):
    return {"id": name, "name": name, "price": price, "dataCenters": STOCK}


@pytest.mark.parametrize("price", [None, 0, -1, float("nan"), float("inf"), "0.03"])
def test_hardware_without_a_price_is_not_taken(price):
    found = places(
        [cpu("odd", price), cpu("usual", 0.03)], [card("odd", {"secure": price}), card("bare", {})], "US-KS-2"
    )
    assert [place.label for place in found] == ["2 vCPUs of usual"]
    with pytest.raises(DeployError, match="No Pod could run in US-KS-2"):
        places([cpu("odd", price)], [], "US-KS-2")
