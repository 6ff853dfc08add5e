"""Draws pictures on an endpoint and saves them, with nothing but Python 3.11 or later. Ctrl-C cancels the job.

export ENDPOINT_URL=https://api.runpod.ai/v2/ENDPOINT_ID RUNPOD_API_KEY=...
python3 client.py "a fox in the snow" seed=7             # FIELD=VALUE is a field of the job
python3 client.py "make it winter" image=@garden.jpg     # FIELD=@FILE sends a picture
"""

import base64
import http.client
import json
import os
import sys
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ENDPOINT = os.environ.get("ENDPOINT_URL", "").rstrip("/")
HEADERS = {
    "Authorization": f"Bearer {os.environ.get('RUNPOD_API_KEY', '')}",
    "Content-Type": "application/json",
    "User-Agent": "client.py",  # the firewall in front of RunPod turns away the name that urllib gives itself
}


def fetch(url, body=None, headers=HEADERS):
    """The bytes of the answer. What may pass is tried again: no connection, HTTP 429 and 5xx."""
    for pause in (1, 2, 4, 8, 16, 0):
        try:
            with urlopen(Request(url, body, headers), timeout=60) as answer:
                return answer.read()
        except HTTPError as error:
            problem = f"{error} {error.read(1000).decode(errors='replace')}"
            may_pass = error.code == 429 or error.code >= 500
        except (OSError, http.client.HTTPException) as error:
            # After a URLError the endpoint has no job. Otherwise it may have one, and a second /run would draw twice.
            problem, may_pass = error, isinstance(error, URLError) or not url.endswith("/run")
        if not (pause and may_pass):
            sys.exit(f"\n{url}: {problem}")
        print(f"\n{problem}: trying again in {pause} s", file=sys.stderr)
        time.sleep(pause)


def field(text):
    name, equals, value = text.partition("=")
    if not equals:
        sys.exit(f"{text!r} is not FIELD=VALUE. A prompt of several words needs quotes.")
    if not value.startswith("@"):
        return name, value
    try:
        return name, "data:;base64," + base64.b64encode(Path(value[1:]).read_bytes()).decode()
    except OSError as error:
        sys.exit(f"{name}: {error}")


def draw(body):
    """The job, once it has ended."""
    job = {}
    try:
        job = json.loads(fetch(f"{ENDPOINT}/run", body))
        while job["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            now = job.get("output") or {}
            line = f"{job['status']} {now.get('stage', '')} {now.get('step', 0)}/{now.get('total', '?')}"
            print(f"\r{line:<40}", end="", file=sys.stderr, flush=True)
            time.sleep(0.5)
            job = json.loads(fetch(f"{ENDPOINT}/status/{job['id']}"))
    except KeyboardInterrupt:
        if job:
            fetch(f"{ENDPOINT}/cancel/{job['id']}", b"")
            print(f"\nCancelled {job['id']}", file=sys.stderr)
        else:
            print("\nStopped before the endpoint told the job's id: the job may be running there.", file=sys.stderr)
        sys.exit(130)
    print(file=sys.stderr)
    return job


if len(sys.argv) < 2 or not ENDPOINT:
    sys.exit(__doc__)
shape = {"response_shape": "worker"}  # which this program reads, whatever the endpoint answers in by itself
body = json.dumps({"input": {"prompt": sys.argv[1], **dict(map(field, sys.argv[2:])), **shape}}).encode()
if len(body) > 10_000_000:
    sys.exit(f"/run takes 10 MB, and this job has {len(body) / 1e6:.1f} MB. Send smaller pictures, or their URLs.")
job = draw(body)
reply = job.get("output")
if job["status"] != "COMPLETED" or not reply:
    sys.exit(f"{job['status']}: {job.get('error', 'no reply')}")
reply = reply[-1] if isinstance(reply, list) else reply  # an endpoint that streams has the reply at a list's end
facts = reply["metadata"]
pictures = reply.get("image_urls") or reply.get("images") or [reply.get("image_url") or reply["image"]]
for number, picture in enumerate(pictures, 1):
    file = Path(f"{job['id']}-{number}.{facts['output_format']}")
    file.write_bytes(fetch(picture, headers={}) if ":" in picture else base64.b64decode(picture))
    print(file)
print(facts["dimensions"], "seeds", facts["seeds"], *facts.get("warnings", []), file=sys.stderr)
if facts["backend"] != "qwen-image":
    sys.exit(f"This is a stand-in, which no model drew: {facts['fallback_reason']}")
