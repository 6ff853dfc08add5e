"""Where the seconds of one pipeline call go: text, denoising step by step, VAE encode and decode, the rest.

On CUDA, events in the stream time the stages, which holds nothing up, and the host's clock times the whole call, with
the device synchronised at both ends; on a CPU the host's clock times both. The shapes that the transformer was given
are kept for the FLOPs. Works on any Qwen-Image pipeline, ours or stock; imports torch inside functions; knows nothing
of jobs.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stages:
    """Seconds of one call. `forwards`: batch, latent tokens and text tokens of each pass that the transformer computed;
    a pass that a step cache predicts is none."""

    whole: float
    text: float
    encode: float
    decode: float
    steps: tuple[float, ...]
    forwards: tuple[tuple[int, int, int], ...]

    @property
    def step(self) -> float:
        """The median step, without the first, which may load or compile, and the last, which ends with its pass.

        Those two count where there are no others.
        """
        return statistics.median(self.steps[1:-1] or self.steps[1:] or self.steps)

    @property
    def rest(self) -> float:
        """Everything but the model: scheduling, noise, pictures in and out, gaps between the stages."""
        return max(0.0, self.whole - self.text - self.encode - self.decode - sum(self.steps))


class Stopwatch:
    """`with Stopwatch(device).on(pipe) as watch:` around one call, then `watch.stages(steps)`."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.spans: dict[str, list[tuple[Any, Any]]] = {name: [] for name in ("text", "encode", "decode", "forward")}
        self.forwards: list[tuple[int, int, int]] = []

    @contextmanager
    def on(self, pipe: Any) -> Iterator["Stopwatch"]:
        # The first block's own method is replaced, for two reasons: compiled code does not see a hook that is added
        # after it, and a step cache, which wraps the block later, does not call this method in a pass that it predicts.
        block = pipe.transformer.transformer_blocks[0]
        replaced = {
            (pipe, "encode_prompt"): self.timed(pipe.encode_prompt, "text"),
            (pipe.vae, "encode"): self.timed(pipe.vae.encode, "encode"),
            (pipe.vae, "decode"): self.timed(pipe.vae.decode, "decode"),
            (block, "forward"): self.counted(block.forward),
        }
        before = [vars(owner).get(method) for owner, method in replaced]
        for (owner, method), timing in replaced.items():
            setattr(owner, method, timing)
        hooks = [
            pipe.transformer.register_forward_pre_hook(self.forward_begins),
            pipe.transformer.register_forward_hook(self.forward_ends),
        ]
        self.synchronize()
        started = time.perf_counter()
        try:
            yield self
            self.synchronize()
            self.whole = time.perf_counter() - started
        finally:
            for hook in hooks:
                hook.remove()
            for (owner, method), own in zip(replaced, before, strict=True):
                delattr(owner, method)
                if own is not None:
                    setattr(owner, method, own)

    def timed(self, method: Callable, stage: str) -> Callable:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = self.mark()
            result = method(*args, **kwargs)
            self.spans[stage].append((begun, self.mark()))
            return result

        return call

    def counted(self, forward: Callable) -> Callable:
        @functools.wraps(forward)
        def call(**inputs: Any) -> Any:
            self.forwards.append((*inputs["hidden_states"].shape[:2], inputs["encoder_hidden_states"].shape[1]))
            return forward(**inputs)

        return call

    def forward_begins(self, *_: Any) -> None:
        self.begun = self.mark()

    def forward_ends(self, *_: Any) -> None:
        self.spans["forward"].append((self.begun, self.mark()))

    def mark(self) -> Any:
        """A point in time, in the stream or on the host's clock."""
        if not self.cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begun: Any, ended: Any) -> float:
        """Seconds from one mark to another."""
        return begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun

    def synchronize(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def stages(self, steps: int) -> Stages:
        """The stages of the call that is over. `steps`: the denoising steps that it ran."""
        forwards = self.spans["forward"]
        passes, uneven = divmod(len(forwards), steps)
        if uneven or not passes:  # the steps had different numbers of passes: only a step's mean is known
            whole = self.between(forwards[0][0], forwards[-1][1]) if forwards else 0.0
            seconds = [whole / steps] * steps
        else:  # a step lasts until the next one's first pass begins
            edges = [begun for begun, _ in forwards[::passes]] + [forwards[-1][1]]
            seconds = [self.between(*pair) for pair in zip(edges, edges[1:], strict=False)]
        text, encode, decode = (
            sum(self.between(*span) for span in self.spans[stage]) for stage in ("text", "encode", "decode")
        )
        return Stages(self.whole, text, encode, decode, tuple(seconds), tuple(self.forwards))


def stage_fields(*calls: Stages) -> dict[str, float]:
    """The fields of a row: each stage's median seconds over the calls."""
    names = {"text s": "text", "encode s": "encode", "step s": "step", "decode s": "decode", "rest s": "rest"}
    names |= {"job s": "whole"}
    return {field: round(statistics.median(getattr(call, name) for call in calls), 4) for field, name in names.items()}


def job_seconds(row: dict, steps: int) -> float:
    """Seconds of a job of so many steps, by the stages of a row."""
    return sum(row[name] for name in ("text s", "encode s", "decode s", "rest s")) + steps * row["step s"]
