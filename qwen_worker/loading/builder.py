"""A diffusers pipeline from a checkpoint's files, every component where its plan says.

torch, diffusers and transformers are imported inside functions: importing the pipeline classes costs over ten seconds
of CPU on a cold worker. Knows nothing of which checkpoint serves what, nor of what else is loaded.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.classes import WEIGHTS
from ..checkpoints.files import read_json, shards
from ..errors import JobError, LoadError
from ..log import log_line
from ..lora.file import LoraUse
from ..lora.ranks import padded_rank
from ..memory import card, cuda
from ..memory.failures import Failure, attempt
from ..memory.footprint import Plan
from ..memory.machine import read_machine
from ..stopwatch import Stopwatch
from . import libraries
from .components import Reading, is_component, load_component, require_tokenizer, tabulate, trim
from .page_cache import ReadAhead
from .stand_down import MODULATION, READER, SWAP, TRIM, StoodDown

if TYPE_CHECKING:
    from ..lora.adapters import Adapters
    from ..model.modulation import ModulationTable
    from ..model.residency import Swap
    from ..ranks.shared_rows import SharedRows

AHEAD_SHARE = 0.8  # of the RAM that a plan leaves, for weights that are read while the libraries are imported


class Builder:
    """`threads`: that read weights, 0 for the libraries' own reading. For the one inference thread.

    `part`: what a build is at, for the sentence about one that fails. `swap`: the transformers that share the card's
    room, once there are any.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.stopwatch = Stopwatch()  # of the present build, or the last
        self.part = ""
        self.swap: Swap | None = None
        self.shared_rows: dict[str, SharedRows] = {}  # of modulation tables that a second card has too, by model

    def build(
        self,
        model: str,
        checkpoint: Checkpoint,
        plan: Plan,
        shared: Mapping[str, Any],
        folder: Path | None = None,
        beside_others: bool = False,
        stood_down: StoodDown | None = None,
    ) -> "tuple[Any, ModulationTable | None]":
        """The pipeline of the checkpoint's own class, and its modulation table where the plan has one.

        `model`: the name under which its transformer is swapped; `shared`: components that are loaded already;
        `folder`: read in place of the checkpoint's own; `beside_others`: the card holds models of other plans;
        `stood_down`: what has failed before, to which a reader that fails is added. Raises `LoadError`, and whatever
        the libraries raise.
        """
        source = replace(checkpoint, folder=folder or checkpoint.folder)
        # A prepared checkpoint has nothing that its library could read; its source is beside it.
        stood_down = None if folder else stood_down or StoodDown()
        folder = source.local_folder
        index = read_json(folder, "model_index.json")
        names = in_library_order({name: entry for name, entry in index.items() if name not in shared})
        if plan.device == "cuda":
            with self.stopwatch("import"):
                card.start()  # before libraries that look for a card as they are imported, and hide why there is none
        with self.stopwatch("card"):
            self.claim_card(plan, beside_others)
        free_bytes = read_machine().ram_available_bytes - plan.pinned_bytes if self.threads else 0
        ahead = ReadAhead(weight_files(folder, names), round(free_bytes * AHEAD_SHARE))
        components = dict(shared)
        for name in names:
            entry = index[name]
            self.wait_for_library(entry, ahead)
            self.part = name
            components[name] = self.load(source, name, entry, plan, stood_down) if is_component(entry) else entry
            if name == "text_encoder" and plan.text_encoder == "streamed":  # which diffusers does
                self.wait_for_library(None, ahead)
            self.part = name + TRIM
            with self.stopwatch("trim"):
                trim(components[name], name, plan)
        if self.swap and plan.swapped:
            self.part = SWAP
            with self.stopwatch("copy"):
                self.swap.add(model, components["transformer"])
        self.part = MODULATION
        reading = Reading(self.threads, self.stopwatch, self.share_rows(model, plan))
        table = tabulate(components["transformer"], folder, plan, reading)
        self.part = checkpoint.class_name
        import diffusers

        with self.stopwatch("other"):
            pipe = getattr(diffusers, checkpoint.class_name)(**components)
            require_tokenizer(checkpoint, pipe)
        pipe.set_progress_bar_config(disable=True)
        if plan.device == "cuda":
            cuda.release_pinned_buffers()
        return pipe, table

    def wait_for_library(self, entry: Any, ahead: ReadAhead) -> None:
        """Have the library of a component's entry imported; files are read ahead until it is.

        Where that fails, nothing of the worker's own was at work.
        """
        self.part, library = "", entry[0] if is_component(entry) else "diffusers"
        if library not in libraries.imported:
            with self.stopwatch("import"), ahead:
                libraries.import_up_to(library)

    def load(
        self, source: Checkpoint, name: str, entry: Sequence[str], plan: Plan, stood_down: StoodDown | None
    ) -> Any:
        """A component by the worker's own reader; where that fails for no fault of the files, by its library's.

        `stood_down`: what has failed before, to which the reader is added; None for files that the library cannot read.
        Raises `LoadError`, and what the library raises.
        """
        read = functools.partial(load_component, source, name, entry, plan)
        own = Reading(self.threads, self.stopwatch)
        if stood_down is None or not self.threads or name not in WEIGHTS:
            return read(own)
        if not stood_down.is_read_by_library(name):
            component = attempt(lambda: read(own))
            if not isinstance(component, Failure):
                return component
            if component.out_of_memory:  # the library takes no less
                raise MemoryError(component.reason)
            self.give_back(plan.device)
            stood_down.reasons[READER + name] = component.reason
            log_line(None, "WARN", f"{source.name}: {name} is read by its library from now on: {component.reason}")
        return read(Reading(0, self.stopwatch))

    def claim_card(self, plan: Plan, beside_others: bool) -> None:
        """Keep torch to the plan's share of the card, and take a swapped transformer off it. Raises `LoadError`."""
        from ..model.residency import Swap

        if plan.device == "cuda":
            cuda.release_unused(plan.device)  # what torch holds for nobody would count as the others'
            cuda.cap_memory(plan.limit_bytes, beside_others)
            cuda.configure_allocators()
        if plan.swapped:
            self.swap = self.swap or Swap(plan.device)
            self.swap.clear()
            cuda.release_unused(plan.device)

    def share_rows(self, model: str, plan: Plan) -> "SharedRows | None":
        """Memory for the modulation table's rows, where a second card's process has them too."""
        if plan.cards == 1 or not plan.table:
            return None
        from ..ranks.shared_rows import SharedRows

        self.shared_rows[model] = SharedRows()
        return self.shared_rows[model]

    def release(self, model: str, device: str) -> None:
        """Give back what a build that failed, or a pipeline that nobody holds any more, has left."""
        if self.swap:
            self.swap.drop(model)
        self.give_back(device)
        if rows := self.shared_rows.pop(model, None):
            rows.close()

    def give_back(self, device: str) -> None:
        """Give back the card's memory and the pinned memory that no tensor holds."""
        cuda.release_unused(device)
        if device == "cuda":
            cuda.release_pinned_buffers()


