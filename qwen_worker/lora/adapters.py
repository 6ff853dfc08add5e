"""LoRAs on a transformer for the length of a job: a low-rank path beside each layer, y = W x + scale * B (A x).

The layers' own weights are never touched, so any precision takes LoRAs, quantized ones too, and what follows a job is
what was before it to the bit: peft's layers stand in place of the transformer's while the job is drawn, and these stand
there again at its end. Between jobs nothing of a LoRA is in the transformer's tree, which is moved and counted as if
there were none. A LoRA's weights wait in host memory and are on the card during its jobs.

peft's own injection walks the whole tree and takes a second each time; its layers are made one by one here instead.
Imports torch: import it inside functions. Knows nothing of jobs, nor where files come from.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InvalidInput, JobError
from ..model.modulation import Lookup, LowRank, Table
from ..model.residency import pinned
from .file import Layer, LoraFile, LoraUse, require_layers

HELD_BYTES = 4_000_000_000  # of host memory that keeps the LoRAs of the latest jobs
HELD_SETS = 4  # of LoRAs used together, whose layers are kept


@dataclass(frozen=True)
class Weights:
    """One LoRA's matrices, (rank, in) and (out, rank), by layer. `home`: the same in host memory."""

    down: Mapping[str, torch.nn.Parameter]
    up: Mapping[str, torch.nn.Parameter]
    home: Mapping[torch.nn.Parameter, torch.Tensor]
    bytes: int

    def bring(self, device: torch.device) -> None:
        for parameter, home in self.home.items():
            parameter.data = home.to(device, non_blocking=True)

    def leave(self) -> None:
        for parameter, home in self.home.items():
            parameter.data = home


class Adapters:
    """What LoRAs one transformer can have. For the one inference thread.

    `own`: those of the endpoint, part of every picture.
    """

    def __init__(
        self,
        transformer: Any,
        table: Table | None,
        dtype: torch.dtype,
        device: str,
        model: str = "",
        own: Sequence[LoraUse] = (),
    ):
        self.transformer, self.table, self.dtype, self.device = transformer, table, dtype, torch.device(device)
        self.model, self.own = model, tuple(own)
        self.weights: OrderedDict[str, Weights] = OrderedDict()  # by the file's key, the latest used last
        self.layers: OrderedDict[tuple[str, ...], dict[str, Any]] = OrderedDict()  # peft's, by the files' keys
        self.shapes: dict[str, tuple[int, int]] = {}

    def require_fits(self, uses: Sequence[LoraUse]) -> None:
        """Refuse a LoRA that is made for another model, or that this plan cannot apply."""
        self.shapes = self.shapes or shapes_of(self.transformer)
        for use in uses:
            with blamed(use):
                require_layers(use, self.shapes, self.model)
                self.require_embedder(use)

    def require_embedder(self, use: LoraUse) -> None:
        if self.table and (embedder := next((one for one in use.file.layers if "time_text_embed" in one), None)):
            raise InvalidInput(
                f"{use.label} changes {embedder}, of which this endpoint keeps only what the modulation makes of "
                "it; QWEN_SAVINGS without table keeps it whole"
            )

    @contextmanager
    def applied(self, uses: Sequence[LoraUse]) -> Iterator[None]:
        """Within, the transformer computes with these LoRAs and the endpoint's own."""
        scales: dict[str, float] = {}
        files = {use.file.key: use.file for use in (*self.own, *uses)}
        for use in (*self.own, *uses):
            scales[use.file.key] = scales.get(use.file.key, 0.0) + use.scale
        if not files:
            yield
            return
        held: dict[str, Weights] = {}
        layers: dict[str, Any] = {}
        try:
            for use in (*self.own, *uses):
                held[use.file.key] = self.held(use)
            layers = self.layers_of(files)
            for weights in held.values():
                weights.bring(self.device)
            self.put(layers, scales)
            self.change_table(files, scales)
            yield
        finally:
            for name, layer in layers.items():
                self.transformer.set_submodule(name, layer.base_layer)
            if self.table:
                self.table.change(())
            for weights in held.values():
                weights.leave()
            self.forget()

    def put(self, layers: Mapping[str, Any], scales: Mapping[str, float]) -> None:
        for name, layer in layers.items():
            for key, scaling in layer.lora_alpha.items():
                layer.scaling[key] = scales[key] * scaling
            self.transformer.set_submodule(name, layer)

    def change_table(self, files: Mapping[str, LoraFile], scales: Mapping[str, float]) -> None:
        """What LoRAs of the modulation add to the table's rows, which stand for its layers."""
        if self.table:
            self.table.change(
                LowRank(*place, self.weights[key].down[name], self.weights[key].up[name], scales[key] * layer.scaling)
                for key, file in files.items()
                for name, layer in file.layers.items()
                if (place := lookup_at(self.transformer, name))
            )

    def held(self, use: LoraUse) -> Weights:
        """The file's weights, read where they are not in memory from a job before."""
        key = use.file.key
        if key not in self.weights:
            with blamed(use):
                self.weights[key] = self.read(use)
        self.weights.move_to_end(key)
        return self.weights[key]

    def read(self, use: LoraUse) -> Weights:
        """Raises `InvalidInput` where a number is none, which would spoil the picture without a word, and where the
        file is no longer the one that was opened."""
        file, home = use.file, {}

        def kept(name: str) -> torch.nn.Parameter:
            tensor = pinned(file.tensors.tensor(name).to(self.dtype), self.device)
            if not tensor.isfinite().all():
                raise InvalidInput(f"{use.label} holds infinite numbers, or none, in {name}")
            parameter = torch.nn.Parameter(tensor, requires_grad=False)
            home[parameter] = parameter.data
            return parameter

        down = {name: kept(layer.names.down) for name, layer in file.layers.items()}
        up = {name: kept(layer.names.up) for name, layer in file.layers.items()}
        if file.changed():
            raise InvalidInput(f"{use.label} was written anew before it was read; send the job again")
        return Weights(down, up, home, file.parameters * self.dtype.itemsize)

    def layers_of(self, files: Mapping[str, LoraFile]) -> dict[str, Any]:
        """peft's layers for LoRAs used together, by the transformer's names."""
        names = tuple(files)
        if names not in self.layers:
            made: dict[str, Any] = {}
            for key, file in files.items():
                for name, layer in file.layers.items():
                    if not lookup_at(self.transformer, name):
                        base = made.get(name, self.transformer.get_submodule(name))
                        weights = self.weights[key]
                        made[name] = adapted(base, key, layer, weights.down[name], weights.up[name])
            self.layers[names] = made
        self.layers.move_to_end(names)
        return self.layers[names]

    def forget(self) -> None:
        """Let go of the longest unused beyond the bounds; the endpoint's own stay."""
        keep = {use.file.key for use in self.own}
        for key in [one for one in self.weights if one not in keep]:
            if sum(one.bytes for one in self.weights.values()) <= HELD_BYTES:
                break
            del self.weights[key]
        whole = [names for names in self.layers if all(name in self.weights for name in names)]
        self.layers = OrderedDict((names, self.layers[names]) for names in whole[-HELD_SETS:])


