"""Profiles: the model sees sRGB whatever the file's space is, and outside a mask the file's own numbers come back."""

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms
from PIL.PngImagePlugin import PngInfo

from qwen_worker.pictures.canvas import Canvas
from qwen_worker.pictures.colour import PROFILE, same_space, srgb_profile
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.icc import MAX_BYTES, UnusableProfile, matrix_profile, space_of_profile
from qwen_worker.pictures.inputs import open_source

from ..conftest import file_of
from ..support import profiles
from ..support.patience import little_work

PATCHES = [(220, 40, 40), (60, 180, 60), (224, 172, 150), (128, 128, 128)]
RGB_SPACES = {"display_p3": profiles.DISPLAY_P3, "adobe_rgb": profiles.ADOBE_RGB, "prophoto": profiles.PROPHOTO}


@pytest.fixture
def patches():
    """Four patches of sRGB colours, 32 x 32 each."""
    picture = Image.new("RGB", (32 * len(PATCHES), 32))
    for k, colour in enumerate(PATCHES):
        picture.paste(colour, (32 * k, 0, 32 * k + 32, 32))
    return picture


def by_profiles(picture, start, end, mode):
    """What LittleCMS makes of the picture."""
    ends = (ImageCms.ImageCmsProfile(io.BytesIO(profile)) for profile in (start, end))
    found = ImageCms.profileToProfile(picture, *ends, outputMode=mode)
    found.info = {}
    return found


def opened(data, is_masked=False):
    """The picture as the model sees it, the one that comes back, and the warnings."""
    warnings = []
    source = open_source(data, "image", warnings.append, is_masked)
    return source.seen, source.original, warnings


def difference(a, b):
    assert (a.size, a.mode) == (b.size, b.mode)
    return max(ImageChops.difference(a, b).tobytes())


def patches_of(picture):
    return [picture.getpixel((32 * k + 16, 16)) for k in range(len(PATCHES))]


