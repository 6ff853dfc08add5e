"""What the null card can be told to do wrong, seen through torch, and what of it is true."""

import sys

import pytest

from ..support.patience import run_to_its_end
from .card import CallFailed, Card, environment, put_in_place, why_not

GB = 1_000_000_000
NO_KERNEL_IMAGE, ILLEGAL_ADDRESS, OUT_OF_MEMORY = 209, 700, 2  # cudaError_t


def raised(work):
    """The class of what a call raises, its words, and CUDA's number where it has one; None where it raises nothing."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  what is raised is what the test is about
        return type(error).__name__, str(error), getattr(error, "error_code", None)
    return None


# The functions that begin with `see` are called in a process with a null card.


def see_card(card):
    import pynvml
    import torch

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    named = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "torch": (torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.mem_get_info()),
        "nvml": (*named, (memory.free, memory.total)),
    }


def test_torch_and_nvml_see_the_card_that_was_asked_for(on_card):
    seen = on_card(see_card, Card(24, (8, 6), name="NVIDIA RTX A5000"))
    name, capability, (free, total) = seen["torch"]
    assert (name, capability, total) == ("NVIDIA RTX A5000", [8, 6], 24 * GB)
    assert 23 * GB < free < total  # a context takes its share
    assert seen["nvml"] == ["NVIDIA RTX A5000", [8, 6], [24 * GB, 24 * GB]]  # asked before there was one


def test_other_processes_hold_memory_of_which_nvml_may_know_nothing(on_card):
    free = on_card(see_card, Card(24))["torch"][2][0]
    seen = on_card(see_card, Card(24, fields={"others": 10 * GB}))
    assert seen["torch"][2] == [free - 10 * GB, 24 * GB] and seen["nvml"][2] == [14 * GB, 24 * GB]
    seen = on_card(see_card, Card(24, fields={"others": 10 * GB, "unseen": 10 * GB}))
    assert seen["torch"][2] == [free - 10 * GB, 24 * GB] and seen["nvml"][2] == [24 * GB, 34 * GB]


def see_memory(card):
    import torch

    from . import fields

    def taken(size):
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    held = taken(6 * GB)
    seen = {"too much": raised(lambda: taken(6 * GB)), "used": fields.read("used")}
    fields.put(others=3 * GB)
    seen["less than there was"] = raised(lambda: taken(2 * GB))
    fields.put(others=0)
    seen["again"] = raised(lambda: taken(2 * GB))
    del held
    torch.cuda.empty_cache()
    seen["given back"] = fields.read("used")
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    held = taken(6 * GB)
    seen["expandable"] = fields.read("used"), raised(lambda: taken(6 * GB)), held.nbytes
    return seen


def test_the_card_s_memory_has_an_end_which_may_change_under_way(on_card):
    seen = on_card(see_memory, Card(10))
    for name in ("too much", "less than there was"):
        assert seen[name][0] == "OutOfMemoryError", name
    assert seen["again"] is None and seen["given back"] == 0
    assert 6 * GB <= seen["used"] < 6.1 * GB and 6 * GB <= seen["expandable"][0] < 6.1 * GB
    assert seen["expandable"][1][0] == "OutOfMemoryError"


def see_pinned(card):
    import torch

    from . import fields

    def pinned(size):
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    first = pinned(1 << 20)
    seen = {"pinned": (first.is_pinned(), torch.empty(1 << 20).is_pinned())}
    seen["too much"] = raised(lambda: pinned(1 << 30))
    seen["after"] = raised(lambda: pinned(1 << 20)), raised(lambda: torch.ones(3, device="cuda") + 1)
    fields.put(pinned_limit=4 * GB)
    return seen | {"more": raised(lambda: pinned(1 << 30)), "counted": fields.read("pinned")}


def test_pinned_memory_has_an_end_that_spoils_nothing(on_card):
    seen = on_card(see_pinned, Card(fields={"pinned_limit": 1 << 29}))
    kind, words, code = seen["too much"]
    assert (kind, code) == ("AcceleratorError", OUT_OF_MEMORY) and "CUDA error: out of memory" in words
    assert seen["pinned"] == [True, False] and seen["after"] == [None, None] and seen["more"] is None
    assert seen["counted"] == (1 << 30) + 2 * (1 << 20)


def see_worker_pin(card):
    """How the worker takes a refusal to pin, which is torch's own here."""
    import torch

    from qwen_worker.memory import cuda
    from qwen_worker.model.host_memory import Pinning

    torch.cuda.init()
    pinning = Pinning()
    tensors = [pinning.empty((size,), torch.uint8) for size in (1 << 20, 1 << 30, 1 << 20)]
    kept = pinning.pin(torch.zeros(8))
    refusal = pinning.refusal
    pinning.resume()
    try:
        torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        spoiled = cuda.has_spoiled(error)
    return {
        "pinned": [tensor.is_pinned() for tensor in (*tensors, kept, pinning.pin(torch.zeros(8)))],
        "refusal": refusal,
        "spoiled": spoiled,
    }


