"""Whether LoRAs are made for the checkpoint that will draw with them, before its model is loaded or asked.

By the headers of the transformer's files where these are on this machine, else by the layers that its architecture has.
What this cannot tell is told once more of the loaded transformer (`adapters.py`). Knows nothing of how LoRAs are
applied.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.single_file import weights_of
from ..errors import InvalidInput, JobError, LoadError
from .architectures import architecture_of, guess_architecture, has_layer
from .file import LoraUse, require_layers
from .names import printable

MATRIX = ".weight"  # the end of a linear layer's tensor
KEPT_HEADERS = 4  # of transformers; an endpoint has two


def require_made_for(checkpoint: Checkpoint | None, uses: Sequence[LoraUse]) -> None:
    """Refuse LoRAs of another transformer than the checkpoint's; a checkpoint that is not known yet refuses none.

    Raises `InvalidInput`, and `JobError` model_unavailable for a LoRA that the endpoint's settings name.
    """
    if not checkpoint:
        return
    for use in uses:
        try:
            require_architecture(checkpoint, use)
            if shapes := header_shapes(checkpoint):
                require_layers(use, shapes, checkpoint.name)
        except InvalidInput as error:
            raise JobError("model_unavailable", error.sentence) if use.from_settings else error from None


def require_architecture(checkpoint: Checkpoint, use: LoraUse) -> None:
    """Raises `InvalidInput` where the LoRA's layers are those of another architecture."""
    own = architecture_of(checkpoint.class_name)
    strange = sorted(name for name in use.file.layers if own and not has_layer(own, name))
    if not own or not strange:
        return
    other = guess_architecture((name, layer.inputs) for name, layer in use.file.layers.items())
    whose = f": it is one for {other.name}" if other and other is not own else ""
    raise InvalidInput(
        f"{use.label} is not made for {checkpoint.name}{whose}; {len(strange)} of {len(use.file.layers)} layers do not "
        f"match: {printable(strange[0])} is none of its layers"
    )


def header_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the transformer's linear layers by name; empty where no header here says them all."""
    folder = checkpoint.folder
    if folder is None or "transformer" in checkpoint.packed:
        return {}
    try:
        return shapes_below(folder, checkpoint.revision)
    except LoadError:  # what is wrong with the files is told by who loads them
        return {}


@functools.lru_cache(KEPT_HEADERS)
def shapes_below(folder: Path, revision: str | None) -> dict[str, tuple[int, int]]:
    """`revision`: changes with the folder's content. Raises `LoadError`."""
    return {
        name.removesuffix(MATRIX): (weight.shape[0], weight.shape[1])
        for name, weight in weights_of(folder, "transformer").items()
        if name.endswith(MATRIX) and len(weight.shape) == 2
    }
