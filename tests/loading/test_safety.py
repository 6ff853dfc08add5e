"""The safety check judges by the labels that are rejected, is loaded whole or not at all, and its RAM is planned."""

import asyncio
import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen_worker.checkpoints.classifier import Classifier
from qwen_worker.errors import JobError, LoadError
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.request import Generate
from qwen_worker.loading import safety
from qwen_worker.loading.safety import Judge, SafetyCheck, rejected_labels
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Machine
from qwen_worker.pictures.colour import PROFILE, in_space_of
from qwen_worker.pictures.icc import SRGB_PRIMARIES, Primaries, matrix_profile
from qwen_worker.settings import Settings

from ..support import profiles
from ..support.scene_classifier import FOLDER, accuracy
from ..support.scene_classifier import picture_of as scene_of


@pytest.fixture
def copied(tmp_path):
    """A folder of the classifier that a test may spoil."""
    return shutil.copytree(FOLDER, tmp_path / "copied/classifier")


def check_of(folder, **settings):
    return SafetyCheck(Settings(QWEN_MODEL_ROOTS=(), **settings), str(folder))


def refusal(check):
    with pytest.raises(LoadError) as caught:
        check.load()
    assert check.report()["loaded"] is False and "/tmp" not in str(caught.value)
    return caught.value.reason


def test_the_classifier_of_the_tests_tells_scenes_apart():
    assert accuracy(200) >= 0.98


class Sure:
    """As much of a classifier as a judge asks: the same logits for every picture, whose sizes it keeps."""

    def __init__(self, *logits):
        self.logits, self.sizes = logits, []

    def __call__(self, images=None, return_tensors=None, **_):
        import torch

        if images is not None:
            self.sizes.append((images.mode, images.size))
            return {}
        return type("Output", (), {"logits": torch.tensor([self.logits], dtype=torch.float32)})


def judged(labels, rejected, logits, several=False):
    found = Classifier("a/b", FOLDER, labels, several, 0)
    label, probability = Judge(found, Sure(), Sure(*logits), rejected).judge(Image.new("RGB", (8, 8)))
    return label, round(probability, 4)


def test_rejected_labels_count_together_where_a_picture_has_one_label():
    labels = ("drawings", "hentai", "neutral", "porn", "sexy")
    equal = (0.0,) * 5
    assert judged(labels, (1, 3, 4), equal) == ("hentai", 0.6)
    assert judged(labels, (1, 3, 4), (0, 0, 0, 9, 0)) == ("porn", 0.9998)
    assert judged(labels, (3,), equal) == ("porn", 0.2)


def test_the_likeliest_rejected_label_counts_where_each_has_its_own_probability():
    assert judged(("nsfw", "gore", "art"), (0, 1), (-1.0, 1.0, 9.0), several=True) == ("gore", 0.7311)


def test_a_picture_is_judged_in_rgb_and_at_most_a_megapixel():
    processor = Sure()
    judge = Judge(Classifier("a/b", FOLDER, ("safe", "nsfw"), False, 0), processor, Sure(0, 0), (1,))
    for mode, size in (("RGB", (256, 256)), ("L", (2048, 2048)), ("RGB", (1500, 1000))):
        judge.judge(Image.new(mode, size))
    assert processor.sizes == [("RGB", (256, 256)), ("RGB", (1024, 1024)), ("RGB", (1254, 836))]


@pytest.fixture
def scenes():
    """By shape, a scene of it, as square pictures."""
    from random import Random

    from qwen_tiny.world.scenes import CENTER, RADIUS, Scene

    def scene(shape):
        return Scene("red", shape, "blue", "large", "center", CENTER["center"], 0.5, RADIUS["large"])

    return {shape: scene_of(Random(1), scene(shape)).resize((256, 256)) for shape in ("circle", "triangle")}


def passes(check, picture):
    """Whether the check lets the picture pass."""
    try:
        asyncio.run(check.check_drawn(Job("a", parse({"prompt": "a fox"}, "a")), [picture]))
    except JobError as error:
        assert error.code == "content_rejected"
        return False
    return True


