"""Whole jobs by compiled blocks: what is compiled while a model is loaded, and that no usual job compiles more."""

import json

import numpy as np
import pytest

from qwen_worker.model_settings import Precision

from ..conftest import picture_of, run
from ..support.lora_files import matrices, write
from .test_speedups import ATTENTION, quantized_transformer, traced, transformer_of  # noqa: F401  a fixture

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "seed": 3, "num_inference_steps": 2}
OWN = {"loras": [{"path": "rank-4.safetensors"}]}
JOBS = [
    {},
    {"guidance_scale": 1, "width": 320, "num_images": 2},
    OWN,
    {"loras": [{"path": "rank-70.safetensors", "scale": -0.5}], "guidance_scale": 1},
    {"loras": [{"path": "rank-4.safetensors"}, {"path": "rank-70.safetensors"}], "guidance_end": 0.5, "height": 320},
]
FAST = {"preset": "fast"}


@pytest.fixture
def folder(tmp_path):
    """LoRAs of two ranks."""
    stock = transformer_of("generate", Precision.FP32)
    names = [f"transformer_blocks.{n}.{one}" for n in range(len(stock.transformer_blocks)) for one in ATTENTION]
    for rank in (4, 70):
        write(tmp_path / f"rank-{rank}.safetensors", matrices(stock, names, seed=rank, rank=rank, strength=0.5))
    return tmp_path


@pytest.mark.parametrize(
    ("precision", "own", "loaded", "uncompiled"),
    [
        # One prompt in a pass, and two; the same with LoRAs. (On a card short prompts have graphs of their own.)
        ("int8", {"QWEN_IMAGE_FAST_LORA"}, 4, []),
        # With the preset's LoRA no guidance, and so none of two rows. Jobs' own are not compiled.
        ("fp32", {"QWEN_IMAGE_FAST_LORA"}, 3, [*JOBS[2:], FAST | OWN]),
        # Every picture has the endpoint's LoRAs: there are no graphs without any.
        ("fp32", {"QWEN_IMAGE_FAST_LORA", "QWEN_LORAS"}, 2, []),
        ("fp32", set(), 2, JOBS[2:]),
    ],
)
def test_no_usual_job_compiles_anything(cold_worker, traced, folder, tiny, precision, own, loaded, uncompiled):  # noqa: F811
    """Whatever its size, guidance, preset and LoRAs; and it is drawn as without compiling, up to rounding."""
    _, counts, told = traced(quantized_transformer(Precision.FP32))
    settings = {"QWEN_PRECISION": precision, "QWEN_LORA_ROOTS": str(folder), "QWEN_COMPILED_MB": "0"}
    settings |= {"QWEN_FALLBACK": "forbid", "QWEN_SAVINGS": "table,single_frame,conv2d,trim"}
    values = {"QWEN_IMAGE_FAST_LORA": str(tiny / "few-step/tiny-qwen-image-4steps.safetensors")}
    values |= {"QWEN_LORAS": json.dumps([{"path": str(folder / "rank-4.safetensors"), "scale": 0.5}])}
    settings |= {name: values[name] for name in own}
    worker, plain = (
        cold_worker(QWEN_SPEEDUPS=names, **settings) for names in ("compile,rotary,guidance", "rotary,guidance")
    )
    worker.pipelines.load("generate")
    assert counts["graphs"] == loaded
    blocks = len(quantized_transformer(Precision.FP32).transformer_blocks)
    for fields in JOBS + [FAST, FAST | OWN] * ("QWEN_IMAGE_FAST_LORA" in own):
        before = counts["calls"]
        ours, theirs = (
            run(one, SMALL | fields)["output"]["images" if "num_images" in fields else "image"]
            for one in (worker, plain)
        )
        assert counts["graphs"] == loaded, fields
        assert ((counts["calls"] - before) // blocks == 0) is (fields in uncompiled), fields
        one, other = (
            np.asarray(picture_of(text if isinstance(text, str) else text[0]), float) for text in (ours, theirs)
        )
        assert 10 * np.log10(255**2 / max(1e-9, np.square(one - other).mean())) > (30 if precision == "int8" else 45)
    (health,) = worker.pipelines.report()
    assert not told and not health["stood_down"] and health["speedups"]["compile"] == "on"
