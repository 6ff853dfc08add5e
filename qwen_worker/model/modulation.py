"""The modulation table: what img_mod and txt_mod of every block put out, looked up by timestep instead of computed.

These layers are a third of the 20B transformer (60 blocks x 2 x Linear(3072, 18432)) and see nothing but the timestep's
embedding:  row(t) = W SiLU(temb(t)) + b.  In bfloat16 the pipelines can ask for 1,248 timesteps only, so all rows are
computed once, at load, and the weights are never kept: 13.59 GB less on the card for 5.52 GB of host memory, of which a
job's schedule (4.4 MB a step) goes to the card. Rows are computed one timestep at a time, as a job of one picture
computes them, and are then bit-equal to stock diffusers; in a batch stock's own matrix product rounds differently.

A LoRA of the modulation adds to the rows: an output is linear in the weights, row(t) = W x + b with x = SiLU(temb(t)),
so what is added is scale * B (A x), and the weights need not be read again. It is computed one timestep at a time, in
the order and the dtype in which peft's layer would beside the layer itself: bit-equal to that.

Does not cover: layered models, whose temb has a second input; Qwen-Image-2.1, which shares one modulation over all
blocks; float32, where timesteps are too many to list (`ComputedRows` keeps the weights and remembers rows). Imports
torch and diffusers: import it inside functions. Knows nothing of placement or jobs.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel

STREAMS = ("img_mod", "txt_mod")
REMEMBERED = 512  # timesteps of which computed rows are kept


@dataclass(frozen=True)
class LowRank:
    """One layer's: `down` (rank, dim), `up` (6 dim, rank). `stream`: 0 for img_mod, 1 for txt_mod."""

    block: int
    stream: int
    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def of(self, condition: torch.Tensor) -> torch.Tensor:
        """(1, dim) -> (1, 6 dim)"""
        linear = torch.nn.functional.linear
        return linear(linear(condition, self.down), self.up) * self.scale


class Lookup(torch.nn.Module):
    """Stands where `img_mod` or `txt_mod` stood; is given its block's rows, (B, 2 x 6 dim), in place of `temb`.

    Given, because to a compiler a table and the block's number in it would be constants: each block compiled anew.
    """

    def __init__(self, block: int, stream: int):
        super().__init__()
        self.block, self.stream = block, stream

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.chunk(len(STREAMS), dim=-1)[self.stream]


class TabledTransformer(QwenImageTransformer2DModel):
    """The transformer without modulation weights: `from_pretrained` neither makes nor reads them."""

    _keys_to_ignore_on_load_unexpected = [r"transformer_blocks\.\d+\.(img|txt)_mod\."]

    @functools.wraps(QwenImageTransformer2DModel.__init__)  # diffusers reads the config's fields off the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        put_lookups(self)


def put_lookups(transformer: QwenImageTransformer2DModel) -> list[list[torch.nn.Module]]:
    """Put a lookup in every block; returns the modules that stood there, [block][stream]."""
    stood = []
    for index, block in enumerate(transformer.transformer_blocks):
        stood.append([getattr(block, stream) for stream in STREAMS])
        for number, stream in enumerate(STREAMS):
            setattr(block, stream, Lookup(index, number))
    return stood


