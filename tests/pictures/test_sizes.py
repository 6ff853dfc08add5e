"""An edit is drawn at the size at which its pipeline looks at the input picture, whatever size is delivered."""

import importlib

import pytest
from PIL import Image, ImageChops

from qwen_worker.jobs.named_sizes import MAX_STRETCH, Grid
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.served import Limits, require_served
from qwen_worker.pictures.canvas import Canvas
from qwen_worker.pictures.sizes import conditioning_size, enlarged_warning, moved_warning, sizes_of, stretch

SIDES = (256, 300, 512, 768, 1000, 1024, 1536, 2048)
PIPELINES = (
    "qwenimage.pipeline_qwenimage_edit",
    "qwenimage.pipeline_qwenimage_edit_plus",
    "qwenimage21.pipeline_qwenimage21",
)


def picture(size):
    return Image.new("RGB", size, "red")


def sizes(*sources, mask=False, multiple=16, grid=None, **fields):
    """The sizes of an edit of pictures of these sizes."""
    images = {"images": ["aGk="] * len(sources)} | ({"mask": "aGk="} if mask else {})
    request = parse({"prompt": "a", **images, **fields}, "job")
    pictures = [picture(size) for size in sources]
    return sizes_of(request, pictures, pictures[0] if mask else None, grid or Grid(multiple))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_size_at_which_an_edit_is_drawn_is_that_at_which_diffusers_looks_at_its_picture(pipeline):
    calculated = importlib.import_module(f"diffusers.pipelines.{pipeline}").calculate_dimensions
    for width in SIDES:
        for height in SIDES:
            assert conditioning_size((width, height)) == calculated(1024 * 1024, width / height)[:2]


@pytest.mark.parametrize(
    ("source", "fields", "drawn", "delivered"),
    [
        ((1024, 1024), {}, (1024, 1024), (1024, 1024)),
        ((4000, 3000), {}, (1184, 896), (1184, 896)),
        ((800, 100), {}, (2912, 352), (2912, 352)),  # beyond 4:1 one side is longer than a job may ask for
        ((512, 512), {"size": "512x512"}, (1024, 1024), (512, 512)),
        ((512, 512), {"size": "2048x2048"}, (1024, 1024), (2048, 2048)),
        ((1600, 1200), {"size": "1152x896"}, (1184, 896), (1152, 896)),  # 4:3 as it is rounded: stretched by 4 %
        ((512, 512), {"mask": True}, (1024, 1024), (512, 512)),
        ((770, 510), {"mask": True}, (1248, 832), (770, 510)),
        # A picture of which a part is kept has its own size however small or long it is, unless the job asks for other.
        ((300, 200), {"mask": True}, (1248, 832), (300, 200)),
        ((16, 16), {"mask": True}, (1024, 1024), (16, 16)),
        ((2400, 400), {"mask": True}, (2496, 416), (2400, 400)),
        ((240, 1500), {"mask": True}, (416, 2560), (240, 1500)),
        ((300, 200), {"mask": True, "mask_crop": False}, (1248, 832), (1248, 832)),
        ((300, 200), {"mask": True, "size": "512x512"}, (1248, 832), (512, 512)),
        ((4096, 4096), {"mask": True}, (1024, 1024), (1024, 1024)),  # larger than a result may be
        ((1024, 512), {"mask": True, "size": "512x512"}, (1440, 736), (512, 512)),
        ((1024, 512), {"strength": 0.5, "size": "512x512"}, (1440, 736), (512, 512)),
        # Another shape without a mask is composed anew, in a megapixel of that shape.
        ((1024, 1024), {"size": "1024x512"}, (1440, 736), (1024, 512)),
        ((1024, 1024), {"size": "512x2048"}, (512, 2048), (512, 2048)),
        # The size that is asked for, as the model draws it there.
        ((1024, 1024), {"draw_size": "asked", "size": "512x768"}, (512, 768), (512, 768)),
        ((1024, 1024), {"draw_size": "asked"}, (1024, 1024), (1024, 1024)),
        ((512, 768), {"draw_size": "asked", "mask": True}, (512, 768), (512, 768)),
        ((770, 510), {"draw_size": "asked", "mask": True}, (1248, 832), (770, 510)),
        # By its ratio an edit has the size of its drawing, and by 1K or 2K the proportions of its picture.
        ((1024, 1024), {"aspect_ratio": "16:9"}, (1376, 768), (1376, 768)),
        ((4000, 3000), {"aspect_ratio": "4:3"}, (1184, 896), (1184, 896)),
        ((4000, 3000), {"aspect_ratio": "match_input_image"}, (1184, 896), (1184, 896)),
        ((770, 510), {"aspect_ratio": "match_input_image", "mask": True}, (1248, 832), (770, 510)),
        ((1024, 512), {"aspect_ratio": "1:1", "mask": True}, (1440, 736), (1024, 1024)),
        ((4000, 3000), {"size": "2K"}, (1184, 896), (2048, 1536)),
        ((1024, 1024), {"size": "2K", "aspect_ratio": "match_input_image"}, (1024, 1024), (2048, 2048)),
        ((1024, 1024), {"size": "2K", "aspect_ratio": "3:2"}, (1248, 832), (2048, 1360)),
        ((1024, 1024), {"draw_size": "asked", "size": "2K"}, (2048, 2048), (2048, 2048)),
        ((1024, 1024), {"draw_size": "asked", "aspect_ratio": "16:9"}, (1360, 768), (1360, 768)),
    ],
)
def test_an_edit_is_drawn_as_its_picture_is_looked_at_and_delivered_as_asked(source, fields, drawn, delivered):
    assert sizes(source, **fields)[:2] == (drawn, delivered)


