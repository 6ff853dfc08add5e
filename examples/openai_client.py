"""Draws a picture and edits it, with OpenAI's own client (`pip install openai`).

export ENDPOINT_URL=https://api.runpod.ai/v2/ENDPOINT_ID RUNPOD_API_KEY=...
python3 openai_client.py "a fox in the snow" "make it summer"

OpenAI's calls wait for the picture, without progress, and cannot be cancelled. client.py shows and does both.
"""

import base64
import os
import sys
from pathlib import Path

import openai


def main(prompt: str, change: str) -> None:
    key = os.environ.get("RUNPOD_API_KEY") or "none"  # the client insists on one; an endpoint at home needs none
    client = openai.OpenAI(api_key=key, base_url=os.environ["ENDPOINT_URL"].rstrip("/") + "/openai/v1")
    # What OpenAI's API does not have stands in extra_body: seed, num_inference_steps, loras ...
    drawn = client.images.generate(prompt=prompt, size="1024x1024", quality="medium", extra_body={"seed": 7})
    save(drawn, "generated.png")
    # `client.images.edit` sends a form, and the way through RunPod is known for JSON alone.
    picture = "data:image/png;base64," + base64.b64encode(Path("generated.png").read_bytes()).decode()
    body = {"prompt": change, "images": [{"image_url": picture}], "quality": "medium", "seed": 7}
    save(client.post("/images/edits", body=body, cast_to=openai.types.ImagesResponse), "edited.png")


def save(response: openai.types.ImagesResponse, name: str) -> None:
    (picture,) = response.data or []
    Path(name).write_bytes(base64.b64decode(picture.b64_json or ""))
    print(name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except openai.APIError as error:
        sys.exit(error.message)
