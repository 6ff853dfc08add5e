"""One component of a checkpoint: loaded in the plan's precision on its device, and trimmed of what is never used.

Torch, diffusers and transformers are imported inside functions. Knows nothing of jobs, or of what else is loaded.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import PART_NAMES, WEIGHTS, Checkpoint
from ..errors import LoadError
from ..memory.footprint import LOSSY, Plan
from ..settings import LOAD_THREADS, Precision, Saving
from ..stopwatch import Stopwatch

LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class Reading:
    """How weights are read. `threads` 0: by the libraries' own `from_pretrained`."""

    threads: int = LOAD_THREADS
    stages: Stopwatch = field(default_factory=Stopwatch)


def trim(component: Any, name: str, plan: Plan) -> None:
    """The exact savings on one freshly loaded component."""
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
        from ..model import residency

        if Saving.TRIM in plan.savings and class_name == "Qwen2_5_VLForConditionalGeneration":
            import torch

            # The pipelines take the last hidden states: the language head (545 million parameters) computes logits that
            # are dropped, and without an input picture the vision tower (677 million) never runs. An input picture
            # fails afterwards.
            component.lm_head = torch.nn.Identity()
            if not plan.vision:
                component.model.visual = torch.nn.Identity()
        if plan.text_encoder == "streamed":
            residency.stream(component, plan.device)


def tabulate(transformer: Any, found: Checkpoint, plan: Plan, how: Reading | None = None) -> Any:
    """The modulation table that the plan asks for, or None."""
    if not plan.table:
        return None
    from ..model import modulation
    from ..weights import modulation_rows

    how = how or Reading()
    with how.stages("table"):
        if not isinstance(transformer, modulation.TabledTransformer):
            return modulation.computed_table(transformer)
        if modulation_rows.exists(found.folder):
            return modulation_rows.read(transformer, found.folder, how.threads)
        return modulation_rows.build(transformer, found.folder, threads=max(1, how.threads))


def is_component(value: Any) -> bool:
    """model_index.json holds [library, class] for a component, and plain values for the pipeline's own settings."""
    return isinstance(value, list) and len(value) == 2 and value[0] in LIBRARIES


def load_component(found: Checkpoint, name: str, value: list[str], plan: Plan, how: Reading | None = None) -> Any:
    """A component of the checkpoint in `found.folder`; `value` is [library, class] as model_index.json has it."""
    how = how or Reading()
    library, class_name = value
    module = importlib.import_module(library)
    if not hasattr(module, class_name):
        raise LoadError(f"{found.name} needs {class_name}, which the installed {library} does not have")
    kind = getattr(module, class_name)
    if name not in WEIGHTS:
        with how.stages("other"):
            return kind.from_pretrained(found.folder / name, local_files_only=True)
    if name == "transformer" and plan.table and plan.plain is Precision.BF16:
        from ..model.modulation import TabledTransformer as kind
    if not how.threads:
        with how.stages("read"):
            return load_by_library(kind, library, found.folder / name, plan)
    return read(kind, library, found.folder / name, plan, how)


def read(kind: Any, library: str, folder: Path, plan: Plan, how: Reading) -> Any:
    """The component by our own reader, bit for bit what its library loads."""
    import torch

    from ..model import quantization
    from ..weights import assembly
    from ..weights import quantized as quantized_weights

    name, device = folder.name, home(folder.name, plan)
    pinned = plan.device == "cuda" and device == "cpu"
    target = assembly.Target(device, getattr(torch, plan.dtype), how.threads, pinned, how.stages)
    quantized = quantizes(name, plan) and not quantized_weights.read_entries(folder)
    if library != "transformers":
        quantize = quantization.weight_quantizer(name, plan.precision, plan.device) if quantized else None
        return assembly.diffusers_model(kind, folder, target, quantize)
    config = None
    if quantized and not in_place(plan):
        config = quantization.configuration(name, plan.precision, plan.device)
    model, report = assembly.transformers_model(kind, folder, target, dropped(kind.__name__, plan), config)
    require_weights(name, report)
    if quantized and in_place(plan):
        with how.stages("quantize"):
            quantization.quantize_model_to_nf4(model, name)
    return model


def dropped(class_name: str, plan: Plan) -> Callable[[str], bool]:
    """Whether a weight of the text encoder is one that `trim` will drop."""
    parts = [] if not trims(class_name, plan) else ["lm_head"] if plan.vision else ["lm_head", "vision"]
    return lambda name: any(re.search(PART_NAMES[part][1], name) for part in parts)


def trims(class_name: str, plan: Plan) -> bool:
    return Saving.TRIM in plan.savings and class_name == "Qwen2_5_VLForConditionalGeneration"


def home(name: str, plan: Plan) -> str:
    """Where a component's weights are between jobs: streamed from host memory, or taking turns on the card."""
    streamed = name == "text_encoder" and plan.text_encoder == "streamed"
    turns = name == "transformer" and plan.swapped and plan.precision not in LOSSY
    return "cpu" if streamed or turns else plan.device


def load_by_library(kind: Any, library: str, folder: Path, plan: Plan) -> Any:
    """The component by its library's `from_pretrained`."""
    import torch

    from ..model import quantization

    name = folder.name
    # Weights go straight to the device: no second copy in RAM on the way to a GPU.
    options = {"dtype": getattr(torch, plan.dtype), "local_files_only": True, "device_map": home(name, plan)}
    quantized = quantizes(name, plan)
    if quantized and not in_place(plan):
        options["quantization_config"] = quantization.configuration(name, plan.precision, plan.device)
    if library == "transformers":
        model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
        require_weights(name, report)
    else:
        model = kind.from_pretrained(folder, **options)
    if quantized and in_place(plan):
        quantization.quantize_model_to_nf4(model, name)
    return model


def quantizes(name: str, plan: Plan) -> bool:
    lossy = plan.precision in LOSSY
    return lossy and (name == "transformer" or name == "text_encoder" and plan.text_encoder == "quantized")


def in_place(plan: Plan) -> bool:
    return plan.precision is Precision.NF4 and plan.device == "cpu"


def require_weights(name: str, report: dict) -> None:
    """transformers fills what is missing with random numbers. The language head is never used."""
    missing = sorted(set(report["missing_keys"]) - {"lm_head.weight"})
    if missing:
        raise LoadError(f"{name}/ lacks {len(missing)} of its weights, {missing[0]} among them")


def require_tokenizer(found: Checkpoint, pipe: Any) -> None:
    """transformers makes an empty tokenizer of files that it cannot read, and every prompt nothing."""
    tokenizer = getattr(pipe, "tokenizer", None) or pipe.processor.tokenizer
    if not tokenizer("a").input_ids:
        raise LoadError(f"{found.name} has a tokenizer without a vocabulary")
