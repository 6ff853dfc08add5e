"""LoRAs on a transformer for the length of a job: a path beside each layer, y = W x + scale * B (A x), or a LoKr's.

The layers' own weights are never touched. Any precision therefore takes LoRAs, quantized ones too, and the next job
finds the transformer as this job found it, to the bit: while a job is drawn, peft's layers stand where the
transformer's own stood, and these return at its end. Between jobs the transformer's tree holds nothing of a LoRA, and
is moved and counted as if there were none. A LoRA's weights wait in host memory, as far as the plan leaves some, and
are on the card during its jobs. Where they would take the room of a picture there, each block's are on the card during
the block's own pass alone.

peft's own injection walks the whole tree, which takes a second each time; here its layers are made one by one. Compiled
blocks get layers of ours in their place, which all have one rank (`padded.py`).
Imports torch: import it inside functions. Knows nothing of jobs, nor where files come from.
"""

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from ..errors import InvalidInput, JobError
from ..memory import cuda
from ..memory.footprint import KEPT_LORA_BYTES
from ..model.modulation import Lookup, ModulationTable, RowChange
from .file import LoraFile, LoraLayer, LoraUse, require_layers, streamed_block
from .matrices import LoraWeights, read_weights
from .names import Kind
from .padded import LowRankPart, PaddedLinear, load_layers, padded_layers, unload_layers
from .products import AdaptedLinear, AddedProduct, product_of
from .ranks import RANK_MULTIPLE

KEPT_SETS = 4  # of LoRAs that were used together, for which peft's layers are kept

PeftLayer = Any  # peft's Linear, whose dictionaries of adapters have no types, or an `AdaptedLinear` around one