@pytest.mark.parametrize("size", [(2400, 400), (240, 1500), (300, 200), (128, 128), (770, 510)])
def test_a_drawing_that_begins_with_a_masked_picture_has_its_size_too(size):
    request = {"task": "generate", "prompt": "a", "image": "aGk=", "mask": "aGk="}
    source, few = picture(size), {"mask_crop": False}
    drawn = conditioning_size(size)
    assert sizes_of(parse(request, "job"), [source], source, Grid())[:2] == (drawn, size)
    whole = sizes_of(parse(request | few, "job"), [source], source, Grid())
    assert whole.delivered == (size if size == (770, 510) else drawn)


@pytest.mark.parametrize("name", ["size", "image_size", "target_size", "resolution"])
def test_match_input_is_the_input_s_very_size_drawn_without_a_stretch(name):
    found = sizes((4001, 2999), **{name: "match_input"})
    assert found.delivered == (4001, 2999) and found.drawn == (1184, 896) and found.inset.source == (4001, 2999)
    assert sizes((4001, 2999), (300, 600), size_from=1, **{name: "match_input"}).delivered == (300, 600)


@pytest.mark.parametrize("fields", [{"aspect_ratio": "match_input_image"}, {"size": "match_input_image"},
                                    {"aspect_ratio": "match_input"}, {"resolution": "match_input_image"}])  # fmt: skip
def test_hosts_match_input_image_keeps_the_proportions_alone(fields):
    assert sizes((4001, 2999), **fields)[:2] == ((1184, 896), (1184, 896))


@pytest.mark.parametrize(("source", "is_told"), [((4001, 2999), True), ((1500, 1000), False), ((301, 211), False)])
def test_a_result_of_far_more_pixels_than_were_drawn_says_so(source, is_told):
    warning = enlarged_warning(sizes(source, size="match_input"))
    told = (
        "size match_input: the picture is drawn in 1184x887 pixels, as the model draws them, and enlarged to "
        "4001x2999; with mask_image all outside the mask keeps the input's own pixels"
    )
    assert warning == (told if is_told else None)


@pytest.mark.parametrize(
    ("source", "fields", "drawn", "seen"),
    [
        ((1024, 1024), {}, (1024, 1024), 1024),
        ((4000, 3000), {"size": "2752x2064"}, (2400, 1792), 2080),
        ((2752, 1536), {"size": "2752x1536"}, (2752, 1536), 2056),
        ((2752, 1536), {"mask": True}, (2752, 1536), 2056),
        ((600, 400), {"size": "600x400"}, (640, 416), 512),
        ((1024, 1024), {"size": "1024x512"}, (1024, 512), 724),
    ],
)
def test_2_1_looks_at_an_edit_s_pictures_in_about_the_size_that_is_asked_for(source, fields, drawn, seen):
    found = sizes(source, grid=Grid(32, "2K", 2752, True), **fields)
    assert (found.drawn, found.seen) == (drawn, seen)
    calculated = importlib.import_module("diffusers.pipelines.qwenimage21.pipeline_qwenimage21").calculate_dimensions
    if found.drawn == conditioning_size(source, seen):
        assert calculated(seen * seen, source[0] / source[1])[:2] == drawn


