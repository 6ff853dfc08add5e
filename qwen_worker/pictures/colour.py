"""Colour spaces: the model sees and draws sRGB; a picture's own numbers stay beside it where they come back.

As Pillow has it, the space of a picture is `info["icc_profile"]`, and a picture without one is sRGB. Knows nothing of
files (`images.py`) or of how a profile is built (`icc.py`).
"""

import functools
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms

from ..jobs.values import Warn
from .icc import (
    BT2020_PRIMARIES,
    P3_PRIMARIES,
    SRGB_CURVE,
    SRGB_PRIMARIES,
    Primaries,
    UnusableProfile,
    matrix_profile,
    space_of_profile,
)

PROFILE = "icc_profile"  # in a picture's `info`
COLOUR_INFO = (PROFILE, "cicp", "srgb", "gamma", "chromaticity")  # all that `info` may say of a picture's colours
# Every picture of a reply brings its profile: four of this size leave three quarters of the reply to their pixels.
MAX_KEPT_BYTES = 500_000
# Levels by which two 8-bit numbers may differ of profiles that mean the same space. sRGB has many profiles, which round
# differently; without a conversion the numbers stay as they are.
SAME = 1
KINDS = {"L": "grey", "RGB": "RGB", "CMYK": "CMYK"}  # by mode, in words
PROBE_STEPS = 9  # a side of the cube of colours that two profiles are compared by

COLOURS = {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}  # by a picture's mode, without alpha
# By the numbers of ITU-T H.273, which PNG's cICP and the colr of AVIF and HEIC hold.
PAL, NTSC = ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07))
CODED_PRIMARIES = {
    1: SRGB_PRIMARIES, 2: SRGB_PRIMARIES, 5: PAL, 6: NTSC, 7: NTSC, 9: BT2020_PRIMARIES, 12: P3_PRIMARIES
}  # fmt: skip
# The curves of television are shown as sRGB's by all viewers.
CODED_CURVES = {**dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB_CURVE), 4: (2.2,), 5: (2.8,), 8: (1.0,)}


@functools.cache
def srgb_profile() -> bytes:
    return matrix_profile("sRGB", Primaries(*SRGB_PRIMARIES), SRGB_CURVE)


@dataclass(frozen=True)
class Space:
    """A picture's colour space that can be read. `mode`: of its colours, RGB, L or CMYK."""

    profile: bytes
    mode: str

    def to_srgb(self, picture: Image.Image) -> Image.Image:
        """RGB or RGBA in sRGB of a picture in this space; the same numbers where the space is sRGB up to rounding."""
        converted = convert(picture, self.profile, srgb_profile(), "RGB")
        if picture.mode.endswith("A"):
            converted.putalpha(picture.getchannel("A"))
        return converted

    @property
    def is_kept(self) -> bool:
        """Whether a reply can come back in it."""
        return self.mode != "CMYK" and len(self.profile) <= MAX_KEPT_BYTES and is_reversible(self.profile, self.mode)


def space_of(picture: Image.Image, label: str, warn: Warn) -> Space | None:
    """The space that the picture's own file gives it, of the mode of its colours; None for sRGB.

    A profile that cannot be used is left out of account with a warning.
    """
    try:
        profile = picture.info.get(PROFILE) or described_profile(picture.info)
        if not profile:
            return None
        mode, colours = space_of_profile(profile), COLOURS[picture.mode]
        # Grey files with the profile of an RGB space are common: their numbers stand for red, green and blue at once.
        if colours != mode and (colours, mode) != ("L", "RGB"):
            raise UnusableProfile(f"it is one for {KINDS[mode]} pictures, and this is {KINDS[colours]}")
        transform(profile, srgb_profile(), mode, "RGB")
        return Space(profile, mode)
    except UnusableProfile as reason:
        warn(f"{label} has a colour profile that cannot be used, so that its colours are read as sRGB: {reason}")
        return None


