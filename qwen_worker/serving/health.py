"""What the worker has done and what it runs on: the counters and facts of `health` and `debug`.

Reads only what is already there: it imports no torch and loads no model. Knows nothing of how a job is done.
"""

import platform
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from enum import Enum
from importlib import metadata

from ..log import log_line
from ..memory.machine import Machine, resident_bytes
from ..settings import Settings

GB = 1e9
# What failed on the worker's side. Sentences of the other codes quote the job: a prompt, an address with its secret.
LOGGED_IN_FULL = ("out_of_memory", "deadline_exceeded", "result_too_large", "upload_failed", "model_unavailable")
PACKAGES = (
    "runpod",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "pillow",
    "pydantic",
    "huggingface-hub",
)


class Counters:
    """Totals since the worker started."""

    def __init__(self):
        self.lock = threading.Lock()
        self.jobs = Counter()  # by task
        self.errors = Counter()  # by code
        self.fallbacks = 0
        self.batched = 0  # jobs whose pictures shared a call
        self.seconds = 0.0
        self.peak_vram_gb = 0.0

    def count(self, task: str, code: str, seconds: float, facts: dict) -> None:
        with self.lock:
            self.jobs[task] += 1
            if code != "ok":
                self.errors[code] += 1
            self.fallbacks += facts.get("backend") == "pil-fallback"
            self.batched += facts.get("batch", 1) > 1
            self.seconds += seconds
            self.peak_vram_gb = max(self.peak_vram_gb, facts.get("peak_vram_gb") or 0.0)

    def record(self, job_id: str, task: str, reply: dict, seconds: float) -> None:
        """Count the job and log its one line: no prompt, image or secret in it."""
        code, _, sentence = str(reply["error"] if "error" in reply else "ok").partition(": ")
        facts = reply.get("metadata", {})
        why = sentence if code in LOGGED_IN_FULL else facts.get("delivery_note")
        backend = facts.get("backend", "-")
        self.count(task, code, seconds, facts)
        log_line(
            job_id,
            "ERROR" if code == "internal" else "INFO" if code == "ok" and not why else "WARN",
            f"task={task} size={facts.get('dimensions', '-')} steps={facts.get('steps', '-')} "
            f"seconds={seconds:.3f} backend={backend} code={code}"
            f"{f' ({why})' if why else ''}",
        )

    def report(self) -> dict:
        with self.lock:
            return {
                "jobs": dict(self.jobs),
                "errors": dict(self.errors),
                "fallbacks": self.fallbacks,
                "batched": self.batched,
                "seconds": round(self.seconds, 3),
                "peak_vram_gb": self.peak_vram_gb,
            }


def health(
    settings: Settings, machine: Machine, models: list[dict], fallback: dict, presets: dict, counters: Counters
) -> dict:
    """The reply of `health`, whose first three keys clients of the old worker read. `models`: what is loaded."""
    gpu = machine.gpu
    memory = {
        "rss_gb": round(resident_bytes() / GB, 3),
        "ram_total_gb": round(machine.ram_total_bytes / GB, 3),
        "ram_available_gb": round(machine.ram_available_bytes / GB, 3),
    }
    if gpu:
        memory |= {
            "gpu": gpu.name,
            "vram_total_gb": round(gpu.total_bytes / GB, 3),
            "vram_used_gb": round((gpu.total_bytes - gpu.free_bytes) / GB, 3),
        }
    return {
        "status": "healthy",
        "environment": {
            "python_version": platform.python_version(),
            "timestamp": datetime.now(UTC).isoformat(),
            "server_type": settings.SERVER_MODE.value,
            "model_loaded": bool(models),
            "gpu_available": gpu is not None,
        },
        "memory_usage": memory,
        "worker_version": settings.QWEN_WORKER_VERSION,
        "models": models,
        "presets": presets,
        "fallback": fallback,
        "counters": counters.report(),
    }


def debug(settings: Settings) -> dict:
    """The reply of `debug`: versions and settings. Of the environment only what is typed: text may hold anything."""
    return {
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "settings": {
            name: value if isinstance(value, (int, float, Enum)) else "default" if value == field.default else "set"
            for name, field in type(settings).model_fields.items()
            for value in [getattr(settings, name)]
        },
        "modules_loaded": {name: name in sys.modules for name in ("torch", "diffusers", "transformers")},
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
