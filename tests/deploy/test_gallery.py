"""`make gallery` draws its set on an endpoint and writes a page that says what each picture took."""

import json
import re

import pytest
from PIL import Image

from qwen_deploy import gallery
from qwen_deploy.runpod.client import REAL_TIME, Clock
from qwen_tiny.world import judge

from ..conftest import ROOT, TINY_WARNING, environment_of
from ..support.local_endpoint import LocalEndpoint
from .conftest import NEW
from .fake_runpod import KEY, Build, stands_in

DRAWN = {"width": 256, "height": 256, "num_inference_steps": 8}
TINY_SET = [
    {"name": "one", "prompt": "a large red circle in the center, on a blue background", "seed": 7, **DRAWN},
    {"name": "two", "edit_of": "one", "prompt": "make the background green", "seed": 7, "num_inference_steps": 4},
]


@pytest.fixture(scope="module")
def url(tiny, tmp_path_factory):
    with LocalEndpoint(environment_of(tiny, tmp_path_factory.mktemp("home"))) as endpoint:
        yield f"{endpoint.address}/v2/local"


def run(tmp_path, entries, url, **environment):
    (tmp_path / "set.json").write_text(json.dumps(entries))
    arguments = ["--url", url, "--prompts", str(tmp_path / "set.json"), "--output", str(tmp_path / "docs")]
    return gallery.main(arguments, environment)


def run_on_runpod(tmp_path, runpod, clock):
    (tmp_path / "set.json").write_text(json.dumps(TINY_SET[:1]))
    options = {"endpoint-id": "ep1", "prompts": tmp_path / "set.json", "output": tmp_path / "docs", "state": tmp_path}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {"RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url}
    return gallery.main(arguments, environment, Clock(clock.now, clock.pause))


def test_the_page_has_every_picture_with_what_it_took_and_the_model_s_own_warning(url, tmp_path):
    assert run(tmp_path, TINY_SET, url) == 0
    page = (tmp_path / "docs/gallery.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ![")]
    cells = r"\| a large red circle .* \| 7 \| quality, 8 \| 256x256 \| a CPU \| \d+\.\d \| not known \|"
    assert re.search(cells, rows[0])
    assert "| edit of *one*: make the background green | 7 |" in rows[1] and len(rows) == 2
    assert TINY_WARNING[1:] in page and "tiny-qwen-image/edit (folder-" in page
    files = (tmp_path / f"docs/gallery/{name}.webp" for name in ("one", "two"))
    first, second = (judge.read(Image.open(file).convert("RGB")) for file in files)
    assert (first.background, second.background) == ("blue", "green") and second.colour == "red"


def test_on_runpod_the_page_has_the_card_and_what_its_seconds_cost(runpod, clock, tmp_path):
    runpod.add(NEW)  # 4 s on a 4090
    assert run_on_runpod(tmp_path, runpod, clock) == 0
    page = (tmp_path / "docs/gallery.md").read_text()
    assert f"| NVIDIA GeForce RTX 4090 | 4.0 | ${1.12 / 3600 * 4:.4f} |" in page


def test_a_stand_in_is_no_picture_for_the_page(runpod, clock, tmp_path, capsys):
    runpod.add(NEW)
    runpod.builds[NEW] = Build(stands_in("v1"))
    assert run_on_runpod(tmp_path, runpod, clock) == 1
    assert "one is a stand-in: no weights" in capsys.readouterr().out and not (tmp_path / "docs").exists()


def test_a_job_that_fails_leaves_no_page(url, tmp_path, capsys):
    assert run(tmp_path, [TINY_SET[0], {"name": "two", "prompt": "a", "width": 100}], url) == 1
    assert "two: the job is FAILED: invalid_input" in capsys.readouterr().out and not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([], "must be a list of jobs"),
        ([{"name": "../x", "prompt": "a"}], "letters, digits and -"),
        ([TINY_SET[0], TINY_SET[0]], "stand once"),
        ([TINY_SET[1]], "does not stand before it"),
    ],
)
def test_a_set_that_cannot_be_drawn_is_refused_before_anything_is_sent(tmp_path, capsys, entries, told):
    assert run(tmp_path, entries, "http://127.0.0.1:9/v2/local") == 2
    assert told in " ".join(capsys.readouterr().out.split())


def test_pictures_that_a_repository_should_not_hold_are_refused(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "MAX_BYTES", 100)
    assert run(tmp_path, TINY_SET[:1], url) == 1 and not (tmp_path / "docs").exists()


def test_the_set_is_twelve_jobs_that_the_worker_understands():
    from qwen_worker.jobs.parsing import parse
    from qwen_worker.jobs.presets import Presets

    entries = gallery.read_set(ROOT / "examples/gallery.json")
    assert len(entries) == 12 and sum("edit_of" in entry for entry in entries) == 4
    for entry in entries:
        fields = {name: value for name, value in entry.items() if name not in ("name", "edit_of")} | gallery.FORMAT
        assert parse(fields | ({"image": "aaaa"} if "edit_of" in entry else {}), "job", Presets())


def test_ctrl_c_is_answered_with_a_sentence_and_leaves_no_page(url, tmp_path, capsys):
    def press(_):
        raise KeyboardInterrupt

    (tmp_path / "set.json").write_text(json.dumps([{**TINY_SET[0], "num_inference_steps": 100}]))
    arguments = ["--url", url, "--prompts", str(tmp_path / "set.json"), "--output", str(tmp_path / "docs")]
    assert gallery.main(arguments, {}, Clock(REAL_TIME.now, press)) == 130
    assert "Interrupted: no page was written." in capsys.readouterr().out
    assert not (tmp_path / "docs").exists()
