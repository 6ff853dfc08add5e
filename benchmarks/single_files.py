"""What the community's single files of a transformer do to the pictures: the tiny checkpoint's judge on each kind.

The files are written from the tiny transformer, in ComfyUI's names or as GGUF. The worker's own pipelines draw the same
prompts and seeds with each. PSNR is in dB over 8-bit RGB, to the pictures of the plain file in bf16. Rows of the tiny
matrices are 128 numbers long, and 512 in the MLPs: types with blocks of 256 take the latter alone.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import quality
from .measure.full_size import TINY

STEPS, GUIDANCE, SIDE = 12, 4.0, 256
BLOCKS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
# Of a kind: the precision of the plan.
KINDS = {
    "bf16": "fp32", "fp8": "fp32", "fp8 scale_weight": "fp32", "fp8 weight_scale by row": "fp32",
    "fp8 scale_weight, kept": "fp8", **dict.fromkeys(BLOCKS, "fp32"),
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=48, help="prompts of each kind (default: %(default)s)")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    return list(rows(options)), {"size": SIDE, "steps": STEPS, "guidance": GUIDANCE}


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each kind."""
    sample, reference = argparse.Namespace(prompts=options.prompts, size=SIDE), None
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            file = write(kind, Path(folder))
            loaded = quality.load("generate", QWEN_IMAGE_TRANSFORMER=str(file), QWEN_PRECISION=KINDS[kind])
            shares, images = quality.scored(loaded.pipe, sample, STEPS, GUIDANCE)
            reference = reference or images
            facts = {"file": kind, "MB": round(file.stat().st_size / 1e6, 2), "precision": KINDS[kind]}
            yield facts | shares | quality.distance(images, reference, options.kinds[0])


def write(kind: str, folder: Path) -> Path:
    """A file of the kind in the folder, from the tiny transformer."""
    import torch

    from .measure import community_files

    weights: dict[str, Any] = community_files.weights_of(TINY / "generate")
    file = folder / f"{kind.replace(' ', '-').replace(',', '')}.{'gguf' if kind in BLOCKS else 'safetensors'}"
    if kind in BLOCKS:
        return community_files.write_gguf(weights, file, kind)
    if kind.startswith("fp8 "):
        style = "weight_scale" if "weight_scale" in kind else "scale_weight"
        return community_files.write_scaled(weights, file, style, by_row="by row" in kind)
    return community_files.write_plain(weights, file, torch.float8_e4m3fn if kind == "fp8" else torch.bfloat16)
