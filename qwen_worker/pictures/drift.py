"""How far the colours of an edit have drifted from its input's where it is unchanged, and the curves that undo it.

A drift is the same in the whole picture: for each channel, levels that depend on the level. It is fitted to the blocks
in which the edit has the input's detail; of these, what has been given another colour on purpose lies far from the
others, and is left out. Knows nothing of jobs, nor of how the unchanged blocks are found (`registration.py`).
"""

from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]  # (blocks, pixels of each, 3)

LEVEL_STEP = 16  # levels between two points of a curve
STIFFNESS = 1e-3  # of a curve, against the share of the pixels that pull at one of its points
ROUNDS = 4  # of leaving blocks out
FAR = 6.0  # levels from the curves at which a block counts as recoloured, at least
FEWEST = 8  # blocks from which a drift is measured


class Drift(NamedTuple):
    """Levels by which an edit's red, green and blue are above its input's where it is unchanged.

    `mean`: on the average. `histogram`: the distance of the two histograms, which is 0 only where both are the same
    (the first Wasserstein distance). `curves`: the level of the input by that of the edit, three times 256 levels.
    """

    mean: tuple[float, float, float]
    histogram: tuple[float, float, float]
    curves: list[int]

    def undo(self, edit: Image.Image) -> Image.Image:
        """The edit, RGB or RGBA, with the input's colours."""
        if edit.mode == "RGBA":
            kept = self.undo(edit.convert("RGB"))
            kept.putalpha(edit.getchannel("A"))
            return kept
        return edit.point(self.curves)


def drift_of(source: "Pixels", edit: "Pixels", is_certain: "NDArray[np.bool_]") -> Drift | None:
    """The drift of the blocks of an edit against the same blocks of its source; None of too few that are certain.

    `is_certain`: (blocks,), whether a block is known to be unchanged. The others, which are flat in both pictures,
    count where their colours differ as those of the certain ones do: a sky, but not a wall that has been painted.
    """
    import numpy as np

    if is_certain.sum() < FEWEST:
        return None
    kept = is_certain
    for number in range(ROUNDS):
        offsets = [offsets_by_level(source[kept, :, k], edit[kept, :, k], number == 0) for k in range(3)]
        left = np.stack([edit[..., k] - corrected(edit[..., k], offsets[k]) for k in range(3)], -1)
        residual = np.abs(((edit - source) - left).mean(1)).max(-1)  # (blocks,)
        near = residual <= max(FAR, 3 * float(np.median(residual[kept])))
        if near.sum() < FEWEST or (near == kept).all():
            break
        kept = near
    one, other = source[kept].reshape(-1, 3), edit[kept].reshape(-1, 3)
    offsets = [offsets_by_level(one[:, k], other[:, k], False) for k in range(3)]
    levels = np.arange(256, dtype=np.float32)
    curves = np.stack([np.maximum.accumulate(corrected(levels, curve)) for curve in offsets])
    mean, distance = (other - one).mean(0), np.abs(np.sort(one, 0) - np.sort(other, 0)).mean(0)
    whole = curves.clip(0, 255).round().astype(int).ravel().tolist()
    return Drift(triple(mean), triple(distance), whole)


def triple(values: "NDArray[np.float32]") -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 2) for value in values)
    return red, green, blue


def offsets_by_level(source: "NDArray[np.float32]", edit: "NDArray[np.float32]", robust: bool) -> "NDArray[np.float64]":
    """The levels that the edit is above the source at each point of a curve, by the mean of their two levels.

    By the mean of both, as noise in either would bend a curve over that one alone. `robust`: by medians, to which
    recoloured pixels mean little as long as they are fewer than the others of their level.
    """
    import numpy as np

    points = 256 // LEVEL_STEP + 1
    source, edit = source.ravel(), edit.ravel()
    difference = edit - source
    nearest = np.rint((source + edit) / (2 * LEVEL_STEP)).astype(int)
    counts = np.bincount(nearest, minlength=points).astype(float)
    if robust:
        medians = [np.median(difference[nearest == k]) if counts[k] else 0.0 for k in range(points)]
        totals = np.array(medians) * counts
    else:
        totals = np.bincount(nearest, difference, points)
    # Least squares with a penalty on the steps between points: where no pixel is, the curve goes on as it was.
    normal = np.diag(counts / len(source)) + 1e-9 * np.eye(points)
    for k in range(points - 1):
        normal[k : k + 2, k : k + 2] += STIFFNESS * np.array([[1, -1], [-1, 1]])
    return np.linalg.solve(normal, totals / len(source)).astype(np.float64)


def corrected(edit: "NDArray[np.float32]", offsets: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The source's levels by the edit's."""
    import numpy as np

    at = np.arange(len(offsets)) * LEVEL_STEP
    first = np.interp(edit, at, offsets)
    return edit - np.interp(edit - first / 2, at, offsets)
