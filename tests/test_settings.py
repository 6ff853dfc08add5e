"""The environment becomes typed settings, or is refused by the name of the variable."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from qwen_worker.settings import Fallback, Misconfigured, Settings, environment_warnings, read_settings


def test_the_defaults_are_the_released_models():
    settings = Settings()
    assert (settings.QWEN_IMAGE_MODEL, settings.QWEN_EDIT_MODEL) == ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit")
    assert settings.QWEN_FALLBACK is Fallback.ALLOW and settings.QWEN_VRAM_GB is None


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("QWEN_FALLBACK", "forbid")
    monkeypatch.setenv("QWEN_VRAM_GB", "24")
    monkeypatch.setenv("QWEN_MODEL_ROOTS", "/a:/b")
    monkeypatch.setenv("QWEN_EDIT_MODEL", "")
    settings = Settings()
    assert settings.QWEN_FALLBACK is Fallback.FORBID and settings.QWEN_VRAM_GB == 24
    assert settings.QWEN_MODEL_ROOTS == (Path("/a"), Path("/b"))
    assert settings.QWEN_EDIT_MODEL == "Qwen/Qwen-Image-Edit"  # empty counts as absent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QWEN_FALLBACK", "yes"),
        ("QWEN_TASKS", "none"),
        ("QWEN_PRECISION", "int3"),
        ("QWEN_VRAM_GB", "-1"),
        ("QWEN_VRAM_GB", "24GB"),
        ("QWEN_VRAM_GB", "inf"),
        ("QWEN_RESULT_LIMIT_MB", "nan"),
        ("SERVER_MODE", "http"),
        ("QWEN_FETCH_SECONDS", "0"),
        ("QWEN_SAFETY_THRESHOLD", "1.5"),
        ("QWEN_REWRITE_URL", "api.openai.com/v1"),
        ("QWEN_REWRITE_URL", "ftp://api.openai.com/v1"),
        ("QWEN_REWRITE_URL", "https://me:hush@api.openai.com/v1"),
        ("QWEN_REWRITE_URL", "https://api.openai.com/v1?key=hush"),
    ],
)
def test_a_bad_value_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert caught.value.errors()[0]["loc"] == (name,)
    with pytest.raises(Misconfigured, match=name) as told:
        read_settings()
    assert "hush" not in str(told.value)


def test_a_model_that_is_to_be_loaded_and_not_served_is_named():
    both = {"QWEN_PRELOAD": "generate, edit"}
    warning = "QWEN_PRELOAD names edit, which QWEN_TASKS does not: it is not loaded"
    assert environment_warnings(both | {"QWEN_TASKS": "generate"}) == [warning]
    assert environment_warnings(both) == environment_warnings(both | {"QWEN_TASKS": "edit,generate"}) == []


def test_every_setting_says_what_it_is_for():
    assert all(field.description for field in Settings.model_fields.values())


def test_labels_without_a_classifier_are_refused_and_other_idle_settings_told(monkeypatch):
    monkeypatch.setenv("QWEN_SAFETY_LABELS", "nsfw")
    with pytest.raises(Misconfigured, match="^QWEN_SAFETY_LABELS is set and QWEN_SAFETY_MODEL is not: no picture"):
        read_settings()
    idle = {"QWEN_REWRITE_KEY": "hush", "QWEN_C2PA_KEY": "hush", "QWEN_MARK": "xmp"}
    assert environment_warnings(idle) == [
        "QWEN_REWRITE_KEY has no effect without QWEN_REWRITE_URL", "QWEN_C2PA_KEY has no effect without QWEN_MARK=c2pa",
    ]  # fmt: skip
    assert environment_warnings({**idle, "QWEN_REWRITE_URL": "http://a", "QWEN_MARK": "c2pa"}) == []
