"""One call of the pipeline on two cards: half the seconds, and bit-equal to one card that computes all passes apart.

With guidance, the pipelines call the transformer twice a step, with the same latents and two prompts. The first step
shows both prompts, and its second pass is computed on the second card when it comes. From then on a step's first call
has the second card begin with the other pass, and the step's second call is answered with what comes back. All second
passes are computed there, so that a step cache keeps each prompt's history on one card. Prompts go there once for a
call of the pipeline; a step sends the latents and the timestep, and takes the prediction, each of 0.5 MB at 1024 x
1024, more where there are input or control pictures. Without guidance the transformer is called once a step: a call
draws two pictures then, of which each card computes one, as it would alone.

Nobody waits for what does not come: the second card says that it has a prediction, and sends it once the first has
room for it and asks. One that is not asked for is dropped where it is. Knows nothing of jobs.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..loading.loaded import LoadedPipeline
from ..loading.rank_messages import ON_SECOND, SEND, JobSetup
from ..loading.second_card import SecondCard
from ..lora.file import LoraUse
from ..memory.footprint import Plan
from ..model.overrides import overridden, watching_schedules
from ..model_settings import Speedup
from ..ranks.channel import Answer
from ..speed.step_cache import CachedSteps

if TYPE_CHECKING:
    import torch

TEXT, MASK, LATENTS = "encoder_hidden_states", "encoder_hidden_states_mask", "hidden_states"
RESIDUALS = "controlnet_block_samples"  # which a ControlNet gives for both of a step's passes
# Of the transformer's inputs, what both passes of a step have and another step has not. They are sent in every pass:
# what is written into a tensor in place leaves its identity.
STEPWISE = (LATENTS, "timestep", RESIDUALS)

Inputs = dict[str, Any]  # of the transformer's forward, by name


@contextmanager
def split_between_cards(
    loaded: LoadedPipeline,
    loras: Sequence[LoraUse],
    plan: Plan,
    cached_steps: CachedSteps | None,
    rows_apart: bool = False,
) -> Generator[None]:
    """Within, the second card computes the second of guidance's passes; the other changes of the pipeline are made.

    `plan`: the job's; `cached_steps`: of the picture if a step cache serves it; `rows_apart`: the second card
    computes the second picture of a call, and each picture is decoded alone.
    """
    second, transformer = loaded.second_card, loaded.pipe.transformer
    assert second
    ways = plan.streamed_loras, plan.lora_rank, plan.compiled
    on = frozenset(speedup for speedup in Speedup if loaded.speed.has(speedup))
    require_done(second.ask("begin", JobSetup(loaded.model, tuple(loras), *ways, cached_steps, on)))
    passes = (SplitRows if rows_apart else SplitPasses)(transformer.forward, second, loaded.table)
    try:
        with (
            watching_schedules(loaded.pipe.scheduler, passes.begin_call),  # every call of the pipeline sets one
            decoded_alone(loaded.pipe.vae, rows_apart),
            overridden(transformer, "forward", passes.forward),
        ):
            yield
    finally:
        if report := require_done(second.ask("end")):
            report.apply(loaded.speed)


@contextmanager
def decoded_alone(vae: Any, alone: bool) -> Generator[None]:
    """Within, the VAE decodes the pictures of a call one after the other if `alone`."""
    if not alone:
        yield
        return
    vae.enable_slicing()
    try:
        yield
    finally:
        vae.disable_slicing()


class SecondPasses:
    """What the second card is asked for in one call of the pipeline after another."""

    def __init__(self, stock: Any, second: SecondCard, table: Any):
        """`stock`: computes a pass on the first card; `table`: of the modulation, if any."""
        self.stock, self.second, self.table = stock, second, table
        self.sent: Inputs = {}  # the second card's inputs, as they were sent last
        self.question: int | None = None  # about the pass that the second card is at
        self.begin_call()

    def begin_call(self) -> None:
        """The pipeline begins a call."""
        self.is_first = True  # no pass of this call was sent

    def send(self, inputs: Inputs) -> None:
        """Have the second card compute a pass: it is told what comes, and gets the tensors that it does not have."""
        from ..ranks import group

        changed = {
            name: value
            for name, value in inputs.items()
            if name in STEPWISE or name not in self.sent or value is not self.sent[name]
        }
        tensors: list[torch.Tensor] = []
        packed = {name: group.pack(value, tensors) for name, value in changed.items()}
        schedule = self.table.schedule if self.table else None
        timesteps = (list(schedule.values) if schedule else []) if self.is_first else None
        self.question = self.second.post("compute", packed, timesteps)
        self.second.counts.sent_bytes += group.send(tensors, 1)
        self.sent, self.is_first = inputs, False

    def receive(self) -> "torch.Tensor":
        """The prediction of the pass that was sent. Raises what `require_done` raises."""
        from ..ranks import group

        question, self.question = self.question, None
        assert question is not None
        started, counts = time.perf_counter(), self.second.counts
        shape: group.TensorShape = require_done(self.second.answer(question))
        prediction = shape.empty(self.second.device)  # may lack memory, and then nothing is on its way
        self.second.post(SEND)
        group.receive([prediction], 1)
        counts.waited_seconds += time.perf_counter() - started
        counts.passes += 1
        counts.received_bytes += prediction.nbytes
        return prediction


def require_done(answer: Answer) -> Any:
    """The answer's value. Raises `torch.OutOfMemoryError` or `RuntimeError` in the second process's words."""
    import torch

    if answer.out_of_memory:
        raise torch.OutOfMemoryError(f"{ON_SECOND}: {answer.failure}")
    if answer.failure:
        raise RuntimeError(f"{ON_SECOND}: {answer.failure}")
    return answer.value


class SplitPasses(SecondPasses):
    """With guidance: the second of a step's passes is the second card's."""

    def begin_call(self) -> None:
        super().begin_call()  # whose prompts are not known yet
        self.previous: Inputs | None = None  # of the pass before this one, if it was a step's first
        self.pair: tuple[torch.Tensor, Inputs] | None = None  # the first prompt, and what second passes have in common

    def forward(self, **inputs: Any) -> Any:
        """What the transformer would return, computed on one of the cards. Raises what either of them raises."""
        before, text = self.previous, inputs[TEXT]
        if before and inputs[LATENTS] is before[LATENTS] and text is not before[TEXT]:
            if self.question is None:
                self.send(inputs)
            # Without this step's own tensors, which would stay on the card for as long as the pair does.
            self.previous = None
            self.pair = before[TEXT], {name: value for name, value in inputs.items() if name not in STEPWISE}
            return (self.receive(),)
        self.question = None  # whose prediction no pass asks for any more
        self.previous = inputs
        if self.pair and text is self.pair[0]:
            self.send(self.pair[1] | {name: inputs[name] for name in STEPWISE if name in inputs})
        return self.stock(**inputs)


class SplitRows(SecondPasses):
    """Without guidance: the second picture of a call is the second card's. A call of one picture is the first's."""

    def begin_call(self) -> None:
        super().begin_call()
        self.texts: tuple[torch.Tensor, list[torch.Tensor]] | None = None  # of a call, and each picture's own

    def forward(self, **inputs: Any) -> Any:
        """What the transformer would return. Raises what either of the cards raises."""
        if len(inputs[LATENTS]) == 1:
            return self.stock(**inputs)
        import torch

        first, second = (self.inputs_of(inputs, row) for row in range(2))
        self.send(second)
        (prediction,) = self.stock(**first)
        return (torch.cat([prediction, self.receive()]),)

    def inputs_of(self, inputs: Inputs, row: int) -> Inputs:
        """Those of one picture's pass, as the pipeline would give them for it alone."""
        if self.texts is None or self.texts[0] is not inputs[TEXT]:
            self.texts = inputs[TEXT], unpadded(inputs[TEXT], inputs[MASK])
        shapes, rows = inputs["img_shapes"], slice(row, row + 1)
        return inputs | {
            LATENTS: inputs[LATENTS][rows],
            "timestep": inputs["timestep"][rows],
            TEXT: self.texts[1][row],
            MASK: None,
            "img_shapes": shapes[rows] if len(shapes) > 1 else shapes,
        }


def unpadded(texts: "torch.Tensor", mask: "torch.Tensor | None") -> "list[torch.Tensor]":
    """Each of the texts (rows, tokens, dim) alone, without its padding; `mask`: (rows, tokens), None for no padding."""
    rows = texts.split(1)
    return [text[:, : int(own.sum())] for text, own in zip(rows, mask, strict=True)] if mask is not None else list(rows)
