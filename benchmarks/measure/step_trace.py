"""A step of the released architecture, traced through the real pipeline on a card that is none: ours, and stock.

The transformer has two of its 60 blocks, and what the second starts counts 59 times: all blocks compute the same, by
one graph, but the first gets what comes from outside. Everything else is whole: the pipeline's loop, the scheduler,
guidance, the worker's speed-ups as it applies them, the modulation table. In place of an encoded prompt stands a tensor
of as many tokens; the picture's size and its input pictures decide the rest. What is counted is a step in the middle of
a picture: all that is compiled, planned or copied once has been.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import diffusers
import torch
from accelerate import init_empty_weights
from PIL import Image

from qwen_worker.checkpoints import checkpoint
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.memory import placement
from qwen_worker.memory.footprint import Plan
from qwen_worker.memory.machine import Machine
from qwen_worker.memory.nvml import Gpu
from qwen_worker.model import modulation, quantization
from qwen_worker.model_settings import Precision, Saving
from qwen_worker.settings import Settings
from qwen_worker.speed import speedups

from ..step import BLOCKS, OURS, STOCK
from .fake_card import Capability, fake_card
from .full_size import TINY
from .kernels import Account, Kernel, Recorder

TRACED_STEP, STEPS = 2, 3  # the third: guidance's passes share a call from the second on
TEXT_CHANNELS = 3584
RAM_BYTES = 64_000_000_000
SEEN_SIDE = 1024  # of an input picture; the pipelines bring every one to about a megapixel


@dataclass(frozen=True)
class Kind:
    """A kind of job. `text`: tokens of its prompt, input pictures included, and of its negative prompt."""

    model: str
    text: tuple[int, int]
    references: int = 0
    zero_cond_t: bool = False


KINDS = {
    "generate": Kind("Qwen/Qwen-Image", (58, 6)),
    "edit": Kind("Qwen/Qwen-Image-Edit", (1379, 1327), 1),
    "edit plus": Kind("Qwen/Qwen-Image-Edit-2509", (209, 157), 1),
    "edit plus, 2 pictures": Kind("Qwen/Qwen-Image-Edit-2509", (412, 360), 2),
    "edit 2511": Kind("Qwen/Qwen-Image-Edit-2511", (209, 157), 1, zero_cond_t=True),
}


@dataclass
class Step:
    """A step in the middle of a picture.

    `block`: what one block starts in all passes; `outside`: all else, the first block's included.
    """

    block: list[Kernel]
    outside: list[Kernel]
    waits: list[str]
    passes: int
    graphs_at_load: int
    graphs_in_jobs: int


class Tracer:
    """Pipelines of one precision on one card: what was compiled for one job serves the next, as in a worker."""

    def __init__(self, precision: Precision, capability: Capability, contender: str):
        self.precision, self.capability, self.contender = precision, capability, contender
        self.recorder, self.built = Recorder(), {}

    @contextmanager
    def open(self) -> Iterator["Tracer"]:
        """Within, steps are traced."""
        # Nothing is assembled, so that no C compiler is needed; the worker looks for one.
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, {"CC": os.environ.get("CC", "cc")}))
            stack.enter_context(fake_card(self.capability, "a card that is none", self.recorder.compiled))
            stack.enter_context(self.recorder)
            yield self

    def step(self, kind: str, size: int) -> Step:
        """A step of the kind at size x size pixels."""
        pipe, table, speed, graphs = self.pipeline(kind)
        recorder, before = self.recorder, self.recorder.compiled_graphs
        steps: list[Account] = []

        def after_step(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps.append(recorder.account)
            recorder.account = Account()
            return tensors

        wanted = KINDS[kind]
        picture = Image.new("RGB", (SEEN_SIDE, SEEN_SIDE))
        pictures = {"image": [picture] * wanted.references if wanted.references > 1 else picture}
        self.passes = 0
        with ExitStack() as stack:
            if speed:
                stack.enter_context(speed.drawing())
                stack.enter_context(table.following_schedules(pipe.scheduler, torch.bfloat16))
            recorder.account = Account()
            pipe(
                prompt="prompt", negative_prompt=" ", true_cfg_scale=4.0, width=size, height=size,
                num_inference_steps=STEPS, output_type="latent", callback_on_step_end=after_step,
                **(pictures if wanted.references else {}),
            )  # fmt: skip
        kernels = steps[TRACED_STEP].kernels
        return Step(
            kernels["block"], kernels["outside"], steps[TRACED_STEP].waits, self.passes // STEPS,
            graphs, recorder.compiled_graphs - before,
        )  # fmt: skip

    def pipeline(self, kind: str) -> tuple[Any, Any, Any, int]:
        """The pipeline, its modulation table and speed-ups, and how many graphs were compiled at its load."""
        key = dataclasses.astuple(KINDS[kind])[:1] + (KINDS[kind].zero_cond_t,)
        if key not in self.built:
            before = self.recorder.compiled_graphs
            with self.recorder.silent():
                built = build(KINDS[kind], self.precision, self.capability, self.contender)
            self.watch(built[0].transformer)
            self.built[key] = (*built, self.recorder.compiled_graphs - before)
        pipe, table, speed, graphs = self.built[key]
        pipe.encode_prompt = functools.partial(encode_prompt, KINDS[kind].text)
        return pipe, table, speed, graphs

    def watch(self, model: Any) -> None:
        """Have the recorder tell what a block starts from what is started outside."""

        def enter(*_: Any) -> None:
            self.recorder.place = "block"
            self.passes += 1

        def leave(*_: Any) -> None:
            self.recorder.place = "outside"

        model.transformer_blocks[1].register_forward_pre_hook(enter, prepend=True)
        model.transformer_blocks[1].register_forward_hook(leave)


def build(kind: Kind, precision: Precision, capability: Capability, contender: str) -> tuple[Any, Any, Any]:
    """A pipeline with two blocks of full width, and the worker's table and speed-ups, None for stock."""
    released = checkpoint.released(kind.model)
    assert released, kind.model
    classes = {STOCK: diffusers.QwenImageTransformer2DModel, OURS: modulation.TabledTransformer}
    with init_empty_weights():
        model = classes[contender](num_layers=2, zero_cond_t=kind.zero_cond_t)
        vae = diffusers.AutoencoderKLQwenImage()
    for module in (model, vae):
        lay_on_card(module)
    if contender == OURS and precision is not Precision.BF16:
        quantize = quantization.weight_quantizer("transformer", precision, "cuda")
        for name, _ in list(model.named_parameters()):
            quantize(model, name)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(TINY / "generate/scheduler")
    others = {"processor": None} if kind.references else {}
    pipe = getattr(diffusers, released.class_name)(
        scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=model, **others
    )
    pipe.set_progress_bar_config(disable=True)
    if contender == STOCK:
        return pipe, None, None
    plan = plan_of(kind, precision)
    gpu = Gpu("a card that is none", capability, plan.limit_bytes, plan.limit_bytes)
    table = RowsWithoutValues(model)
    settings = Settings(QWEN_COMPILED_MB=0)
    return pipe, table, speedups.apply(pipe, plan, settings, Machine(gpu, RAM_BYTES, RAM_BYTES), table, kind.model)


