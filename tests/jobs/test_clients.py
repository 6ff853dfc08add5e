"""Bodies that clients of other hosts, engines and tools send, and what parsing makes of each.

A row's id names the sender: a client, or the host whose documentation has these fields. A row has the body, the fields
of the request that it means, and the fields that a warning is given for.
"""

import pytest

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.field_types import Lora
from qwen_worker.jobs.openai_images import EDITS, GENERATIONS, call_of
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets

# What A1111's API documents with its own values, those of a picture made from a prompt and those of an edit.
A1111 = {
    "prompt": "a fox", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "batch_size": 1, "n_iter": 1, "steps": 50, "cfg_scale": 7,
    "width": 512, "height": 512, "restore_faces": False, "tiling": False, "do_not_save_samples": False,
    "do_not_save_grid": False, "eta": 0, "denoising_strength": 1, "s_min_uncond": 0, "s_churn": 0, "s_tmax": 0,
    "s_tmin": 0, "s_noise": 1.0, "override_settings": {}, "override_settings_restore_afterwards": True,
    "refiner_checkpoint": "", "refiner_switch_at": 0, "disable_extra_networks": False, "comments": {},
    "sampler_index": "Euler", "script_name": "", "script_args": [], "send_images": True, "save_images": False,
    "alwayson_scripts": {}, "infotext": "", "force_task_id": "",
}  # fmt: skip
A1111_TEXT = {
    **A1111, "firstpass_image": "", "enable_hr": False, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2,
    "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": "",
    "hr_sampler_name": "", "hr_scheduler": "", "hr_prompt": "", "hr_negative_prompt": "",
}  # fmt: skip
A1111_IMAGE = {
    **A1111, "init_images": ["aGk="], "resize_mode": 0, "image_cfg_scale": 0, "mask": "aGk=", "mask_blur_x": 4,
    "mask_blur_y": 4, "mask_blur": 0, "mask_round": True, "inpainting_fill": 0, "inpaint_full_res": False,
    "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0, "initial_noise_multiplier": 1, "latent_mask": "",
    "include_init_images": False,
}  # fmt: skip
MODELS = {"generate": "Qwen/Qwen-Image", "edit": "Qwen/Qwen-Image-Edit-2511"}
URL, OTHER = "https://example.com/photo.jpg", "https://example.com/coat.jpg"
PICTURE = "data:image/png;base64,iVBORw0KGgo="
LORA = "https://example.com/style/resolve/main/style.safetensors"
SAFE, UNSAFE = {"enable_safety_checker": True}, {"enable_safety_checker": False}
FAL = {"sync_mode": False, "num_images": 1, "enable_safety_checker": True, "output_format": "png",
       "negative_prompt": " ", "acceleration": "none"}  # fmt: skip


def row(sender, body, meant=None, told=()):
    return pytest.param({"prompt": "a fox", **body}, meant or {}, list(told), id=sender)


def openai(route, **body):
    return {"openai_route": route, "openai_input": {"prompt": "a fox", **body}}


def read(body):
    """The request of a job, and the first word of each warning."""
    warnings = []
    call = call_of(body, MODELS)
    request = parse(call.fields() if call else body, "job", Presets(), warnings.append, MODELS)
    return request, [warning.split()[0] for warning in warnings]


def edit(*images, **fields):
    return {"task": "edit", "images": images or (URL,), **fields}


