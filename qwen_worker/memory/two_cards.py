"""What a second card takes and must have, where two draw one picture: the same plan on both, or why the first is alone.

The second card has the transformers and works as the first does, without text encoders and VAEs. The plan of the first
is made without a thought of it: no second card costs a picture its precision. Pure: sizes in, a plan or a refusal with
its figures out. Knows nothing of torch, files or processes.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..errors import LoadError
from .footprint import GB, Model, Plan
from .machine import Machine
from .nvml import Gpu
from .placement import PROCESS_BYTES, USABLE, names_of, pinnable, savings_apply_to_all

ARCHITECTURE = "only transformers of the 20B architecture are drawn on two cards"


def on_two_cards(
    plan: Plan, machine: Machine, second: Gpu | None, vram_cap_bytes: int | None = None, pinned_cost: int = 1
) -> Plan:
    """The plan of the first card for both. `second`: None where there is none; on a CPU there is nothing to have.

    `vram_cap_bytes`: that may be used of each card; `pinned_cost`: bytes of RAM that a pinned byte takes. Raises
    `LoadError` with what is needed and what is there.
    """
    if not savings_apply_to_all(plan.models):
        raise LoadError(f"{names_of(plan.models)}: {ARCHITECTURE}")
    if plan.device == "cpu":
        return on_two_processes(plan)
    if machine.gpu is None or second is None:
        raise LoadError("this worker has one card that CUDA can use")
    require_like(machine.gpu, second)
    room_bytes = round(second.free_bytes * USABLE)
    if vram_cap_bytes is not None:
        room_bytes = min(room_bytes, vram_cap_bytes)
    needed_bytes = second_card_bytes(plan)
    if needed_bytes > room_bytes:
        raise LoadError(
            f"the second card would need {needed_bytes / GB:.1f} GB, and {room_bytes / GB:.1f} GB of its "
            f"{second.total_bytes / GB:.1f} GB can be had: something else holds the rest"
        )
    both = replace(plan, cards=2)
    pinnable_bytes = max(0, pinnable(machine) - PROCESS_BYTES) // pinned_cost
    if both.pinned_bytes > pinnable_bytes:
        raise LoadError(
            f"two processes would pin {both.pinned_bytes / GB:.1f} GB of RAM, and {pinnable_bytes / GB:.1f} GB can be, "
            "beside the processes"
        )
    return replace(both, spare_bytes=(pinnable_bytes - both.pinned_bytes) // 2)


def on_two_processes(plan: Plan) -> Plan:
    """The same on a CPU, where both processes compute in RAM: for tests."""
    needed_bytes = sum(map(plan.transformer_bytes, plan.models))
    if needed_bytes > plan.spare_bytes:
        raise LoadError(
            f"a second process would need {needed_bytes / GB:.1f} GB of RAM, and {plan.spare_bytes / GB:.1f} GB are "
            "free"
        )
    return replace(plan, cards=2, spare_bytes=(plan.spare_bytes - needed_bytes) // 2)


def require_like(first: Gpu, second: Gpu) -> None:
    """Raises `LoadError` for cards of two kinds, which may round differently, and of which one waits for the other."""
    if (first.name, first.capability, first.total_bytes) != (second.name, second.capability, second.total_bytes):
        words = [f"{gpu.name} ({gpu.total_bytes / GB:.1f} GB)" for gpu in (first, second)]
        raise LoadError(f"the two cards differ: {' and '.join(words)}")


def second_card_bytes(plan: Plan) -> int:
    """The most of the second card that a picture of 1024 x 1024 takes, an edit's where a model edits."""
    alone = replace(plan, models=tuple(map(transformer_alone, plan.models)), text_encoder="resident")
    return alone.peak_bytes(1024, 1024, int(any(model.edits for model in plan.models)))


def transformer_alone(model: Model) -> Model:
    """The model without all but its transformer."""
    others = {"decode": 0.0, "decode_frame": 0.0, "encode": 0.0, "encode_frame": 0.0, "tiled": 0.0, "encode_token": 0}
    return replace(
        model,
        parameters=of_transformer(model.parameters),
        packed=of_transformer(model.packed),
        working=replace(model.working, **others),
    )


def of_transformer(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name == "transformer"}