def plan_of(kind: Kind, precision: Precision) -> Plan:
    """A plan of the worker in this precision, with the modulation table."""
    released = checkpoint.released(kind.model)
    assert released, kind.model
    plans = placement.layouts([as_model(released, [])], [precision], frozenset(Saving))
    return next(plan for plan in plans if plan.table)


def lay_on_card(module: torch.nn.Module) -> None:
    """Have a module's parameters, which have no memory, lie on the card in bfloat16."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda")
            part.register_parameter(name, torch.nn.Parameter(fake, requires_grad=False))


class RowsWithoutValues(modulation.ModulationTable):
    """The worker's table; the rows of a schedule have no values, so that none is looked for by its timestep."""

    def __init__(self, model: Any):
        no_source: Any = None
        super().__init__(model, no_source)
        self.shape = BLOCKS, len(modulation.STREAMS), 6 * model.inner_dim

    def prepare(self, timesteps: torch.Tensor) -> None:
        rows = torch.empty(len(timesteps) + 1, *self.shape, dtype=torch.bfloat16, device=timesteps.device)
        self.schedule = modulation.ScheduleRows(timesteps, rows, [])


def encode_prompt(tokens: tuple[int, int], prompt: str, **_: Any) -> tuple[torch.Tensor, None]:
    """What the pipelines make of a prompt: (1, tokens, channels), and no mask, since none of a single one is padded."""
    count = tokens[prompt == " "]
    return torch.empty(1, count, TEXT_CHANNELS, dtype=torch.bfloat16, device="cuda"), None
