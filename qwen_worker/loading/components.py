"""One component of a checkpoint: loaded in the plan's precision on its device, and trimmed of what is never used.

Torch, diffusers and transformers are imported inside functions. Knows nothing of jobs, or of what else is loaded.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.classes import PART_PATTERNS, WEIGHTS
from ..checkpoints.files import SINGLE_FILE
from ..checkpoints.stored_quantization import StoredQuantization, stored_quantization
from ..errors import LoadError
from ..memory.failures import Failure, attempt
from ..memory.footprint import LOSSY, Plan
from ..model_settings import LOAD_THREADS, Precision, Saving
from ..stopwatch import Stopwatch

if TYPE_CHECKING:
    from ..model.modulation import ModulationTable
    from ..ranks.shared_rows import SharedRows

LIBRARIES = ("diffusers", "transformers")
# What the worker's own reader takes of diffusers' components, also on a CPU, for which diffusers refuses it.
READ_QUANTIZED = StoredQuantization("bitsandbytes", 4)


@dataclass(frozen=True)
class Reading:
    """How weights are read. `threads` 0: by the libraries' own `from_pretrained`."""

    threads: int = LOAD_THREADS
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    shared_rows: "SharedRows | None" = None  # where the modulation table's rows go, if another process has them too


TEXT_ENCODERS = "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"  # that can be trimmed


def trim(component: Any, name: str, plan: Plan) -> None:
    """Apply the exact savings to one freshly loaded component, and have a text encoder place pictures as it learnt."""
    if not hasattr(component, "parameters"):
        return
    class_name = type(component).__name__
    if name == "vae" and class_name == "AutoencoderKLQwenImage":
        from ..model import vae as single_frame

        if Saving.SINGLE_FRAME in plan.savings:
            single_frame.skip_feature_cache(component)
        if Saving.CONV2D in plan.savings:
            single_frame.use_2d_convolutions(component)
    if name == "text_encoder":
        from ..model import residency, vision

        vision.mark_picture_tokens(component)
        if is_trimmed(class_name, plan):
            import torch

            # The pipelines take the last hidden states: the language head (545 million parameters) computes logits that
            # are dropped, unless it writes captions for a layered model. Without an input picture the vision tower (677
            # million) never runs. An input picture fails afterwards. In Qwen-Image-2.1 ten pictures' logits would take
            # 3 GB.
            if not plan.language_head:
                component.lm_head = torch.nn.Identity()
            if not plan.vision:
                component.model.visual = torch.nn.Identity()
            elif class_name == TEXT_ENCODERS[0] and plan.device == "cuda" and vision.convolves_slowly():
                vision.project_patches(component.model.visual)
        if plan.text_encoder == "streamed":
            residency.stream(component, plan.device)


def tabulate(transformer: Any, folder: Path, plan: Plan, reading: Reading | None = None) -> "ModulationTable | None":
    """The modulation table of the transformer in the checkpoint folder; None where the plan has none."""
    if not plan.table:
        return None
    from ..model import modulation
    from ..weights import modulation_rows

    reading = reading or Reading()
    memory = reading.shared_rows.make if reading.shared_rows else None
    with reading.stopwatch("table"):
        if not isinstance(transformer, modulation.TabledTransformer):
            return modulation.computed_table(transformer)
        if modulation_rows.exists(folder):
            return modulation_rows.read(transformer, folder, reading.threads, memory)
        return modulation_rows.build(transformer, folder, threads=max(1, reading.threads), memory=memory)


def is_component(value: Any) -> bool:
    """model_index.json holds [library, class] for a component, and plain values for the pipeline's own settings."""
    return isinstance(value, list) and len(value) == 2 and value[0] in LIBRARIES


def load_component(
    checkpoint: Checkpoint, name: str, entry: Sequence[str], plan: Plan, reading: Reading | None = None
) -> Any:
    """A component in the checkpoint's folder: a model, a tokenizer, a scheduler.

    `entry`: [library, class] as model_index.json has it. Raises `LoadError`, and whatever the library raises.
    """
    reading = reading or Reading()
    library, class_name = entry
    module = importlib.import_module(library)
    if not hasattr(module, class_name):
        raise LoadError(f"{checkpoint.name} needs {class_name}, which the installed {library} does not have")
    component_class, folder = getattr(module, class_name), checkpoint.local_folder / name
    if name not in WEIGHTS:
        with reading.stopwatch("other"):
            return component_class.from_pretrained(folder, local_files_only=True)
    if class_name == "QwenImageTransformer2DModel":
        component_class = transformer_class(plan)
    stored = stored_quantization(checkpoint.local_folder, name)
    if stored and not (library == "diffusers" and stored == READ_QUANTIZED and reading.threads):
        with reading.stopwatch("read"):
            return load_stored_quantized(component_class, library, folder, plan, stored)
    if not reading.threads and not (folder / SINGLE_FILE).is_file():  # which no library reads into a plan
        with reading.stopwatch("read"):
            return load_by_library(component_class, library, folder, plan)
    return read_component(component_class, library, folder, plan, reading)


def transformer_class(plan: Plan) -> Any:
    """The worker's own of the 20B architecture; where a table in bfloat16 is planned, one without what it replaces."""
    from ..model.modulation import TabledTransformer
    from ..model.transformer import WaitFreeTransformer

    return TabledTransformer if plan.table and plan.base_precision is Precision.BF16 else WaitFreeTransformer