SENT_TO_RUNPOD = [
    row("runpod-ai-sdk/qwen-image", {"negative_prompt": "", "size": "1328*1328", "seed": -1, **SAFE},
        {"size": "1328x1328"}, ["enable_safety_checker"]),
    row("runpod-ai-sdk/qwen-image/4:3", {"negative_prompt": "", "size": "1472*1140", "seed": 7, **SAFE},
        {"size": "1472x1140", "seed": 7}, ["enable_safety_checker"]),
    row("runpod-ai-sdk/qwen-image-lora", {"negative_prompt": "", "size": "1024*1024", "seed": -1, **UNSAFE,
                                          "loras": [{"path": LORA, "scale": 1}]},
        {"loras": (Lora(path=LORA),)}),
    row("runpod-ai-sdk/provider-options", {"negative_prompt": "", "size": "512*512", "seed": -1, **UNSAFE,
                                           "maxPollAttempts": 30, "pollIntervalMillis": 3000}, {"size": "512x512"}),
    row("runpod-ai-sdk/qwen-image-edit", {"negative_prompt": "", "size": "1328*1328", "seed": -1, **SAFE,
                                          "image": PICTURE},
        edit(PICTURE, size="1328x1328"), ["enable_safety_checker"]),
    row("runpod-ai-sdk/qwen-image-edit-2511", {"size": "1328*1328", "seed": -1, "output_format": "jpeg",
                                               "enable_base64_output": False, "enable_sync_mode": False,
                                               "images": [PICTURE, URL]},
        edit(PICTURE, URL, output_format="jpeg", delivery=None)),
    row("runpod-ai-sdk/pruna", {"aspect_ratio": "16:9", "disable_safety_checker": False, "seed": 5},
        {"aspect_ratio": "16:9"}, ["disable_safety_checker"]),
    row("runpod-ai-sdk/pruna/custom", {"aspect_ratio": "custom", "width": 1024, "height": 768,
                                       "disable_safety_checker": True}, {"width": 1024, "height": 768}),
    row("runpod-ai-sdk/pruna-edit", {"aspect_ratio": "1:1", "disable_safety_checker": True, "images": [URL]},
        edit(aspect_ratio="1:1")),
    row("runpod-ai-sdk/nano-banana", {"aspect_ratio": "21:9", "resolution": "2k", "output_format": "jpeg",
                                      "enable_base64_output": True, "enable_sync_mode": False, "images": [URL]},
        edit(aspect_ratio="21:9", size="2K", delivery="inline")),
    row("runpod-docs/qwen-image", {"negative_prompt": "", "size": "1328*1328", "seed": -1, **SAFE},
        {"size": "1328x1328"}, ["enable_safety_checker"]),
    row("runpod-docs/qwen-image-lora", {"loras": [{"path": LORA, "scale": 1}], "size": "1024*1024", **SAFE},
        {"loras": (Lora(path=LORA),)}, ["enable_safety_checker"]),
    row("runpod-docs/qwen-image-edit", {"negative_prompt": "", "image": URL, "output_format": "png", **SAFE},
        edit(output_format="png"), ["enable_safety_checker"]),
    row("runpod-docs/qwen-image-edit-2511", {"images": [URL], "size": "1536*1080", "seed": -1, "output_format": "png"},
        edit(size="1536x1080")),
    row("runpod-docs/qwen-image-edit-2511-lora", {"images": [URL], "loras": [{"path": LORA, "scale": 0.8}],
                                                  "size": "1024*1024", "seed": -1, "output_format": "png"},
        edit(loras=(Lora(path=LORA, scale=0.8),))),
    row("runpod/worker-sdxl", {"negative_prompt": None, "height": 1024, "width": 1024, "seed": None,
                               "scheduler": "DDIM", "num_inference_steps": 25, "refiner_inference_steps": 50,
                               "guidance_scale": 7.5, "strength": 0.3, "image_url": None, "num_images": 1},
        {"task": "generate", "num_inference_steps": 25, "guidance_scale": 7.5},
        ["scheduler", "refiner_inference_steps", "strength"]),
]  # fmt: skip

