"""The words of the Hub's form, for people who deploy from it: names of settings, descriptions, labels of choices.

Knows nothing of the form's file. A setting that has no description here has the worker's own.
"""

# What the Hub shows of the worker before it is deployed.
DESCRIPTION = (
    "Draws and edits pictures with the Qwen-Image models: text to image, image editing, background replacement and "
    "inpainting, with progress, cancellation, delivery by URL and an API like OpenAI's. A worker's first start "
    "downloads 58 GB for each model. To avoid that, choose the model in the endpoint's Model field, or use a network "
    "volume."
)
# The settings of the form, in its order. Those that have a description below are shown; the others are advanced.
NAMES = {
    "QWEN_IMAGE_MODEL": "Text-to-image model",
    "QWEN_EDIT_MODEL": "Edit model",
    "QWEN_TASKS": "What it serves",
    "QWEN_PRESET": "Quality or speed",
    "QWEN_PRECISION": "Precision",
    "QWEN_FALLBACK": "If a model cannot be loaded",
    "QWEN_PRELOAD": "Models loaded at the start",
    "QWEN_SAVINGS": "Exact savings of memory",
    "QWEN_SPEEDUPS": "Speed-ups",
    "QWEN_COMPILED_MB": "Compiled blocks kept (MB)",
    "QWEN_SELF_CHECK": "Self-check of optimisations",
    "QWEN_VRAM_GB": "GPU memory cap (GB)",
    "QWEN_CONCURRENCY": "Jobs held at once",
    "QWEN_BATCH": "Small pictures in one call",
    "QWEN_PROMPT_CACHE_MB": "Prompt cache (MB)",
    "QWEN_LOAD_THREADS": "Threads that read weights",
    "QWEN_PREPARED": "Prepared checkpoints",
    "QWEN_IMAGE_FAST_LORA": "Few-step LoRA, text to image",
    "QWEN_EDIT_FAST_LORA": "Few-step LoRA, edits",
    "QWEN_FAST_STEPS": "Steps of the few-step LoRAs",
    "QWEN_LORAS": "LoRAs of every picture (JSON)",
    "QWEN_LORA_MB": "Largest LoRA of a job (MB)",
    "QWEN_LORA_CACHE_GB": "Disk for LoRAs (GB)",
    "QWEN_LORA_SECONDS": "Deadline of a LoRA (s)",
    "QWEN_LOAD_RETRY_SECONDS": "Pause before a load is retried (s)",
    "QWEN_FETCH_SECONDS": "Deadline of an input image (s)",
    "QWEN_JOB_SECONDS": "Limit of a job (s)",
    "QWEN_SHUTDOWN_SECONDS": "Time to end on SIGTERM (s)",
    "QWEN_PROGRESS_SECONDS": "Pause between progress messages (s)",
    "STREAM": "Stream the reply",
    "QWEN_RESULT_LIMIT_MB": "Largest reply (MB)",
    "QWEN_DELIVERY": "Delivery of pictures",
    "QWEN_MARK": "Marks in files",
    "QWEN_SAFETY_MODEL": "Safety check: image classifier",
    "QWEN_UNKNOWN_FIELDS": "Unknown fields of jobs",
    "QWEN_UPLOAD_SECONDS": "Deadline of an upload (s)",
    "BUCKET_ENDPOINT_URL": "Bucket: endpoint URL",
    "BUCKET_ACCESS_KEY_ID": "Bucket: access key",
    "BUCKET_SECRET_ACCESS_KEY": "Bucket: secret key",
    "BUCKET_NAME": "Bucket: name",
    "BUCKET_REGION": "Bucket: region",
    "BUCKET_PREFIX": "Bucket: prefix of keys",
    "BUCKET_KEY": "Bucket: form of keys",
    "BUCKET_PUBLIC_URL": "Bucket: public URL",
    "BUCKET_URL_SECONDS": "Bucket: life of URLs (s)",
}
DESCRIPTIONS = {
    "QWEN_IMAGE_MODEL": (
        "The model that draws pictures from text. The first start of each worker downloads it, 58 GB, unless the "
        "endpoint's Model field names the same model, or a network volume of the endpoint holds it."
    ),
    "QWEN_EDIT_MODEL": "The model that edits pictures and replaces backgrounds: a download of 58 GB more.",
    "QWEN_TASKS": "One task needs less memory and half the download. Jobs of the other task are refused.",
    "QWEN_PRESET": (
        "How a picture is drawn where its job does not say. 'fast' needs the few-step LoRAs, which are advanced "
        "settings: the preset with Lightning sets them."
    ),
    "QWEN_PRECISION": (
        "How the model's numbers are stored. Smaller ones fit smaller cards and change the pictures a little. fp8 "
        "needs an RTX 4090, L40, L40S, 6000 Ada, H100 or H200."
    ),
    "QWEN_FALLBACK": (
        "By default callers then get a stand-in: a gradient or their own picture with a filter, marked as such in the "
        "picture and in the reply. Choose the error to forbid stand-ins."
    ),
    "QWEN_PRELOAD": "A model that is loaded at the start makes the start longer and the first job shorter.",
    "HF_TOKEN": "A token of huggingface.co, needed for gated models alone.",
}
# What a choice is called, by its value.
LABELS = {
    "QWEN_TASKS": {"generate,edit": "Text to image and edits", "generate": "Text to image", "edit": "Edits"},
    "QWEN_PRESET": {
        "quality": "Quality: the steps that the model's makers recommend",
        "balanced": "Balanced: three of five of those, some of them predicted",
        "fast": "Fast: the steps of the few-step LoRA",
    },
    "QWEN_PRECISION": {
        "auto": "The most exact that fits the card",
        "bf16": "bf16: exact, as released",
        "fp32": "fp32: exact, for CPUs",
        "fp8": "fp8: half the size",
        "int8": "int8: half the size, also on older cards",
        "nf4": "NF4: a third of the size",
    },
    "QWEN_FALLBACK": {
        "allow": "A marked stand-in picture",
        "forbid": "An error, never a stand-in",
        "force": "Load no model: a stand-in for every job",
    },
    "QWEN_PRELOAD": {
        "none": "None: a model is loaded for its first job",
        "generate": "Text to image",
        "edit": "Edits",
        "generate,edit": "Both",
    },
}
