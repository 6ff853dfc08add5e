"""Several threads bring every tensor to where it stays, bit for bit, in bounded memory, and end when they must."""

import errno
import os
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from qwen_worker.checkpoints.files import tensors_in
from qwen_worker.errors import LoadError
from qwen_worker.weights import reader as weight_reader
from qwen_worker.weights.reader import WeightReader
from qwen_worker.weights.staging import checksum_of
from qwen_worker.weights.writer import save

from ..support.patience import wait_until

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.float8_e4m3fn, torch.bool)


@pytest.fixture
def shards(tmp_path):
    """Two files of tensors of many sizes and kinds, one of them without any bytes."""
    generator = torch.Generator().manual_seed(0)
    files, tensors = [], {}
    for number in range(2):
        inside = {}
        for index, dtype in enumerate(DTYPES):
            for shape in ((3, 500 + index), (7,), (), (0, 4)):
                values = torch.randint(0, 2, shape, generator=generator)
                inside[f"{number}.{str(dtype)[6:]}.{len(shape)}.{sum(shape)}"] = values.to(dtype)
        tensors |= inside
        files.append(tmp_path / f"model-{number}.safetensors")
        save_file(inside, files[-1])
    return files, tensors


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.double(), b.double())


@pytest.fixture(params=[1 << 25, 1000])
def chunk(monkeypatch, request):
    """Reads that hold many tensors each, and reads of which a tensor needs several."""
    monkeypatch.setattr(weight_reader, "READ_BYTES", request.param)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("staged", [False, True])
def test_every_tensor_arrives_bit_for_bit(shards, chunk, threads, staged):
    files, tensors = shards
    wanted = [one for file in files for one in tensors_in(file, file.name)]
    with WeightReader(wanted, "cpu", threads, staged=staged) as reader:
        for name in tensors:  # not the order of the files
            assert same(reader.pop(name), tensors[name]), name
    assert reader.bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_only_what_is_wanted_is_read(shards, monkeypatch):
    files, tensors = shards
    wanted = [one for one in tensors_in(files[0], "x") if "float32" in one.name]
    seen = []
    monkeypatch.setattr(
        os, "preadv", lambda fd, views, at, real=os.preadv: seen.append(real(fd, views, at)) or seen[-1]
    )
    with WeightReader(wanted, "cpu", 2) as reader:
        assert all(same(reader.pop(one.name), tensors[one.name]) for one in wanted)
    assert sum(seen) == reader.bytes < files[0].stat().st_size / 4


def test_what_is_not_taken_stays_bounded_and_any_order_ends(shards, monkeypatch):
    files, tensors = shards
    monkeypatch.setattr(weight_reader, "READ_BYTES", 1000)
    monkeypatch.setattr(weight_reader, "MAX_BYTES_AHEAD", 3000)
    wanted = tensors_in(files[0], "x")
    with WeightReader(wanted, "cpu", 2) as reader:
        reader.start()
        wait_until(lambda: reader.bytes_ahead >= 3000)
        time.sleep(0.1)
        memory = [one.stored.size for one in reader.arriving.values() if one.tensor is not None]
        assert 3000 <= sum(memory) <= reader.bytes_ahead < 3000 + 1000 + max(memory)  # each tensor's is allocated whole
        for one in reversed(wanted):  # the last first: the limit gives way to who waits
            assert same(reader.pop(one.name), tensors[one.name])
        assert reader.bytes_ahead == 0


def test_a_file_that_shrinks_while_it_is_read_is_said_to_be_corrupt(shards):
    files, _ = shards
    wanted = tensors_in(files[0], "x")
    os.truncate(files[0], files[0].stat().st_size - 1000)
    with WeightReader(wanted, "cpu", 4) as reader:
        with pytest.raises(LoadError, match=r"/model-0.safetensors is corrupt: it ends before its last tensor does"):
            for one in wanted:
                reader.pop(one.name)


@pytest.mark.parametrize("call", ["open", "preadv"])
def test_a_read_that_fails_names_the_file_and_may_be_tried_again(shards, monkeypatch, tmp_path, call):
    wanted = tensors_in(shards[0][0], "x")

    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path / "model-0.safetensors"))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(LoadError) as caught, WeightReader(wanted, "cpu", 4) as reader:
        reader.pop(wanted[0].name)
    assert caught.value.reason == f"{tmp_path.name}/model-0.safetensors cannot be read: Input/output error"
    assert caught.value.transient