def test_the_first_of_several_pictures_gives_the_shape_or_the_one_that_is_named():
    assert sizes((600, 300), (300, 600)).drawn == (1440, 736)
    assert sizes((300, 600), (600, 300)).drawn == (736, 1440)
    assert sizes((600, 300), (300, 600), size_from=1).drawn == (736, 1440)


@pytest.mark.parametrize(
    ("fields", "moves"),
    [
        ({"size": "1024x512"}, True),
        ({"size": "1088x1024"}, True),  # 6 %
        ({"size": "1024x1024"}, False),
        ({"size": "1024x512", "draw_size": "asked"}, False),  # as the job says itself
        ({}, False),
    ],
)
def test_a_drawing_that_does_not_lie_on_its_picture_is_told(fields, moves):
    request, source = parse({"prompt": "a", "image": "aGk=", **fields}, "job"), [picture((1024, 1024))]
    warning = moved_warning(request, source, sizes_of(request, source, None, Grid()))
    assert bool(warning) == moves and (not moves or "other proportions than the input picture, 1024x1024" in warning)


@pytest.mark.parametrize("draw_size", ["input", "asked"])
@pytest.mark.parametrize("tie", [{"mask": "aGk="}, {"strength": 0.5}])
@pytest.mark.parametrize(("asked", "is_stretched"), [("1024x512", True), ("528x512", False), (None, False)])
def test_a_tied_drawing_in_another_shape_is_told_to_be_stretched(tie, asked, is_stretched, draw_size):
    request = parse({"prompt": "a", "image": "aGk=", **tie, "size": asked, "draw_size": draw_size}, "job")
    source = [picture((1024, 1024))]
    mask = source[0] if request.mask_image else None
    warning = moved_warning(request, source, sizes_of(request, source, mask, Grid()))
    told = (
        "1024x512 has other proportions than the input picture, 1024x1024: the picture was stretched to them; "
        "send aspect_ratio match_input_image or no size"
    )
    assert warning == (told if is_stretched else None)


def test_a_picture_from_a_prompt_is_drawn_as_asked():
    request = parse({"prompt": "a", "size": "512x768"}, "job")
    assert sizes_of(request, [], None, Grid())[:2] == ((512, 768), (512, 768))


def test_every_side_that_can_be_asked_for_is_drawn_at_one_that_all_checkpoints_take():
    for width in range(256, 2049, 128):
        for height in range(256, 2049, 128):
            if max(width, height) <= 8 * min(width, height):
                drawn, delivered, *_ = sizes((width, height), size=f"{width}x{height}")
                assert delivered == (width, height) and stretch((width, height), drawn) < MAX_STRETCH
                assert all(side % 32 == 0 for side in drawn) and 0.95 < drawn[0] * drawn[1] / 2**20 < 1.05


def test_a_checkpoint_s_grid_binds_only_what_is_drawn_at_the_size_asked_for():
    fields = {"prompt": "a", "image": "aGk=", "width": 272, "height": 256}
    require_served(parse(fields, "job"), Limits(32, 2048, 1))
    with pytest.raises(Exception, match="width must be a multiple of 32 for this checkpoint, not 272"):
        require_served(parse(fields | {"draw_size": "asked"}, "job"), Limits(32, 2048, 1))


def test_what_lies_outside_the_mask_is_the_source_s_to_the_bit_whatever_size_was_drawn():
    source = Image.effect_noise((512, 384), 60).convert("RGB")
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (128, 96, 256, 192))
    result = Canvas([source], mask, (1184, 896), source.size, start=source).finish(picture((1184, 896)))
    assert ImageChops.difference(result, source).getbbox() == (128, 96, 256, 192)
