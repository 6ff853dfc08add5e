"""Where an edit lies on its input picture: how far it is shifted and zoomed, measured on what did not change.

The edit models now and then draw a picture some pixels beside its input, or a little larger. A search by phase
correlation finds the shift and the scale of the whole picture, and a robust least-squares fit to its pixels refines
them (Baker and Matthews, "Lucas-Kanade 20 years on", 2004): what the edit has changed loses its weight in it. OpenCV,
which works on the pixels, is imported where it is used. Knows nothing of jobs or of the models.
"""

from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]  # (rows, columns)

SEARCH_SIDE, FIT_SIDES = 256, (256, 512, 1024)  # pixels of the longer side: of the search, and of the fits after it
SCALES = tuple(1 + k / 100 for k in range(-6, 7))  # that the search tries
MAX_SHIFT = 0.15  # of a side: what lies farther off has been moved by the edit itself
ROUNDS, SETTLED = 10, 0.02  # of a fit: at most so many, and pixels of the last step
BLUR = 8.0  # pixels: brightness that changes more slowly is light or colour, and tells nothing of a shift
NOISE = 8.0  # levels of contrast, below which detail counts for less
STEEP = 1e-4  # squared slope of the detail, below which it is flat
BLOCK = 32  # pixels of the last fit's pictures
TEXTURED = 0.25  # deviation of the detail of a block that tells anything
AGREEING = 0.6  # correlation with its place in the input from which a block counts as unchanged
LEAST_CONFIDENCE = 0.2
CLEAR = 0.5  # confidence from which no other start is tried
LEAST_BLOCKS = 2  # that are unchanged in either half of a picture whose place is known
MAX_SPREAD = 0.5  # pixels: by how much the fits to either half of the unchanged blocks may differ at a corner


class Place(NamedTuple):
    """A point `p` of the input lies at `centre + scale * (p - centre) + shift` of the edit, in pixels."""

    shift_x: float = 0.0
    shift_y: float = 0.0
    scale: float = 1.0

    def resized(self, factor: float) -> "Place":
        return Place(self.shift_x * factor, self.shift_y * factor, self.scale)

    def distance(self, other: "Place", size: tuple[int, int]) -> float:
        """The pixels between the two places of a corner of a picture of this size, at most."""
        growth, x, y = self.scale - other.scale, self.shift_x - other.shift_x, self.shift_y - other.shift_y
        return max(
            ((x + growth * right / 2) ** 2 + (y + growth * down / 2) ** 2) ** 0.5
            for right in (-size[0], size[0])
            for down in (-size[1], size[1])
        )


class Registration(NamedTuple):
    """The place of an edit on its input, and what of it is unchanged there.

    `confidence`: from 0 to 1, the share of the input's detail that the edit has too; 0 where the place is not known to
    half a pixel. `unchanged` and `flat`: (rows, columns), whether each block of `BLOCK` pixels of the measured picture
    has the input's detail, or none as in the input; a picture of more than 1024 pixels a side is measured at 1024.
    """

    place: Place
    confidence: float
    unchanged: "NDArray[np.bool_]"
    flat: "NDArray[np.bool_]"

    @property
    def is_sure(self) -> bool:
        return self.confidence >= LEAST_CONFIDENCE


def register(source: Image.Image, edit: Image.Image) -> Registration:
    """The registration of an edit on its source, two RGB pictures of one size. Takes about a second."""
    import numpy as np

    first, second = projected(source, edit)
    longest = max(first.shape)
    small = [detail(at_side(plane, SEARCH_SIDE)) for plane in (first, second)]
    best = Registration(Place(), -1.0, np.zeros((1, 1), bool), np.zeros((1, 1), bool))
    for start in (lambda: searched(*small), Place):
        place, found = start().resized(longest / max(small[0].shape)), best  # the search is one of small planes
        for side in dict.fromkeys(min(side, longest) for side in FIT_SIDES):
            factor = side / longest
            one, other = (detail(at_side(plane, side)) for plane in (first, second))
            place = fitted(one, other, place.resized(factor)).resized(1 / factor)
            if side == min(longest, FIT_SIDES[-1]):
                found = judged(one, other, place.resized(factor))
        if found.confidence > best.confidence:
            best = found
        if best.confidence > CLEAR:
            break
    return best._replace(place=best.place.resized(longest / min(longest, FIT_SIDES[-1])))


