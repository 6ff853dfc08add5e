"""One component of a checkpoint: loaded in the plan's precision on its device, and trimmed of what is never used.

Torch, diffusers and transformers are imported inside functions. Knows nothing of jobs, or of what else is loaded.
"""

import importlib
import logging
import os
from typing import Any

from . import quantization
from .checkpoint import WEIGHTS, Checkpoint
from .errors import LoadError
from .footprint import CONTEXT_BYTES, LOSSY, Plan
from .settings import Precision, Saving

LIBRARIES = ("diffusers", "transformers")


def cap_memory(plan: Plan, total: int) -> None:
    """Keep torch from taking what the plan leaves to others: an error here, not another process's."""
    import torch

    torch.cuda.set_per_process_memory_fraction(min(1.0, (plan.limit - CONTEXT_BYTES) / total))


def trim(component: Any, name: str, plan: Plan) -> None:
    """The exact savings on one freshly loaded component."""
    if not hasattr(component, "parameters"):
        return
    class_name = type(component).__name__
    if name == "vae" and class_name == "AutoencoderKLQwenImage":
        from . import single_frame

        if Saving.SINGLE_FRAME in plan.savings:
            single_frame.without_cache(component)
        if Saving.CONV2D in plan.savings:
            single_frame.as_2d(component)
    if name == "text_encoder":
        from . import residency, text_trims

        if Saving.TRIM in plan.savings and class_name == "Qwen2_5_VLForConditionalGeneration":
            text_trims.drop_language_head(component)
            if not plan.vision:
                text_trims.drop_vision(component)
        if plan.text_encoder == "streamed":
            residency.stream(component, plan.device)


def tabulate(transformer: Any, found: Checkpoint, plan: Plan) -> Any:
    """The modulation table that the plan asks for, or None."""
    if not plan.table:
        return None
    from . import modulation

    if isinstance(transformer, modulation.TabledTransformer):
        return modulation.build(transformer, found.folder)
    return modulation.compute(transformer)


def import_quietly() -> None:
    """Import what builds pipelines: the quantization libraries grumble about optional parts that are not used here."""
    noisy = [logging.getLogger(name) for name in ("bitsandbytes", "torch.utils._pytree")]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    chosen = os.environ.get("DIFFUSERS_VERBOSITY")  # read once, by the import
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    diffusers = importlib.import_module("diffusers")
    importlib.import_module("diffusers.quantizers")
    if chosen is None:
        del os.environ["DIFFUSERS_VERBOSITY"]
        diffusers.utils.logging.set_verbosity_warning()
    for logger in noisy:
        logger.setLevel(logging.NOTSET)


def is_component(value: Any) -> bool:
    """model_index.json holds [library, class] for a component, and plain values for the pipeline's own settings."""
    return isinstance(value, list) and len(value) == 2 and value[0] in LIBRARIES


def load_component(found: Checkpoint, name: str, value: list[str], plan: Plan) -> Any:
    import torch

    library, class_name = value
    module = importlib.import_module(library)
    if not hasattr(module, class_name):
        raise LoadError(f"{found.name} needs {class_name}, which the installed {library} does not have")
    kind = getattr(module, class_name)
    if name not in WEIGHTS:
        return kind.from_pretrained(found.folder / name, local_files_only=True)
    if name == "transformer" and plan.table and plan.plain is Precision.BF16:
        from .modulation import TabledTransformer as kind
    # Weights go straight to the device: no second copy in RAM on the way to a GPU.
    streamed = name == "text_encoder" and plan.text_encoder == "streamed"
    options = {"dtype": getattr(torch, plan.dtype), "local_files_only": True}
    options["device_map"] = "cpu" if streamed else plan.device
    quantized = quantizes(name, plan)
    if quantized and not in_place(plan):
        options["quantization_config"] = quantization.configuration(name, plan.precision, plan.device)
    if library == "transformers":
        model, report = kind.from_pretrained(found.folder / name, output_loading_info=True, **options)
        require_weights(name, report)
    else:
        model = kind.from_pretrained(found.folder / name, **options)
    if quantized and in_place(plan):
        quantization.nf4_in_place(model, name)
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
