"""Workers of two cards: the variable that has them draw on both, what the second saves and costs, and the proof.

Knows nothing of how the worker divides a picture between its cards.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from qwen_worker.errors import LoadError
from qwen_worker.memory import two_cards
from qwen_worker.memory.footprint import GB
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.model_settings import Gpus
from qwen_worker.settings import Settings

from .cards import Fit
from .errors import NotServing, UsageError
from .offers import Offer, article
from .runpod.schemas import JsonObject

VARIABLE = "QWEN_GPUS"
MOST = 2  # cards that a worker draws one picture on


def environment_for(count: int | None, env: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """The variable for workers of so many cards, unless it is among `env`. `present`: the endpoint's variables now.

    Raises `UsageError` for more cards than draw.
    """
    if count is not None and count > MOST:
        raise UsageError(f"--gpu-count must be 1 or {MOST}, not {count}: a picture is drawn on at most {MOST} cards.")
    if count is None or VARIABLE in env:
        return {}
    return {VARIABLE: str(count)} if count == MOST or VARIABLE in present else {}


def draws_on_two(settings: Settings, count: int) -> bool:
    """Whether workers of so many cards draw one picture on two."""
    return count >= MOST and settings.QWEN_GPUS is not Gpus.ONE


def obstacle_of(fit: Fit, settings: Settings, ram_gb: float) -> str:
    """Why the second card of the pool's workers would not draw, by the worker's own placement; empty where it does."""
    plan, pool = fit.plan, fit.pool
    if plan is None or pool.capability is None:
        return ""
    memory, ram = round(pool.memory * GB), round(ram_gb * GB)
    gpu = Gpu(pool.cards[0], pool.capability, memory, memory)
    cap = round(settings.QWEN_VRAM_GB * GB) if settings.QWEN_VRAM_GB else None
    try:
        two_cards.on_two_cards(plan, Machine(gpu, ram, ram), gpu, cap)
    except LoadError as error:
        return error.reason
    return ""


def notes_of(chosen: Sequence[Offer], with_one: Sequence[Offer], settings: Settings, ram_gb: float) -> list[str]:
    """What a job takes and costs both ways. `with_one`: what all pools offer for workers of one card."""
    notes: list[str] = []
    singles = {offer.fit.pool.id: offer for offer in with_one}
    for offer in chosen:
        name = offer.fit.pool.id
        if obstacle := obstacle_of(offer.fit, settings, ram_gb):
            notes.append(f"{name}: one of the two cards would draw alone: {obstacle} (--ram-gb {ram_gb:g}).")
            continue
        for task, figure in offer.seconds.items():
            single = singles[name].seconds.get(task)
            if figure and single:
                dollars, dollars_single = offer.dollars(task) or 0, singles[name].dollars(task) or 0
                notes.append(
                    f"{name}: {article(task)} takes ~{figure.seconds:.1f} s and ${dollars:.4f} on two cards, "
                    f"~{single.seconds:.1f} s and ${dollars_single:.4f} on one ({figure.basis})."
                )
    return notes


def require_two_drew(task: str, metadata: Mapping[str, object]) -> None:
    """Raises `NotServing` for a picture that had a second pass of guidance, and was drawn on one card."""
    guidance = metadata.get("guidance_scale")
    if isinstance(guidance, int | float) and guidance > 1 and metadata.get("gpus") != MOST:
        raise NotServing(f"{task}: metadata.gpus must be {MOST}, not {metadata.get('gpus')}: one card drew alone.")


def require_two_at_work(models: Sequence[JsonObject]) -> None:
    """Raises `NotServing` where a loaded model has no second card, with the worker's reason. `models`: of `health`."""
    for model in models:
        state = cast(JsonObject, model.get("second_card") or {}).get("state")
        if state != "on":
            raise NotServing(f"{model.get('model')}: the second card must be on; the worker says: {state}.")
