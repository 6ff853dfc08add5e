"""Every optimisation on a card beside stock's way, within the tolerances of the self-check.

`python -m qwen_worker.check_card` makes the comparisons, which its own tests hold to faults on the processor. Here all
of them must have been made, in every precision that the card can have, and none may be left out for want of time.
"""

import pytest

from qwen_worker import check_card
from qwen_worker.check_card import Case
from qwen_worker.memory import placement
from qwen_worker.memory.footprint import LOSSY
from qwen_worker.memory.nvml import Gpu
from qwen_worker.model_settings import Precision
from qwen_worker.speed import speedups

ANY = Gpu("any card", (9, 0), 80 * 10**9, 80 * 10**9)
EVERYWHERE = {"table", "rotary", "guidance", "lora"}


def cases():
    """Those of the command, and the precisions that it leaves out because a better one is there."""
    found = check_card.cases(ANY, compiled=True)
    made = {(case.is_tiny, case.precision) for case in found}
    more = [
        Case(f"released width, {one.value}", one, False, layout={"table": True})
        for one in LOSSY
        if (False, one) not in made
    ]
    return [*found, *more]


def expected(case, capability, on_card=True):
    """The names of what is compared of a case."""
    own_order = capability in speedups.CUDNN_CAPABILITIES and not speedups.asks_cudnn_first()
    names = EVERYWHERE | ({"attention"} if own_order else set())
    names = names | ({"gelu"} if on_card and case.precision is Precision.BF16 else set())
    names = names | ({case.precision.value} if case.precision in LOSSY else set())
    names = names | ({"compile"} if case.compiled else set())
    if case.layout.get("swapped"):
        names |= {"swapped", "streamed", "single_frame", "conv2d"}
    return names


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_optimisation_gives_what_the_plain_way_gives(real_card, case, tmp_path):
    capability = real_card.gpu.capability
    if case.precision is Precision.FP8 and capability < placement.FP8_CAPABILITY:
        pytest.skip(f"{real_card.gpu.name} has no products in fp8")
    outcome = check_card.outcome_of(case, real_card, tmp_path)
    assert not outcome.left_out and not outcome.failure, outcome
    assert [str(finding) for finding in outcome.findings if not finding.passed] == []
    assert {finding.name for finding in outcome.findings} == expected(case, capability)


def test_every_precision_has_a_case_of_the_released_width():
    wide = [case for case in cases() if not case.is_tiny]
    assert {case.precision for case in wide} == {Precision.BF16, *LOSSY}
    assert {case.precision for case in wide if case.compiled} == {Precision.BF16, Precision.FP8}


def test_what_is_expected_of_a_case_is_what_the_command_compares(tmp_path):
    """On the processor, which has all of the first case but cuDNN's attention."""
    first, *_ = check_card.cases(None, compiled=False)
    outcome = check_card.outcome_of(first, check_card.replace(check_card.read_machine(), gpu=None), tmp_path)
    assert {finding.name for finding in outcome.findings} == expected(first, (8, 9), on_card=False)