def test_the_worker_goes_on_in_pageable_memory_where_torch_pins_no_more(on_card):
    seen = on_card(see_worker_pin, Card(fields={"pinned_limit": 1 << 29}))
    assert seen["pinned"] == [True, False, False, False, True] and seen["spoiled"] is False
    assert seen["refusal"].startswith("AcceleratorError: CUDA error: out of memory")


def see_waiting(card):
    """What waits for its turn in pinned memory: many small tensors of two kinds, after buffers have gone."""
    import torch

    from qwen_worker.memory import cuda
    from qwen_worker.model.residency import Swap

    from . import fields

    torch.cuda.init()
    cuda.configure_allocators()
    buffers = [torch.empty(32 << 20, dtype=torch.uint8, pin_memory=True) for _ in range(4)]
    del buffers
    cuda.release_pinned_buffers()
    free = [torch.empty(32 << 20, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    del free  # torch keeps these for a tensor that needs less
    before, module = fields.read("pinned"), torch.nn.Linear(4096, 4500, device="cuda", dtype=torch.bfloat16)
    for number in range(300):
        module.register_parameter(f"scales{number}", torch.nn.Parameter(torch.full((70_001,), float(number)).cuda()))
    swap = Swap("cuda")
    swap.add("module", module)
    swap.clear()
    return {
        "pinned": fields.read("pinned") - before,
        "bytes": sum(parameter.nbytes for parameter in module.parameters()),
        "all pinned": all(parameter.is_pinned() for parameter in module.parameters()),
        "values": [module.scales7[-1].item(), module.scales299[0].item()],
        "shapes": [list(module.weight.shape), str(module.weight.dtype)],
    }


def test_what_waits_for_its_turn_pins_no_more_than_it_has(on_card):
    seen = on_card(see_waiting, Card(10))
    assert seen["all pinned"] and seen["values"] == [7, 299]
    assert seen["shapes"] == [[4500, 4096], "torch.bfloat16"]
    assert seen["bytes"] <= seen["pinned"] < 1.001 * seen["bytes"]


def see_worker_judge(card):
    """Whether the worker takes what a kernel raises for the end of CUDA in its process."""
    import torch

    from qwen_worker.memory import cuda

    values = torch.empty(1000, device="cuda")
    try:
        values.add_(1)
    except RuntimeError as error:
        return cuda.has_spoiled(error)


@pytest.mark.parametrize(("error", "spoils"), [(ILLEGAL_ADDRESS, True), (NO_KERNEL_IMAGE, False)])
def test_the_worker_tells_an_error_that_spoils_cuda_from_one_that_ends_a_call(on_card, error, spoils):
    assert on_card(see_worker_judge, Card(fields={"launch_error": error})) is spoils


def see_launches(card):
    """What works, one after the other: five kernels, a product, memory."""
    import torch

    from . import fields

    values = torch.empty(1000, 1000, device="cuda")
    seen = [raised(lambda: values.add_(1)) for _ in range(5)]
    return {
        "kernels": seen,
        "product": raised(lambda: values @ values),
        "memory": raised(lambda: torch.empty(10 * GB, dtype=torch.uint8, device="cuda")),
        "copy": raised(lambda: values[0].cpu()),
        "wait": raised(torch.cuda.synchronize),
        "launches": fields.read("launches"),
    }


def test_a_card_without_kernels_fails_at_launches_alone(on_card):
    seen = on_card(see_launches, Card(capability=(12, 0), fields={"launch_error": NO_KERNEL_IMAGE}))
    for kind, words, code in seen["kernels"]:
        assert (kind, code) == ("AcceleratorError", NO_KERNEL_IMAGE) and "no kernel image is available" in words
    assert "CUBLAS_STATUS_EXECUTION_FAILED" in seen["product"][1]
    assert (seen["memory"], seen["copy"], seen["wait"]) == (None, None, None)


def test_an_illegal_address_comes_with_the_launch_that_was_named_and_spoils_all_that_follows(on_card):
    seen = on_card(see_launches, Card(fields={"launch_error": ILLEGAL_ADDRESS, "launch_error_after": 3}))
    assert seen["kernels"][:3] == [None] * 3
    for name, (kind, words, code) in [
        *(("kernel", one) for one in seen["kernels"][3:]),
        *((name, seen[name]) for name in ("memory", "copy", "wait")),
    ]:
        assert (kind, code) == ("AcceleratorError", ILLEGAL_ADDRESS), name
        assert "an illegal memory access was encountered" in words, name


def test_without_an_error_launches_go_well_and_are_counted(on_card):
    seen = on_card(see_launches, Card())
    assert seen["kernels"] == [None] * 5 and seen["product"] is None and seen["launches"] == 6


def see_driver(card):
    import torch

    return torch.cuda.is_available(), raised(torch.cuda.init)


@pytest.mark.parametrize(("driver", "works"), [(13000, True), (13010, True), (12040, False)])
def test_a_driver_older_than_torch_s_cuda_is_said_to_be(on_card, driver, works):
    available, error = on_card(see_driver, Card(fields={"driver": driver}))
    if works:
        assert available and error is None
    else:
        assert error[0] == "RuntimeError" and "driver on your system is too old (found version 12040)" in error[1]


def test_the_environment_sets_fields_too(needs_card):
    code = "import torch; torch.cuda.init(); print(torch.cuda.mem_get_info()[1])"
    variables = environment() | {"NULL_CARD_MEMORY": "12.5e9"}
    done = run_to_its_end([sys.executable, "-c", code], env=variables)
    assert done.stdout.strip() == "12500000000", done.stderr


def see_small(card):
    """What only values decide, of small tensors and of large ones."""
    import torch

    from . import arithmetic

    with arithmetic.SmallByCpu():
        mask = torch.tensor([[1, 1, 0, 1]]).cuda().bool()
        large = torch.empty(1, 4, 1 << 20, device="cuda")
        return {
            "chosen": list(large[mask].shape),
            "lengths": mask.sum(dim=1).tolist(),
            "timesteps": (torch.linspace(1, 0.5, 3).cuda() * 1000).to(torch.bfloat16).unique().tolist(),
            "in place": torch.zeros(3, device="cuda").add_(2).tolist(),
            "from and to": torch.arange(3).cuda().to(torch.float64).cpu().tolist(),
            "mixed": raised(lambda: torch.zeros(3, device="cuda") + torch.zeros(3)),
            "large": raised(lambda: large.nonzero()),
        }


def test_small_tensors_are_computed_and_shapes_of_chance_refused(on_card):
    seen = on_card(see_small, Card())
    assert seen["chosen"] == [3, 1 << 20] and seen["lengths"] == [3]
    assert seen["timesteps"] == [500, 752, 1000] and seen["in place"] == [2, 2, 2] and seen["from and to"] == [0, 1, 2]
    assert seen["mixed"][0] == "RuntimeError" and "same device" in seen["mixed"][1]
    assert seen["large"][0] == "NotImplementedError" and "values that no kernel has computed" in seen["large"][1]


def see_cudnn(card):
    """Shapes, and what memory a convolution and attention take."""
    import torch

    from . import arithmetic

    kernels = arithmetic.install()
    picture = torch.empty(1, 16, 256, 256, dtype=torch.bfloat16, device="cuda")
    weight = torch.empty(32, 16, 3, 3, dtype=torch.bfloat16, device="cuda")
    query = torch.empty(1, 24, 4096, 128, dtype=torch.bfloat16, device="cuda")
    before = torch.cuda.memory_allocated()
    drawn = torch.nn.functional.conv2d(picture, weight, stride=2, padding=1)
    after = torch.cuda.memory_allocated()
    seen = {
        "convolution": (list(drawn.shape), after - before == drawn.nbytes),
        "attention": list(torch.nn.functional.scaled_dot_product_attention(query, query, query).shape),
        "mixed": raised(lambda: torch.nn.functional.conv2d(picture, weight.cpu())),
    }
    del kernels
    return seen


def test_what_is_asked_of_cudnn_has_its_shape_and_memory(on_card):
    seen = on_card(see_cudnn, Card())
    assert seen["convolution"] == [[1, 32, 128, 128], True] and seen["attention"] == [1, 24, 4096, 128]
    assert seen["mixed"][0] == "RuntimeError"


def see_nothing(card):
    raise ValueError("said so")


def test_a_call_that_fails_says_what_it_wrote_and_the_next_one_works(on_card):
    with pytest.raises(CallFailed, match="said so"):
        on_card(see_nothing, Card())
    assert on_card(see_driver, Card()) == [True, None]


def test_a_machine_without_a_compiler_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "C compiler" in why_not()


def test_of_two_processes_that_write_a_folder_at_once_the_first_one_s_stays(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "writer").write_text(name)
        put_in_place(tmp_path / name, tmp_path / "kept")
    assert (tmp_path / "kept/writer").read_text() == "first"
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "none", tmp_path / "nowhere")
