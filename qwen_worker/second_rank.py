"""The process of the second card: it has transformers alone, and computes the passes that the worker asks for.

    python -m qwen_worker.second_rank DESCRIPTOR PARENT

The worker starts it, with its end of the channel and its own process number. It ends when the worker does, however that
ends. A question that fails is answered in words, and leaves it ready for the next. Knows nothing of jobs, of text
encoders and of VAEs.
"""

import functools
import inspect
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from .checkpoints.files import read_json
from .errors import CudaSpoiledError, JobError, LoadError
from .loading.builder import Builder, adapters_of, rank_of
from .loading.components import Reading, tabulate
from .loading.rank_messages import SEND, JobSetup, SpeedReport, TransformerLoad
from .loading.stand_down import READER, StoodDown
from .log import log_line
from .memory import card, cuda
from .memory.failures import Failure, attempt
from .memory.footprint import GB, Plan
from .memory.machine import read_machine, resident_bytes
from .model_settings import Speedup
from .ranks.channel import Answer, Channel, RankEnded, die_with
from .speed import speedups
from .speed.compile_ahead import CompiledLoras

if TYPE_CHECKING:
    import torch
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  torch documents it there

    from .lora.adapters import Adapters
    from .model.modulation import ModulationTable
    from .ranks.group import TensorShape
    from .ranks.shared_rows import SharedHandle, SharedRows


@dataclass
class LoadedTransformer:
    """`pipe`: of the checkpoint's class, and empty but for the transformer. The other fields come by `complete`."""

    load: TransformerLoad
    plan: Plan
    pipe: Any = field(repr=False)
    table: "ModulationTable | None" = None
    rows: "SharedRows | None" = None
    speed: speedups.Speed = field(default_factory=speedups.Speed)
    adapters: "Adapters | None" = None