@contextmanager
def blamed(use: LoraUse) -> Iterator[None]:
    """What is wrong with a LoRA of the endpoint's own is no fault of the job's."""
    try:
        yield
    except InvalidInput as error:
        raise JobError("model_unavailable", error.sentence) if use.own else error from None


def adapted(base: Any, key: str, layer: Layer, down: torch.nn.Parameter, up: torch.nn.Parameter) -> Any:
    """peft's layer around a linear one of any precision, or the one that is already around it with one LoRA more."""
    from peft.tuners.lora import Linear

    config = configuration(layer.rank)
    with torch.device("meta"):  # peft would draw weights at random
        if isinstance(base, Linear):
            base.update_layer(key, layer.rank, lora_alpha=layer.scaling, config=config)
        else:
            base = Linear(base, key, config=config, r=layer.rank, lora_alpha=layer.scaling)
    base.lora_A[key].weight, base.lora_B[key].weight = down, up
    base.set_adapter(list(base.lora_A), inference_mode=True)
    return base  # not `.eval()`, which would reach into the layer that it stands for


@functools.cache
def configuration(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, inference_mode=True)


def shapes_of(transformer: Any) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear layer, also of those for which the table stands."""
    dim, found = transformer.inner_dim, {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = module.out_features, module.in_features
        elif isinstance(module, Lookup):
            found[f"{name}.1"] = 6 * dim, dim
    return found


def lookup_at(transformer: Any, name: str) -> tuple[int, int] | None:
    """The block and the stream of a modulation layer for which the table stands."""
    module = transformer.get_submodule(name.rpartition(".")[0])
    return (module.block, module.stream) if isinstance(module, Lookup) else None
