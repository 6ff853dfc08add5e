"""The modulation table: what img_mod and txt_mod of every block put out, looked up by timestep instead of computed.

These layers are a third of the 20B transformer (60 blocks x 2 x Linear(3072, 18432)) and see nothing but the timestep's
embedding:  row(t) = W SiLU(temb(t)) + b.  In bfloat16 the pipelines can ask for 1,248 timesteps only. All rows are
therefore computed once, at load, and the weights are never kept: 13.59 GB less on the card for 5.52 GB of host memory,
of which the rows of a job's schedule (4.4 MB a step) go to the card. Rows are computed one timestep at a time, as a job
of one picture computes them, and are then bit-equal to stock diffusers; for a batch stock's own matrix product rounds
differently.

A LoRA of the modulation adds to the rows: an output is linear in the weights, row(t) = W x + b with x = SiLU(temb(t)),
so the LoRA adds scale * B (A x), a LoKr or LoHa its own product, and the weights need not be read again. The sum is
computed one timestep at a time, in the order and the dtype in which peft's layer would compute it beside the layer
itself: bit-equal to that.

Layered models add a second embedding to temb, of a number that their pipeline always gives as 0: so do the rows.

Does not cover: Qwen-Image-2.1, which shares one modulation over all
blocks; float32, where timesteps are too many to list (`ComputedRows` keeps the weights and remembers rows). Imports
torch and diffusers: import it inside functions. Knows nothing of placement or jobs.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from .overrides import watching_schedules
from .transformer import WaitFreeTransformer

STREAMS = ("img_mod", "txt_mod")
REMEMBERED_TIMESTEPS = 512  # whose computed rows are kept

Embedding = Callable[[torch.Tensor], torch.Tensor]  # timestep (1,) -> temb (1, dim)


@dataclass(frozen=True)
class RowChange:
    """What a LoRA adds to one modulation layer.

    `stream`: 0 for img_mod, 1 for txt_mod. `product`: of the LoRA's matrices and the layer's input.
    """

    block: int
    stream: int
    product: Callable[[torch.Tensor], torch.Tensor]
    scale: float

    def apply(self, condition: torch.Tensor) -> torch.Tensor:
        """(1, dim) -> (1, 6 dim)"""
        return self.product(condition) * self.scale


class Lookup(torch.nn.Module):
    """Stands where `img_mod` or `txt_mod` stood; gets its block's rows, (B, 2 x 6 dim), in place of `temb`.

    The rows are an input, because a compiler takes a table and the block's number in it for constants, and would
    compile every block anew.
    """

    def __init__(self, block: int, stream: int):
        super().__init__()
        self.block, self.stream = block, stream

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """-> (B, 6 dim)"""
        return rows.chunk(len(STREAMS), dim=-1)[self.stream]


class TabledTransformer(WaitFreeTransformer):
    """The transformer without modulation weights: `from_pretrained` neither makes nor reads them."""

    _keys_to_ignore_on_load_unexpected = [r"transformer_blocks\.\d+\.(img|txt)_mod\."]

    @functools.wraps(QwenImageTransformer2DModel.__init__)  # diffusers reads the config's fields off the signature
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        insert_lookups(self)


def insert_lookups(transformer: QwenImageTransformer2DModel) -> list[list[torch.nn.Module]]:
    """Replace the modulation layers of every block by lookups; returns the replaced modules, [block][stream]."""
    replaced: list[list[torch.nn.Module]] = []
    for index, block in enumerate(transformer.transformer_blocks):
        replaced.append([getattr(block, stream) for stream in STREAMS])
        for number, stream in enumerate(STREAMS):
            setattr(block, stream, Lookup(index, number))
    return replaced


class StoredRows:
    """The rows of all timesteps that bfloat16 can express, in host memory: `rows` (1249, blocks, 2, 6 dim)."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows
        self.index = {value: number for number, value in enumerate(bfloat16_timesteps().tolist())}

    def __call__(self, timesteps: list[float]) -> list[torch.Tensor]:
        """Of each timestep (blocks, 2, 6 dim), in place. Raises `ValueError` for one that is none of bfloat16's."""
        try:
            return [self.rows[self.index[value]] for value in timesteps]
        except KeyError as error:
            raise ValueError(f"timestep {error.args[0]} is not in the modulation table") from None


