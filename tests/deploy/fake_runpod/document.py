"""RunPod's OpenAPI document: whether a request or an answer is by its schemas."""

import functools
import json
import re
from pathlib import Path

from jsonschema import Draft202012Validator

SCHEMAS = json.loads((Path(__file__).parent / "runpod_v2.json").read_text())
# The schema of each answer, by a pattern of the path; where methods differ, by the method.
ANSWERS = [
    (r"/v2/catalog/gpus$", "ListGpuTypesResponse"),
    (r"/v2/serverless$", {"GET": "ListEndpointsResponse", "POST": "Endpoint"}),
    (r"/v2/serverless/\w+$", "Endpoint"),
    (r"/workers$", "ListEndpointWorkersResponse"),
    (r"/releases$", "ListEndpointReleasesResponse"),
    (r"/v2/catalog/datacenters$", "ListDataCentersResponse"),
    (r"/v2/catalog/cpus$", "ListCpuTypesResponse"),
    (r"/v2/network-volumes$", {"GET": "ListNetworkVolumesResponse", "POST": "NetworkVolume"}),
    (r"/v2/network-volumes/\w+$", "NetworkVolume"),
    (r"/v2/pods$", {"GET": "ListPodsResponse", "POST": "Pod"}),
    (r"/v2/pods/\w+$", "Pod"),
    (r"/v2/registries$", {"GET": "ListRegistriesResponse", "POST": "Registry"}),
    (r"/v2/billing/serverless$", "ListServerlessBillingResponse"),
    (r"/v2/billing/network-volumes$", "ListNetworkVolumeBillingResponse"),
]


@functools.cache
def validator(schema):
    return Draft202012Validator({"$ref": f"#/$defs/{schema}", "$defs": SCHEMAS["$defs"]})


def violations(schema, value):
    """What is wrong with the value, as the API words it: `$.disk: must be ...`."""
    sentences = []
    for error in validator(schema).iter_errors(value):
        path = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in error.absolute_path)
        extra = re.search(r"\('([^']+)' (?:was|were) unexpected\)", error.message)
        rule = f"additional properties '{extra.group(1)}' not allowed" if extra else error.message
        sentences.append(f"${path}: {rule}")
    return sentences


def violations_of_answer(method, path, status, value):
    """What is wrong with an answer; nothing for a path that the document does not have (the job queue's)."""
    if status == 204:
        return [] if method == "DELETE" and value is None else [f"{method} {path}: 204"]
    for pattern, schema in ANSWERS:
        if re.search(pattern, path):
            schema = schema if isinstance(schema, str) else schema[method]
            return violations("ErrorResponse" if status >= 400 else schema, value)
    return []


def problem(title, status, detail, errors=None):
    return {"title": title, "status": status, "detail": detail} | ({"errors": errors} if errors else {})
