"""RunPod's pools of cards: what they cost, what there is of them now, and which of them the models fit.

Whether and how models fit is the worker's own placement. Written down here are only the compute capabilities, which the
catalogue does not name. Knows nothing of an endpoint's configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from qwen_worker.checkpoints import checkpoint, classes, controlnet
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.jobs.presets import MODELS as MODEL_SETTINGS
from qwen_worker.memory import placement
from qwen_worker.memory.card import NEWER_BUILD
from qwen_worker.memory.footprint import GB, Plan
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.settings import Settings
from qwen_worker.speed.speedups import may_compile

from .errors import DeployError, UsageError
from .runpod.api import Api
from .runpod.schemas import GpuType

# The least compute capability of the generation that a pool is named after: a worker may get any card of its pool.
CAPABILITY = {"AMPERE": (8, 0), "ADA": (8, 9), "HOPPER": (9, 0), "BLACKWELL": (10, 0)}
MISNAMED = {"ADA_32_PRO": (12, 0)}  # the RTX 5090, a Blackwell card
# The first CUDA with kernels for a capability: torch's builds for earlier ones fail at the first operation.
BLACKWELL, BLACKWELL_CUDA = (10, 0), (12, 8)
STOCK = ("NONE", "LOW", "MEDIUM", "HIGH")
NO_MODEL = "/none"  # a folder that no worker has: what endpoints of one task had in place of QWEN_TASKS


@dataclass(frozen=True)
class Pool:
    """`memory` is of its smallest card, in GB (1e9 bytes), `price` in dollars an hour, 0 for none
    named; `types` are the cards' ids."""

    id: str
    cards: tuple[str, ...]
    types: tuple[str, ...]
    memory: int
    price: float
    stock: str

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability that every card of the pool has; None for a generation not known here."""
        return capability_of(self.id)

    def runs(self, cuda: str | None) -> bool:
        """Whether torch built for this CUDA has kernels for the cards."""
        is_before_blackwell = cuda is not None and tuple(map(int, cuda.split("."))) < BLACKWELL_CUDA
        return self.capability is None or self.capability < BLACKWELL or not is_before_blackwell


def capability_of(pool_id: str) -> tuple[int, int] | None:
    return MISNAMED.get(pool_id) or CAPABILITY.get(pool_id.split("_")[0])


@dataclass(frozen=True)
class Fit:
    """A pool with the layout that its workers will choose, or why they cannot serve."""

    pool: Pool
    plan: Plan | None
    reason: str = ""

    @property
    def layout(self) -> str:
        """The layout in a few words."""
        return describe_layout(self.plan) if self.plan else self.reason


def describe_layout(plan: Plan) -> str:
    """A layout in a few words, which tell it from every other that draws in other seconds."""
    notes = ["modulation table"] * plan.table + ["take turns"] * plan.swapped
    notes += [f"text encoder {plan.text_encoder}"] * (plan.text_encoder != "resident")
    return ", ".join([plan.precision.value, *notes])


def read_pools(api: Api, min_cuda: str | None = None, data_centers: Sequence[str] = ()) -> list[Pool]:
    """The pools that serverless offers, cheapest first, with their stock on hosts from this CUDA version.

    `data_centers`: those whose stock counts; all of them where none is named.
    """
    return group_pools(api.gpus(min_cuda), data_centers)


def group_pools(gpus: Sequence[GpuType], data_centers: Sequence[str] = ()) -> list[Pool]:
    """The catalogue's cards as pools, as `read_pools` has them."""
    cards_by_pool: dict[str, list[GpuType]] = {}
    for card in gpus:
        if (pool := card.get("pool")) and card["manufacturer"].upper() == "NVIDIA" and "serverless" in card["price"]:
            cards_by_pool.setdefault(pool, []).append(card)
    pools = [
        Pool(
            pool,
            tuple(card["name"] for card in cards),
            tuple(card["id"] for card in cards),
            min(card["memory"] for card in cards),
            max(hourly_price(card) for card in cards),
            max((stock_level(card, data_centers) for card in cards), key=STOCK.index),
        )
        for pool, cards in cards_by_pool.items()
    ]
    return sorted(pools, key=lambda pool: (pool.price, -STOCK.index(pool.stock), pool.id))


def hourly_price(card: GpuType) -> float:
    """Dollars an hour of the card; 0 where RunPod names no price that could be one."""
    return known_price(card["price"]["serverless"])


