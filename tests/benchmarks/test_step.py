"""The account of a step: what it sees on a card that is none, what follows, and that it is as it is recorded."""

import json

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from benchmarks import rates, step, step_tables
from benchmarks.measure import floor, roofline
from benchmarks.measure.fake_card import attention_kernel, fake_card
from benchmarks.measure.kernels import Recorder
from benchmarks.measure.step_trace import KINDS, Tracer
from qwen_worker.model_settings import Precision

from ..conftest import ROOT

RECORD = ROOT / "benchmarks/results/step.json"
ROWS = json.loads(RECORD.read_text())["rows"]
H100 = next(card for card in rates.CARDS if card.name == "H100")
L40S = next(card for card in rates.CARDS if card.name == "L40S")
NONE = "a card that is none"


def row_of(**named):
    (row,) = [row for row in ROWS if all(row[name] == value for name, value in named.items())]
    return row


@pytest.fixture
def recorder():
    found = Recorder()
    with fake_card((9, 0), NONE, found.compiled), found:
        yield found


def test_kernels_have_the_bytes_of_what_they_read_and_write(recorder):
    x, y = (torch.empty(1000, 100, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    (x + y).view(100, 1000).t()  # views are no kernels
    x += 1
    x @ y.t()
    added, in_place, product = recorder.account.kernels["outside"]
    assert (added.bytes, in_place.bytes) == (3 * 200_000, 200_000) and added.kind == roofline.ELEMENTWISE
    assert product.kind == roofline.PRODUCT and product.flops == 2 * 1000 * 1000 * 100
    assert product.bytes == 2 * 200_000 + 2 * 1000 * 1000


def test_what_the_host_waits_for_is_named_with_its_line(recorder):
    x = torch.empty(3, device="cuda")
    assert recorder.account.waits == []
    x.sum().item()
    torch.tensor([1.0, 2.0, 3.0]).to("cuda")
    x.cpu()
    assert len(recorder.account.waits) == 3 and all("test_step.py" in wait for wait in recorder.account.waits)
    recorder.account.waits.clear()
    torch.empty(3).to("cuda", non_blocking=True)
    assert recorder.account.waits == []


@pytest.mark.parametrize(
    ("capability", "masked", "channels", "kernel"),
    [
        ((8, 0), False, 128, "flash"), ((8, 9), True, 128, "efficient"), ((9, 0), False, 128, "cudnn"),
        ((9, 0), True, 128, "cudnn"), ((10, 0), False, 128, "cudnn"), ((12, 0), False, 128, "flash"),
        ((9, 0), False, 384, "efficient"),
    ],
)  # fmt: skip
def test_attention_is_the_kernel_that_torch_chooses(capability, masked, channels, kernel):
    assert attention_kernel(capability, masked, channels) == kernel
    recorder = Recorder()
    with fake_card(capability, NONE, recorder.compiled), recorder:
        query = torch.empty(2, 4, 60, channels, device="cuda", dtype=torch.bfloat16)
        mask = torch.ones(2, 1, 1, 60, dtype=torch.bool, device="cuda") if masked else None
        recorder.account.kernels["outside"].clear()
        torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    (attention,) = [each for each in recorder.account.kernels["outside"] if each.kind == roofline.ATTENTION]
    assert kernel in attention.name and attention.masked == masked
    assert attention.flops == 2 * 2 * 2 * 4 * 60 * 60 * channels


def test_a_step_of_stock_has_the_flops_that_the_formula_counts():
    """Counted operator by operator at the released size, beside the floor's formula, which knows no operator."""
    with Tracer(Precision.BF16, (9, 0), step.STOCK).open() as tracer:
        facts = step.facts_of(tracer.step("generate", 512))
    model = dict(QwenImageTransformer2DModel.load_config(ROOT / "models/tiny-qwen-image/generate/transformer"))
    with torch.device("meta"):
        config = QwenImageTransformer2DModel(num_layers=1).config
    passes = [(1, 32 * 32, text) for text in KINDS["generate"].text]
    counted = floor.passes_flops({**model, **config, "num_layers": step.BLOCKS}, passes) / 1e12
    assert facts["TFLOP"] == pytest.approx(counted, abs=0.1)
    assert facts["waits"] == facts["graphs at load"] == facts["graphs in jobs"] == 0


def test_a_step_is_as_it_is_recorded():
    """A change that adds bytes, kernels, waits or graphs turns this red: `python -m benchmarks step` shows where."""
    with Tracer(Precision.BF16, (9, 0), step.OURS).open() as tracer:
        facts = step.facts_of(tracer.step("edit plus", 1024))
    recorded = row_of(kind="edit plus", size=1024, contender="ours", precision="bf16")
    assert facts["waits in"] == [] and (facts["graphs at load"], facts["graphs in jobs"]) == (1, 0)
    for name in ("elementwise MB a block", "launches a pass"):
        assert facts[name] <= recorded[name], name
    assert facts["TFLOP"] == recorded["TFLOP"]


def test_the_record_keeps_the_goals():
    ours = [row for row in ROWS if row["contender"] == "ours"]
    assert {row["kind"] for row in ours} == set(step.KINDS)
    assert all(row["waits"] == row["graphs in jobs"] == 0 for row in ours)
    assert row_of(kind="generate", size=1024, contender="ours", precision="bf16")["elementwise MB a block"] <= 550


def test_the_page_has_the_record_s_tables():
    page = (ROOT / "docs/speed.md").read_text()
    for text in step_tables.tables():
        assert text in page


def test_a_kernel_takes_its_arithmetic_or_its_bytes_and_a_fast_card_waits_for_the_host():
    product = roofline.Work(roofline.PRODUCT, 2, int(79e12), 10)
    copy = roofline.Work(roofline.ELEMENTWISE, 1, 0, int(3350e9 * 0.85))
    assert roofline.seconds([product, copy], H100) == pytest.approx(0.2 + 1)
    assert product.seconds(H100) / roofline.Work("product", 2, int(79e12), 10, eight_bits=True).seconds(
        H100
    ) == pytest.approx(1245 / 790)
    many = roofline.Work(roofline.ELEMENTWISE, 10_000, 0, 1)
    assert roofline.seconds([many], H100) == pytest.approx(0.11)


def test_a_mask_costs_where_flash_attention_is_the_fastest():
    plain, masked = (roofline.Work(roofline.ATTENTION, 1, 10**12, 1, masked=each) for each in (False, True))
    assert masked.seconds(L40S) == 2 * plain.seconds(L40S)
    assert masked.seconds(H100) == plain.seconds(H100) < plain.seconds(H100, flash=370)


def test_works_that_are_alike_are_one():
    one = roofline.Work(roofline.PRODUCT, 1, 5, 6)
    assert roofline.grouped([one, one, roofline.Work(roofline.PRODUCT, 3, 5, 7)]) == [
        roofline.Work(roofline.PRODUCT, 2, 5, 6), roofline.Work(roofline.PRODUCT, 3, 5, 7),
    ]  # fmt: skip