SENT_TO_HOSTS = [
    row("fal/qwen-image", {**FAL, "image_size": "landscape_4_3", "num_inference_steps": 30, "guidance_scale": 2.5,
                           "use_turbo": False, "loras": []},
        {"size": "1024x768", "num_inference_steps": 30, "preset": "quality", "loras": ()}, ["enable_safety_checker"]),
    row("fal/qwen-image/object", {**FAL, **UNSAFE, "image_size": {"width": 1280, "height": 720}, "sync_mode": True,
                                  "acceleration": "regular", "guidance_scale": 0},
        {"size": "1280x720", "delivery": "inline", "preset": "balanced", "guidance_scale": 1}),
    row("fal/qwen-image/image-to-image", {**FAL, "image_url": URL, "image_size": "square_hd", "strength": 0.6,
                                          "num_inference_steps": 30, "guidance_scale": 2.5, "use_turbo": True},
        edit(size="1024x1024", strength=0.6), ["use_turbo", "enable_safety_checker"]),
    row("fal/qwen-image-edit", {**FAL, "image_url": URL, "image_size": "square_hd", "num_inference_steps": 30,
                                "guidance_scale": 4, "acceleration": "regular"},
        edit(preset="balanced"), ["enable_safety_checker"]),
    row("fal/qwen-image-edit/inpaint", {**FAL, "image_url": URL, "mask_url": OTHER, "strength": 0.93,
                                        "num_inference_steps": 30, "guidance_scale": 4},
        edit(mask_image=OTHER, strength=0.93), ["enable_safety_checker"]),
    row("fal/qwen-image-edit-plus", {**FAL, "image_urls": [URL, OTHER], "num_inference_steps": 50, "guidance_scale": 4,
                                     "acceleration": "regular"},
        edit(URL, OTHER, preset="balanced"), ["enable_safety_checker"]),
    row("replicate/qwen-image", {"enhance_prompt": False, "lora_scale": 1, "strength": 0.9, "negative_prompt": " ",
                                 "aspect_ratio": "16:9", "image_size": "optimize_for_quality", "go_fast": True,
                                 "num_inference_steps": 50, "guidance": 4, "output_format": "webp",
                                 "output_quality": 80, "disable_safety_checker": False},
        {"aspect_ratio": "16:9", "guidance_scale": 4, "output_format": "webp", "output_quality": 80},
        ["lora_scale", "strength", "go_fast", "disable_safety_checker"]),
    row("replicate/qwen-image/loras", {"lora_weights": LORA, "lora_scale": 0.9, "extra_lora_weights": [LORA, "a/b"],
                                       "extra_lora_scale": [0.5, 0.25], "disable_safety_checker": True},
        {"loras": (Lora(path=LORA, scale=0.9), Lora(path=LORA, scale=0.5), Lora(path="a/b", scale=0.25))}),
    row("replicate/qwen-image-edit", {"image": URL, "go_fast": False, "output_format": "jpg", "output_quality": 95,
                                      "aspect_ratio": "match_input_image", "disable_safety_checker": True},
        edit(output_format="jpeg", aspect_ratio="match_input_image", size=None)),
    row("replicate/qwen-image-edit-plus", {"image": [URL, OTHER], "aspect_ratio": "match_input_image", "go_fast": True,
                                           "output_format": "webp", "output_quality": 95,
                                           "disable_safety_checker": False},
        edit(URL, OTHER, preset="quality"), ["go_fast", "disable_safety_checker"]),
    row("pruna/p-image-edit", {"images": [URL], "turbo": True, "aspect_ratio": "match_input_image", "seed": None,
                               "disable_safety_checker": True}, edit(), ["turbo"]),
    row("dashscope/flat", {"model": "qwen-image-plus", "negative_prompt": "", "size": "1664*928", "n": 1,
                           "prompt_extend": True, "watermark": False},
        {"size": "1664x928", "num_images": 1}, ["model", "prompt_extend"]),
    pytest.param({"model": "qwen-image", "messages": [{"role": "user", "content": [{"text": "a fox"}]}],
                  "parameters": {"negative_prompt": "", "prompt_extend": False, "size": "1328*1328"}},
                 {"prompt": "a fox", "size": "1328x1328"}, [], id="dashscope/qwen-image"),
    pytest.param({"model": "qwen-image-edit-plus", "parameters": {"n": 2, "negative_prompt": " ", "watermark": True},
                  "messages": [{"role": "user", "content": [{"image": URL}, {"image": OTHER}, {"text": "a fox"}]}]},
                 edit(URL, OTHER, prompt="a fox", num_images=2), ["model", "watermark"], id="dashscope/edit"),
    pytest.param({"taskType": "imageInference", "taskUUID": "a770f077", "outputType": "dataURI", "outputFormat": "JPG",
                  "outputQuality": 95, "includeCost": True, "model": "alibaba:qwen-image@1", "positivePrompt": "a fox",
                  "negativePrompt": "blurry", "width": 1328, "height": 1328, "steps": 30, "CFGScale": 3.5,
                  "numberResults": 2, "scheduler": "Euler", "seed": 42, "lora": [{"model": LORA, "weight": 0.8}]},
                 {"prompt": "a fox", "delivery": "inline", "output_format": "jpeg", "output_quality": 95, "width": 1328,
                  "num_inference_steps": 30, "guidance_scale": 3.5, "num_images": 2, "seed": 42,
                  "loras": (Lora(path=LORA, scale=0.8),)}, ["scheduler", "model"], id="runware/qwen-image"),
    pytest.param({"taskType": "imageInference", "outputType": "URL", "deliveryMethod": "sync", "positivePrompt": "a",
                  "outputFormat": "JPG"}, {"delivery": None, "output_format": "jpeg"}, [], id="runware/defaults"),
    row("runware/async", {"deliveryMethod": "async"}, {}, ["delivery_method"]),
    pytest.param({"taskType": "imageInference", "outputType": "base64Data", "positivePrompt": "a fox",
                  "seedImage": URL, "referenceImages": [OTHER], "CFGScale": 4},
                 edit(URL, OTHER, delivery="inline"), [], id="runware/qwen-image-edit-plus"),
]  # fmt: skip

