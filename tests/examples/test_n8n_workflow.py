"""The n8n workflow against what n8n's own nodes take. n8n itself is not run: it has 3 GB.

`n8n_nodes.json` has the versions and parameters of the nodes, from the descriptions in the package it names; behind a
parameter stand the values that it may have, where they are a list.
"""

import json
import re

from ..conftest import ROOT

WORKFLOW = json.loads((ROOT / "examples/n8n_workflow.json").read_text())
KNOWN = json.loads((ROOT / "tests/examples/n8n_nodes.json").read_text())["nodes"]
NODES = {node["name"]: node for node in WORKFLOW["nodes"]}


def test_every_node_has_a_version_and_parameters_that_n8n_knows():
    assert NODES
    for node in NODES.values():
        known = KNOWN[node["type"]]
        assert node["typeVersion"] in known["versions"], node["name"]
        for name, value in node["parameters"].items():
            allowed = known["parameters"][name]
            if isinstance(value, dict):
                assert not allowed or set(value) <= set(allowed), f"{node['name']}: {name}"
            elif allowed:
                assert value in allowed, f"{node['name']}: {name}"


def followers(name):
    outputs = WORKFLOW["connections"].get(name, {}).get("main", [])
    return [[one["node"] for one in output] for output in outputs]


def test_the_nodes_are_connected_as_a_loop_with_two_ends():
    assert followers("Start") == [["Job"]] and followers("Job") == [["Run"]] and followers("Run") == [["Wait"]]
    assert followers("Wait") == [["Status"]] and followers("Status") == [["State"]]
    assert followers("State") == [["Wait"], ["Picture"], ["Failed"]]  # it runs, it is drawn, anything else
    assert set(WORKFLOW["connections"]) | {"Picture", "Failed"} == set(NODES)
    rules = NODES["State"]["parameters"]["rules"]["values"]
    assert len(rules) == 2 and NODES["State"]["parameters"]["options"]["fallbackOutput"] == "extra"


def test_its_expressions_name_nodes_that_are_there():
    named = set(re.findall(r"\$\('([^']+)'\)", json.dumps(WORKFLOW)))
    assert named and named <= set(NODES)


def test_the_key_is_a_credential_and_not_in_the_file():
    requests = [node for node in NODES.values() if node["type"].endswith(".httpRequest")]
    assert [node["name"] for node in requests] == ["Run", "Status"]
    for node in requests:
        assert node["parameters"]["genericAuthType"] == "httpHeaderAuth"
        assert node["credentials"] == {"httpHeaderAuth": {"id": "REPLACE", "name": "RunPod API key"}}
    assert "Bearer" not in json.dumps(WORKFLOW)


def test_its_job_is_one(ask):
    """Its expression is an object of JavaScript, whose names have no quotes and whose texts have single ones."""
    expression = re.search(r"JSON.stringify\((.*)\) }}", NODES["Run"]["parameters"]["jsonBody"])[1]
    assignments = NODES["Job"]["parameters"]["assignments"]["assignments"]
    values = {one["name"]: one["value"] for one in assignments}
    filled = re.sub(r"\$json\.(\w+)", lambda found: json.dumps(values[found[1]]), expression).replace("'", '"')
    fields = json.loads(re.sub(r"(\w+): ", r'"\1": ', filled))["input"]
    reply = ask(**fields)["output"]
    assert reply["image"] and reply["metadata"]["backend"] == "qwen-image"
    assert NODES["Picture"]["parameters"]["sourceProperty"] == "output.image"
