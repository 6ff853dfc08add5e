"""The safety check judges by the labels that are rejected, is loaded whole or not at all, and its RAM is planned."""

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen_worker.checkpoints.classifier import Classifier
from qwen_worker.errors import JobError, LoadError
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.loading import safety
from qwen_worker.loading.safety import Judge, SafetyCheck, rejected_labels
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Machine
from qwen_worker.settings import Settings

from ..support.scene_classifier import FOLDER, accuracy


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
    for mode, size in (("RGB", (256, 256)), ("L", (2048, 2048)), ("RGB", (8000, 1000))):
        judge.judge(Image.new(mode, size))
    assert processor.sizes == [("RGB", (256, 256)), ("RGB", (1024, 1024)), ("RGB", (2896, 362))]


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
        check.check_drawn(Job("a", parse({"prompt": "a fox"}, "a")), [Image.new("RGB", (8, 8))])


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