SENT_TO_ENGINES = [
    row("vllm-omni/generations", {"model": "Qwen/Qwen-Image", "size": "1024x1024", "response_format": "b64_json",
                                  "n": 1, "negative_prompt": "blurry", "num_inference_steps": 50, "guidance_scale": 1.0,
                                  "true_cfg_scale": 4.0, "seed": 42, "user": "me"},
        {"guidance_scale": 4, "delivery": "inline"}, ["guidance_scale"]),
    row("vllm-omni/lora", {"size": "1024x1024", "lora": {"name": "style", "local_path": "style.safetensors",
                                                        "scale": 0.7}},
        {"loras": (Lora(path="style.safetensors", scale=0.7),)}),
    row("vllm-omni/lora-request", {"num_outputs_per_prompt": 2, "lora": {
            "name": "style", "path": "a/b", "scale": 0.7, "int_id": 1, "weight_name": "b.safetensors"}},
        {"num_images": 2, "loras": (Lora(path="a/b", scale=0.7),)}, ["int_id", "weight_name"]),
    pytest.param({"messages": [{"role": "user", "content": "a fox"}],
                  "extra_body": {"height": 1024, "width": 1024, "num_inference_steps": 50, "true_cfg_scale": 4.0,
                                 "seed": 42}},
                 {"prompt": "a fox", "height": 1024, "guidance_scale": 4, "seed": 42}, [], id="vllm-omni/chat"),
    pytest.param({"messages": [{"role": "user", "content": [
                    {"type": "text", "text": "a fox"}, {"type": "image_url", "image_url": {"url": PICTURE}}]}]},
                 edit(PICTURE, prompt="a fox"), [], id="vllm-omni/chat-edit"),
    row("sglang/generations", {"model": "Qwen/Qwen-Image", "size": "1024x1024", "n": 1, "response_format": "b64_json",
                               "background": "auto", "output_format": "png", "num_inference_steps": 50,
                               "guidance_scale": 4.0, "true_cfg_scale": 4.0, "generator_device": "cuda",
                               "enable_teacache": False, "output_compression": 90},
        {"guidance_scale": 4, "output_quality": 90}, ["generator_device", "output_compression"]),
    row("sglang/edits", {"url": URL, "size": "1024x1024", "response_format": "url"},
        edit(size="1024x1024", delivery="url")),
    row("a1111/txt2img", {"negative_prompt": "", "steps": 20, "cfg_scale": 7, "width": 512, "height": 768,
                          "sampler_name": "Euler a", "scheduler": "Automatic", "batch_size": 2, "n_iter": 1, "seed": -1,
                          "restore_faces": False, "tiling": False, "enable_hr": False, "denoising_strength": 0,
                          "override_settings": {}, "save_images": False, "send_images": True},
        {"num_inference_steps": 20, "guidance_scale": 7, "num_images": 2, "height": 768},
        ["sampler_name", "scheduler", "denoising_strength"]),
    row("a1111/img2img", {"init_images": [PICTURE], "mask": PICTURE, "denoising_strength": 0.75, "steps": 30,
                          "cfg_scale": 4.5, "width": 512, "height": 512, "sampler_name": "Euler"},
        edit(PICTURE, mask_image=PICTURE, strength=0.75, width=512), ["sampler_name"]),
    row("a1111/txt2img/all", A1111_TEXT, {"task": "generate", "num_inference_steps": 50, "guidance_scale": 7}),
    row("a1111/img2img/all", A1111_IMAGE, edit("aGk=", mask_image="aGk=", strength=1)),
    row("a1111/img2img/asks", {"init_images": [PICTURE], "styles": ["noir"], "subseed": 5, "subseed_strength": 0.5,
                               "eta": 0.3, "s_noise": 2, "script_name": "x/y", "alwayson_scripts": {"a": {}},
                               "resize_mode": 1, "mask_blur": 8, "inpainting_fill": 2, "inpaint_full_res": True,
                               "firstphase_width": 64, "initial_noise_multiplier": 0.5},
        edit(PICTURE), ["styles", "subseed", "subseed_strength", "eta", "s_noise", "script_name", "alwayson_scripts",
                        "resize_mode", "mask_blur", "inpainting_fill", "inpaint_full_res", "firstphase_width",
                        "initial_noise_multiplier"]),
    row("comfyui/ksampler", {"negative": "blurry", "width": 1328, "height": 1328, "batch_size": 1, "seed": 2**63,
                             "steps": 20, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
                             "shift": 3.1},
        {"negative_prompt": "blurry", "seed": 2**63, "guidance_scale": 2.5}, ["sampler_name", "scheduler", "shift"]),
    row("comfyui/qwen-image-edit-plus", {"image1": PICTURE, "image2": URL, "image3": OTHER, "steps": "4", "cfg": "1.0"},
        edit(PICTURE, URL, OTHER, num_inference_steps=4, guidance_scale=1)),
    pytest.param(openai(GENERATIONS, model="dall-e-3", n=1, size="1024x1024", quality="standard", style="vivid",
                        response_format="b64_json", user="me"),
                 {"task": "generate", "size": "1024x1024", "preset": "quality", "delivery": "inline"},
                 ["style", "model"], id="openai/dall-e-3"),
    pytest.param(openai(GENERATIONS, model="gpt-image-1", n=2, size="auto", quality="low", background="auto",
                        moderation="auto", output_format="webp", output_compression=80, stream=False,
                        partial_images=0),
                 {"task": "generate", "num_images": 2, "output_quality": 80, "preset": "balanced", "size": None},
                 ["model", "quality"], id="openai/gpt-image-1"),
    pytest.param(openai(EDITS, model="gpt-image-1", image=[{"image_url": PICTURE}], mask={"image_url": PICTURE},
                        input_fidelity="high", quality="high", size="1536x1024"),
                 edit(PICTURE, mask_image=PICTURE, mask_from="alpha", size="1536x1024"),
                 ["input_fidelity", "model"], id="openai/edits"),
    pytest.param(openai(GENERATIONS, model="Qwen/Qwen-Image", size=""), {"task": "generate"}, ["size"],
                 id="openai/empty-size"),
]  # fmt: skip

