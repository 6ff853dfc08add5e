"""Stored tensors that a component's class does not know: what is harmless is logged, and anything else is refused.

The libraries drop such tensors. A weight whose scale is dropped then draws another picture, and nothing says so.
Knows nothing of how tensors are read.
"""

import re
from collections.abc import Iterable
from typing import Any

from ..errors import LoadError
from ..log import log_line

# What a class computes by itself, and former versions of it stored.
HARMLESS = re.compile(
    r"(^|\.)(original_inv_freq|inv_freq|position_ids|(cos|sin)_cached|(pos|neg)_freqs|num_batches_tracked)$"
)
# By a part of the names, where tensors come from that make no sense without code of their own.
ORIGINS = {
    r"scaled_fp8|comfy_quant|scale_weight|weight_scale|scale_input|input_scale": "ComfyUI scales weights by them",
    r"\.svd_|\.zero_point$|\.scale$": "SDNQ quantizes weights with them",
    r"absmax|quant_map|quant_state|\.SCB$": "bitsandbytes quantizes weights with them",
    r"lora_|\.lokr_": "they are a LoRA's",
}


def require_known(component: str, kind: type[Any], unknown: Iterable[str]) -> None:
    """Refuse tensors that would have a meaning. `unknown`: names that the class `kind` has no place for.

    Raises `LoadError`.
    """
    ignored: list[str] = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or []
    names = sorted(name for name in unknown if not any(re.search(pattern, name) for pattern in ignored))
    meaningful = [name for name in names if not HARMLESS.search(name)]
    if meaningful:
        origins = (words for pattern, words in ORIGINS.items() if any(re.search(pattern, name) for name in meaningful))
        origin = f" ({words})" if (words := next(origins, "")) else ""
        raise LoadError(
            f"{component}/ holds {len(meaningful)} tensors that its class does not know, {meaningful[0][:120]} among "
            f"them{origin}: without them it would draw other pictures"
        )
    if names:
        log_line(None, "INFO", f"{component}/: {len(names)} tensors are not needed, {names[0][:120]} among them")