class Adapters:
    """The LoRAs of one transformer. For the one inference thread.

    `table`: stands for the transformer's modulation layers, if any; `model`: its name, for the errors;
    `always_applied`: the endpoint's LoRAs, part of every picture; `kept_bytes`: of host memory for all weights.
    """

    def __init__(
        self,
        transformer: Any,
        table: ModulationTable | None,
        dtype: torch.dtype,
        device: str,
        model: str = "",
        always_applied: Sequence[LoraUse] = (),
        kept_bytes: int = KEPT_LORA_BYTES,
    ):
        self.transformer, self.table, self.dtype, self.device = transformer, table, dtype, torch.device(device)
        self.model, self.always_applied, self.kept_bytes = model, tuple(always_applied), kept_bytes
        self.weights: OrderedDict[str, LoraWeights] = OrderedDict()  # by the file's key, the latest used last
        # By the keys of the files that are used together, and by the transformer's names.
        self.layers: OrderedDict[tuple[str, ...], dict[str, PeftLayer]] = OrderedDict()
        self.shapes: dict[str, tuple[int, int]] = {}

    def require_made_for_model(self, uses: Sequence[LoraUse]) -> None:
        """Raises `InvalidInput` for a LoRA that is made for another model, or that this plan cannot apply."""
        self.shapes = self.shapes or linear_shapes(self.transformer)
        for use in uses:
            with blame_owner(use):
                require_layers(use, self.shapes, self.model)
                self.require_embedder(use)

    def require_embedder(self, use: LoraUse) -> None:
        """Raises `InvalidInput` for a LoRA of the timestep embedder, from which the table's rows are computed."""
        embedder = next((name for name in use.file.layers if "time_text_embed" in name), None)
        if self.table and embedder:
            raise InvalidInput(
                f"{use.label} changes {embedder}, of which this endpoint keeps only what the modulation makes of "
                "it; QWEN_SAVINGS without table keeps it whole"
            )

    @contextmanager
    def apply(self, uses: Sequence[LoraUse], streamed: bool = False, rank: int = 0) -> Iterator[None]:
        """Within, the transformer computes with these LoRAs and the endpoint's own.

        `streamed`: the matrices of a block are on the card during its pass alone. `rank`: of the path that each matrix
        of the blocks gets, 0 for peft's layers.
        """
        scales: dict[str, float] = {}
        files = {use.file.key: use.file for use in (*self.always_applied, *uses)}
        for use in (*self.always_applied, *uses):
            scales[use.file.key] = scales.get(use.file.key, 0.0) + use.scale
        if not files:
            yield
            return
        loaded: dict[str, LoraWeights] = {}
        layers: dict[str, PeftLayer | PaddedLinear] = {}
        hooks = ExitStack()
        try:
            for use in (*self.always_applied, *uses):
                loaded[use.file.key] = self.weights_for(use, files)
            outside = self.make_layers(files, outside_blocks=True) if rank else {}
            layers = outside | self.padded_layers(files, scales, rank) if rank else dict(self.layers_for(files))
            self.load(loaded, layers, streamed, hooks)
            self.insert_layers(layers, scales)
            self.change_table(files, scales)
            yield
        finally:
            hooks.close()
            for name, layer in layers.items():
                self.transformer.set_submodule(name, layer.base_layer)
            if self.table:
                self.table.set_changes(())
            for weights in loaded.values():
                weights.unload()
            self.drop_unused()

    @contextmanager
    def example(self, rank: int = RANK_MULTIPLE) -> Iterator[None]:
        """Within, the blocks have what any LoRAs are to compiled ones: paths of noise beside all of their matrices."""
        generator = torch.Generator(self.device).manual_seed(0)

        def fill(matrix: torch.Tensor) -> torch.Tensor:
            # Together a tenth of what comes in, as a LoRA changes a layer's output by a part of it.
            return matrix.normal_(0, 0.3 * matrix.shape[1] ** -0.5, generator=generator)

        layers = padded_layers(self.transformer, {}, rank, self.dtype, self.device, fill)
        try:
            self.insert_layers(layers, {})
            yield
        finally:
            for name, layer in layers.items():
                self.transformer.set_submodule(name, layer.base_layer)

    def load(
        self,
        weights_by_key: Mapping[str, LoraWeights],
        layers: Mapping[str, PeftLayer | PaddedLinear],
        streamed: bool,
        hooks: ExitStack,
    ) -> None:
        """Bring the matrices to the card; those of blocks, if `streamed`, until `hooks` closes in their block's pass.

        The card runs copies and products in the order in which they are asked for, so that none waits for the host.
        """
        held = [weights for weights in weights_by_key.values() if weights.host_tensors]  # the others are on the card
        padded: defaultdict[str, list[PaddedLinear]] = defaultdict(list)  # by block
        for name, layer in layers.items():
            if isinstance(layer, PaddedLinear):
                padded[streamed_block(name)].append(layer)
        for weights in held:
            weights.load(self.device, weights.of_block("") if streamed or padded else None)
        for number, block in enumerate(self.transformer.transformer_blocks):
            name = f"transformer_blocks.{number}"
            if not streamed:
                load_layers(padded[name])
            elif padded:
                hook_block(block, partial(load_layers, padded[name]), partial(unload_layers, padded[name]), hooks)
            else:
                for weights in held:
                    own = weights.of_block(name)
                    hook_block(block, partial(weights.load, self.device, own), partial(weights.unload, own), hooks)

    def padded_layers(
        self, files: Mapping[str, LoraFile], scales: Mapping[str, float], rank: int
    ) -> dict[str, PaddedLinear]:
        """A layer of one rank for every matrix of the blocks; `files`, `scales`: by the files' keys."""
        parts: defaultdict[str, list[LowRankPart]] = defaultdict(list)
        for key, file in files.items():
            weights = self.weights[key]
            for name, layer in file.layers.items():
                if streamed_block(name):
                    matrices, scale = weights.matrices[name], scales[key] * layer.scaling
                    parts[name].append(LowRankPart(matrices["down"], matrices["up"], scale))
        return padded_layers(self.transformer, parts, rank, self.dtype, self.device)

    def insert_layers(self, layers: Mapping[str, PeftLayer | PaddedLinear], scales: Mapping[str, float]) -> None:
        """Replace the transformer's layers; `scales`: of the LoRAs, by their files' keys."""
        for name, layer in layers.items():
            if isinstance(layer, AdaptedLinear):
                layer.set_scales(scales)
            adapted = layer.inner if isinstance(layer, AdaptedLinear) else layer
            if not isinstance(adapted, PaddedLinear) and adapted is not layer.base_layer:
                for key, scaling in adapted.lora_alpha.items():
                    adapted.scaling[key] = scales[key] * scaling
            self.transformer.set_submodule(name, layer)

    def change_table(self, files: Mapping[str, LoraFile], scales: Mapping[str, float]) -> None:
        """Add to the table's rows what LoRAs add to the modulation layers, for which the table stands."""
        if self.table:
            self.table.set_changes(
                RowChange(*place, product_of(layer.kind, self.weights[key].matrices[name]), scales[key] * layer.scaling)
                for key, file in files.items()
                for name, layer in file.layers.items()
                if (place := lookup_place(self.transformer, name))
            )

    def weights_for(self, use: LoraUse, in_use: Collection[str] = ()) -> LoraWeights:
        """The file's weights, read unless an earlier job left them in memory; `in_use`: the keys of the job's files.

        Raises what `read_weights` raises.
        """
        key = use.file.key
        if key not in self.weights:
            with blame_owner(use):
                self.weights[key] = read_weights(use, self.dtype, self.device, self.make_room(use, in_use))
        self.weights.move_to_end(key)
        return self.weights[key]

    def make_room(self, use: LoraUse, in_use: Collection[str]) -> bool:
        """Drop the longest unused weights until host memory takes the file's too. Returns whether it does.

        The endpoint's own LoRAs are always taken: the plan counts them.
        """
        always_kept = {own.file.key for own in self.always_applied}
        fixed_bytes = sum(self.weights[key].host_bytes for key in self.weights if key in always_kept or key in in_use)
        left_bytes = self.kept_bytes - fixed_bytes - use.file.parameters * self.dtype.itemsize
        if use.file.key in always_kept or left_bytes < 0:
            return use.file.key in always_kept
        unused = [key for key in self.weights if key not in always_kept and key not in in_use]
        while sum(self.weights[key].host_bytes for key in unused) > left_bytes:
            self.drop(unused.pop(0))
        if self.device.type == "cuda":
            cuda.release_pinned_buffers()  # which torch would keep for tensors of the same sizes
        return True

    def layers_for(self, files: Mapping[str, LoraFile]) -> dict[str, PeftLayer]:
        """peft's layers for LoRAs used together, by the transformer's names; `files`: by their keys."""
        keys = tuple(files)
        if keys not in self.layers:
            self.layers[keys] = self.make_layers(files)
        self.layers.move_to_end(keys)
        return self.layers[keys]

    def make_layers(self, files: Mapping[str, LoraFile], outside_blocks: bool = False) -> dict[str, PeftLayer]:
        """peft's layers for LoRAs used together, if wanted without those of the blocks' matrices."""
        layers: dict[str, PeftLayer] = {}
        # peft's layers stand around the transformer's own alone, and so before those of other kinds.
        wanted = [(name, key, layer) for key, file in files.items() for name, layer in file.layers.items()]
        for name, key, layer in sorted(wanted, key=lambda entry: entry[2].kind is not Kind.LORA):
            if lookup_place(self.transformer, name) or (outside_blocks and streamed_block(name)):
                continue
            base, matrices = layers.get(name, self.transformer.get_submodule(name)), self.weights[key].matrices[name]
            if layer.kind is Kind.LORA:
                layers[name] = add_lora(base, key, layer, matrices["down"], matrices["up"])
            else:
                layers[name] = base if isinstance(base, AdaptedLinear) else AdaptedLinear(base)
                layers[name].products[key] = AddedProduct(layer.kind, matrices, layer.scaling)
        return layers

    def drop_unused(self) -> None:
        """At a job's end, drop the weights that host memory has no room for, and the longest unused of the layers."""
        for key in [key for key, weights in self.weights.items() if not weights.host_tensors]:
            self.drop(key)
        while len(self.layers) > KEPT_SETS:
            self.layers.popitem(last=False)

    def drop(self, key: str) -> None:
        """Drop a file's weights, and the layers that hold them."""
        del self.weights[key]
        self.layers = OrderedDict((keys, layers) for keys, layers in self.layers.items() if key not in keys)