class SecondRank:
    """Answers questions by the methods of their names."""

    def __init__(self) -> None:
        self.builder = Builder(0)
        self.models: dict[str, LoadedTransformer] = {}
        self.device = "cpu"
        self.job = ExitStack()  # what the present job has changed of its transformer
        self.at_work: LoadedTransformer | None = None
        self.store: TCPStore | None = None  # of rank 0, once it is reached
        self.inputs: dict[str, Any] = {}  # of the transformer's last pass, or of the next once there is room for it
        self.arriving: list[torch.Tensor] = []  # those of the inputs that rank 0 sends next
        self.prediction: torch.Tensor | None = None  # that is to be sent once it is announced

    def reach(self, port: int) -> None:
        """Be ready to `join`: find rank 0's store, which has this port, and see that this rank's device computes."""
        import torch

        from .ranks import group

        self.store = group.reach_store(port)
        torch.zeros(1, device=self.device).item()

    def join(self) -> None:
        """Meet rank 0, which waits for that."""
        from .ranks import group

        assert self.store
        group.join(self.store, 1, self.device)

    def load(self, load: TransformerLoad) -> None:
        import diffusers

        checkpoint = replace(load.checkpoint, folder=load.folder or load.checkpoint.folder)
        self.builder.threads = load.settings.QWEN_LOAD_THREADS
        plan, self.device = load.plan, load.plan.device
        if plan.device == "cuda":
            card.start()
            room_bytes = card.room_bytes(beside_others=bool(self.models))
            plan = replace(plan, limit_bytes=min(plan.limit_bytes, room_bytes or plan.limit_bytes))
        self.builder.claim_card(plan, beside_others=any(one.load.plan != load.plan for one in self.models.values()))
        entry = read_json(checkpoint.local_folder, "model_index.json")["transformer"]
        off = None if load.folder else StoodDown({name: why for name, why in load.off.items() if READER in name})
        transformer = self.builder.load(checkpoint, "transformer", entry, plan, off)
        if self.builder.swap and plan.swapped:
            self.builder.swap.add(load.model, transformer)
        pipeline_class = getattr(diffusers, checkpoint.class_name)
        parts = dict.fromkeys(list(inspect.signature(pipeline_class.__init__).parameters)[1:])
        self.models[load.model] = LoadedTransformer(load, plan, pipeline_class(**parts | {"transformer": transformer}))

    def complete(
        self, model: str, handle: "SharedHandle | None", threads: int, wanted: CompiledLoras
    ) -> tuple[str, SpeedReport]:
        """Take the table's rows and make what draws faster. Returns the plan in words, and of the speed-ups.

        `threads`: that the worker computes with on a CPU: with others sums are added up in another order. `wanted`: the
        LoRAs that blocks are compiled for, beside the endpoint's own.
        """
        import torch

        if self.device == "cpu":
            torch.set_num_threads(threads)
        loaded = self.models[model]
        load, plan, transformer = loaded.load, loaded.plan, loaded.pipe.transformer
        checkpoint = replace(load.checkpoint, folder=load.folder or load.checkpoint.folder)
        if handle:
            from .model.modulation import ModulationTable, StoredRows
            from .ranks.shared_rows import SharedRows

            loaded.rows = SharedRows()
            rows = loaded.rows.map(handle, pinned=plan.device == "cuda")
            loaded.table = ModulationTable(transformer, StoredRows(rows))
        else:
            loaded.table = tabulate(transformer, checkpoint.local_folder, plan, Reading(self.builder.threads))
        loaded.adapters = adapters_of(checkpoint, plan, loaded.pipe, loaded.table, load.loras)
        own_rank = rank_of(load.loras, plan)
        with loaded.adapters.apply((), rank=own_rank) if load.loras else nullcontext():
            machine, table = read_machine(), loaded.table
            loaded.speed = speedups.apply(loaded.pipe, plan, load.settings, machine, table, checkpoint.name, load.off)
        facts = loaded.pipe, plan, load.settings, table, loaded.adapters.example(), None
        loaded.speed = speedups.compile_loras(loaded.speed, wanted, *facts)
        transformer_bytes = (max if plan.swapped else sum)(map(plan.transformer_bytes, plan.models))
        words = f"{plan.precision.value} on {plan.device}, transformers {transformer_bytes / GB:.2f} GB"
        return words + ", modulation table shared" * bool(handle), SpeedReport.of(loaded.speed)

    def release(self, model: str) -> None:
        """Forget a model, and give its memory back to the card, of which the next plan is made."""
        rows = model in self.models and self.models.pop(model).rows
        self.builder.release(model, self.device)
        if rows:
            rows.close()

    def activate(self, model: str) -> None:
        """Bring a swapped transformer to the card."""
        if self.builder.swap and self.models[model].plan.swapped:
            self.builder.swap.activate(model)

    def begin(self, setup: JobSetup) -> None:
        """Have the transformer as the job asks for it, until `end`."""
        self.end()
        loaded = self.models[setup.model]
        assert loaded.adapters
        for speedup in Speedup:
            if loaded.speed.has(speedup) and speedup not in setup.speedups:
                loaded.speed.stand_down(speedup, "off on the first card")
        with ExitStack() as stack:
            stack.enter_context(loaded.adapters.apply(setup.loras, setup.streamed_loras, setup.lora_rank))
            drawing = loaded.speed.drawing(
                setup.compiled, separate_passes=True, cached_steps=setup.cached_steps, lora_rank=setup.lora_rank
            )
            stack.enter_context(drawing)
            self.job = stack.pop_all()
        self.at_work = loaded

    def end(self) -> SpeedReport | None:
        """Undo what the job has changed. Returns what its speed-ups have come to, None where there was no job."""
        self.inputs.clear()
        self.arriving.clear()
        self.prediction = None
        loaded, self.at_work = self.at_work, None
        try:
            self.job.close()
        finally:
            self.job = ExitStack()
            if loaded:
                loaded.pipe.maybe_free_model_hooks()
        return loaded and SpeedReport.of(loaded.speed)

    def make_room(self, packed: Mapping[str, Any]) -> None:
        """Have a tensor for each that rank 0 is to send. These inputs take the place of the last pass's."""
        from .ranks import group

        shapes = [shape for value in packed.values() for shape in group.shapes_in(value)]
        tensors = [shape.empty(self.device) for shape in shapes]
        self.arriving = tensors[:]
        self.inputs |= {name: group.unpack(value, tensors) for name, value in packed.items()}

    def receive_inputs(self) -> None:
        """Fill what `make_room` has made: rank 0 sends it."""
        from .ranks import group

        group.receive(self.arriving, 0)
        self.arriving.clear()

    def compute(self, timesteps: list[float] | None) -> "TensorShape":
        """A pass over the inputs that have arrived; the shape of the prediction.

        `timesteps`: where a call of the pipeline begins, those that the table is to have rows of.
        """
        import torch

        from .ranks import group

        assert self.at_work
        loaded, self.prediction = self.at_work, None
        if timesteps is not None:
            loaded.pipe.maybe_free_model_hooks()  # what a step cache has kept of the call before
            if loaded.table and timesteps:
                dtype = getattr(torch, loaded.plan.dtype)
                loaded.table.prepare(torch.tensor(timesteps, dtype=dtype, device=self.device))
        with torch.no_grad(), loaded.pipe.transformer.cache_context("second card"):
            (prediction,) = loaded.pipe.transformer(**self.inputs)
        self.prediction = prediction.contiguous()
        cuda.await_kernels(self.device)  # what fails on the card is answered in words; sending would end this process
        return group.TensorShape(tuple(prediction.shape), prediction.dtype)

    def send_prediction(self) -> None:
        """Send what `compute` has announced: rank 0 waits for it."""
        from .ranks import group

        assert self.prediction is not None
        group.send([self.prediction], 0)
        self.prediction = None

    def used_bytes(self) -> int:
        """Of the card by torch's tensors, or of RAM by this process."""
        return cuda.allocated_bytes(self.device) if self.device == "cuda" else resident_bytes()


