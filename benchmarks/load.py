"""Bytes a second into a model: our reader beside the libraries' own loading and a plain parallel read.

The file is a transformer of the released architecture with random weights, of as many blocks as fit `--gb`. All three
read it in turns and in processes of their own, from the disk (its pages are dropped from the cache before) and once
more from memory. `--folder` says which disk. A share is that of the plain read's rate in the same round. On a machine
with a GPU the weights go there; on one without they go into new RAM, and so do the plain read's bytes:

    python -m benchmarks load --gb 20 --folder /runpod-volume/tmp
"""

import argparse
import json
import mmap
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from qwen_worker.loading import libraries
from qwen_worker.memory.machine import read_gpu

from .measure import full_size, raw_read

BLOCK_BYTES = 2 * 340_000_000  # in bfloat16; the released model has 60 blocks
CHUNK = 16 << 20  # bytes of one read
WAYS = ("plain parallel read", "ours", "diffusers from_pretrained")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gb", type=float, default=3, help="size of the file, about (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write the file (default: the temporary folder)")
    parser.add_argument("--threads", type=int, default=8, help="of ours and the plain read (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0, help="seconds before each read, for disks that are rationed")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    gpu = read_gpu()
    device = "cuda" if gpu else "cpu"
    libraries.import_all()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = write(Path(folder), max(1, round(options.gb * 1e9 / BLOCK_BYTES)))
        size = file.stat().st_size
        measured = {(way, cached): [] for cached in (False, True) for way in WAYS}
        for _ in range(options.rounds):
            for way, cached in measured:
                time.sleep(options.pause)
                raw_read.drop_from_cache([file])
                if cached:
                    plain_read(file, options.threads, keep=False)
                measured[way, cached].append(size / in_own_process(way, file, device, options.threads) / 1e9)
    rows = []
    for (way, cached), rates in measured.items():
        plain = measured[WAYS[0], cached]
        share = statistics.median(rate / other for rate, other in zip(rates, plain, strict=True))
        figures = {
            "GB/s (median)": statistics.median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "share": share,
        }
        row = {"read by": way, "from": "memory" if cached else "disk"}
        rows.append(row | {name: round(figure, 2) for name, figure in figures.items()})
    facts = {"gpu": gpu.name if gpu else None, "into": "the card" if gpu else "RAM", "file GB": round(size / 1e9, 2)}
    return rows, facts | {
        "threads": options.threads,
        "rounds": options.rounds,
        "processors": len(os.sched_getaffinity(0)),
    }


def write(folder: Path, blocks: int, **sizes: int) -> Path:
    """Write `folder`/transformer, a config and random weights of that many blocks; the file of the weights.

    `sizes`: entries of the config that differ from the released one's.
    """
    from accelerate import init_empty_weights
    from diffusers import QwenImageTransformer2DModel

    with init_empty_weights():
        model = QwenImageTransformer2DModel(num_layers=blocks, **sizes)
    (folder / "transformer").mkdir()
    config = dict(model.config) | {"_class_name": type(model).__name__}
    (folder / "transformer/config.json").write_text(json.dumps(config))
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    full_size.write_shard(file, model.state_dict(), full_size.random_pool())
    return file


def in_own_process(way: str, file: Path, device: str, threads: int) -> float:
    """The seconds that the way takes in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, way, file, device, threads))
    process.start()
    sender.close()
    seconds = receiver.recv()
    process.join()
    return seconds


def measure(sender: Connection, way: str, file: Path, device: str, threads: int) -> None:
    """Send the seconds from the first call to the last byte in its place, without imports and the CUDA context."""
    import torch

    libraries.import_all()
    if device == "cuda":
        torch.zeros(1, device=device)
    started = time.perf_counter()
    if way == WAYS[0]:
        plain_read(file, threads, keep=device == "cpu")
    else:
        model = load(way, file.parent, device, threads)
        assert next(model.parameters()).device.type == device
        if device == "cuda":
            torch.cuda.synchronize()
    sender.send(time.perf_counter() - started)


def load(way: str, folder: Path, device: str, threads: int) -> Any:
    """The transformer in the folder, loaded by us or by the library."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    if way == "ours":
        from qwen_worker.weights.assembly import Target, diffusers_model

        return diffusers_model(QwenImageTransformer2DModel, folder, Target(device, torch.bfloat16, threads))
    model = QwenImageTransformer2DModel.from_pretrained(folder, dtype=torch.bfloat16, device_map=device)
    # On a CPU the library's parameters are pages of the file, which are read when they are used: here, by a copy.
    return model if device == "cuda" else model.apply(copy_parameters)


def copy_parameters(module: Any) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.clone()


def plain_read(file: Path, threads: int, keep: bool) -> None:
    """Read the file into buffers that are used over and over or, to `keep` its bytes, into memory of its size."""
    size, local = file.stat().st_size, threading.local()
    kept = mmap.mmap(-1, size) if keep else None
    descriptor = os.open(file, os.O_RDONLY)

    def read(offset: int) -> int:
        if kept:
            return os.preadv(descriptor, [memoryview(kept)[offset : offset + CHUNK]], offset)
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(CHUNK))
        return os.preadv(descriptor, [local.buffer], offset)

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(read, range(0, size, CHUNK))) == size
    os.close(descriptor)