def test_a_picture_in_a_space_of_its_own_is_judged_as_it_is_seen_and_not_by_its_numbers(scenes):
    """Of such a curve the numbers show next to nothing, and every viewer shows the picture."""
    check = check_of(FOLDER)
    check.load()
    holder = Image.new("RGB", (8, 8))
    holder.info[PROFILE] = matrix_profile("own", Primaries(*SRGB_PRIMARIES), (0.15,))
    hidden = in_space_of(scenes["triangle"], holder)
    numbers = hidden.copy()
    numbers.info = {}
    assert passes(check, numbers) and not passes(check, hidden)
    assert passes(check, in_space_of(scenes["circle"], holder))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_that_is_judged_stays_as_it_was(scenes, mode):
    check, picture = check_of(FOLDER), scenes["circle"].convert(mode)
    check.load()
    picture.info = {PROFILE: profiles.grey() if mode == "L" else profiles.DISPLAY_P3, "other": 1}
    info, pixels = dict(picture.info), picture.tobytes()
    assert passes(check, picture)
    assert (picture.info, picture.mode, picture.tobytes()) == (info, mode, pixels)


@pytest.mark.parametrize("size", [(2048, 256), (256, 2048), (512, 256)])
def test_a_figure_in_a_long_picture_is_seen_wherever_it_is(scenes, size):
    check, length, is_wide = check_of(FOLDER), max(size), size[0] > size[1]
    check.load()

    def strip(*places):
        found = Image.new("RGB", size, scenes["triangle"].getpixel((3, 3)))
        for place in places:
            found.paste(scenes["triangle"], (place, 0) if is_wide else (0, place))
        return found

    if length == 2048:  # squashed, the figure is a line
        assert check.judge.look_at(strip(896))[1] < 0.5
    assert passes(check, strip())
    for place in (0, (length - 256) // 2, length - 256):
        assert not passes(check, strip(place))


def test_a_long_picture_has_few_views_which_overlap_by_half():
    def places(size):
        processor = Sure()
        Judge(Classifier("a/b", FOLDER, ("safe", "nsfw"), False, 0), processor, Sure(0, 0), (1,)).judge(
            Image.new("RGB", size)
        )
        return [size for _, size in processor.sizes]

    assert places((1664, 928)) == [(1371, 765), *[(928, 928)] * 3]
    assert places((1000, 8000)) == [(362, 2896), *[(1000, 1000)] * 15]
    starts = [
        view.getpixel((0, 0))[0] for view in safety.views(Image.linear_gradient("L").resize((16, 64)).convert("RGB"))
    ]
    assert len(starts) == 8 and all(
        0 < after - before <= 33 for before, after in zip(starts[1:], starts[2:], strict=False)
    )


def test_a_view_without_a_number_is_the_worst():
    found = Classifier("a/b", FOLDER, ("safe", "nsfw"), False, 0)
    outputs = iter([(0.0, 9.0), (0.0, float("nan")), (9.0, 0.0), (0.0, 9.0)])

    class Turns(Sure):
        def __call__(self, **_):
            self.logits = next(outputs)
            return super().__call__()

    _, probability = Judge(found, Sure(), Turns(), (1,)).judge(Image.new("RGB", (200, 100)))
    assert probability != probability


@pytest.mark.parametrize(
    ("labels", "chosen", "rejected"),
    [
        (("normal", "nsfw"), None, (1,)),
        (("NSFW", "SFW"), None, (0,)),
        (("drawings", "hentai", "neutral", "porn", "sexy"), None, (1, 3, 4)),
        (("drawings", "hentai", "neutral", "porn", "sexy"), "porn, Hentai,porn", (3, 1)),
        (("neutral", "low", "medium", "high"), "high", (3,)),
    ],
)
def test_the_labels_that_are_rejected(labels, chosen, rejected):
    assert rejected_labels(Classifier("a/b", FOLDER, labels, False, 0), chosen) == rejected


@pytest.mark.parametrize(
    ("labels", "chosen", "words"),
    [
        (("neutral", "low", "high"), None, "neutral, low, high, of which QWEN_SAFETY_LABELS must say which are reject"),
        (("normal", "nsfw"), "nfsw", "normal, nsfw, and not 'nfsw' of QWEN_SAFETY_LABELS"),
        (("normal", "nsfw"), "normal,nsfw", "of which QWEN_SAFETY_LABELS must name some and not all"),
        (("normal", "nsfw"), " , ", "of which QWEN_SAFETY_LABELS must name some and not all"),
    ],
)
def test_labels_that_would_let_everything_pass_or_nothing_are_refused(labels, chosen, words):
    with pytest.raises(LoadError) as caught:
        rejected_labels(Classifier("a/b", FOLDER, labels, False, 0), chosen)
    assert caught.value.reason.startswith("a/b has the labels ") and words in caught.value.reason


def test_it_is_loaded_once_in_float32_and_says_so(capsys):
    check = check_of(FOLDER, QWEN_SAFETY_THRESHOLD=0.7)
    assert check.report() == {
        "model": "support/scene-classifier", "loaded": False, "rejected": [], "threshold": 0.7,
    }  # fmt: skip
    check.load()
    loaded = check.judge
    check.load()
    assert check.judge is loaded and check.report()["rejected"] == ["unsafe"] and check.report()["loaded"]
    assert {(str(one.dtype), one.device.type) for one in loaded.model.parameters()} == {("torch.float32", "cpu")}
    held = sum(one.nbytes for one in loaded.model.parameters())
    assert held <= loaded.classifier.ram_bytes < 1.05 * held  # and the running means of its norms
    assert "safety check: support/scene-classifier rejects unsafe from 0.7" in capsys.readouterr().out


def spoil(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_missing_or_of_another_shape_are_not_drawn_at_random(copied):
    spoil(copied, lambda weights: weights.pop("classifier.1.bias"))
    assert refusal(check_of(copied)) == "copied/classifier lacks 1 of its weights, such as classifier.1.bias"
    spoil(
        copied, lambda weights: weights.update({"classifier.1.bias": weights["classifier.1.weight"].flatten().clone()})
    )
    assert "copied/classifier" in refusal(check_of(copied))


def test_weights_that_come_to_no_number_are_refused_at_the_start(copied):
    spoil(copied, lambda weights: weights["classifier.1.bias"].fill_(float("nan")))
    assert refusal(check_of(copied)) == "copied/classifier comes to no number for a grey picture"


def test_a_class_that_transformers_does_not_have_or_code_of_its_own_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    for change in (
        {"model_type": "unheard_of", "architectures": ["UnheardOfForImageClassification"]},
        {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}},
    ):
        (copied / "own.py").write_text("raise SystemExit('its code runs')")
        (copied / "config.json").write_text(json.dumps(config | change))
        assert refusal(check_of(copied)).startswith("copied/classifier cannot be loaded as an image classifier: ")


def test_a_picture_for_which_there_is_no_number_is_not_sent(capsys):
    check = check_of(FOLDER)
    found = Classifier("a/b", FOLDER, ("safe", "nsfw"), False, 0)
    check.judge = Judge(found, Sure(), Sure(0.0, float("nan")), (1,))
    with pytest.raises(JobError, match="^internal: the safety check came to no result, and nothing is sent unchecked"):
        asyncio.run(check.check_drawn(Job("a", parse({"prompt": "a fox"}, "a")), [Image.new("RGB", (8, 8))]))


def test_ram_that_is_too_little_is_told_with_both_figures(monkeypatch):
    monkeypatch.setattr(safety, "read_ram", lambda: (10**9, 100_000))
    assert refusal(check_of(FOLDER)) == "support/scene-classifier needs 0.00 GB of RAM; 0.00 GB are free"


def test_a_plan_counts_what_the_classifier_holds_beside_what_it_leaves_for_the_process(monkeypatch):
    check = check_of(FOLDER)

    def plan_may_pin(**held):
        here = Machine(None, 64 * 10**9, 60 * 10**9 - held["process_bytes"], **held)
        monkeypatch.setattr(safety, "read_machine", lambda: here)
        return placement.pinnable(check.machine_for_models())

    before = plan_may_pin(process_bytes=10**9)
    check.load()
    ram_bytes = check.judge.classifier.ram_bytes
    assert before - plan_may_pin(process_bytes=10**9 + ram_bytes) == ram_bytes > 100_000


@pytest.mark.parametrize(("count", "names"), [(1, ["control_image"]), (2, ["control_image[0]", "control_image[1]"])])
def test_control_pictures_are_named_as_the_job_names_them(count, names, monkeypatch):
    check, told = check_of(FOLDER), []

    async def note(_job, _pictures, names, _advice):
        told.extend(names)

    monkeypatch.setattr(check, "check", note)
    request = Generate.model_validate({"prompt": "a", "control_image": ["aa"] * count})
    asyncio.run(check.check_inputs(Job("job", request), [Image.new("RGB", (8, 8))] * count))
    assert told == names
