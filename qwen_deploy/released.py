"""The released checkpoints: what each serves, downloads, may be used for, and on which cards it fits.

Sizes and layouts are the worker's own arithmetic. Knows nothing of RunPod's API: the pools are those that the cards are
known of here, with the memory that their names say.
"""

import re
from collections.abc import Sequence

from qwen_worker.checkpoints import checkpoint, classes
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.memory.footprint import GB
from qwen_worker.network.hub import is_same_repository

from .cards import MODEL_SETTINGS, Fit, Pool, fit
from .environment import worker_settings

DEFAULT_MODELS = ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit")
APACHE, RESEARCH = "Apache-2.0", "Qwen Research License"
RESEARCH_ONLY = ("Qwen/Qwen-Image-2.1", "Qwen/Qwen-Image-2.1-Turbo")
RESEARCH_SENTENCE = "is under the Qwen Research License: for research and evaluation; any other use needs Qwen's leave."
# RunPod's serverless pools; the catalogue, which needs a key, has their prices and what there is of them.
POOLS = (
    "AMPERE_16", "AMPERE_24", "ADA_24", "ADA_32_PRO", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO",
    "BLACKWELL_96", "HOPPER_141", "BLACKWELL_180",
)  # fmt: skip


def licence(hub_id: str) -> str:
    """Of a released checkpoint."""
    return RESEARCH if any(is_same_repository(hub_id, name) for name in RESEARCH_ONLY) else APACHE


def research_only(names: Sequence[str]) -> list[str]:
    """Those of the models, each perhaps with @revision, that may not be used commercially."""
    return [name for name in names if licence(name.partition("@")[0]) == RESEARCH]


def download_bytes(names: Sequence[str]) -> int | None:
    """Of the weights of these models, of which each file that two share counts once; None if a size is not known."""
    known = [checkpoint.released(name) for name in names]
    found = [one for one in known if one]
    if len(found) < len(known):
        return None
    models = [as_model(one, found[:number]) for number, one in enumerate(found)]
    # The released checkpoints are stored in bfloat16.
    return sum(2 * model.parameters_of(part) for model in models for part in classes.WEIGHTS)


def tasks_of(name: str) -> list[str]:
    """The tasks that a released checkpoint serves, of `generate` and `edit`; none for one that is not known."""
    found = checkpoint.released(name)
    return [task for task in MODEL_SETTINGS if found and task in found.pipeline_class.tasks]


def environment_of(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The worker's variables that choose these models, and the tasks that they serve."""
    env: dict[str, str] = {}
    for name in names:
        for task in tasks_of(name):
            env.setdefault(MODEL_SETTINGS[task], name)
    return env, [task for task, setting in MODEL_SETTINGS.items() if setting in env]


def fits_of(name: str, ram_gb: float, cuda: str | None) -> list[Fit]:
    """How the model fits on the cards of each pool, alone."""
    env, tasks = environment_of([name])
    settings = worker_settings(env)
    return [fit(known_pool(pool), settings, tasks, ram_gb, cuda) for pool in POOLS]


def known_pool(pool_id: str) -> Pool:
    """The pool by its name alone: without a price, and taken to be in stock."""
    found = re.search(r"_(\d+)", pool_id)
    memory = int(found.group(1)) if found else 0
    return Pool(pool_id, (pool_id,), (), memory, 0.0, "HIGH")


def describe_fits(fits: Sequence[Fit]) -> list[str]:
    """One phrase for each precision, the best first, with the pools whose cards take it."""
    pools: dict[str, list[str]] = {}
    for each in fits:
        layout = each.plan.precision.value if each.plan else "not" if each.reason.startswith("too small") else "other"
        pools.setdefault(layout, []).append(each.pool.id)
    names = {"not": "too small", "other": "with an image for CUDA 13.0 (TORCH_INDEX)"}
    order = ["bf16", "fp8", "int8", "nf4", "not", "other"]
    return [f"{names.get(one, one)}: {', '.join(pools[one])}" for one in order if one in pools]


def gigabytes(count: float) -> str:
    return f"{count / GB:.1f} GB"