def answer_of(number: int, work: Callable[[], Any]) -> Answer:
    """What the work returns or, in words, raises.

    A spoiled CUDA is told too: it is this card's alone, and the first one draws on without it.
    """
    try:
        value = attempt(work)
    except JobError as error:
        return Answer(number, failure=error.sentence)
    except (LoadError, CudaSpoiledError) as error:
        return Answer(number, failure=error.reason)
    if isinstance(value, Failure):
        return Answer(number, failure=value.reason, out_of_memory=value.out_of_memory)
    return Answer(number, value)


def serve(rank: SecondRank, channel: Channel) -> None:
    """Answer questions until the worker ends. Raises `RankEnded` then, and what torch's exchange of tensors raises."""
    while True:
        number, question, pickled = channel.receive()
        if question == SEND:
            rank.send_prediction()
            continue
        if question == "compute":  # its tensors are sent, whatever comes of them
            rank.receive_inputs()
        answer = answer_of(number, functools.partial(carry_out, rank, question, pickled))
        if answer.out_of_memory:
            cuda.release_unused(rank.device)
        channel.send((answer, rank.used_bytes()))


def carry_out(rank: SecondRank, question: str, pickled: bytes) -> Any:
    """What the rank's method of this name returns for the pickled arguments. Raises what either step raises."""
    return getattr(rank, question)(*pickle.loads(pickled))


def main() -> None:
    descriptor, parent = map(int, sys.argv[1:])
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # a group's signal is the worker's, which ends this process too
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(Connection(descriptor), lambda: os.getppid() == parent, lambda: os._exit(0))
    try:
        serve(SecondRank(), channel)
    except RankEnded:
        os._exit(0)
    except (RuntimeError, OSError) as error:
        log_line(None, "ERROR", f"the second card's process ends: {type(error).__name__}: {error}")
        os._exit(1)


if __name__ == "__main__":
    main()
