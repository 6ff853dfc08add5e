"""What the worker's environment may hold and show, and the CUDA that its torch needs."""

import pytest

from qwen_deploy.environment import cuda_floor, mask_secret, parse_assignments, worker_settings
from qwen_deploy.errors import UsageError

from ..conftest import ROOT

PINS = [
    ("torch==2.14.0\n", "", "13.0"),  # PyPI's own build
    ("torch==2.14.0+cu126  # not cu130: few hosts have it\n", "", "12.6"),
    ("--extra-index-url https://download.pytorch.org/whl/cu128\ntorch==2.14.0\n", "", "12.8"),
    ("torch==2.14.0\n", "RUN pip install --index-url https://download.pytorch.org/whl/cu129 torch\n", "12.9"),
    ("# torch==2.14.0+cu126\ntorch==9.9.0\n", "", None),
]


@pytest.mark.parametrize("requirements, dockerfile, floor", PINS)
def test_the_cuda_floor_comes_from_the_torch_pin(tmp_path, requirements, dockerfile, floor):
    (tmp_path / "requirements.txt").write_text(requirements)
    (tmp_path / "Dockerfile").write_text(dockerfile)
    assert cuda_floor(tmp_path) == floor


def test_this_image_s_torch_has_a_cuda_floor():
    assert cuda_floor(ROOT) == "12.6"


@pytest.mark.parametrize(("argument", "floor"), [
    ("TORCH_INDEX=https://download.pytorch.org/whl/cu130", "13.0"),
    ("TORCH_INDEX=https://pypi.org/simple", "13.0"),  # of torch 2.14
    ("BAKE=no", "12.6"),
])  # fmt: skip
def test_a_build_argument_takes_the_place_of_the_pin(argument, floor):
    assert cuda_floor(ROOT, [argument]) == floor


def test_a_name_alone_takes_this_shell_s_value():
    assert parse_assignments(["HF_TOKEN", "A=b=c", "EMPTY="], {"HF_TOKEN": "x"}) == {
        "HF_TOKEN": "x", "A": "b=c", "EMPTY": "",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["=x", "A B=1", "1A=x"])
def test_a_name_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_assignments([text], {})


def test_the_operator_s_shell_does_not_reach_the_worker_s_settings(monkeypatch):
    monkeypatch.setenv("QWEN_PRECISION", "nf4")
    assert worker_settings({"QWEN_VRAM_GB": ""}).QWEN_PRECISION.value == "auto"


@pytest.mark.parametrize("name, hidden", [
    ("QWEN_FALLBACK", False), ("HF_HOME", False), ("HF_TOKEN", True), ("BUCKET_SECRET_ACCESS_KEY", True),
    ("QWEN_API_KEY", True), ("QWEN_C2PA_KEY", True), ("QWEN_C2PA_CERTIFICATE", True), ("ANYTHING", True),
    ("QWEN_REWRITE_KEY", True), ("QWEN_SAFETY_MODEL", False),
])  # fmt: skip
def test_what_may_be_a_secret_is_hidden(name, hidden):
    assert (mask_secret(name, "value") == "***") is hidden and mask_secret(name, None) == "(none)"


def test_the_address_of_a_lora_is_hidden():
    """It may be signed."""
    assert mask_secret("QWEN_IMAGE_FAST_LORA", "ORG/NAME/8steps.safetensors") == "ORG/NAME/8steps.safetensors"
    assert mask_secret("QWEN_LORAS", '[{"path": "https://example.com/a?signature=hush"}]') == "***"


def test_the_endpoint_that_rewrites_prompts_is_hidden_with_its_key():
    assert mask_secret("QWEN_REWRITE_URL", "https://user:hush@example.com/v1") == "***"
    with pytest.raises(UsageError, match="QWEN_REWRITE_URL: .*must hold no credentials") as refused:
        worker_settings({"QWEN_REWRITE_URL": "https://user:hush@example.com/v1", "QWEN_REWRITE_KEY": "s3cr3t"})
    assert "hush" not in str(refused.value) and "s3cr3t" not in str(refused.value)


def test_a_refused_variable_is_named_without_what_may_be_a_secret():
    with pytest.raises(UsageError, match="QWEN_VRAM_GB: .*, not many"):
        worker_settings({"QWEN_VRAM_GB": "many"})
    with pytest.raises(UsageError) as refused:
        worker_settings({"BUCKET_URL_SECONDS": "1234567890", "BUCKET_SECRET_ACCESS_KEY": "s3cr3t"})
    assert "BUCKET_URL_SECONDS" in str(refused.value) and "s3cr3t" not in str(refused.value)
