"""What the workers of an image do: draw, stand in, crash, vanish."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image


def a_picture(width=64, height=64):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def draws(version, side=64, load=1.0):
    """The answers of a worker that serves: from a job's input and the worker's environment to its reply."""

    def answer(fields, env):
        if fields["task"] == "health":
            state = {"mode": env.get("QWEN_FALLBACK", "allow"), "reasons": {}}
            return {"status": "healthy", "worker_version": version, "fallback": state}
        facts = {"backend": "qwen-image", "worker_version": version, "width": side, "height": side,
                 "dimensions": f"{side}x{side}",
                 "steps": 50, "seed": 7, "seeds": [7], "processing_time": 3.0, "timings": {"load": load}}  # fmt: skip
        return {"success": True, "message": "drawn", "image": a_picture(side, side), "metadata": facts}

    return answer


def stands_in(version):
    """The answers of a worker that sends gradients, whatever its environment forbids."""

    def answer(fields, env):
        reply = draws(version)(fields, env)
        if "metadata" in reply:
            reply["metadata"] |= {"backend": "pil-fallback", "fallback_reason": "no weights"}
        return reply

    return answer


@dataclass
class Build:
    """What an image's workers do. `answer` gives a reply, or a future of one.

    Workers reach `state` after one tick; those that crash or whose image is unpullable write their system log instead,
    and those that vanish are gone at the next look. `early_states` are those of the first ticks. Of `start_log`, the
    system log, each tick shows one line more. A job shows one message of `progress` at each look, before its reply.
    Jobs take `seconds`, by task; 4 where it names none.
    """

    answer: Callable = draws("v1")
    state: str = "IDLE"
    crashes: bool = False
    unpullable: bool = False
    vanishes: bool = False
    log: tuple = ("Worker ready.",)
    early_states: tuple = ()
    start_log: tuple = ()
    progress: tuple = ()
    seconds: dict = field(default_factory=dict)
