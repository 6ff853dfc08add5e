"""Control pictures get the drawing's size without being distorted, and become edges where a job asks for them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.control import Control
from qwen_worker.pictures import control as pictures
from qwen_worker.pictures.control import canny

AS_SENT, AS_EDGES = Control("control_image", None, 1.0, "none"), Control("control_image", "canny", 1.0, "canny")


@pytest.fixture
def disc():
    """A red disc in the middle of blue, 512 x 256."""
    picture = Image.new("RGB", (512, 256), "blue")
    ImageDraw.Draw(picture).ellipse((206, 78, 306, 178), fill="red")
    return picture


def prepared(picture, control, size):
    warnings = []
    (found,) = pictures.prepare([picture], [control], size, warnings.append)
    return found, warnings


def test_a_picture_of_the_size_stays_as_it_is(disc):
    found, warnings = prepared(disc, AS_SENT, (512, 256))
    assert np.array_equal(found, disc) and not warnings
    found, warnings = prepared(disc, AS_SENT, (1024, 512))
    assert found.size == (1024, 512) and not warnings


def test_a_picture_of_another_aspect_covers_the_drawing_and_keeps_its_proportions(disc):
    found, warnings = prepared(disc, AS_SENT, (256, 256))
    red = np.asarray(found)[..., 0] > 128
    rows, columns = np.nonzero(red)
    assert abs(np.ptp(rows) - 100) <= 2 and abs(np.ptp(columns) - 100) <= 2  # still round, still in the middle
    assert abs(rows.mean() - 128) < 2 and abs(columns.mean() - 128) < 2
    assert warnings == [
        "control_image is 512x256 and the picture 256x256: it is scaled to cover the picture, and cut at left and right"
    ]
    assert "at top and bottom" in prepared(disc, AS_SENT, (1024, 256))[1][0]


def test_edges_are_lines_of_one_pixel_at_the_drawing_s_size(disc):
    edges = np.asarray(prepared(disc, AS_EDGES, (1024, 512))[0])
    assert set(np.unique(edges)) == {0, 255} and (edges[..., 0] == edges[..., 1]).all()
    rows, columns = np.nonzero(edges[..., 0])
    distance = np.hypot(rows - 256, columns - 512)
    assert len(rows) > 400 and abs(distance - 100 * 2 / 2).max() < 4  # the radius, at twice the size


def test_colours_of_one_brightness_have_edges_too():
    picture = Image.new("RGB", (64, 64), (200, 0, 0))
    picture.paste((0, 102, 0), (16, 16, 48, 48))  # both are 60 in grey
    assert np.asarray(canny(picture)).any()


def test_without_opencv_the_job_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    pictures.require_preprocessor([AS_SENT])
    with pytest.raises(InvalidInput, match="control_preprocess 'canny' needs the package opencv-python-headless"):
        pictures.require_preprocessor([AS_SENT, AS_EDGES])