class ComputedRows:
    """Rows computed when they are asked for, from the replaced `modules`, [block][stream], whose weights are kept."""

    def __init__(self, transformer: QwenImageTransformer2DModel, modules: list[list[torch.nn.Module]]):
        self.embed, self.modules = timestep_embedding(transformer), modules
        self.dtype = next(transformer.parameters()).dtype
        self.rows_by_timestep: dict[float, torch.Tensor] = {}  # (blocks, 2, 6 dim)

    @torch.no_grad()
    def __call__(self, timesteps: list[float]) -> list[torch.Tensor]:
        """Of each timestep (blocks, 2, 6 dim)."""
        while len(self.rows_by_timestep) > REMEMBERED_TIMESTEPS:
            self.rows_by_timestep.pop(next(iter(self.rows_by_timestep)))
        for value in timesteps:
            if value not in self.rows_by_timestep:
                temb = self.embed(torch.tensor([value], dtype=self.dtype))
                rows = [torch.cat([stream(temb) for stream in block]) for block in self.modules]
                self.rows_by_timestep[value] = torch.stack(rows)
        return [self.rows_by_timestep[value] for value in timesteps]


@dataclass(frozen=True)
class ScheduleRows:
    """The rows of one schedule, on its device: `timesteps` (n,), and `rows` (n + 1, blocks, 2, 6 dim), the last NaN."""

    timesteps: torch.Tensor
    rows: torch.Tensor
    values: list[float]  # of the timesteps, on the host

    def is_of(self, values: list[float], like: torch.Tensor) -> bool:
        """Whether these are the rows of the values in the dtype and on the device of a tensor."""
        return values == self.values and self.is_like(like)

    def covers(self, timesteps: torch.Tensor) -> bool:
        """Whether each of the timesteps (B,) has its row here. Waits for the device."""
        return self.is_like(timesteps) and bool(torch.isin(timesteps, self.timesteps).all())

    def is_like(self, timesteps: torch.Tensor) -> bool:
        return timesteps.dtype == self.timesteps.dtype and timesteps.device == self.timesteps.device


