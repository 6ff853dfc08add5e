"""The types of RunPod's answers are those of its OpenAPI document."""

import pytest

from qwen_deploy.configuration import Configuration, flatten
from qwen_deploy.runpod import schemas

from ..fake_runpod import SCHEMAS

# The name of each type in the document.
NAMES = {
    schemas.Endpoint: "Endpoint",
    schemas.Worker: "Worker",
    schemas.WorkerList: "ListEndpointWorkersResponse",
    schemas.Rollout: "RolloutSummary",
    schemas.ReleaseList: "ListEndpointReleasesResponse",
    schemas.GpuType: "GpuType",
    schemas.Problem: "ErrorResponse",
}


def fields_of(schema):
    """The properties of a schema and those that it requires, out of all that it refers to."""
    properties, required = dict(schema.get("properties", {})), set(schema.get("required", ()))
    for part in [*schema.get("allOf", []), *([{"$ref": schema["$ref"]}] if "$ref" in schema else [])]:
        inner = SCHEMAS["$defs"][part["$ref"].split("/")[-1]] if "$ref" in part else part
        more, needed = fields_of(inner)
        properties, required = properties | more, required | needed
    return properties, required


@pytest.mark.parametrize("shape", NAMES)
def test_a_type_has_no_field_that_the_document_has_not(shape):
    properties, required = fields_of(SCHEMAS["$defs"][NAMES[shape]])
    assert set(shape.__annotations__) <= set(properties)
    assert shape.__required_keys__ <= required


def test_a_configuration_has_every_field_that_an_update_can_set(runpod):
    properties, _ = fields_of(SCHEMAS["$defs"]["UpdateEndpointRequest"])
    settable = set(properties) - {"cpu", "templateId"}
    assert {name.split(".")[0] for name in Configuration.__annotations__} == settable
    assert Configuration.__required_keys__ <= set(flatten(runpod.add()))
