"""The job of a form as a call that can be pasted: in the shell, in Python and in TypeScript.

The body is the one that the page sends. Pictures stand in it by the name of a file, and the key by the name of its
variable. Knows nothing of the page.
"""

import json
from dataclasses import dataclass
from typing import Any

from .form import Form, Picture, job_input

INDENT = "  "
PYTHON = """\
import base64, json, os, time, urllib.request

def call(route, body=None):
    headers = {{"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"], "Content-Type": "application/json"}}
    headers["User-Agent"] = "my-client"  # RunPod's firewall turns away the name that urllib gives itself
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request({url} + route, data, headers)) as answer:
        return json.load(answer)
{reader}
body = {body}
job = call("/run", body)
while job["status"] in ("IN_QUEUE", "IN_PROGRESS"):
    time.sleep(1)
    job = call("/status/" + job["id"])
if job["status"] != "COMPLETED":
    raise SystemExit(job.get("error") or job["status"])
with open("result.png", "wb") as file:
    file.write(base64.b64decode(job["output"]["image"]))
"""
PYTHON_READER = """
def read(name):
    with open(name, "rb") as file:
        return base64.b64encode(file.read()).decode()
"""
TYPESCRIPT = """\
import {{ {imports} }} from "node:fs/promises";

const call = async (route: string, body?: object) => {{
  const headers = {{ Authorization: `Bearer ${{process.env.RUNPOD_API_KEY}}`, "Content-Type": "application/json" }};
  const method = body ? "POST" : "GET";
  const answer = await fetch({url} + route, {{ method, headers, body: body && JSON.stringify(body) }});
  if (!answer.ok) throw new Error(`${{answer.status}} ${{await answer.text()}}`);
  return answer.json();
}};
{reader}
const body = {body};
let job = await call("/run", body);
while (["IN_QUEUE", "IN_PROGRESS"].includes(job.status)) {{
  await new Promise((done) => setTimeout(done, 1000));
  job = await call("/status/" + job.id);
}}
if (job.status !== "COMPLETED") throw new Error(job.error ?? job.status);
await writeFile("result.png", Buffer.from(job.output.image, "base64"));
"""
TYPESCRIPT_READER = """
const read = (name: string) => readFile(name, "base64");
"""
CURL = """\
curl -s {url}/run -H "Authorization: Bearer $RUNPOD_API_KEY" -H 'Content-Type: application/json' -d @- <<JSON
{body}
JSON
# The answer has the job's id. Ask for its state until it is COMPLETED; the picture is then in output.image:
curl -s {url}/status/ID -H "Authorization: Bearer $RUNPOD_API_KEY"
"""


@dataclass(frozen=True)
class FileName:
    """Of a picture, in place of its bytes."""

    name: str


def named(name: str, picture: Picture) -> FileName:
    return FileName(name + picture.suffix)


def body_with_names(form: Form) -> dict[str, Any]:
    return {"input": job_input(form, named)}


def curl(url: str, form: Form) -> str:
    """The shell puts the pictures in: what it would read as its own in the rest of the body is escaped."""
    return CURL.format(url=url, body=literal(body_with_names(form), shell_value))


def python(url: str, form: Form) -> str:
    body = literal(body_with_names(form), python_value)
    return PYTHON.format(url=json.dumps(url), reader=PYTHON_READER if form.pictures else "", body=body)


def typescript(url: str, form: Form) -> str:
    body = literal(body_with_names(form), typescript_value)
    reader, imports = (TYPESCRIPT_READER, "readFile, writeFile") if form.pictures else ("", "writeFile")
    return TYPESCRIPT.format(url=json.dumps(url), reader=reader, imports=imports, body=body)


def literal(value: Any, leaf: Any, depth: int = 0) -> str:
    """Objects and lists are written alike in the three languages; `leaf` writes the rest."""
    inner, outer = "\n" + INDENT * (depth + 1), "\n" + INDENT * depth
    if isinstance(value, dict):
        rows = [f"{json.dumps(name)}: {literal(one, leaf, depth + 1)}" for name, one in value.items()]
        return "{" + inner + ("," + inner).join(rows) + outer + "}"
    if isinstance(value, list):
        return "[" + ", ".join(literal(one, leaf, depth) for one in value) + "]"
    return leaf(value)


def shell_value(value: Any) -> str:
    if isinstance(value, FileName):
        return f"\"$(base64 < {value.name} | tr -d '\\n')\""
    text = json.dumps(value, ensure_ascii=False)
    for own in ("\\", "$", "`"):
        text = text.replace(own, "\\" + own)
    return text


def python_value(value: Any) -> str:
    if isinstance(value, FileName):
        return f'read("{value.name}")'
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def typescript_value(value: Any) -> str:
    if isinstance(value, FileName):
        return f'await read("{value.name}")'
    return json.dumps(value, ensure_ascii=False)