FOUND_IN_DOCUMENTATION = [
    row("replicate.com/qwen/qwen-image-edit-plus-lora",
        {"image": [URL], "aspect_ratio": "match_input_image", "lora_weights": "", "lora_scale": 1, "go_fast": False,
         "output_format": "webp", "output_quality": 95, "disable_safety_checker": True},
        edit(loras=()), ["lora_scale"]),
    row("replicate.com/replicate/qwen-image-2.1-lora",
        {"negative_prompt": "", "image": URL, "reference_images": [OTHER], "aspect_ratio": "1:1",
         "num_inference_steps": 40, "guidance_scale": 1, "num_outputs": 1, "lora": LORA, "lora_scale": 1,
         "lora_2": "a/b", "lora_2_scale": 0.5, "use_kv_cache": True, "output_format": "png", "output_quality": 95},
        edit(URL, OTHER, guidance_scale=1, loras=(Lora(path=LORA), Lora(path="a/b", scale=0.5))),
        ["use_kv_cache", "output_quality"]),
    row("replicate.com/smkrv/qwen-image",
        {"negative_prompt": "", "aspect_ratio": "1:1", "num_inference_steps": 50, "guidance": 4, "seed": -1,
         "num_outputs": 1, "lora_weights": "", "lora_scale": 1, "extra_lora_weights": "", "extra_lora_scale": 1,
         "output_format": "webp", "output_quality": 95, "go_fast": False},
        {"aspect_ratio": "1:1", "loras": ()}, ["lora_scale", "extra_lora_scale"]),
    row("replicate.com/fofr/qwen-n74",
        {"enhance_prompt": False, "negative_prompt": "", "aspect_ratio": "16:9", "image_size": "optimize_for_speed",
         "go_fast": False, "num_inference_steps": 50, "guidance": 4},
        {"aspect_ratio": "16:9"}, ["image_size"]),
    row("replicate.com/andyx1976/qwenunif",
        {"enhance_prompt": True, "replicate_weights": LORA, "lora_scale": 1, "image": URL, "strength": 0.9,
         "aspect_ratio": "16:9", "image_size": "optimize_for_quality", "go_fast": True, "guidance": 3,
         "disable_safety_checker": True},
        edit(strength=0.9, aspect_ratio="16:9", loras=(Lora(path=LORA),)), ["enhance_prompt", "go_fast"]),
    row("replicate.com/jackieyaung/qwen-image-edit-2509-gguf",
        {"image": URL, "image2": OTHER, "negative_prompt": "blurry", "steps": 4, "cfg_scale": 1, "seed": -1,
         "denoise": 1.0},
        edit(URL, OTHER, num_inference_steps=4, guidance_scale=1), ["negative_prompt"]),
    row("wavespeed.ai/qwen-image/text-to-image-2512",
        {"size": "1024*1024", "seed": 7, "output_format": "jpeg", "enable_sync_mode": True,
         "enable_base64_output": True},
        {"size": "1024x1024", "delivery": "inline"}, ["enable_sync_mode"]),
    row("wavespeed.ai/qwen-image/text-to-image-lora",
        {"loras": [{"path": "org/name", "scale": 1}], "size": "1024*1024", "output_format": "webp", "seed": -1,
         "enable_sync_mode": False, "enable_base64_output": False},
        {"loras": (Lora(path="org/name"),), "delivery": None}),
    row("novita.ai/qwen-image-edit", {"image": URL, "seed": 123, "output_format": "jpeg"}, edit(seed=123)),
    row("kie.ai/qwen/image-edit",
        {"image_url": URL, "acceleration": "none", "image_size": "landscape_4_3", "num_inference_steps": 25,
         "guidance_scale": 4, "sync_mode": False, **SAFE, "output_format": "png", "negative_prompt": "blurry, ugly"},
        edit(size="1024x768", preset="quality"), ["enable_safety_checker"]),
    row("modelverse.cn/Qwen/Qwen-Image",
        {"model": "Qwen/Qwen-Image", "n": 1, "aspect_ratio": "21:9", "seed": 9999999999, "guidance_scale": 2.5},
        {"aspect_ratio": "21:9", "seed": 9999999999}),
    row("huaweicloud.com/qwen-image",
        {"model": "qwen-image", "size": "1024x1024", "response_format": "b64_json", "seed": 333, "watermark": True},
        {"size": "1024x1024"}, ["watermark"]),
    row("aimlapi.com/alibaba/qwen-image",
        {"model": "alibaba/qwen-image", "image_size": "landscape_4_3", "num_images": 1, "output_format": "jpeg", **SAFE,
         "num_inference_steps": 30, "guidance_scale": 2.5},
        {"size": "1024x768"}, ["model", "enable_safety_checker"]),
    row("siliconflow.com/Qwen/Qwen-Image",
        {"model": "Qwen/Qwen-Image", "negative_prompt": "blurry", "image_size": "1472x1140", "batch_size": 1,
         "seed": 499999999, "num_inference_steps": 20, "cfg": 4},
        {"size": "1472x1140", "num_images": 1, "guidance_scale": 4}),
    row("siliconflow.com/Qwen/Qwen-Image-Edit",
        {"model": "Qwen/Qwen-Image-Edit", "image": PICTURE, "num_inference_steps": 20, "guidance_scale": 7.5},
        edit(PICTURE, guidance_scale=7.5), ["model"]),
    row("deepinfra.com/Qwen/Qwen-Image", {"size": "1024x1024", "model": "Qwen/Qwen-Image", "n": 1}, {"num_images": 1}),
    row("deapi.ai/img2img",
        {"image": PICTURE, "model": "QwenImageEdit_Plus_NF4", "guidance": 7.5, "steps": "20", "seed": "42",
         "negative_prompt": "blur", "width": "512", "height": "512",
         "loras": {"name": "style.safetensors", "weight": 0.75}},
        edit(PICTURE, seed=42, width=512, loras=(Lora(path="style.safetensors", scale=0.75),)), ["model"]),
    row("github.com/felipejfc/qwen-image-edit-runpod",
        {"image_url": URL, "num_inference_steps": 8, "true_cfg_scale": 4.0, "seed": 42}, edit(num_inference_steps=8)),
    row("github.com/emiliaivanovabot/nano-banana-friends",
        {"image": URL, "negative_prompt": "", "seed": -1, "output_format": "jpg", **SAFE},
        edit(output_format="jpeg"), ["enable_safety_checker"]),
    row("github.com/Mihirt5/facial-analysis-platform",
        {"image": URL, "true_cfg_scale": 4.0, "negative_prompt": " ", "num_inference_steps": 40, "guidance_scale": 1.0,
         "num_images_per_prompt": 1},
        edit(guidance_scale=4), ["guidance_scale"]),
    row("github.com/QwenLM/Qwen-Image-2.1",
        {"model": "Qwen/Qwen-Image-2.1", "size": "1024x1024", "num_inference_steps": 40, "seed": 42},
        {"num_inference_steps": 40}, ["model"]),
    row("docs.nvidia.com/dynamo", {"model": "Qwen/Qwen-Image", "size": "1024x1024", "response_format": "url"},
        {"delivery": "url"}),
    row("lumenfall.ai/qwen-image", {"model": "qwen-image", "size": "16:9", "negative_prompt": "blurry", "seed": 1},
        {"aspect_ratio": "16:9", "size": None}),
    row("modellix.ai/qwen-image", {"size": "1140*1472", "n": 1, "seed": 42, "prompt_extend": True},
        {"size": "1140x1472"}, ["prompt_extend"]),
    pytest.param({"inputs": "a fox", "parameters": {"guidance_scale": 4, "height": 512, "width": 512, "seed": 1,
                                                    "negative_prompt": "blurry", "num_inference_steps": 30,
                                                    "scheduler": "Euler"}},
                 {"prompt": "a fox", "width": 512, "num_inference_steps": 30}, ["scheduler"],
                 id="huggingface.co/tasks/text-to-image"),
    pytest.param({"inputs": PICTURE, "parameters": {"prompt": "a fox", "guidance_scale": 4,
                                                    "target_size": {"width": 512, "height": 768}}},
                 edit(PICTURE, prompt="a fox", size="512x768"), [], id="huggingface.co/tasks/image-to-image"),
]  # fmt: skip

