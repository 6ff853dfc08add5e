#!/usr/bin/env bash
# Draws pictures on an endpoint and saves them, with curl, and with Python 3 to read JSON. Ctrl-C cancels the job.
#
# export ENDPOINT_URL=https://api.runpod.ai/v2/ENDPOINT_ID RUNPOD_API_KEY=...
# echo '{"input": {"prompt": "a fox in the snow", "seed": 7}}' >job.json
# bash curl.sh job.json
set -euo pipefail
job=${1:?The file of a job is missing}
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

call() { # the method, the path below the endpoint, more options of curl
  curl --no-progress-meter --fail-with-body --retry 5 --retry-connrefused -o "$answer" \
    -X "$1" "${ENDPOINT_URL:?}/$2" "${@:3}" -H "Authorization: Bearer ${RUNPOD_API_KEY:-}" \
    -H 'Content-Type: application/json' || { cat "$answer"; exit 1; } >&2
}

get() { # a field of the answer
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1])).get(sys.argv[2], ""))' "$answer" "$1"
}

bytes=$(wc -c <"$job")
((bytes <= 10000000)) || { echo "/run takes 10 MB, and this job has $bytes bytes. Send URLs of pictures."; exit 1; } >&2
trap 'echo "Stopped before the endpoint told the id: the job may be running there." >&2; exit 130' INT
call POST run --data-binary "@$job"
id=$(get id)
trap 'call POST "cancel/$id"; echo "Cancelled $id" >&2; exit 130' INT
while call GET "status/$id" --retry-all-errors && [[ $(get status) == IN_* ]]; do
  cat "$answer" >&2 # its state, and how far it is
  echo >&2
  sleep 1
done
trap - INT
[[ $(get status) == COMPLETED ]] || { echo "$(get status): $(get error)" >&2; exit 1; }

python3 - "$answer" <<'PYTHON'
import base64, json, sys, urllib.request
job = json.load(open(sys.argv[1]))
reply = job.get("output") or sys.exit("COMPLETED: no reply")
reply = reply[-1] if isinstance(reply, list) else reply  # an endpoint that streams has the reply at a list's end
pictures = reply.get("image_urls") or reply.get("images") or [reply.get("image_url") or reply["image"]]
for number, picture in enumerate(pictures, 1):
    name = f"{job['id']}-{number}.{reply['metadata']['output_format']}"
    with open(name, "wb") as file:
        file.write(urllib.request.urlopen(picture).read() if ":" in picture else base64.b64decode(picture))
    print(name)
if reply["metadata"]["backend"] != "qwen-image":
    sys.exit(f"This is a stand-in, which no model drew: {reply['metadata']['fallback_reason']}")
PYTHON