def test_a_failure_that_hundreds_of_tensors_meet_is_told_in_a_few_lines(tmp_path, monkeypatch):
    """transformers asks for every tensor from threads of its own, also once one has failed."""
    save_file({f"layer.{number}": torch.zeros(8) for number in range(600)}, tmp_path / "model.safetensors")
    wanted = tensors_in(tmp_path / "model.safetensors", "x")

    def fails(*_):
        raise RuntimeError("the reader's own")

    monkeypatch.setattr(weight_reader.PieceReader, "read", fails)
    with WeightReader(wanted, "cpu", 4) as reader, ThreadPoolExecutor(4) as threads:
        failures = [asked.exception() for asked in [threads.submit(reader.pop, one.name) for one in wanted]]
        lines = {len(traceback.format_exception(failure)) for failure in failures}
    assert {str(failure) for failure in failures} == {"the reader's own"}
    assert max(lines) < 20, lines


def test_a_file_that_is_gone_is_named_without_where_it_was(tmp_path):
    with pytest.raises(LoadError) as caught:
        tensors_in(tmp_path / "model.safetensors", "vae/model.safetensors")
    assert caught.value.reason == "vae/model.safetensors cannot be read: No such file or directory"


@pytest.mark.parametrize("size", [1, 8, 4095, 4096, 4097, 100_000])
def test_every_flipped_bit_changes_the_checksum(size):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    right = checksum_of(data)
    for at in {0, 7 % size, size // 2, size - 1}:
        for bit in (1, 16, 128):
            other = data.clone()
            other[at] ^= bit
            assert checksum_of(other) != right


def test_blocks_that_were_zeroed_or_changed_places_change_the_checksum():
    data = torch.randint(0, 256, (5 * 4096,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved, zeroed = data.view(5, 4096)[[0, 3, 2, 1, 4]], data.clone()
    zeroed[4096:8192] = 0
    assert len({int(checksum_of(one)) for one in (data, moved, zeroed)}) == 3


def test_what_is_not_what_was_written_is_refused_by_the_tensor_s_name(shards, tmp_path):
    _, tensors = shards
    save(tensors, tmp_path / "ours.safetensors")
    wanted = tensors_in(tmp_path / "ours.safetensors", "x")
    with WeightReader(wanted, "cpu", 4) as reader:
        assert all(same(reader.pop(one.name), tensors[one.name]) for one in wanted)
        reader.verify()
    changed = next(one for one in wanted if one.size > 100)
    with (tmp_path / "ours.safetensors").open("r+b") as file:
        file.seek(changed.start + 50)
        byte = file.read(1)[0]
        file.seek(changed.start + 50)
        file.write(bytes([byte ^ 1]))
    with WeightReader(wanted, "cpu", 4) as reader:
        for one in wanted:
            reader.pop(one.name)
        with pytest.raises(LoadError) as caught:
            reader.verify()
    label = f"{tmp_path.name}/ours.safetensors"
    assert caught.value.reason == f"{label} is corrupt: {changed.name} is not what was written"


def test_a_reader_that_is_left_early_leaves_no_thread(shards, monkeypatch):
    monkeypatch.setattr(weight_reader, "READ_BYTES", 1000)
    monkeypatch.setattr(weight_reader, "MAX_BYTES_AHEAD", 1000)
    wanted = tensors_in(shards[0][0], "x")
    with pytest.raises(ZeroDivisionError), WeightReader(wanted, "cpu", 4) as reader:
        reader.pop(wanted[0].name)
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-")]
    with pytest.raises(RuntimeError, match="asked of a reader that is closed"):
        reader.pop(wanted[-1].name)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "a must have 12 bytes by its shape, not 8"),
        (b'{"a":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}}', "holds a as F4, which is not read"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', "its safetensors header cannot be read"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, header, reason):
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(LoadError, match=reason):
        WeightReader(tensors_in(file, "x"), "cpu", 1)
