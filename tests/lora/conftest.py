"""Fetching LoRA files into a folder of the test's own."""

import hashlib

import pytest
import torch
from safetensors.torch import save

from qwen_worker.errors import JobError
from qwen_worker.lora.fetch import FETCH_FAILED, LoraFetcher
from qwen_worker.lora.store import LoraStore
from qwen_worker.network.fetch import FetchTarget

FILE = save({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 8)})
OTHER = save({"transformer_blocks.0.attn.to_k.lora_A.weight": torch.zeros(2, 8)})
MB = 1_000_000


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path):
    return LoraStore(tmp_path / "store", 10 * MB)


@pytest.fixture
def fetching(store, monkeypatch, tmp_path):
    """fetching(seconds): a fetcher into the store's folder, as a worker that has just started has it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return lambda seconds=5: LoraFetcher(store.folder, store.max_bytes, [tmp_path / "models"], seconds)


@pytest.fixture
def fetcher(fetching):
    return fetching()


def find(fetcher, text, max_bytes=MB, roots=(), cancelled=None):
    """The file's bytes, and its key."""
    file = fetcher.find(text, FetchTarget("loras[0]", max_bytes, FETCH_FAILED), roots, cancelled)
    return file.path.read_bytes(), file.key


def refusal(fetcher, text, **options):
    with pytest.raises(JobError) as caught:
        find(fetcher, text, **options)
    return str(caught.value)