def in_library_order(index: Mapping[str, Any]) -> list[str]:
    """The names of the components in the entries of a model_index.json, in the order of their libraries' imports.

    The text encoder is read first, and meanwhile the library of the transformer is imported on another thread.
    """
    order = list(libraries.CLASSES)
    names = [name for name in index if not name.startswith("_")]
    return sorted(names, key=lambda name: order.index(index[name][0]) if is_component(index[name]) else len(order))


def weight_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """What holds the components' weights, in the order in which they are read."""
    files = [file for name in names if name in WEIGHTS for file in shards(folder, name)]
    return files + list(folder.glob("*.safetensors"))


def rank_of(loras: Sequence[LoraUse], plan: Plan) -> int:
    """The rank to which the endpoint's own LoRAs are padded; 0 where no blocks may be compiled, or they cannot be."""
    may_pad = plan.compiled and all(planned.is_20b for planned in plan.models)
    return padded_rank([use.file for use in loras], plan.table) if may_pad else 0


def adapters_of(
    checkpoint: Checkpoint, plan: Plan, pipe: Any, table: "ModulationTable | None", loras: Sequence[LoraUse]
) -> "Adapters":
    """What applies LoRAs to the pipeline's transformer. `loras`: the endpoint's own.

    Raises `LoadError` where one of these does not fit the transformer.
    """
    import torch

    from ..lora.adapters import Adapters

    dtype, kept_bytes = getattr(torch, plan.dtype), plan.kept_lora_bytes
    adapters = Adapters(pipe.transformer, table, dtype, plan.device, checkpoint.name, loras, kept_bytes)
    try:
        adapters.require_made_for_model(loras)
        for use in loras:
            adapters.weights_for(use)
    except JobError as error:
        raise LoadError(error.sentence) from None
    return adapters