SENT_BY_PEOPLE = [
    row("official-sample", {"image": PICTURE, "true_cfg_scale": 4.0, "negative_prompt": " ", "num_inference_steps": 40,
                            "guidance_scale": 1.0, "num_images_per_prompt": 1}, edit(PICTURE), ["guidance_scale"]),
    row("image-as-list", {"image": [PICTURE]}, edit(PICTURE)),
    row("mask-as-list", {"image": PICTURE, "mask_image": [OTHER]}, edit(PICTURE, mask_image=OTHER)),
    row("mask-url-as-list", {"image": PICTURE, "mask": [{"image_url": OTHER}]}, edit(PICTURE, mask_image=OTHER)),
    row("empty-list/image", {"image": [], "image_url": URL}, edit()),
    row("empty-list/images", {"images": [], "image": URL, "image_urls": []}, edit()),
    row("empty-list/references", {"image": [], "reference_images": [URL]}, edit()),
    row("portrait_3_4", {"image_size": "portrait_3_4"}, {"size": "768x1024"}),
    row("portrait_9_16", {"image_size": "portrait_9_16"}, {"size": "576x1024"}),
    row("landscape_3_4", {"image_size": "landscape_3_4"}, {"size": "1024x768"}),
    row("landscape_9_16", {"image_size": "landscape_9_16"}, {"size": "1024x576"}),
    row("quality-0", {"output_quality": 0}, {"output_quality": 1}, ["output_quality"]),
    row("compression-0", {"outputCompression": "0"}, {"output_quality": 1}, ["output_compression"]),
    row("quality-of-png", {"output_format": "png", "quality": 0}, {"output_quality": 1}, ["quality", "quality"]),
    row("first-picture-twice", {"image": URL, "image1": URL, "image2": OTHER}, edit(URL, OTHER)),
    row("one-number-twice", {"image_url_1": URL, "image_1": URL, "image2": OTHER}, edit(URL, OTHER)),
    row("only-picture-twice", {"image": URL, "image_1": URL}, edit(URL)),
    row("lora-scale-twice", {"lora": {"path": "a/b", "weight": "0.5"}, "lora_scale": 0.5},
        {"loras": (Lora(path="a/b", scale=0.5),)}),
    pytest.param({"messages": [{"content": [{"image": URL, "text": "a fox"}]}]}, edit(prompt="a fox"), [],
                 id="picture-and-text-in-one"),
    row("image-base64", {"image_base64": PICTURE}, edit(PICTURE)),
    row("form", {"width": "1024", "height": "1024", "num_inference_steps": "20", "guidance_scale": "4", "seed": "42"},
        {"width": 1024, "num_inference_steps": 20, "guidance_scale": 4, "seed": 42}),
    row("n8n", {"width": 1024.0, "height": 1024.0, "steps": 20.0, "numImages": 1}, {"num_inference_steps": 20}),
    row("seed-of-64-bits", {"seed": 815512498217549870}, {"seed": 815512498217549870}),
    row("jpg", {"output_format": "jpg"}, {"output_format": "jpeg"}),
    row("long-prompt", {"prompt": "a photograph of a red fox in the snow, " * 60}),
    pytest.param(openai(GENERATIONS, n=1, size="1024x1024", quality="standard", style="vivid"), {"task": "generate"},
                 ["style"], id="dall-e-3-style"),
    pytest.param(openai(EDITS, image=PICTURE, input_fidelity="low"), edit(PICTURE), ["input_fidelity"],
                 id="input-fidelity"),
    pytest.param(openai(EDITS, images=[{"image_url": PICTURE}], mask={"image_url": PICTURE}),
                 edit(PICTURE, mask_from="alpha"), [], id="openai-mask"),
]  # fmt: skip

