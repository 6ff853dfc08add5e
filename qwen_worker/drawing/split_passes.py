"""Guidance's two passes on two cards: half the seconds of a step, and bit-equal to one card that computes both apart.

The pipelines call the transformer twice a step, with the same latents and two prompts. The first step shows both
prompts, and its second pass is computed on the second card when it comes. From then on a step's first call has the
second card begin with the other pass, and the step's second call is answered with what comes back. All second passes
are computed there, so that a step cache keeps each prompt's history on one card. Prompts go there once for a call of
the pipeline; a step sends the latents and the timestep, and takes the prediction, each of 0.5 MB at 1024 x 1024, more
where there are input or control pictures.

Nobody waits for what does not come: the second card says that it has a prediction before the first waits for it, and
one that nobody asked for any more is taken and dropped. Knows nothing of jobs.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..loading.loaded import LoadedPipeline
from ..loading.second_card import JobSetup, SecondCard
from ..lora.file import LoraUse
from ..memory.footprint import Plan
from ..model_settings import Speedup

if TYPE_CHECKING:
    import torch

TEXT, LATENTS, RESIDUALS = "encoder_hidden_states", "hidden_states", "controlnet_block_samples"
# Of the transformer's inputs, what both passes of a step have and another step has not. They are sent in every pass:
# what is written into a tensor in place leaves its identity.
STEPWISE = (LATENTS, "timestep", RESIDUALS)

Inputs = dict[str, Any]  # of the transformer's forward, by name


@contextmanager
def split_between_cards(
    loaded: LoadedPipeline, loras: Sequence[LoraUse], plan: Plan, cached_steps: int
) -> Generator[None]:
    """Within, the second card computes the second of guidance's passes; the other changes of the pipeline are made.

    `plan`: the job's; `cached_steps`: of the schedule if a step cache serves it, else 0.
    """
    second, transformer = loaded.second_card, loaded.pipe.transformer
    assert second
    ways = plan.streamed_loras, plan.lora_rank, plan.compiled
    on = frozenset(speedup for speedup in Speedup if loaded.speed.has(speedup))
    second.begin(JobSetup(loaded.model, tuple(loras), *ways, cached_steps, on))
    passes = SplitPasses(transformer.forward, second, loaded.table)
    own = vars(transformer).get("forward")
    try:
        with passes.watching_calls(loaded.pipe.scheduler):
            transformer.forward = passes.forward
            yield
    finally:
        del transformer.forward
        if own is not None:
            transformer.forward = own
        passes.drop_waiting()
        second.end_job()


class SplitPasses:
    """The passes of one pipeline call after another. `stock`: computes one on the first card."""

    def __init__(self, stock: Any, second: SecondCard, table: Any):
        self.stock, self.second, self.table = stock, second, table
        self.sent: Inputs = {}  # the second card's inputs, as they were sent last
        self.begin_call()
        self.question: int | None = None  # about the pass that the second card is at

    def begin_call(self) -> None:
        """The pipeline begins a call: its prompts are not known yet."""
        self.is_first = True  # no pass of this call was sent
        self.previous: Inputs | None = None  # of the pass before this one, if it was a step's first
        self.pair: tuple[torch.Tensor, Inputs] | None = None  # the first prompt, and the inputs of a second pass

    @contextmanager
    def watching_calls(self, scheduler: Any) -> Iterator[None]:
        """Within, every schedule that the scheduler sets begins a call."""
        own, stock = vars(scheduler).get("set_timesteps"), scheduler.set_timesteps

        def set_timesteps(*arguments: Any, **named: Any) -> None:
            stock(*arguments, **named)
            self.begin_call()

        # The pipelines look for `sigmas` in the signature.
        set_timesteps.__wrapped__ = stock  # pyright: ignore[reportFunctionMemberAccess]  a function may have any
        scheduler.set_timesteps = set_timesteps
        try:
            yield
        finally:
            del scheduler.set_timesteps
            if own is not None:
                scheduler.set_timesteps = own

    def forward(self, **inputs: Any) -> Any:
        """What the transformer would return, computed on one of the cards. Raises what either of them raises."""
        before, text = self.previous, inputs[TEXT]
        if before and inputs[LATENTS] is before[LATENTS] and text is not before[TEXT]:
            self.previous, self.pair = None, (before[TEXT], inputs)
            if self.question is None:
                self.send(inputs)
            return (self.receive(),)
        self.drop_waiting()
        self.previous = inputs
        if self.pair and text is self.pair[0]:
            self.send(self.pair[1] | {name: inputs[name] for name in STEPWISE if name in inputs})
        return self.stock(**inputs)

    def send(self, inputs: Inputs) -> None:
        """Have the second card compute a pass."""
        changed = {
            name: value
            for name, value in inputs.items()
            if name in STEPWISE or name not in self.sent or value is not self.sent[name]
        }
        schedule = self.table.schedule if self.table else None
        self.question = self.second.send_pass(changed, schedule.values if schedule else (), self.is_first)
        self.sent, self.is_first = inputs, False

    def receive(self) -> "torch.Tensor":
        question, self.question = self.question, None
        assert question is not None
        return self.second.receive_pass(question)

    def drop_waiting(self) -> None:
        """Take a prediction that no pass asks for any more: the second card waits to be rid of it."""
        if self.question is None:
            return
        import torch

        try:
            self.receive()
        except (torch.OutOfMemoryError, RuntimeError):
            return  # it has none