@pytest.mark.parametrize("profile", RGB_SPACES.values(), ids=RGB_SPACES)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_and_its_srgb_twin_are_the_same_to_the_model(patches, profile, format):
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(format, {"quality": 100, "subsampling": "4:4:4"})
    own = by_profiles(patches, srgb_profile(), profile, "RGB")
    assert difference(own, patches) > 15  # their numbers tell them apart
    found, _, warnings = opened(file_of(own, format, icc_profile=profile, **options))
    lossy = 4 if format in ("JPEG", "AVIF") else 0
    assert not warnings and not found.info
    for one, other in zip(patches_of(found), PATCHES, strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 2 + lossy


def test_numbers_of_srgb_stay_as_they_are_whoever_wrote_its_profile(patches):
    lcms = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    for profile in (lcms, profiles.OTHER_SRGB, srgb_profile()):
        found, original, warnings = opened(file_of(noise, icc_profile=profile), is_masked=True)
        assert difference(found, noise) == difference(original, noise) == 0 and not warnings
        assert original.info[PROFILE] == profile


def test_alpha_is_flattened_in_srgb(patches):
    patches.putalpha(Image.linear_gradient("L").resize(patches.size))
    own = by_profiles(patches.convert("RGB"), srgb_profile(), profiles.PROPHOTO, "RGB")
    own.putalpha(patches.getchannel("A"))
    twin, *_ = opened(file_of(patches))
    found, *_ = opened(file_of(own, icc_profile=profiles.PROPHOTO))
    assert difference(found, twin) <= 2


def test_colours_of_a_palette_are_of_the_profile_s_space(patches):
    own = by_profiles(patches, srgb_profile(), profiles.DISPLAY_P3, "RGB").quantize(4)
    found, *_ = opened(file_of(own, icc_profile=profiles.DISPLAY_P3))
    for one, other in zip(patches_of(found), PATCHES, strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 3


def test_deep_grey_has_the_colours_of_its_profile():
    ramp = Image.linear_gradient("L")
    deep = Image.frombytes("I;16", ramp.size, struct.pack(f"<{256 * 256}H", *(v * 257 for v in ramp.tobytes())))
    found, _, warnings = opened(file_of(deep, icc_profile=profiles.grey()))
    wanted = by_profiles(ramp, profiles.grey(), srgb_profile(), "RGB")
    assert difference(found, wanted) <= 1 and difference(found.convert("L"), ramp) > 10 and not warnings


def test_grey_with_the_profile_of_an_rgb_space_is_read_as_three_equal_numbers():
    ramp = Image.linear_gradient("L")
    found, original, warnings = opened(file_of(ramp, icc_profile=profiles.PROPHOTO), is_masked=True)
    assert difference(found, by_profiles(ramp.convert("RGB"), profiles.PROPHOTO, srgb_profile(), "RGB")) == 0
    assert difference(original, ramp.convert("RGB")) == 0 and not warnings


def test_cmyk_is_what_its_profile_says_and_comes_back_as_srgb():
    inks = Image.merge("CMYK", [Image.linear_gradient("L").rotate(90 * k) for k in range(4)])
    found, original, warnings = opened(file_of(inks, "TIFF", icc_profile=profiles.cmyk()), is_masked=True)
    assert difference(found, by_profiles(inks, profiles.cmyk(), srgb_profile(), "RGB")) == 0
    assert difference(found, inks.convert("RGB")) > 30  # Pillow's own conversion knows no inks
    assert original is None and warnings == ["image is CMYK, and the result is sRGB"]
    jpeg, *_ = opened(file_of(inks, "JPEG", icc_profile=profiles.cmyk(), quality=100))
    assert difference(jpeg, found) < 16


def masked(data, drawn):
    """What comes back of a drawn picture whose left half is masked, and what was sent in its own numbers."""
    source, original, warnings = opened(data, is_masked=True)
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (0, 0, source.width // 2, source.height))
    return Canvas([source], mask, drawn.size, original=original, start=source).finish(drawn), warnings


@pytest.mark.parametrize("profile", RGB_SPACES.values(), ids=RGB_SPACES)
@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_masked_reply_has_the_file_s_own_numbers_and_the_drawn_part_in_their_space(profile, output_format):
    own, drawn = Image.effect_noise((128, 64), 120).convert("RGB"), Image.new("RGB", (128, 64), PATCHES[0])
    own.paste((0, 255, 0), (100, 0, 128, 32))  # outside sRGB
    restored, warnings = masked(file_of(own, icc_profile=profile), drawn)
    right = (64, 0, 128, 64)
    assert difference(restored.crop(right), own.crop(right)) == 0 and not warnings
    written = Image.open(io.BytesIO(encode_picture(restored, output_format)))
    assert written.info[PROFILE] == profile
    if output_format != "jpeg":
        assert difference(written.convert("RGB"), restored) == 0
    seen = by_profiles(written.convert("RGB"), profile, srgb_profile(), "RGB").getpixel((20, 32))
    assert max(abs(a - b) for a, b in zip(seen, PATCHES[0], strict=True)) <= 5


def test_a_source_of_another_size_is_resized_in_its_own_numbers():
    own, drawn = Image.effect_noise((100, 50), 120).convert("RGB"), Image.new("RGB", (128, 64), PATCHES[0])
    restored, _ = masked(file_of(own, icc_profile=profiles.PROPHOTO), drawn)
    wanted = own.resize((128, 64), Image.Resampling.LANCZOS)
    assert restored.info[PROFILE] == profiles.PROPHOTO
    assert difference(restored.crop((64, 0, 128, 64)), wanted.crop((64, 0, 128, 64))) == 0


def test_a_masked_grey_reply_is_grey_by_the_same_profile_and_says_so():
    own, drawn = Image.effect_noise((128, 64), 120), Image.new("RGB", (128, 64), PATCHES[2])
    restored, warnings = masked(file_of(own, icc_profile=profiles.grey()), drawn)
    assert restored.mode == "L" and difference(restored.crop((64, 0, 128, 64)), own.crop((64, 0, 128, 64))) == 0
    assert warnings == ["image is grey by its colour profile, and so is the result; send it as RGB for colours"]
    for output_format in ("png", "jpeg"):
        written = Image.open(io.BytesIO(encode_picture(restored, output_format)))
        assert (written.mode, written.info[PROFILE]) == ("L", profiles.grey())
    webp = Image.open(io.BytesIO(encode_picture(restored, "webp")))  # which has no grey
    assert same_space(webp.info[PROFILE], srgb_profile(), "RGB")
    assert difference(webp.convert("RGB"), by_profiles(restored, profiles.grey(), srgb_profile(), "RGB")) == 0


def test_a_masked_reply_to_plain_grey_may_have_colours():
    own, drawn = Image.effect_noise((128, 64), 120), Image.new("RGB", (128, 64), PATCHES[0])
    restored, warnings = masked(file_of(own), drawn)
    assert difference(restored.crop((64, 0, 128, 64)), own.convert("RGB").crop((64, 0, 128, 64))) == 0
    assert restored.getpixel((20, 32)) == PATCHES[0] and not warnings


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_picture_without_a_profile_says_srgb_in_few_bytes(output_format):
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    data = encode_picture(picture, output_format)
    written = Image.open(io.BytesIO(data))
    assert written.info["srgb"] == 0 if output_format == "png" else written.info[PROFILE] == srgb_profile()
    assert len(srgb_profile()) < 500
    if output_format != "jpeg":
        assert difference(written.convert("RGB"), picture) == 0
    assert encode_picture(picture, output_format) == data  # the same bytes each time


def test_the_small_profile_is_srgb_to_littlecms():
    lcms = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert same_space(srgb_profile(), lcms, "RGB") and same_space(lcms, srgb_profile(), "RGB")
    assert not same_space(profiles.DISPLAY_P3, srgb_profile(), "RGB")


def png_with(picture, kind, body):
    """The PNG with one more chunk after its head."""
    data = file_of(picture)
    return (
        data[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) + data[33:]
    )


def test_a_png_that_describes_its_space_by_numbers_is_read_by_them(patches):
    p3 = by_profiles(patches, srgb_profile(), profiles.DISPLAY_P3, "RGB")
    found, original, warnings = opened(png_with(p3, b"cICP", bytes([12, 13, 0, 1])), is_masked=True)
    assert difference(found, patches) <= 2 and difference(original, p3) == 0 and not warnings
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
    assert difference(opened(file_of(p3, pnginfo=info))[0], patches) <= 2
    linear = PngInfo()
    linear.add(b"gAMA", struct.pack(">I", 100000))
    linear.add(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    half = Image.new("RGB", (8, 8), (55, 55, 55))
    assert opened(file_of(half, pnginfo=linear))[0].getpixel((0, 0))[0] in (127, 128, 129)


def test_hdr_is_read_as_srgb_with_a_warning(patches):
    for primaries, transfer in ((1, 1), (2, 2), (1, 13), (1, 6)):  # what encoders write for sRGB
        found, original, warnings = opened(
            png_with(patches, b"cICP", bytes([primaries, transfer, 0, 1])), is_masked=True
        )
        assert difference(found, patches) == 0 and original is None and not warnings
    found, _, (warning,) = opened(png_with(patches, b"cICP", bytes([9, 16, 0, 1])))
    assert difference(found, patches) == 0 and warning.endswith("its colours are those of HDR")


BROKEN = {
    "no profile at all": b"not a profile",
    "cut off": profiles.DISPLAY_P3[:300],
    "lies about its size": struct.pack(">I", 2**31) + profiles.DISPLAY_P3[4:],
    "a tag beyond its end": profiles.DISPLAY_P3[:136] + struct.pack(">I", 2**31) + profiles.DISPLAY_P3[140:],
    "for another kind of picture": profiles.cmyk(),
    "grey for an RGB picture": profiles.grey(),
    "a link between devices": profiles.DISPLAY_P3[:12] + b"link" + profiles.DISPLAY_P3[16:],
    "without its curves": profiles.DISPLAY_P3.replace(b"rTRC", b"zzzz"),
    "a chain of 100,000 matrices": profiles.chained(),
    "of more than 4 MB": profiles.DISPLAY_P3 + bytes(4_000_001),
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=BROKEN)
def test_a_profile_that_cannot_be_used_is_left_out_with_one_warning(profile):
    picture = Image.effect_noise((32, 32), 90).convert("RGB")
    for format in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        found, original, warnings = opened(file_of(picture, format, icc_profile=profile, **options), is_masked=True)
        assert difference(found, picture) == 0 and original is None
        (warning,) = warnings
        assert warning.startswith(
            "image has a colour profile that cannot be used, so that its colours are read as sRGB: "
        )


def test_a_large_profile_is_used_and_one_that_replies_cannot_carry_is_not_kept(patches):
    padded = bytearray(profiles.DISPLAY_P3 + bytes(2_000_000))
    padded[:4] = struct.pack(">I", len(padded))
    p3 = by_profiles(patches, srgb_profile(), profiles.DISPLAY_P3, "RGB")
    for profile in (bytes(padded), profiles.scanner()):
        found, original, warnings = opened(file_of(p3, icc_profile=profile), is_masked=True)
        assert difference(found, p3) > 15 and original is None
        assert warnings == ["image has a colour profile that pictures cannot be written with, and the result is sRGB"]


def test_the_largest_profile_that_is_read_is_applied_in_a_moment(patches):
    profile = profiles.table()
    assert 3_500_000 < len(profile) <= MAX_BYTES
    with little_work():
        found, _, _ = opened(file_of(patches.resize((2000, 1500)), "TIFF", icc_profile=profile))
    assert found.size == (2000, 1500)


def test_a_chain_is_refused_by_its_directory_and_not_by_being_run():
    with pytest.raises(UnusableProfile, match="chains of processing elements"):
        space_of_profile(profiles.chained(10))
    with pytest.raises(UnusableProfile, match="at most 4 MB are read"):
        space_of_profile(bytes(MAX_BYTES + 1))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_damage_of_a_profile_leaves_a_picture(data):
    profile = bytearray(data.draw(st.sampled_from([profiles.DISPLAY_P3, profiles.grey(), profiles.scanner()])))
    for _ in range(data.draw(st.integers(1, 4))):
        profile[data.draw(st.integers(0, len(profile) - 1))] = data.draw(st.integers(0, 255))
    picture = Image.new("L" if bytes(profile[16:20]) == b"GRAY" else "RGB", (4, 4))
    found, original, warnings = opened(file_of(picture, icc_profile=bytes(profile)), is_masked=True)
    assert found.mode == "RGB" and (warnings or found) and (original is None or PROFILE in original.info)


@pytest.mark.parametrize("corners", [((0.3, 0.3),) * 3, ((0.64, 0.0), (0.3, 0.6), (0.15, 0.06))])
def test_primaries_that_span_no_space_make_no_profile(corners):
    from qwen_worker.pictures.icc import Primaries

    with pytest.raises(UnusableProfile):
        matrix_profile("nothing", Primaries(*corners), (2.2,))
