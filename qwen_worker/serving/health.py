"""What the worker has done and what it runs on: the counters and facts of `health` and `debug`.

Reads only what is already there: it imports no torch and loads no model. Knows nothing of how a job is done.
"""

import platform
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..log import log_line
from ..memory.footprint import GB
from ..memory.machine import Machine, resident_bytes
from ..settings import Settings

# Sentences of the other codes quote the job: a prompt, an address with its secret.
LOGGED_IN_FULL = (
    "out_of_memory", "deadline_exceeded", "content_rejected", "result_too_large", "upload_failed", "model_unavailable",
)  # fmt: skip
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
    """Totals since the worker started, of jobs and of what went wrong."""

    def __init__(self):
        self.lock = threading.Lock()
        self.jobs = Counter[str]()  # by task
        self.errors = Counter[str]()  # by code
        self.fallbacks = 0
        self.batched = 0  # jobs whose pictures shared a call
        self.seconds = 0.0
        self.peak_vram_gb = 0.0

    def record(self, job_id: str, task: str, reply: dict[str, Any], seconds: float) -> None:
        """Count the job and log its one line: no prompt, image or secret in it."""
        code, _, sentence = str(reply["error"] if "error" in reply else "ok").partition(": ")
        metadata: dict[str, Any] = reply.get("metadata", {})
        self.count(task, code, seconds, metadata)
        reason = sentence if code in LOGGED_IN_FULL else metadata.get("delivery_note")
        log_line(
            job_id,
            "ERROR" if code == "internal" else "INFO" if code == "ok" and not reason else "WARN",
            f"task={task} size={metadata.get('dimensions', '-')} steps={metadata.get('steps', '-')} "
            f"seconds={seconds:.3f} backend={metadata.get('backend', '-')} code={code}"
            f"{f' ({reason})' if reason else ''}",
        )

    def count(self, task: str, code: str, seconds: float, metadata: dict[str, Any]) -> None:
        """`metadata`: the reply's, empty where the job drew nothing."""
        with self.lock:
            self.jobs[task] += 1
            if code != "ok":
                self.errors[code] += 1
            self.fallbacks += metadata.get("backend") == "pil-fallback"
            self.batched += metadata.get("batch", 1) > 1
            self.seconds += seconds
            self.peak_vram_gb = max(self.peak_vram_gb, metadata.get("peak_vram_gb") or 0.0)

    def report(self) -> dict[str, Any]:
        """What `health` tells of them."""
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
    settings: Settings,
    machine: Machine,
    models: list[dict[str, Any]],
    fallback: dict[str, Any],
    presets: dict[str, Any],
    counters: Counters,
    safety_check: dict[str, Any] | None = None,
    checkpoints: dict[str, Any] | None = None,
    controlnet: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The reply of `health`, whose first three keys clients of the old worker read.

    `models`: what is loaded. `safety_check`: None where no picture is checked. `checkpoints`: those that are known.
    `controlnet`: None where there is none.
    """
    gpu = machine.gpu
    memory: dict[str, float | str] = {
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
        **({"checkpoints": checkpoints} if checkpoints else {}),
        "fallback": fallback,
        "counters": counters.report(),
        **({"safety_check": safety_check} if safety_check else {}),
        **({"controlnet": controlnet} if controlnet else {}),
    }


def debug(settings: Settings) -> dict[str, Any]:
    """The reply of `debug`: versions and settings."""
    return {
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "settings": {
            name: public_value(getattr(settings, name), field.default)
            for name, field in type(settings).model_fields.items()
        },
        "modules_loaded": {name: name in sys.modules for name in ("torch", "diffusers", "transformers")},
    }


def public_value(value: Any, default: Any) -> Any:
    """A number, a switch or a choice; of any other setting only whether it is set, since a text may hold a secret."""
    if isinstance(value, (int, float, Enum)):
        return value
    return "default" if value == default else "set"


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