def known_price(price: object) -> float:
    """Dollars; 0 for what RunPod leaves out, and for what is no price."""
    return float(price) if isinstance(price, int | float) and 0 < price < inf else 0.0


def stock_level(card: GpuType, data_centers: Sequence[str] = ()) -> str:
    """One of `STOCK`; LOW, which rules no card out, where RunPod names no level or one that is not known here.

    In the named data centres it is NONE where RunPod lists none of them: it leaves out those without the card.
    """
    if not data_centers:
        return known_level(card.get("availability", ""))
    places = [place for place in card.get("dataCenters", []) if place["id"] in data_centers]
    return max((known_level(place["availability"]) for place in places), key=STOCK.index, default="NONE")


def known_level(level: str) -> str:
    return level if level in STOCK else "LOW"


def checkpoints_to_load(settings: Settings, tasks: Sequence[str]) -> list[checkpoint.Checkpoint]:
    """What the tasks load. Raises `UsageError` for a checkpoint whose size is not known."""
    checkpoints: list[checkpoint.Checkpoint] = []
    for task in tasks:
        name = getattr(settings, MODEL_SETTINGS[task])
        released = checkpoint.released(name)
        if released is None:
            names = ", ".join(classes.RELEASED)
            raise UsageError(
                f"{MODEL_SETTINGS[task]} is {name}, whose size is not known here (known: {names}): name the "
                "pools with --gpu and give --no-fit-check."
            )
        if task not in released.pipeline_class.tasks:
            raise UsageError(f"{MODEL_SETTINGS[task]}={name} is a {released.class_name}, which does not serve {task}.")
        if released not in checkpoints:
            checkpoints.append(released)
    return checkpoints


def fit(pool: Pool, settings: Settings, tasks: Sequence[str], ram_gb: float, cuda: str | None) -> Fit:
    """The worker's own placement on the pool's smallest card.

    The catalogue has no figure for RAM: `ram_gb` (1e9 bytes each) is assumed. `cuda` is the version that the image's
    torch is built for, None where that is not known.
    """
    if pool.capability is None:
        return Fit(pool, None, "a generation not known here")
    if not pool.runs(cuda):
        return Fit(pool, None, f"torch for CUDA {cuda} has no Blackwell kernels ({NEWER_BUILD})")
    memory, ram = round(pool.memory * GB), round(ram_gb * GB)
    machine = Machine(Gpu(pool.cards[0], pool.capability, memory, memory), ram, ram)
    cap = round(settings.QWEN_VRAM_GB * GB) if settings.QWEN_VRAM_GB else None
    try:
        found = checkpoints_to_load(settings, tasks)
        models = [as_model(released, found[:number]) for number, released in enumerate(found)]
        precision, savings, own_loras = settings.QWEN_PRECISION, settings.QWEN_SAVINGS, settings.own_lora_count
        compiled = may_compile(settings.QWEN_SPEEDUPS)
        control = controlnet.is_planned(settings.QWEN_CONTROLNET, found)
        plan = placement.plan(models, machine, precision, cap, savings, own_loras, compiled=compiled, control=control)
    except LoadError as error:
        return Fit(pool, None, f"too small: {error.reason}")
    return Fit(pool, plan)


def require_pools(names: Sequence[str], fits: Sequence[Fit], ram_gb: float, check_fit: bool = True) -> list[str]:
    """The named pools. Raises `UsageError` for one that is not there or, with `check_fit`, does not hold the models."""
    by_id = {fit.pool.id: fit for fit in fits}
    for name in names:
        if name not in by_id:
            raise UsageError(f"--gpu must name pools among {', '.join(by_id)}, or auto, not {name!r}.")
        if check_fit and by_id[name].plan is None:
            raise UsageError(
                f"--gpu {name}: {by_id[name].reason}. Workers are taken to have {ram_gb:g} GB of RAM (--ram-gb); "
                "--no-fit-check deploys all the same."
            )
    return list(names)


def worker_card(api: Api, endpoint_id: str, worker_id: str | None) -> str | None:
    """The id of a worker's card; None where the worker is gone or RunPod does not name its card."""
    try:
        workers = api.workers(endpoint_id)["workers"]
    except DeployError:
        return None
    return next((worker.get("gpuTypeId") for worker in workers if worker["id"] == worker_id), None)
