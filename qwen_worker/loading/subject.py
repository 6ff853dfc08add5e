"""What a self-check looks at: a loaded pipeline with its optimisations, and the files that it was loaded from.

Imports torch inside functions. Knows nothing of what is compared.
"""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.single_file import weights_of
from ..memory.footprint import Plan
from ..model_settings import LOAD_THREADS, Saving
from ..speed.speedups import Speed

if TYPE_CHECKING:
    import torch

    from ..model.modulation import ModulationTable
    from ..model.residency import Swap

FEATURES = 32  # rows of a stored matrix that are read, the first: outputs of its layer that are computed anew


@dataclass(frozen=True)
class Subject:
    """The parts of a loaded pipeline, once its speed-ups are applied and before LoRAs are.

    `checkpoint`: where its source's weights lie, if they are on this machine; `swap`: the transformers that take turns,
    this one by the name `model`; `shared`: components that a pipeline loaded before has brought; `drawn_with`: within,
    the transformer has the LoRAs of every picture.
    """

    model: str
    checkpoint: Checkpoint
    plan: Plan
    pipe: Any = field(repr=False)
    table: "ModulationTable | None" = field(repr=False)
    speed: Speed = field(repr=False)
    swap: "Swap | None" = field(default=None, repr=False)
    shared: tuple[str, ...] = ()
    drawn_with: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def transformer(self) -> Any:
        return self.pipe.transformer

    @property
    def dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.plan.dtype)

    @property
    def is_20b(self) -> bool:
        """Whether it is of the architecture that the optimisations are made for."""
        return all(model.is_20b for model in self.plan.models)

    @property
    def edits(self) -> bool:
        """Whether a pass has a picture to start from."""
        return "image" in inspect.signature(self.pipe.__call__).parameters

    def second_input(self, rows: int = 1) -> "torch.Tensor | None":
        """What a layered model adds to the timestep, as its pipeline always has it; None for the others."""
        import torch

        has_one = self.transformer.config.use_additional_t_cond
        return torch.zeros(rows, dtype=torch.long, device=self.plan.device) if has_one else None

    def description(self) -> str:
        """What decides the findings, beside the machine and the versions of its packages."""
        plan, source = self.plan, f"{self.checkpoint.name}@{self.checkpoint.revision}"
        savings = [saving.value for saving in Saving if saving in plan.savings]
        layout = [plan.device, plan.precision.value, *savings, "table" * plan.table, "swapped" * plan.swapped]
        layout += [f"text encoder {plan.text_encoder}", *(f"{part} shared" for part in self.shared)]
        layout += ["with LoRAs"] if self.drawn_with is not nullcontext else []
        return ", ".join(filter(None, [source, *layout, f"speed-ups: {self.speed}"]))

    def random(self, *shape: int, seed: int = 0) -> "torch.Tensor":
        """Normal numbers, the same on every machine before they are rounded."""
        import torch

        numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        return numbers.to(self.plan.device, self.dtype)

    def read_first_rows(self, names: Iterable[str], component: str = "transformer") -> "dict[str, torch.Tensor]":
        """The first `FEATURES` rows of stored tensors in float32, by name, without those that no file has.

        Raises `LoadError`.
        """
        from ..weights import decoding
        from ..weights.reader import WeightReader

        folder = self.checkpoint.folder
        stored = weights_of(folder, component) if folder else {}
        wanted = [stored[name].first_rows(FEATURES) for name in names if name in stored]
        with WeightReader([tensor for weight in wanted for tensor in weight.tensors], "cpu", LOAD_THREADS) as reader:
            return {weight.name: decoding.read(reader, weight).to(self.plan.device).float() for weight in wanted}