def described_profile(info: dict[Any, Any]) -> bytes | None:
    """The profile of a space that a file describes by numbers; None for sRGB. Raises `UnusableProfile`."""
    if coded := info.get("cicp"):  # primaries, transfer
        if coded[0] not in CODED_PRIMARIES or coded[1] not in CODED_CURVES:
            raise UnusableProfile("its colours are those of HDR" if coded[1] in (16, 18) else "its numbers are unknown")
        primaries, curve = Primaries(*CODED_PRIMARIES[coded[0]]), CODED_CURVES[coded[1]]
    elif "srgb" not in info and "gamma" in info and "chromaticity" in info:
        points = info["chromaticity"]
        white, red, green, blue = zip(points[::2], points[1::2], strict=True)
        if not 0.1 <= info["gamma"] <= 1:
            raise UnusableProfile("its gamma is none")
        # 1 / 2.2 is what PNGs of sRGB pictures say, whose curve is no plain gamma.
        is_srgb = abs(info["gamma"] - 1 / 2.2) < 0.005
        primaries, curve = Primaries(red, green, blue, white), SRGB_CURVE if is_srgb else (1 / info["gamma"],)
    else:
        return None
    profile = matrix_profile("as described by the file", primaries, curve)
    return None if same_space(profile, srgb_profile(), "RGB") else profile


def to_srgb(picture: Image.Image) -> Image.Image:
    """A copy in sRGB, of mode RGB, of a picture of mode L or RGB, whatever its profile."""
    profile = picture.info.get(PROFILE)
    return convert(picture, profile, srgb_profile(), "RGB") if profile else picture.convert("RGB")


def in_space_of(picture: Image.Image, other: Image.Image) -> Image.Image:
    """An sRGB picture in the colour space of another one, with its profile and of its mode, RGB or L."""
    profile = other.info.get(PROFILE)
    if not profile:
        return picture
    converted = convert(picture, srgb_profile(), profile, other.mode)
    converted.info[PROFILE] = profile
    return converted


def convert(picture: Image.Image, profile: bytes, wanted: bytes, mode: str) -> Image.Image:
    """The picture from one profile's space to the other's, of the mode, without a profile in its `info`."""
    space = space_of_profile(profile)
    picture = picture if picture.mode == space else picture.convert(space)
    if space == mode and same_space(profile, wanted, mode):
        converted = picture.copy()
    elif space == "L" and same_space(profile, wanted, mode):
        converted = picture.convert(mode)
    else:
        converted = transform(profile, wanted, space, mode).apply(picture)
    converted.info = {}
    return converted


def same_space(profile: bytes, wanted: bytes, mode: str) -> bool:
    """Whether numbers mean the same in both profiles' spaces, up to rounding; grey ones as red, green and blue."""
    space = space_of_profile(profile)
    if "CMYK" in (space, mode) or (space, mode) == ("RGB", "L"):
        return False
    probe = colours_to_probe().convert(space)
    found = transform(profile, wanted, space, mode).apply(probe).tobytes()
    return all(abs(a - b) <= SAME for a, b in zip(found, probe.convert(mode).tobytes(), strict=True))


@functools.cache
def colours_to_probe() -> Image.Image:
    levels = [round(255 * k / (PROBE_STEPS - 1)) for k in range(PROBE_STEPS)]
    cube = bytes(value for red in levels for green in levels for blue in levels for value in (red, green, blue))
    greys = bytes(value for grey in range(256) for value in (grey, grey, grey))
    return Image.frombytes("RGB", (len(cube + greys) // 3, 1), cube + greys)


def is_reversible(profile: bytes, mode: str) -> bool:
    """Whether colours can be brought into the profile's space; some profiles, of scanners, only lead out of it."""
    try:
        transform(srgb_profile(), profile, "RGB", mode)
    except UnusableProfile:
        return False
    return True


def transform(profile: bytes, wanted: bytes, space: str, mode: str) -> ImageCms.ImageCmsTransform:
    """LittleCMS's way from one space to the other. Raises `UnusableProfile`."""
    try:
        start, end = (ImageCms.ImageCmsProfile(io.BytesIO(one)) for one in (profile, wanted))
        return ImageCms.ImageCmsTransform(start, end, space, mode, ImageCms.Intent.PERCEPTUAL)
    except (OSError, TypeError, ValueError):
        raise UnusableProfile("it is damaged or incomplete") from None
