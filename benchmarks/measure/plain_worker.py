"""The worker that the throughput is held against: a synchronous handler that fetches, draws and encodes in turn.

It does what most published workers do, with the same checkpoint, arguments and SDK as ours.
"""

import base64
import io
import os

import requests


def main() -> None:
    import runpod
    import torch
    from diffusers import QwenImageEditPipeline
    from PIL import Image

    pipe = QwenImageEditPipeline.from_pretrained(os.environ["QWEN_EDIT_MODEL"], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def handler(job: dict) -> dict:
        fields = job["input"]
        source = Image.open(io.BytesIO(requests.get(fields["image_url"], timeout=20).content)).convert("RGB")
        picture = pipe(
            image=source,
            prompt=fields["prompt"],
            negative_prompt=" ",
            true_cfg_scale=4.0,
            width=fields["width"],
            height=fields["height"],
            num_inference_steps=fields["num_inference_steps"],
            generator=torch.Generator("cpu").manual_seed(fields["seed"]),
        ).images[0]
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return {"image": base64.b64encode(buffer.getvalue()).decode()}

    runpod.serverless.start({"handler": handler})


if __name__ == "__main__":
    main()