class ModulationTable:
    """The rows of one transformer, which the blocks get in place of `temb`.

    `source` gives (blocks, 2, 6 dim) for each of a list of timesteps.
    """

    def __init__(self, transformer: QwenImageTransformer2DModel, source: StoredRows | ComputedRows):
        self.source, self.embed = source, timestep_embedding(transformer)
        self.changes: tuple[RowChange, ...] = ()  # what LoRAs add to the rows at present
        self.schedule: ScheduleRows | None = None
        self.forward_rows: torch.Tensor | None = None  # of the present forward pass, (B, blocks, 2, 6 dim)
        for number, block in enumerate(transformer.transformer_blocks):
            block.register_forward_pre_hook(functools.partial(self.replace_temb, number), with_kwargs=True)
        transformer.time_text_embed.register_forward_pre_hook(lambda _module, args: self.choose_rows(args[0]))

    def prepare(self, timesteps: torch.Tensor) -> None:
        """Bring the rows of these timesteps (n,), as the transformer will see them, and of 0 to their device."""
        wanted = torch.cat([timesteps, timesteps.new_zeros(1)]).unique()
        values = wanted.tolist()
        if self.schedule and self.schedule.is_of(values, wanted):
            return
        found = self.source(values)
        # A timestep that nobody prepared is looked up in the last row, and its NaN spoils the picture visibly. Asking
        # the card whether there is such a timestep would make the host wait in every step.
        rows = found[0].new_full((len(found) + 1, *found[0].shape), torch.nan, device=timesteps.device)
        for row, stored in zip(rows[:-1], found, strict=True):
            row.copy_(stored, non_blocking=True)  # from where it is pinned: gathered first, it would be pageable
        if self.changes:
            add_changes(self.changes, rows, wanted, self.embed)
        self.schedule = ScheduleRows(wanted, rows, values)

    def set_changes(self, changes: Iterable[RowChange]) -> None:
        """Add these to the rows from the next schedule on; without any, the rows are as they were."""
        changes = tuple(changes)
        if changes or self.changes:
            self.changes, self.schedule = changes, None

    def choose_rows(self, timesteps: torch.Tensor) -> None:
        """Look up the rows of a forward pass: (B,) timesteps. Raises `RuntimeError` on a card without a schedule."""
        # A CPU need not be waited for, so a timestep without a row can be found out, and its row prepared.
        if timesteps.device.type == "cpu" and not (self.schedule and self.schedule.covers(timesteps)):
            self.prepare(timesteps)
        if self.schedule is None:
            raise RuntimeError("rows of the modulation table are asked for before a schedule was prepared")
        equal = timesteps.unsqueeze(1) == self.schedule.timesteps.unsqueeze(0)
        index = torch.where(equal.any(dim=1), equal.int().argmax(dim=1), len(self.schedule.timesteps))
        self.forward_rows = self.schedule.rows[index]

    def replace_temb(
        self, number: int, _block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A block's arguments with its rows in place of `temb`.

        With `zero_cond_t` the block splits the rows as it would split `temb`: the text's modulation sees the first half
        alone, the timesteps without their zeros. Raises `RuntimeError` for a block that is called by itself.
        """
        if self.forward_rows is None:
            raise RuntimeError("a block is called before the transformer's forward pass has chosen its rows")
        return args, kwargs | {"temb": self.forward_rows[:, number].flatten(1)}

    def following_schedules(self, scheduler: Any, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Within, the rows of every schedule that the scheduler sets are prepared, in the pipelines' own arithmetic."""
        return watching_schedules(scheduler, lambda: self.prepare(scheduler.timesteps.to(dtype) / 1000))


@torch.no_grad()
def add_changes(changes: Sequence[RowChange], rows: torch.Tensor, timesteps: torch.Tensor, embed: Embedding) -> None:
    """Add changes to the first n of `rows` (.., blocks, 2, 6 dim), those of `timesteps` (n,), in place."""
    conditions = [torch.nn.functional.silu(embed(value.view(1))) for value in timesteps]
    for change in changes:
        added = torch.cat([change.apply(condition) for condition in conditions])  # (n, 6 dim)
        rows[: len(timesteps), change.block, change.stream] += added


def bfloat16_timesteps() -> torch.Tensor:
    """What the pipelines' t / 1000 can come to in bfloat16 for t in [1, 1000], and 0: (1249,), ascending.

    Schedules of up to 1,000 steps stay above t = 1.
    """
    patterns = torch.arange(0x7F80, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)  # every positive number
    possible = patterns[(patterns >= 1) & (patterns <= 1000)] / 1000
    return torch.cat([possible.new_zeros(1), possible]).unique()


def parameter_names(block: int, stream: int) -> tuple[str, str]:
    """The names of a modulation layer's weight and bias."""
    layer = f"transformer_blocks.{block}.{STREAMS[stream]}.1"
    return f"{layer}.weight", f"{layer}.bias"


def stored_rows_shape(transformer: QwenImageTransformer2DModel) -> tuple[int, ...]:
    """(1249, blocks, 2, 6 dim)"""
    return len(bfloat16_timesteps()), len(transformer.transformer_blocks), len(STREAMS), 6 * transformer.inner_dim


def computed_table(transformer: QwenImageTransformer2DModel) -> ModulationTable:
    """The table of a stock transformer of any dtype: the weights stay, rows are computed when first asked for."""
    return ModulationTable(transformer, ComputedRows(transformer, insert_lookups(transformer)))


def timestep_embedding(transformer: QwenImageTransformer2DModel) -> Embedding:
    """timestep (1,) -> temb (1, dim), as the transformer computes it."""
    embed = transformer.time_text_embed

    def temb(timestep: torch.Tensor) -> torch.Tensor:
        condition = embed.timestep_embedder(embed.time_proj(timestep).to(timestep.dtype))
        if embed.use_additional_t_cond:
            condition = condition + embed.addition_t_embedding.weight[:1].to(condition.dtype)
        return condition

    return temb
