"""Whether a component's weights are stored as its config.json says, with all that each of them needs.

The libraries fill in or read on where a part is missing or too short, and kernels read beyond their memory. Reads
headers, and of weights in 4 bits the few bytes of JSON that bitsandbytes puts beside each. Knows nothing of how weights
are loaded.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from ..errors import LoadError
from .files import Json, StoredTensor, explain_read_errors, whole_numbers
from .stored_quantization import PARAMETERS, StoredQuantization, nf4_parts, plain_tensors

STATE, KINDS = "quant_state.bitsandbytes__", ("nf4", "fp4")
STATE_BYTES = 10_000  # some two hundred are usual
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # numbers that share a scale
DTYPES = ("float32", "float16", "bfloat16")
MAX_NUMBERS = 2**50  # of one weight
LEVELS, NESTED_LEVELS = 16, 256  # values that a number in 4 bits, and a scale in 8, may have

Parts = dict[str, tuple[int, str]]  # by a tensor's name, how many numbers it must have, and their dtype


def require_stored_so(component: str, stored: StoredQuantization | None, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse weights that are stored in another way than the component's config.json says, or lack a part.

    `tensors`: of the component, by name. Raises `LoadError` naming a tensor.
    """
    integers = [
        name
        for name, tensor in tensors.items()
        if not tensor.dtype.startswith(("F", "BF")) and name.rpartition(".")[2] in PARAMETERS
    ]
    if stored is None:
        if integers:
            raise LoadError(
                f"{component}/ holds {len(integers)} weights as whole numbers, {integers[0][:120]} among them, and its "
                "config.json has no quantization_config that says what they mean"
            )
        return
    weights = sorted({*integers, *(nf4_parts(tensors) if stored.bits == 4 else ())})
    if not weights and (stored.bits or len(plain_tensors(tensors.values())) == len(tensors)):
        raise LoadError(
            f"{component}/config.json says in quantization_config that the weights are stored by {stored}, and they "
            "are plain ones: they can be loaded once quantization_config is taken out"
        )
    states = read_states(component, weights, tensors) if stored.bits == 4 else {}
    for name in weights if stored.bits else ():
        label = f"{component}/ is damaged: {name[:120]} is stored by {stored}"
        parts = parts_of_8_bits(name, tensors) if stored.bits == 8 else parts_of_4_bits(name, tensors, states, label)
        for part, (count, dtype) in parts.items():
            require_part(tensors.get(part), part.rpartition(".")[2], count, dtype, label)


def read_states(component: str, weights: Iterable[str], tensors: Mapping[str, StoredTensor]) -> dict[str, Json]:
    """By the names of weights in 4 bits, what bitsandbytes says of each in JSON, as far as that can be read."""
    owners = {f"{name}.{STATE}{kind}": name for name in weights for kind in KINDS}
    stored = sorted((tensors[name] for name in owners if name in tensors), key=lambda one: (one.file, one.start))
    states: dict[str, Json] = {}
    for file, group in itertools.groupby(stored, key=lambda one: one.file):
        with explain_read_errors(f"{component}/{file.name}"), file.open("rb") as stream:
            for tensor in group:
                stream.seek(tensor.start)
                with suppress(ValueError, RecursionError):
                    state: Any = json.loads(stream.read(min(tensor.size, STATE_BYTES)))
                    if isinstance(state, dict):
                        states[owners[tensor.name]] = cast(Json, state)
    return states


def parts_of_4_bits(name: str, tensors: Mapping[str, StoredTensor], states: Mapping[str, Json], label: str) -> Parts:
    """What a weight in 4 bits needs beside itself. Raises `LoadError` where that cannot be told."""
    if name not in tensors:
        raise LoadError(f"{label}, and the weight itself is missing")
    if (state := states.get(name)) is None:
        raise LoadError(f"{label}, and its quant_state is missing or cannot be read")
    block: Any = state.get("blocksize")
    nested_block: Any = state.get("nested_blocksize")
    try:
        count = math.prod(whole_numbers(state.get("shape"))[:8])
    except ValueError:
        count = -1
    is_read = (
        0 <= count < MAX_NUMBERS
        and is_block_size(block)
        and state.get("dtype") in DTYPES
        and state.get("quant_type") in KINDS
    )
    blocks = -(-count // block) if is_read else 0
    parts: Parts = {f"{name}.quant_map": (LEVELS, "F32"), f"{name}.absmax": (blocks, "F32")}
    absmax = tensors.get(f"{name}.absmax")
    if absmax and absmax.dtype == "U8":  # quantized itself
        is_read = is_read and is_block_size(nested_block) and state.get("nested_dtype") in DTYPES
        is_read = is_read and isinstance(state.get("nested_offset"), (int, float))
        parts[f"{name}.absmax"] = (blocks, "U8")
        parts[f"{name}.nested_quant_map"] = (NESTED_LEVELS, "F32")
        parts[f"{name}.nested_absmax"] = (-(-blocks // nested_block) if is_read else 0, "F32")
    if not is_read:
        raise LoadError(f"{label}, and its quant_state makes no sense")
    # A weight may be filled up to a whole word.
    if not 0 <= 2 * tensors[name].size - count < LEVELS:
        raise LoadError(f"{label} and has {tensors[name].size:,} bytes, where its quant_state says {count:,} numbers")
    return parts


def is_block_size(value: object) -> bool:
    return type(value) is int and value in BLOCK_SIZES


def parts_of_8_bits(name: str, tensors: Mapping[str, StoredTensor]) -> Parts:
    """What a weight in 8 bits needs beside itself: a scale for each row."""
    rows = tensors[name].shape[:1]
    return {f"{name.rpartition('.')[0]}.SCB": (math.prod(rows), "F32")}


def require_part(tensor: StoredTensor | None, part: str, count: int, dtype: str, label: str) -> None:
    """Refuse a part of a weight that is missing or has not so many numbers. Raises `LoadError`."""
    if tensor is None:
        raise LoadError(f"{label}, and its {part} is missing")
    found = math.prod(tensor.shape)
    if (found, tensor.dtype) != (count, dtype):
        raise LoadError(f"{label}, and its {part} has {found:,} numbers as {tensor.dtype}, not {count:,} as {dtype}")