class Table:
    """The rows of one transformer. `source(values)` gives (n, blocks, 2, 6 dim) for a list of n timesteps."""

    def __init__(self, transformer: QwenImageTransformer2DModel, source: Any):
        self.source, self.embed = source, embedding(transformer)
        self.changes: tuple[LowRank, ...] = ()  # what LoRAs add to the rows at present
        self.values = self.rows = None  # of the present schedule, on the device: (n,), (n + 1, blocks, 2, 6 dim)
        self.prepared = None  # (values as a list, their dtype, their device)
        self.chosen = None  # of the present forward: (B, blocks, 2, 6 dim)
        for number, block in enumerate(transformer.transformer_blocks):
            block.register_forward_pre_hook(functools.partial(self.give, number), with_kwargs=True)
        transformer.time_text_embed.register_forward_pre_hook(lambda _module, args: self.choose(args[0]))

    def prepare(self, timesteps: torch.Tensor) -> None:
        """Put the rows of these timesteps (n,), as the transformer will see them, on their device; and that of 0."""
        values = torch.cat([timesteps, timesteps.new_zeros(1)]).unique()
        listed = (values.tolist(), values.dtype, values.device)
        if listed == self.prepared:
            return
        rows = self.source(listed[0])
        # A timestep that nobody prepared finds the last row and spoils the picture visibly: finding out whether there
        # is one would hold the host up in every step.
        rows = torch.cat([rows, torch.full_like(rows[:1], torch.nan)])
        self.values, self.rows = values, rows.to(timesteps.device, non_blocking=True)
        if self.changes:
            add_low_rank(self.changes, self.rows, values, self.embed)
        self.prepared = listed

    def change(self, changes: Iterable[LowRank]) -> None:
        """Have the rows with what LoRAs add to them, from the next schedule on; with nothing, as they were."""
        changes = tuple(changes)
        if changes or self.changes:
            self.changes = changes
            self.values = self.rows = self.prepared = None

    def choose(self, timestep: torch.Tensor) -> None:
        """Look up the rows of a forward pass: (B,) timesteps."""
        if timestep.device.type == "cpu" and not self.knows(timestep):
            self.prepare(timestep)  # free of charge here: nothing to synchronise
        found = timestep.unsqueeze(1) == self.values.unsqueeze(0)
        index = torch.where(found.any(dim=1), found.int().argmax(dim=1), len(self.values))
        self.chosen = self.rows[index]

    def give(self, number: int, _block, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The rows of block `number` where it expects `temb`. With zero_cond_t it splits them as it would split that:
        the text's modulation sees the first half only, the timesteps without their zeros."""
        return args, kwargs | {"temb": self.chosen[:, number].flatten(1)}

    def knows(self, timestep: torch.Tensor) -> bool:
        if self.values is None or self.values.dtype != timestep.dtype or self.values.device != timestep.device:
            return False
        return bool(torch.isin(timestep, self.values).all())

    @contextmanager
    def watching(self, scheduler: Any, dtype: torch.dtype) -> Iterator[None]:
        """While inside, every schedule that the scheduler sets is prepared, in the pipelines' own arithmetic."""
        stock = scheduler.set_timesteps

        @functools.wraps(stock)  # the pipelines look for `sigmas` in the signature
        def set_timesteps(*args, **kwargs):
            stock(*args, **kwargs)
            self.prepare(scheduler.timesteps.to(dtype) / 1000)

        scheduler.set_timesteps = set_timesteps
        try:
            yield
        finally:
            del scheduler.set_timesteps


class StoredRows:
    """All rows that bfloat16 timesteps can ask for, in host memory."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows
        self.index = {value: number for number, value in enumerate(every_timestep().tolist())}

    def __call__(self, values: list[float]) -> torch.Tensor:
        try:
            return self.rows[[self.index[value] for value in values]]
        except KeyError as error:
            raise ValueError(f"timestep {error.args[0]} is not in the modulation table") from None


class ComputedRows:
    """Rows computed when asked for, from modules that are kept."""

    def __init__(self, transformer: QwenImageTransformer2DModel, modules: list[list[torch.nn.Module]]):
        self.embed, self.modules = embedding(transformer), modules
        self.dtype = next(transformer.parameters()).dtype
        self.known: dict[float, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, values: list[float]) -> torch.Tensor:
        while len(self.known) > REMEMBERED:
            self.known.pop(next(iter(self.known)))
        for value in values:
            if value not in self.known:
                temb = self.embed(torch.tensor([value], dtype=self.dtype))
                rows = [torch.cat([stream(temb) for stream in block]) for block in self.modules]
                self.known[value] = torch.stack(rows)
        return torch.stack([self.known[value] for value in values])


@torch.no_grad()
def add_low_rank(
    changes: Sequence[LowRank], rows: torch.Tensor, values: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """To the first n rows (.., blocks, 2, 6 dim), those of the timesteps `values` (n,). `embed`: (1,) -> (1, dim)."""
    conditions = [torch.nn.functional.silu(embed(value.view(1))) for value in values]
    for change in changes:
        rows[: len(values), change.block, change.stream] += torch.cat([change.of(one) for one in conditions])


def every_timestep() -> torch.Tensor:
    """What the pipelines' t / 1000 can come to in bfloat16 for t in [1, 1000], and 0: (1249,), ascending.

    Schedules of up to 1,000 steps stay above 1.
    """
    patterns = torch.arange(0x7F80, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    asked = patterns[(patterns >= 1) & (patterns <= 1000)] / 1000
    return torch.cat([asked.new_zeros(1), asked]).unique()


def parameters_of(block: int, stream: int) -> tuple[str, str]:
    """The names of a modulation layer's weight and bias."""
    layer = f"transformer_blocks.{block}.{STREAMS[stream]}.1"
    return f"{layer}.weight", f"{layer}.bias"


def shape_of_rows(transformer: QwenImageTransformer2DModel) -> tuple[int, ...]:
    return len(every_timestep()), len(transformer.transformer_blocks), len(STREAMS), 6 * transformer.inner_dim


def compute(transformer: QwenImageTransformer2DModel) -> Table:
    """The table of a stock transformer of any dtype: the weights stay, rows are computed when first asked for."""
    return Table(transformer, ComputedRows(transformer, put_lookups(transformer)))


def embedding(transformer: QwenImageTransformer2DModel):
    """timestep (1,) -> temb (1, dim), as the transformer computes it."""
    embed = transformer.time_text_embed

    def temb(timestep: torch.Tensor) -> torch.Tensor:
        projected = embed.time_proj(timestep)
        return embed.timestep_embedder(projected.to(timestep.dtype))

    return temb
