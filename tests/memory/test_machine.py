"""What a container leaves of the RAM, and which card CUDA uses where NVML counts them otherwise."""

from types import SimpleNamespace

import psutil
import pynvml
import pytest

from qwen_worker.errors import LoadError
from qwen_worker.memory import card, container, machine, nvml
from qwen_worker.memory.machine import Gpu, free_disk_bytes, read_gpu, read_machine

GB = 1_000_000_000
# By the version of control groups: the files of a group's limit and use, and what stands before memory.stat's keys.
NAMES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), 2: ("memory.max", "memory.current", "")}


def test_this_machine_is_read(tmp_path):
    here = read_machine()
    assert 0 < here.ram_available_bytes <= here.ram_total_bytes and 0 < here.process_bytes < here.ram_total_bytes
    assert free_disk_bytes(tmp_path / "not" / "there") > 0


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """groups(membership): /proc/self/cgroup says so; `.add(path, version, limit, used, cache)` makes a group."""
    monkeypatch.setattr(container, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(container, "ROOT", tmp_path / "fs")

    def add(path, version, limit, used=0, cache=0, read_again=0, in_tmpfs=0):
        folder = tmp_path / "fs" / path
        folder.mkdir(parents=True, exist_ok=True)
        *files, before = NAMES[version]
        for name, value in zip(files, (limit, used), strict=True):
            (folder / name).write_text(f"{value}\n")
        lists = {"inactive_anon": in_tmpfs, "active_anon": 0, "inactive_file": cache, "active_file": read_again}
        counts = {"anon": 0, "file": cache + read_again + in_tmpfs, "shmem": in_tmpfs, **lists}
        (folder / "memory.stat").write_text("".join(f"{before}{key} {value}\n" for key, value in counts.items()))

    def say(membership):
        (tmp_path / "cgroup").write_text(membership)

    say.add = add
    return say


def limits():
    return [(limit.bytes, limit.used_bytes) for limit in container.read_limits()]


def test_a_container_that_sees_its_own_group_as_the_topmost(groups):
    groups("0::/\n")
    groups.add("", 2, 20 * GB, 9 * GB, 4 * GB)
    assert limits() == [(20 * GB, 5 * GB)]  # what was read from the disk gives way
    groups.add("", 2, "max", 9 * GB)
    assert limits() == []


@pytest.mark.parametrize(("version", "top", "membership"), [(1, "memory", "4:memory:/\n"), (2, "", "0::/\n")])
def test_files_give_way_also_where_they_were_read_twice_and_those_of_a_tmpfs_do_not(groups, version, top, membership):
    """A file that is read ahead is read twice."""
    groups(membership)
    groups.add(top, version, 20 * GB, 12 * GB, cache=1 * GB, read_again=4 * GB, in_tmpfs=2 * GB)
    assert limits() == [(20 * GB, 7 * GB)]


def test_the_group_s_own_name_may_be_the_one_that_it_has_outside(groups):
    groups("12:memory:/docker/8d1f\n0::/docker/8d1f\n")
    groups.add("memory", 1, 30 * GB, 2 * GB, 1 * GB)
    assert limits() == [(30 * GB, GB)]


@pytest.mark.parametrize(
    ("version", "top", "membership"), [(1, "memory/", "4:cpu,memory:/pod/worker\n"), (2, "", "0::/pod/worker\n")]
)
def test_the_limits_of_all_groups_around_the_process_count(groups, monkeypatch, version, top, membership):
    groups(membership)
    groups.add(f"{top}pod/worker", version, 40 * GB, 10 * GB)
    groups.add(f"{top}pod", version, 50 * GB, 48 * GB, 1 * GB)  # its other groups hold the rest
    groups.add(f"{top}other", version, 1 * GB)
    assert limits() == [(40 * GB, 10 * GB), (50 * GB, 47 * GB)]
    ram = SimpleNamespace(total=256 * GB, available=200 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram)
    here = read_machine()
    assert (here.ram_total_bytes, here.ram_available_bytes) == (40 * GB, 3 * GB)
    ram.available = 2 * GB  # others on the host hold it
    assert read_machine().ram_available_bytes == 2 * GB


def test_where_a_group_s_use_cannot_be_read_the_process_s_own_counts(groups, monkeypatch, tmp_path):
    groups("0::/\n")
    groups.add("", 2, 2 * GB)
    (tmp_path / "fs/memory.current").unlink()
    monkeypatch.setattr(machine, "resident_bytes", lambda: GB // 2)
    assert read_machine().ram_available_bytes == 3 * GB // 2


def test_a_machine_without_groups_is_not_limited(groups):
    assert limits() == []  # neither file
    groups("nonsense\n\n0::\n")
    assert limits() == []


# A machine's cards as NVML shows them: (id, name, capability, free GB, parts of a divided card or None).
A100 = ("GPU-aaaa-1", "NVIDIA A100", (8, 0), 80, None)
H100 = ("GPU-aabb-2", "NVIDIA H100", (9, 0), 79, None)
PART = ("MIG-11-22", "NVIDIA H100 MIG 1g.10gb", None, 10, None)
DIVIDED = (
    "GPU-cccc-3",
    "NVIDIA H100",
    (9, 0),
    80,
    (None, PART, ("MIG-11-33", "NVIDIA H100 MIG 2g.20gb", None, 20, None)),
)


@pytest.fixture
def cards(monkeypatch):
    """cards(*shown): NVML shows these; the machine has a driver, and torch none of it unless `torch_sees`."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setattr(machine, "has_driver", lambda: True)

    def show(*shown, torch_sees=None):
        def part(shown, number):
            if shown[4][number] is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            return shown[4][number]

        def read_device():
            if torch_sees is None:
                raise LoadError("torch sees none")
            return torch_sees

        fakes = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(shown),
            "nvmlDeviceGetHandleByIndex": shown.__getitem__,
            "nvmlDeviceGetUUID": lambda device: device[0],
            "nvmlDeviceGetName": lambda device: device[1],
            "nvmlDeviceGetCudaComputeCapability": lambda device: device[2] or nothing(),
            "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(total=100 * GB, free=device[3] * GB),
            "nvmlDeviceGetMigMode": lambda device: [device[4] is not None] * 2 if device[2] >= (9, 0) else nothing(),
            "nvmlDeviceGetMaxMigDeviceCount": lambda device: len(device[4]),
            "nvmlDeviceGetMigDeviceHandleByIndex": part,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(pynvml, name, fake)
        monkeypatch.setattr(card, "read_device", read_device)

    return show


def nothing():
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.mark.parametrize(
    ("shown", "visible", "found"),
    [
        ((A100,), None, A100),
        ((A100, A100), "1,0", A100),
        ((A100, H100), "GPU-aabb-2", H100),
        ((A100, H100), "GPU-aab,GPU-aaaa", H100),  # cut short, but clear
        ((DIVIDED,), None, PART),  # CUDA sees the first part in the card's place
        ((DIVIDED,), "0", PART),
        ((A100, DIVIDED), "GPU-cccc", PART),
        ((A100, DIVIDED), "MIG-11-33", DIVIDED[4][2]),
    ],
)
def test_the_card_is_the_one_that_cuda_uses(cards, monkeypatch, shown, visible, found):
    cards(*shown)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = read_gpu()
    assert (gpu.name, gpu.free_bytes) == (found[1], found[3] * GB)
    assert gpu.capability == (found[2] or (9, 0))  # a part has its card's


@pytest.mark.parametrize(
    ("shown", "visible"),
    [
        ((A100, H100), None),  # CUDA begins with the fastest, NVML with the first of the bus
        ((A100, H100), "GPU-aa"),  # begins two ids
        ((A100,), "GPU-dddd"),
        ((A100,), "1"),
        ((A100,), "MIG-GPU-aaaa-1/1/0"),  # an old form
        ((DIVIDED, DIVIDED), "1"),  # CUDA numbers the parts of the first before those of the second
        ((("GPU-cccc-3", "NVIDIA H100", (9, 0), 80, ()),), None),  # divided, without a part for this process
        ((), None),
    ],
)
def test_where_nvml_cannot_say_which_card_cuda_uses_torch_is_asked(cards, monkeypatch, shown, visible):
    seen = Gpu("by torch", (9, 0), 80 * GB, 70 * GB)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cards(*shown, torch_sees=seen)
    assert read_gpu() == seen
    cards(*shown)
    assert read_gpu() is None and "torch sees none" in read_machine().gpu_obstacle


def test_cards_that_differ_have_one_order_where_cuda_is_told_to_take_the_bus_s(cards, monkeypatch):
    cards(A100, H100)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert read_gpu().name == A100[1]


def test_without_nvml_torch_is_asked_only_where_there_is_a_driver(monkeypatch):
    def is_missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    asked, driver = [], [False]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", is_missing)
    monkeypatch.setattr(machine, "has_driver", lambda: driver[0])
    monkeypatch.setattr(card, "read_device", lambda: asked.append(1) or Gpu("by torch", (9, 0), GB, GB))
    assert read_gpu() is None and not asked
    driver[0] = True
    assert read_gpu().name == "by torch"


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_no_gpu_is_seen_when_cuda_may_see_none(cards, monkeypatch, visible):
    cards(A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert read_gpu() is None and not read_machine().gpu_obstacle


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\n", "535.54.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.195.03  Release Build\nGCC 12\n", "570.195.03"),
        (None, None),
    ],
)
def test_the_driver_s_version_is_the_kernel_s_where_nvml_is_missing(monkeypatch, tmp_path, text, version):
    monkeypatch.setattr(nvml, "KERNEL_MODULE", tmp_path / "version")
    if text:
        (tmp_path / "version").write_text(text)
    monkeypatch.setattr(pynvml, "nvmlInit", nothing)
    assert nvml.driver_version() == version and nvml.driver_cuda() is None
