"""What NVML says of the card that CUDA uses first, and of its driver. Imports no torch and opens no CUDA context.

NVML numbers all cards of the machine by their place on the bus. CUDA numbers those that CUDA_VISIBLE_DEVICES leaves it,
by CUDA_DEVICE_ORDER, and of a card that is divided (MIG) it sees the parts. Where the two might mean different cards,
nothing is said here, and torch has to be asked. Knows nothing of torch.
"""

# pynvml has neither stubs nor annotations; its functions and their results are still checked against its source.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pynvml

KERNEL_MODULE = Path("/proc/driver/nvidia/version")  # names the driver also where NVML is not to be had
NotSupported = cast("type[Exception]", pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_NOT_SUPPORTED))
NotFound = cast("type[Exception]", pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_NOT_FOUND))
Handle = Any  # of a card, or of a part of one


class Unreadable(Exception):
    """NVML cannot say which card CUDA uses, or what that card has."""


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]  # CUDA's compute capability, as (8, 9)
    total_bytes: int
    free_bytes: int


def read_card(number: int = 0) -> Gpu:
    """The card of this number, from 0, of those that CUDA uses, or the part of one. Raises `Unreadable`."""
    with library():
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = [str(one) for one in range(number + 1)] if named is None else named.split(",")
        device, card = find_device(visible, number)
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
        name = str(pynvml.nvmlDeviceGetName(device))
        return Gpu(name, capability_of(card), int(memory.total), int(memory.free))


@contextmanager
def library() -> Generator[None]:
    """Have NVML ready within. Raises `Unreadable` with NVML's words for what it refuses."""
    try:
        pynvml.nvmlInit()
        try:
            yield
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise Unreadable(f"NVML says: {error}") from None


def find_device(visible: Sequence[str], position: int = 0) -> tuple[Handle, Handle]:
    """The device at this place of CUDA_VISIBLE_DEVICES, and the whole card that it is or is a part of."""
    if position >= len(visible):
        raise Unreadable(f"CUDA uses {len(visible)} cards")
    first = visible[position].strip()
    cards = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    if first.startswith("MIG-"):
        return match(first, [(part, card) for card in cards for part in parts_of(card)])
    if first.startswith("GPU-"):
        _, card = match(first, [(card, card) for card in cards])
    elif first.isdigit() and int(first) < len(cards):
        require_one_order(first, cards)
        card = cards[int(first)]
    else:
        raise Unreadable(f"CUDA_VISIBLE_DEVICES={first} names none of NVML's {len(cards)} cards")
    if not is_divided(card):
        return card, card
    part = next(parts_of(card), None)
    if part is None:
        raise Unreadable("the card is divided (MIG), and NVML shows none of its parts")
    return part, card


def match(beginning: str, devices: Sequence[tuple[Handle, Handle]]) -> tuple[Handle, Handle]:
    """The one device whose id begins so: CUDA takes ids that are cut short as long as they are clear."""
    found = [pair for pair in devices if str(pynvml.nvmlDeviceGetUUID(pair[0])).startswith(beginning)]
    if len(found) != 1:
        raise Unreadable(f"CUDA_VISIBLE_DEVICES={beginning} names {len(found)} of NVML's devices")
    return found[0]


def require_one_order(number: str, cards: Sequence[Handle]) -> None:
    """Refuse a number that may be another card's in CUDA, whose own order puts the fastest card first."""
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        kinds = {(str(pynvml.nvmlDeviceGetName(card)), capability_of(card)) for card in cards}
        if len(kinds) > 1:
            raise Unreadable(f"CUDA's card {number} is not NVML's where cards differ and CUDA_DEVICE_ORDER is not set")
    if int(number) and any(map(is_divided, cards)):
        raise Unreadable(f"CUDA's device {number} is not NVML's where a card is divided (MIG)")


def is_divided(card: Handle) -> bool:
    """Whether CUDA sees the card's parts in the card's place (MIG)."""
    try:
        return pynvml.nvmlDeviceGetMigMode(card)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except NotSupported:
        return False


def parts_of(card: Handle) -> Iterator[Handle]:
    """The parts of a divided card that this process may see."""
    if is_divided(card):
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
            except NotFound:
                continue


def capability_of(card: Handle) -> tuple[int, int]:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(card)
    return int(major), int(minor)


def driver_version() -> str | None:
    """The driver's version, as "570.195.03"; None where neither NVML nor the kernel names it."""
    try:
        with library():
            return str(pynvml.nvmlSystemGetDriverVersion())
    except Unreadable:
        pass
    try:
        named = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", KERNEL_MODULE.read_text())
    except OSError:
        return None
    return named and named[1]


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, as (12, 8); None where NVML cannot say."""
    try:
        with library():
            number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except Unreadable:
        return None
    return number // 1000, number % 1000 // 10