ACCEPTED = [*SENT_TO_RUNPOD, *SENT_TO_HOSTS, *SENT_TO_ENGINES, *FOUND_IN_DOCUMENTATION, *SENT_BY_PEOPLE]


@pytest.mark.parametrize(("body", "meant", "told"), ACCEPTED)
def test_what_a_client_sends_is_read_with_its_meaning(body, meant, told):
    request, warned = read(body)
    assert {name: getattr(request, name) for name in meant} == meant
    assert sorted(warned) == sorted(told)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param({"workflow": {"3": {"class_type": "KSampler"}}, "images": [{"name": "a.png", "image": PICTURE}]},
                     "workflow is not here: this worker is no ComfyUI; send prompt, negative_prompt, size, steps and",
                     id="worker-comfyui"),
        pytest.param({"prompt": "a", "control_image_url": URL, "controlnet_conditioning_scale": 0.8},
                     "control_image_url is not here: this worker has no ControlNet (QWEN_CONTROLNET); send",
                     id="controlnet"),
        pytest.param({"prompt": "a", "image_url": URL, "num_layers": 4},
                     "num_layers is not here: task layers takes it; send that task with the picture",
                     id="fal/qwen-image-layered"),
        pytest.param({"prompt": "a", "webhook": "https://example.com"},
                     'webhook stands beside input, not in it: send {"input": {...}, "webhook": ...}', id="webhook"),
        pytest.param({"prompt": "a", "webhookUrl": "https://example.com"},
                     'webhook_url stands beside input, not in it: send {"input": {...}, "webhook": ...}', id="hook"),
        pytest.param({"prompt": "a", "s3Config": {}}, "s3Config stands beside input", id="s3Config"),
        pytest.param({"prompt": "a", "policy": {"executionTimeout": 5}}, "policy stands beside input", id="policy"),
        pytest.param({"input": {"prompt": "a"}}, "input is given within input: send", id="input-within-input"),
        pytest.param({"prompt": "a", "background": "white"}, "background must be 'auto', 'transparent' or", id="rgba"),
        pytest.param({"prompt": "a", "image": URL, "mask": PICTURE, "inpainting_mask_invert": 1},
                     "inpainting_mask_invert must be 0 or false, not 1: white areas of mask_image are drawn anew; "
                     "send the mask with black and white exchanged", id="a1111/inverted"),
        pytest.param({"inputs": "iVBORw0KGgoAAAANSUhEUg=="}, "prompt is required: inputs is a picture here",
                     id="huggingface.co/picture"),
        pytest.param({"inputs": "Qk0" + "A" * 70}, "prompt is required: inputs is a picture here", id="a-long-word"),
        pytest.param({"inputs": URL, "parameters": {"width": 512}}, "send the prompt in parameters",
                     id="huggingface.co/url"),
        pytest.param({"prompt": "a", "image_url_1": URL, "image_base64_1": PICTURE},
                     "image_url_1 and image_base64_1 are one picture, and the two differ: send one of them",
                     id="one-number-two-pictures"),
        pytest.param({"prompt": "a", "image_1": URL, "image1": OTHER}, "image_1 and image1 are one picture",
                     id="one-number-two-spellings"),
        pytest.param({"prompt": "a", "lora": {"path": "a/b", "scale": 0.5}, "lora_scale": 1},
                     "lora_scale (1) and the scale in lora differ: send one of them", id="two-scales"),
        pytest.param({"prompt": None}, "this prompt is null", id="null-prompt"),
        pytest.param({"promt": "x"}, 'only "promt" (did you mean prompt?)', id="wrong-name"),
        pytest.param({"text": "a fox"}, 'only "text" (did you mean prompt?)', id="text"),
        pytest.param({"prompt": "x", "width": 1472, "height": 1140}, "height must be a whole number from 256 to 2752 "
                     "and a multiple of 16, not 1140; the nearest are 1136 and 1152", id="1472x1140"),
        pytest.param({"prompt": "x", "width": 1920, "height": 1080}, "not 1080; the nearest are 1072 and 1088",
                     id="1920x1080"),
        pytest.param({"prompt": "x", "size": "4096*4096"}, "width (sent as size) must be a whole number from 256 to",
                     id="runpod-ai-sdk/4096"),
    ],
)  # fmt: skip
def test_what_asks_for_another_product_or_is_a_slip_is_told_what_to_send(body, words):
    with pytest.raises(InvalidInput) as caught:
        read(body)
    assert words in str(caught.value)


def test_the_table_has_as_many_senders_as_it_is_said_to_have():
    assert len({one.id for one in ACCEPTED}) == len(ACCEPTED) and len(FOUND_IN_DOCUMENTATION) >= 20
    assert len(ACCEPTED) - len(FOUND_IN_DOCUMENTATION) >= 45