def read_component(component_class: Any, library: str, folder: Path, plan: Plan, reading: Reading) -> Any:
    """The component by the worker's own reader, bit for bit what its library loads."""
    import torch

    from ..model import quantization
    from ..weights import assembly
    from ..weights import quantized as quantized_weights

    name, device = folder.name, home_device(folder.name, plan)
    pinned = plan.device == "cuda" and device == "cpu"
    target = assembly.Target(device, getattr(torch, plan.dtype), reading.threads, pinned, reading.stopwatch)
    is_stored_quantized = bool(quantized_weights.read_entries(folder) or stored_quantization(folder.parent, name))
    quantize = is_quantized(name, plan) and not is_stored_quantized
    if library != "transformers":
        quantizer = quantization.weight_quantizer(name, plan.precision, plan.device) if quantize else None
        return assembly.diffusers_model(component_class, folder, target, quantizer)
    config = None
    if quantize and not is_quantized_in_place(plan):
        config = quantization.configuration(name, plan.precision, plan.device)
    is_dropped = dropped_weights(component_class.__name__, plan)
    model, report = assembly.transformers_model(component_class, folder, target, is_dropped, config)
    require_weights(name, report)
    if quantize and is_quantized_in_place(plan):
        with reading.stopwatch("quantize"):
            quantization.quantize_model_to_nf4(model, name)
    return model


def dropped_weights(class_name: str, plan: Plan) -> Callable[[str], bool]:
    """Says of a weight of the text encoder, by its name, whether `trim` will drop it."""
    parts = plan.trimmed_parts if is_trimmed(class_name, plan) else []
    return lambda name: any(re.search(PART_PATTERNS[part][1], name) for part in parts)


def is_trimmed(class_name: str, plan: Plan) -> bool:
    return Saving.TRIM in plan.savings and class_name in TEXT_ENCODERS


def home_device(name: str, plan: Plan) -> str:
    """Where a component's weights are between jobs: streamed from host memory, or taking turns on the card."""
    streamed = name == "text_encoder" and plan.text_encoder == "streamed"
    swapped = name == "transformer" and plan.swapped and plan.precision not in LOSSY
    return "cpu" if streamed or swapped else plan.device


def load_stored_quantized(
    component_class: Any, library: str, folder: Path, plan: Plan, stored: StoredQuantization
) -> Any:
    """A component that is stored quantized, by its library. Raises `LoadError` in its words, or `MemoryError`."""
    from ..weights.quantized import require_shape

    if stored.method == "sdnq":
        importlib.import_module("sdnq")  # transformers knows the method from then on

    def load() -> Any:
        return load_by_library(component_class, library, folder, plan, is_stored_quantized=True)

    model = attempt(load)
    if not isinstance(model, Failure):
        for path, layer in model.named_modules():
            if getattr(getattr(layer, "weight", None), "quant_state", None) is not None:
                require_shape(f"{path}.weight", layer.weight, layer)
        return model
    if model.out_of_memory:
        raise MemoryError(model.reason)
    raise LoadError(f"{folder.name}/ is stored quantized by {stored}, and {library} cannot load it: {model.reason}")


def load_by_library(
    component_class: Any, library: str, folder: Path, plan: Plan, is_stored_quantized: bool = False
) -> Any:
    """The component by its library's `from_pretrained`."""
    import torch

    from ..model import quantization
    from ..weights.known import require_known

    name = folder.name
    # Weights go straight to the device: no second copy in RAM on the way to a GPU.
    options = {"dtype": getattr(torch, plan.dtype), "local_files_only": True, "device_map": home_device(name, plan)}
    quantize = is_quantized(name, plan) and not is_stored_quantized
    if quantize and not is_quantized_in_place(plan):
        options["quantization_config"] = quantization.configuration(name, plan.precision, plan.device)
    model, report = component_class.from_pretrained(folder, output_loading_info=True, **options)
    if library == "transformers":
        require_weights(name, report)
    if not is_stored_quantized:  # parts of quantized weights are unexpected to some of the libraries' versions
        require_known(name, component_class, report["unexpected_keys"])
    if quantize and is_quantized_in_place(plan):
        quantization.quantize_model_to_nf4(model, name)
    return model


def is_quantized(name: str, plan: Plan) -> bool:
    """Whether the plan has the component's matrices quantized."""
    lossy = plan.precision in LOSSY
    return lossy and (name == "transformer" or name == "text_encoder" and plan.text_encoder == "quantized")


def is_quantized_in_place(plan: Plan) -> bool:
    """Whether matrices are quantized once the component is loaded: bitsandbytes loads none onto a CPU."""
    return plan.precision is Precision.NF4 and plan.device == "cpu"


def require_weights(name: str, report: Mapping[str, Any]) -> None:
    """Refuse a component that lacks weights: transformers fills them with random numbers.

    The language head may be missing, since it is never used. `report`: what transformers says of a model's keys. Raises
    `LoadError`.
    """
    missing = sorted(set(report["missing_keys"]) - {"lm_head.weight"})
    if missing:
        raise LoadError(f"{name}/ lacks {len(missing)} of its weights, {missing[0]} among them")


def require_tokenizer(checkpoint: Checkpoint, pipe: Any) -> None:
    """Refuse a tokenizer that makes nothing of every prompt: transformers makes it of files that it cannot read."""
    tokenizer = getattr(pipe, "tokenizer", None) or pipe.processor.tokenizer
    if not tokenizer("a").input_ids:
        raise LoadError(f"{checkpoint.name} has a tokenizer without a vocabulary")
