"""Where the tests of this folder run: on a real card if there is one, and on what stands for it everywhere."""

import gc

import pytest

from qwen_worker import check_card
from qwen_worker.memory.machine import read_machine

from ..null_card.card import Card
from ..null_card.conftest import needs_card, on_card  # noqa: F401  fixtures
from .racing import Racing

STAND_IN = Card(24, (8, 9), 64)  # the null card


def pytest_collection_modifyitems(items):
    """A card's machine has other releases of the libraries: what these warn of is no failure here."""
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def real_card():
    """The machine with its card; skips the test where there is none."""
    machine = read_machine()
    if machine.gpu is None:
        pytest.skip(f"there is no card here{machine.gpu_obstacle and f': {machine.gpu_obstacle}'}")
    return machine


@pytest.fixture(scope="session", autouse=True)
def card_in_the_report(record_testsuite_property):
    """What was tested, and by which versions, in the file that `--junitxml` writes."""
    gpu = read_machine().gpu
    for name, value in check_card.facts_of(gpu).items():
        record_testsuite_property(name, value)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each test on the processor, where it shows that the test itself runs, and on the card."""
    if request.param == "cuda":
        request.getfixturevalue("real_card")
    yield request.param
    release(request.param)


@pytest.fixture(params=["null", "real"])
def see(request):
    """see(function, *arguments): what the function finds on a card, the null card or the real one.

    The function gets the null card first, or None.
    """
    if request.param == "null":
        call = request.getfixturevalue("on_card")
        yield lambda function, *arguments: call(function, STAND_IN, *arguments)
        return
    request.getfixturevalue("real_card")
    yield lambda function, *arguments: function(None, *arguments)
    release("cuda")


@pytest.fixture
def racing(device):
    """Copies to the device and products on it in other threads, for as long as the test runs."""
    with Racing(device):
        yield


def release(device):
    """Give back the card's memory, and torch its share of the card."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)