def projected(source: Image.Image, edit: Image.Image) -> "tuple[Plane, Plane]":
    """Both pictures as one plane: along the colours in which the source has most detail, which are mostly its greys.

    A red disc on a blue ground of the same brightness would be nothing in greys.
    """
    import cv2
    import numpy as np

    first, second = (np.asarray(picture, dtype=np.float32) for picture in (source, edit))
    small = np.stack([at_side(first[..., channel], SEARCH_SIDE) for channel in range(3)], -1)
    fine = (small - cv2.GaussianBlur(small, (0, 0), BLUR)).reshape(-1, 3)
    axis = np.linalg.eigh(fine.T @ fine)[1][:, -1].astype(np.float32)
    return first @ axis, second @ axis


def judged(one: "Plane", other: "Plane", place: Place) -> Registration:
    """The place, fitted once more to the blocks that agree, with its confidence."""
    unchanged, flat, confidence = agreement(one, moved_back(other, place))
    if confidence < LEAST_CONFIDENCE:
        return Registration(place, confidence, unchanged, flat)
    place = fitted(one, other, place, spread_blocks(unchanged, one.shape))
    unchanged, flat, confidence = agreement(one, moved_back(other, place))
    rows, columns = (index // 2 for index in indices(unchanged.shape))
    halves = [unchanged & ((rows + columns) % 2 == half) for half in (0, 1)]
    size = one.shape[1], one.shape[0]
    is_near = place.distance(Place(), size) <= MAX_SHIFT * max(size)
    if not is_near or min(half.sum() for half in halves) < LEAST_BLOCKS:
        return Registration(place, 0.0, unchanged, flat)
    first, second = (fitted(one, other, place, spread_blocks(half, one.shape)) for half in halves)
    is_known = first.distance(second, size) <= MAX_SPREAD
    return Registration(place, confidence if is_known else 0.0, unchanged, flat)


def undo(edit: Image.Image, place: Place) -> Image.Image:
    """The edit moved back onto its input; what lies beyond its border is its own mirrored."""
    import cv2
    import numpy as np

    pixels = np.asarray(edit)
    size = edit.size
    moved = cv2.warpAffine(
        pixels,
        matrix(place, size),
        size,
        flags=cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    return Image.fromarray(moved, edit.mode)


def matrix(place: Place, size: tuple[int, int]) -> "NDArray[np.float64]":
    """(2, 3): from the input's pixel indices to the edit's, as OpenCV has it."""
    import numpy as np

    x, y = ((side - 1) / 2 for side in size)
    scale = place.scale
    return np.array([[scale, 0, place.shift_x + (1 - scale) * x], [0, scale, place.shift_y + (1 - scale) * y]])


def moved_back(plane: "Plane", place: Place) -> "Plane":
    import cv2
    import numpy as np

    size = plane.shape[1], plane.shape[0]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(plane, matrix(place, size), size, flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved, np.float32)


def at_side(plane: "Plane", side: int) -> "Plane":
    """The plane with a longer side of so many pixels, where it has more."""
    import cv2
    import numpy as np

    height, width = plane.shape
    if side >= max(height, width):
        return plane
    small = cv2.resize(plane, size_at_side((width, height), side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def size_at_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def detail(plane: "Plane") -> "Plane":
    """What changes within some pixels, in units of its own contrast nearby: the same in a darker or paler picture."""
    import cv2
    import numpy as np

    fine = plane - cv2.GaussianBlur(plane, (0, 0), BLUR)
    contrast = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), BLUR))
    return np.asarray(fine / (contrast + NOISE), np.float32)


def searched(one: "Plane", other: "Plane") -> Place:
    """The shift and the scale by which the other plane is most alike the one, by phase correlation."""
    import cv2

    height, width = one.shape
    if min(height, width) < BLOCK:
        return Place()
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    best, place = -1.0, Place()
    for scale in SCALES:
        zoomed = moved_back(other, Place(scale=scale))
        # Of a copy: planes of a size that suits its transform, as 256x192, OpenCV multiplies by the window in place.
        (x, y), response = cv2.phaseCorrelate(one.copy(), zoomed, window)
        if response > best and abs(x) <= MAX_SHIFT * width and abs(y) <= MAX_SHIFT * height:
            best, place = response, Place(x * scale, y * scale, scale)
    return place


def fitted(one: "Plane", other: "Plane", place: Place, weights: "Plane | None" = None) -> Place:
    """The place near this one at which the weighted difference of the planes is least; outliers lose their weight."""
    import cv2
    import numpy as np

    down, right = (
        (index - (side - 1) / 2).astype(np.float32) for index, side in zip(indices(one.shape), one.shape, strict=True)
    )
    for _ in range(ROUNDS):
        moved = moved_back(other, place)
        difference, mean = one - moved, (one + moved) / 2
        x = cv2.Sobel(mean, cv2.CV_32F, 1, 0, scale=1 / 8)
        y = cv2.Sobel(mean, cv2.CV_32F, 0, 1, scale=1 / 8)
        slopes = np.stack([x, y, x * right + y * down]).reshape(3, -1)
        steep = x * x + y * y > STEEP
        if not steep.any():
            return place
        spread = max(0.05, 1.5 * float(np.median(np.abs(difference[steep][::5]))))
        robust = 1 / (1 + (difference / spread) ** 2) ** 2
        weighted = slopes * (robust if weights is None else robust * weights).ravel()
        normal = weighted @ slopes.T + 1e-6 * np.eye(3)
        x_step, y_step, growth = np.linalg.solve(normal, weighted @ difference.ravel()).tolist()
        scale = place.scale
        new = Place(place.shift_x + scale * x_step, place.shift_y + scale * y_step, scale * (1 + growth))
        size = one.shape[1], one.shape[0]
        if not 0.8 < new.scale < 1.25 or new.distance(Place(), size) > max(size):
            return place
        done, place = new.distance(place, size) < SETTLED, new
        if done:
            break
    return place


def agreement(one: "Plane", moved: "Plane") -> "tuple[NDArray[np.bool_], NDArray[np.bool_], float]":
    """Which blocks have the same detail in both, which have none in either, and the share of the first ones."""
    import numpy as np

    first, second = blocks(one), blocks(moved)
    first, second = (part - part.mean(-1, keepdims=True) for part in (first, second))
    deviations = [np.sqrt((part * part).mean(-1)) for part in (first, second)]
    has_detail = deviations[0] > TEXTURED
    alike = (first * second).mean(-1) > AGREEING * deviations[0] * np.maximum(deviations[1], 1e-6)
    unchanged = has_detail & alike
    flat = ~has_detail & (deviations[1] <= TEXTURED)
    return unchanged, flat, float(unchanged.sum() / max(1, has_detail.sum()))


def blocks(plane: "Plane") -> "Plane":
    """(rows, columns, BLOCK * BLOCK): the plane's whole blocks."""
    rows, columns = (max(1, side // BLOCK) for side in plane.shape)
    high, wide = (min(BLOCK, side) for side in plane.shape)
    cut = plane[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    return cut.transpose(0, 2, 1, 3).reshape(rows, columns, high * wide)


def spread_blocks(unchanged: "NDArray[np.bool_]", shape: tuple[int, ...]) -> "Plane":
    """1 at each pixel of the blocks, 0 elsewhere."""
    import numpy as np

    grid = np.kron(unchanged, np.ones((BLOCK, BLOCK), np.float32))[: shape[0], : shape[1]]
    missing = [(0, side - have) for side, have in zip(shape, grid.shape, strict=True)]
    return np.pad(grid, missing).astype(np.float32)


def indices(shape: tuple[int, ...]) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """The row and the column of each pixel, to be broadcast: (rows, 1) and (1, columns)."""
    import numpy as np

    return np.arange(shape[0], dtype=np.int64)[:, None], np.arange(shape[1], dtype=np.int64)[None, :]
