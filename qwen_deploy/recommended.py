"""The models that this repository recommends, with the few-step LoRAs that are made for them; and `--models`.

The endpoint's own defaults are older releases. The recommended ones have their size and licence, and Qwen calls them
their upgrade. Knows nothing of cards and prices.
"""

from collections.abc import Mapping, Sequence

from qwen_worker.jobs.presets import FAST_LORAS

from .cards import MODEL_SETTINGS
from .errors import UsageError
from .released import DEFAULT_MODELS, environment_of

WORD = "recommended"  # in place of hub ids, with `--models`
MODELS = {"generate": "Qwen/Qwen-Image-2512", "edit": "Qwen/Qwen-Image-Edit-2511"}
# Of 2512 there is one of 4 steps too; of Edit-2511 no other.
RECOMMENDED_LORAS = {
    "QWEN_IMAGE_FAST_LORA": "lightx2v/Qwen-Image-2512-Lightning/Qwen-Image-2512-Lightning-8steps-V1.0-bf16.safetensors",
    "QWEN_EDIT_FAST_LORA": (
        "lightx2v/Qwen-Image-Edit-2511-Lightning/Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors"
    ),
}


def chosen_models(words: Sequence[str] | None) -> list[str]:
    """The hub ids that `--models` names; the default models where it is not given."""
    if not words:
        return list(DEFAULT_MODELS)
    expanded = [name for word in words for name in (MODELS.values() if word == WORD else [word])]
    return list(dict.fromkeys(expanded))


def environment_of_models(
    words: Sequence[str] | None, env: Mapping[str, str], tasks: Sequence[str] | None
) -> dict[str, str]:
    """The variables of `--env`, and those that choose the models of `--models` for the tasks, or for both.

    The recommended ones come with their few-step LoRAs, so that jobs may ask for preset fast. Raises `UsageError` for a
    model that is not released, for two of one task, and for one that `--env` names too.
    """
    if not words:
        return dict(env)
    names = chosen_models(words)
    chosen, _ = environment_of(names)
    left = [name for name in names if name not in chosen.values()]
    if left:
        raise UsageError(
            f"--models {left[0]} is no released model, or one more for the same task: "
            f"--env {MODEL_SETTINGS['generate']}=... and --env {MODEL_SETTINGS['edit']}=... name any other."
        )
    if WORD in words:
        chosen |= {name: source for name, source in RECOMMENDED_LORAS.items() if name not in env}
    names_by_task = (MODEL_SETTINGS, FAST_LORAS)
    served = {names[task] for names in names_by_task for task in tasks or MODEL_SETTINGS if task in names}
    chosen = {name: value for name, value in chosen.items() if name in served}
    if twice := [name for name in chosen if name in env]:
        raise UsageError(f"--models and --env {twice[0]} both choose a model: give one of them.")
    return {**env, **chosen}


def baked_argument(words: Sequence[str] | None, build_args: Sequence[str]) -> list[str]:
    """The build argument that bakes the models of `--models`, where a build bakes some and does not say which."""
    names = {argument.partition("=")[0] for argument in build_args}
    is_needed = words and "BAKE=yes" in build_args and "BAKE_MODELS" not in names
    return [f"BAKE_MODELS={' '.join(chosen_models(words))}"] if is_needed else []