def hook_block(block: Any, load: Callable[[], None], unload: Callable[[], None], hooks: ExitStack) -> None:
    """Until `hooks` closes, have the block call `load` before each pass and `unload` after it."""
    hooks.callback(block.register_forward_pre_hook(lambda *_: load()).remove)
    hooks.callback(block.register_forward_hook(lambda *_: unload()).remove)


@contextmanager
def blame_owner(use: LoraUse) -> Iterator[None]:
    """Within, what is wrong with a LoRA of the endpoint's own is `model_unavailable`: it is no fault of the job's."""
    try:
        yield
    except InvalidInput as error:
        raise JobError("model_unavailable", error.sentence) if use.from_settings else error from None


def add_lora(
    base: torch.nn.Module, key: str, layer: LoraLayer, down: torch.nn.Parameter, up: torch.nn.Parameter
) -> PeftLayer:
    """peft's layer around a linear layer of any precision; one of peft's gets this LoRA beside those that it has."""
    from peft.tuners.lora import Linear

    config = peft_config(layer.rank)
    scaling: Any = layer.scaling  # an alpha is annotated as a whole number, and may be any
    with torch.device("meta"):  # peft would draw weights at random
        if isinstance(base, Linear):
            base.update_layer(key, layer.rank, lora_alpha=scaling, config=config)
            peft_layer: PeftLayer = base
        else:
            peft_layer = Linear(base, key, config=config, r=layer.rank, lora_alpha=scaling)
    peft_layer.lora_A[key].weight, peft_layer.lora_B[key].weight = down, up
    peft_layer.set_adapter(list(peft_layer.lora_A), inference_mode=True)
    return peft_layer  # without `.eval()`, which would change the layer that it stands for


@functools.cache
def peft_config(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, inference_mode=True)


def linear_shapes(transformer: Any) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear layer by its name, also of those for which the modulation table stands."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes[name] = module.out_features, module.in_features
        elif isinstance(module, Lookup):
            shapes[f"{name}.1"] = 6 * transformer.inner_dim, transformer.inner_dim
    return shapes


def lookup_place(transformer: Any, name: str) -> tuple[int, int] | None:
    """(block, stream) of a modulation layer for which the table stands; None for any other layer."""
    module = transformer.get_submodule(name.rpartition(".")[0])
    return (module.block, module.stream) if isinstance(module, Lookup) else None
