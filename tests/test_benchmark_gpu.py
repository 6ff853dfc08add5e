"""What measures on a GPU, tried on a CPU with the tiny checkpoint: cases, layouts, stages, floor, stock, the page."""

import argparse
import copy
import functools
import importlib
import json
import math
import re
import subprocess
import sys
import time
import types

import pytest
import torch

from benchmarks import cases, costs, few_step, fit, flops, full_size, load, served, speed, stock, turns
from benchmarks.cases import Case
from benchmarks.contenders import Failed, Ours
from benchmarks.stopwatch import Stages, Stopwatch, job_seconds
from qwen_worker.errors import LoadError
from qwen_worker.memory.machine import Gpu, Machine

from .conftest import ROOT

GB = 1_000_000_000
RESULTS = ROOT / "benchmarks/results"
NOTHING_HERE = Machine(None, 16 * GB, 12 * GB)


def machine(name="NVIDIA H100 80GB HBM3", gb=85.5, capability=(9, 0), ram=128):
    return Machine(Gpu(name, capability, round(gb * GB), round(gb * GB)), ram * GB, ram * GB)


def options(module, *words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    module.add_options(parser)
    return parser.parse_args(words)


@pytest.fixture
def quiet(monkeypatch):
    """Parts set the log's level for the process that they have to themselves: here it is put back."""
    monkeypatch.setenv("RUNPOD_DEBUG_LEVEL", "WARN")


# Cases: what is planned for which card, and what cannot be measured here.


def test_a_larger_card_stands_in_for_a_smaller_one_of_the_architecture_that_is_asked():
    for asked, precision in ((None, "fp8"), ("ampere", "int8"), ("ada", "fp8")):
        case = Case("ours", 24, ("generate",))
        seen = cases.machine_for(case, machine(), asked)
        plan, refused = cases.plan_for(case, seen)
        assert not refused and plan.precision.value == precision and plan.limit_bytes == 24 * GB
        assert "as a card of 24 GB" in seen.gpu.name
    assert cases.machine_for(Case("ours", 80), machine(ram=128), ram_gb=20).ram_available_bytes == 20 * GB


def test_our_worker_plans_for_the_card_that_it_is_told_of():
    ours = Ours(full_size.TINY, cases.TASKS, lambda: machine(gb=24), QWEN_VRAM_GB=16)
    plan = ours.worker.pipelines.place("generate")
    assert plan.device == "cuda" and plan.limit_bytes == 16 * GB


def reason(case, real, architecture=None, installed=lambda name: True):
    plan, refused = cases.plan_for(case, cases.machine_for(case, real, architecture))
    assert not refused
    return cases.why_not(case, real.gpu, plan if case.contender == "ours" else None, installed)


A100 = machine("NVIDIA A100-SXM4-80GB", 85.5, (8, 0))


@pytest.mark.parametrize(
    ("case", "real", "installed", "why"),
    [
        (Case("ours", 24), NOTHING_HERE, True, "there is no GPU here"),
        (Case("ours", 141), machine(), True, "NVIDIA H100 80GB HBM3 has 85.5 GB"),
        (Case("stock", 141), machine(), True, "NVIDIA H100 80GB HBM3 has 85.5 GB"),
        (Case("ours", 24, ("generate",)), A100, True, "NVIDIA A100-SXM4-80GB does not run fp8 products"),
        (Case("ours", 24), machine("Tesla T4", 85.5, (7, 5)), True, "Tesla T4 does not compute in bfloat16"),
        (Case("ours", 16, ("generate",)), machine(), False, "bitsandbytes is not installed"),
        (Case("ours", 24, ("generate",)), machine(), False, "torchao is not installed"),
        (Case("ours", 80), machine(), False, ""),
        (Case("ours", 24, ("generate",)), machine(), True, ""),
    ],
)
def test_what_the_real_card_cannot_run_is_not_measured(case, real, installed, why):
    assert reason(case, real, installed=lambda name: installed) == why
    assert cases.why_not(Case("ours", None), real.gpu, None, lambda name: None) == ""  # all of this machine


def test_on_a_gpu_every_part_has_its_plan_and_prediction(tmp_path):
    (tmp_path / "edit").mkdir()  # as a checkpoint that is written
    found = fit.parts_of(options(fit, "--full-size", str(tmp_path)), machine())
    assert [part.name for part in found[:3]] == ["ours-24-generate", "ours-24-edit", "ours-80-both"]
    by_name = {part.name: part for part in found}
    assert not by_name["ours-24-generate"].missing and by_name["ours-141-both"].missing
    for part in found:
        for row in part.rows:
            assert 0 < row["predicted peak GB"] <= row["cap GB"] and row["checkpoint"] == full_size.NAME
    assert by_name["ours-24-generate"].arguments["machine"].gpu.capability == (8, 9)
    assert [len(part.rows) for part in found[:3]] == [2, 2, 4]


def test_stock_is_loaded_the_fastest_way_that_fits():
    ways = {cap: cases.way_of(Case("stock", cap, ("generate",)), 1024) for cap in (141, 80, 48, 32)}
    assert ways == {141: stock.RESIDENT, 80: stock.RESIDENT, 48: stock.BY_MODEL, 32: stock.BY_LAYER}
    # 57.7 GB of weights, 1 of context, 3.38 GiB to decode; one model at a time: the transformer and 0.36 GiB.
    peaks = cases.stock_peaks("generate", 1024)
    assert peaks[stock.RESIDENT] / GB == pytest.approx(57.7 + 1 + 3.63, rel=0.002)
    assert peaks[stock.BY_MODEL] / GB == pytest.approx(40.86 + 1 + 0.39, rel=0.002)


def test_caps_that_no_case_is_of_are_served_too():
    assert [case.name for case in cases.of_caps([40, 16])] == [
        "ours-16-generate", "ours-16-edit", "ours-16-both", "ours-40-both",
    ]  # fmt: skip


# The full-size architecture, and the same writer at a size that is served here.

SMALL = {
    "transformer": {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 256},
    "text": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 1},
    "vision": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 256},
    "vae": {"base_dim": 8},
}  # fmt: skip


def test_the_full_size_architecture_is_what_placement_counts_with():
    from qwen_worker.checkpoints.checkpoint import PARTS_20B, SIZE_20B, count_parts

    held = {
        name: {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        for name, model in full_size.architecture().items()
    }
    assert {name: sum(map(math.prod, shapes.values())) for name, shapes in held.items()} == SIZE_20B
    assert count_parts(held) == PARTS_20B


def test_a_checkpoint_of_random_weights_goes_on_where_it_was_ended_and_is_served(tmp_path, monkeypatch, quiet):
    monkeypatch.setattr(full_size, "SHARD_BYTES", 20_000_000)
    models = full_size.architecture(SMALL)
    written, stock_write = [], full_size.write_shard

    def cut_off(path, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        stock_write(path, *rest)

    monkeypatch.setattr(full_size, "WRITERS", 1)
    monkeypatch.setattr(full_size, "write_shard", cut_off)
    with pytest.raises(KeyboardInterrupt):
        full_size.write(tmp_path, models)
    assert not (tmp_path / "edit").exists()
    times = [path.stat().st_mtime_ns for path in written]
    monkeypatch.setattr(full_size, "write_shard", stock_write)
    full_size.write(tmp_path, models)
    assert [path.stat().st_mtime_ns for path in written] == times
    assert (tmp_path / "generate/text_encoder/model.safetensors.index.json").exists()
    for file in tmp_path.glob("generate/*/*.safetensors"):
        assert file.samefile(tmp_path / "edit" / file.relative_to(tmp_path / "generate"))
    assert full_size.ready([tmp_path]) == tmp_path

    ours = Ours(tmp_path, cases.TASKS)
    ours.load("generate")
    ours.load("edit")
    assert set(ours.shared("edit")) == {"text_encoder", "vae", "tokenizer"}
    assert ours.draw("generate", 256, num_inference_steps=1) == 1


def test_preset_fast_is_timed_with_a_lora_of_every_layer_that_the_published_ones_change(tmp_path, quiet):
    from safetensors import safe_open

    full_size.write(tmp_path, full_size.architecture(SMALL))
    file = few_step.lora_for(tmp_path)
    written = file.stat().st_mtime_ns
    assert few_step.lora_for(tmp_path) == file and file.stat().st_mtime_ns == written
    with safe_open(file, "pt") as tensors:
        assert len(list(tensors.keys())) == 2 * 12 * SMALL["transformer"]["num_layers"]
    ours = Ours(tmp_path, ("generate",), QWEN_IMAGE_FAST_LORA=str(file))
    ours.load("generate")
    assert ours.draw("generate", 256, preset="fast") == 8


def test_the_full_size_checkpoint_asks_for_its_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(full_size, "free_disk_bytes", lambda folder: 20 * GB)
    monkeypatch.setattr(full_size, "write", lambda *_: pytest.fail("it was written"))
    with pytest.raises(LoadError, match="the full-size checkpoint needs 57.7 GB of disk; 20.0 GB are free"):
        full_size.ready([tmp_path])
    assert list(tmp_path.iterdir()) == []


# Layouts and stages, served.


def served_rows(work, part, **more):
    sent = []
    work(sent.append, list(part.rows), **(part.arguments | more))
    return sent


def test_the_tiny_checkpoint_is_served_and_its_weights_are_the_predicted_ones(quiet):
    chosen = options(fit, "--sizes", "256", "--steps", "2")
    here = fit.part_of(Case("ours", None), full_size.TINY, chosen, NOTHING_HERE, "")
    rows = served_rows(served.serve_ours, here)
    assert [(row["task"], row["measured"]) for row in rows] == [("generate", "measured"), ("edit", "measured")]
    for row in rows:
        assert row["weights GB"] == row["predicted weights GB"] > 0
        assert row["step s"] > 0 and row["load s"] > 0 and row["read GB/s"] > 0
        assert job_seconds(row, 2) == pytest.approx(row["job s"], rel=0.2)
    by_task = {row["task"]: row for row in rows}
    assert by_task["edit"]["encode s"] > 0 == by_task["generate"]["encode s"]
    assert 0 < by_task["edit"]["load GB"] < by_task["generate"]["load GB"]  # text encoder and VAE are in memory


def test_a_job_that_fails_is_a_row_that_says_why(quiet):
    chosen = options(fit, "--sizes", "128", "256", "--steps", "1")
    here = fit.part_of(Case("ours", None, ("generate",)), full_size.TINY, chosen, NOTHING_HERE, "")
    small, good = served_rows(served.serve_ours, here)
    assert small["measured"].startswith("failed: invalid_input: width must be") and good["measured"] == "measured"
    wrong = Case("ours", None, ("generate",))
    (row, _) = served_rows(served.serve_ours, here, case=wrong, folder=ROOT / "nowhere")
    assert row["measured"] == "failed: nowhere/generate is not a folder on this worker"


def test_stock_beside_ours_shares_its_weights_and_draws_what_plain_stock_draws(warm_worker, tiny, quiet):
    ours = warm_worker.pipelines.load("generate").pipe
    plain, beside = stock.load(tiny / "generate", "cpu", stock.RESIDENT), stock.beside(ours, tiny / "generate", "cpu")
    mine = {p.data_ptr() for module in (ours.transformer, ours.text_encoder) for p in module.parameters()}
    theirs = {
        f"{part}.{name}": p.data_ptr() in mine
        for part in ("transformer", "text_encoder")
        for name, p in getattr(beside, part).named_parameters()
    }
    assert [name for name, shared in theirs.items() if not shared] == ["text_encoder.lm_head.weight"]
    assert type(beside.transformer) is type(plain.transformer) and beside.vae.post_quant_conv is not None
    pictures = []
    for pipe in (plain, beside):
        pipe.set_progress_bar_config(disable=True)
        call = {"prompt": "a red circle", "negative_prompt": " ", "width": 256, "height": 256}
        generator = torch.Generator().manual_seed(1)
        pictures.append(pipe(**call, num_inference_steps=2, generator=generator, output_type="pt").images)
    assert torch.equal(*pictures)


def test_what_a_table_has_dropped_is_read_for_stock(tiny):
    from diffusers import QwenImageTransformer2DModel

    from qwen_worker.model.modulation import TabledTransformer

    folder = tiny / "generate/transformer"
    tabled = TabledTransformer.from_pretrained(folder, dtype=torch.bfloat16)
    twin = stock.twin_of(tabled, QwenImageTransformer2DModel, folder, "cpu")
    plain = QwenImageTransformer2DModel.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert twin.state_dict().keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in twin.state_dict().items())
    elsewhere = copy.deepcopy(tabled).to("meta")
    assert stock.twin_of(elsewhere, QwenImageTransformer2DModel, folder, "cpu") is None


class FakeBlock(torch.nn.Module):
    def forward(self, hidden_states, encoder_hidden_states):
        return hidden_states * 2


class FakeTransformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([FakeBlock()])

    def forward(self, **states):
        time.sleep(0.02)
        self.transformer_blocks[0](**states)


class FakePipe:
    """Two passes a step, 20 ms each, 10 ms between steps; text 30 ms twice, decode 50 ms."""

    def __init__(self):
        self.transformer, self.vae = FakeTransformer(), self
        self.decode = lambda: time.sleep(0.05)

    def encode_prompt(self):
        time.sleep(0.03)

    def encode(self):
        raise AssertionError

    def draw(self, steps):
        for _ in range(2):
            self.encode_prompt()
        for _ in range(steps):
            for text in (7, 3):
                self.transformer(hidden_states=torch.zeros(1, 256, 4), encoder_hidden_states=torch.zeros(1, text, 4))
            time.sleep(0.01)
        self.decode()


def test_a_stopwatch_tells_the_stages_apart_and_leaves_the_pipeline_as_it_was():
    pipe = FakePipe()
    decode = pipe.decode
    with Stopwatch("cpu").on(pipe) as watch:
        pipe.draw(3)
    stages = watch.stages(3)
    # A busy machine sleeps longer, never shorter.
    assert 0.06 <= stages.text < 0.12 and 0.05 <= stages.decode < 0.1 and stages.encode == 0
    assert 0.05 <= stages.step < 0.1 and len(stages.steps) == 3
    assert stages.whole >= stages.text + stages.decode + sum(stages.steps) + 0.009
    assert stages.forwards == ((1, 256, 7), (1, 256, 3)) * 3
    assert "encode_prompt" not in vars(pipe) and pipe.decode is decode and not pipe.transformer._forward_hooks
    assert "forward" not in vars(pipe.transformer.transformer_blocks[0])
    uneven = watch.stages(4)  # six passes in four steps
    assert len(uneven.steps) == 4 and sum(uneven.steps) == pytest.approx(sum(stages.steps))


def test_passes_through_blocks_that_were_compiled_before_are_noted_too():
    pipe = FakePipe()
    block = pipe.transformer.transformer_blocks[0]
    block.forward = compiled = types.MethodType(torch.compile(FakeBlock.forward, backend="eager"), block)
    pipe.draw(1)
    with Stopwatch("cpu").on(pipe) as watch:
        pipe.draw(1)
    assert watch.stages(1).forwards == ((1, 256, 7), (1, 256, 3)) and block.forward is compiled


# The floor and the turns.


@pytest.mark.parametrize(("batch", "height", "width", "text"), [(1, 16, 16, 7), (2, 8, 12, 33)])
def test_the_flops_of_a_pass_are_what_torch_counts(tiny, batch, height, width, text):
    from diffusers import QwenImageTransformer2DModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")
    latents = height * width
    # torch counts the attention of a CPU only where it is made of plain products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(
            hidden_states=torch.randn(batch, latents, model.config.in_channels),
            encoder_hidden_states=torch.randn(batch, text, model.config.joint_attention_dim),
            timestep=torch.full((batch,), 0.5),
            img_shapes=[[(1, height, width)]] * batch,
        )
    assert flops.forward_flops(model.config, batch, latents, text) == counter.get_total_flops()
    assert flops.passes_flops(model.config, [(batch, latents, text)] * 2) == 2 * counter.get_total_flops()


def test_a_pass_of_the_released_model_takes_70_tflop():
    config = full_size.architecture()["transformer"].config
    assert flops.forward_flops(config, 1, 4096, 100) / 1e12 == pytest.approx(costs.TFLOP_A_PASS, rel=0.01)


def test_the_rate_of_a_product_is_the_median_of_its_times(monkeypatch):
    seconds = iter([9.0] * flops.RATE_SETS + [0.5, 0.1] * flops.RATE_REPEATS)
    monkeypatch.setattr(flops, "timed_product", lambda left, right, device: next(seconds))
    assert flops.matmul_rate("cpu", "float32") == pytest.approx(2 * 1024**3 / 0.3)


def test_ours_and_stock_take_turns_and_stand_against_the_floor(quiet):
    chosen = options(speed, "--sizes", "256", "--steps", "2", "--repeats", "1", "--whole-size", "0")
    part = speed.part_of("generate", {}, full_size.TINY, chosen, NOTHING_HERE, "")
    assert part.name == "generate tiny"
    ours, other, *presets = served_rows(turns.take, part)
    assert (ours["contender"], other["contender"]) == ("ours", "stock")
    passes = {row["preset"]: (row["steps"], row["passes"]) for row in presets}
    assert passes == {"balanced": (30, 36), "fast": (4, 4)}  # of balanced 18 steps are computed, with guidance
    for row in (ours, other):
        assert row["measured"] == "measured" and row["steps"] == 2 and row["passes"] == 4
        assert row["of floor"] == pytest.approx(row["step s"] / row["floor step s"], rel=0.05)
        assert row["matmul TFLOP/s"] > 0
    assert ours["of stock"] == pytest.approx(job_seconds(ours, 50) / job_seconds(other, 50), abs=0.01)
    assert "of stock" not in other and other["stock"] == "on the same weights"


def test_turns_alternate_warm_up_first_and_a_failure_ends_one_s_turns():
    log = []

    def drawn(name, fails=False):
        def draw(warm_up):
            log.append(name + ("-warm" if warm_up else ""))
            if fails and not warm_up:
                raise Failed("out of memory")
            return Stages(1.0, 0, 0, 0, (1.0,), ())

        return draw

    one, two = turns.in_turns([drawn("a"), drawn("b", fails=True)], 2)
    assert log == ["a-warm", "b-warm", "a", "b", "a"]
    assert len(one) == 2 and two == "out of memory"
    assert turns.outcome_of(two, {}, 1.0) == {"measured": "failed: out of memory"}


def test_a_ratio_needs_both_and_whole_jobs_are_compared_as_they_were():
    ours, other = speed_row(), speed_row(contender="stock", **{"step s": 0.4, "job s": 5.2})
    assert turns.against_stock(ours, [ours, other]) == {"of stock": round(11 / 21, 3)}
    whole = [row | {"whole": True} for row in (ours, other)]
    assert turns.against_stock(whole[0], whole) == {"of stock": 0.5}
    for pair in ([ours, {"contender": "stock", "measured": "failed: out of memory"}], [ours]):
        assert turns.against_stock(ours, pair) == {}
    failed = {"contender": "ours", "measured": "failed: x"}
    assert turns.against_stock(failed, [failed, other]) == turns.against_stock(other, [ours, other]) == {}


def test_every_preset_of_the_contract_and_every_setting_that_is_asked_has_rows():
    from qwen_worker.jobs.request import Drawing

    for preset in speed.presets():
        Drawing(prompt="a", preset=preset)
    assert speed.settings_of(["QWEN_SAVINGS=none"]) == {"QWEN_SAVINGS": "none"}
    with pytest.raises(SystemExit, match="no setting QWEN_NONSENSE"):
        speed.settings_of(["QWEN_NONSENSE=1"])
    parts = speed.parts_of(options(speed, "--set", "QWEN_SAVINGS=none", "--tasks", "edit"), NOTHING_HERE)
    assert [part.name for part in parts] == ["edit QWEN_SAVINGS=none", "edit QWEN_SAVINGS=none tiny"]
    assert parts[0].missing == "there is no GPU here" and not parts[1].missing
    whole = [row for row in parts[0].rows if row["whole"] and row["preset"] == "quality"]
    assert [(row["size"], row["steps asked"], row["contender"]) for row in whole] == [
        (1024, 50, "ours"), (1024, 50, "stock"),
    ]  # fmt: skip


def test_a_further_preset_has_rows_of_its_own(monkeypatch):
    monkeypatch.setattr(speed, "presets", lambda: ["quality", "fast"])
    (part, _) = speed.parts_of(options(speed, "--tasks", "generate"), NOTHING_HERE)
    fast = [row for row in part.rows if row["preset"] == "fast"]
    assert {row["size"] for row in fast} == {512, 768, 1024, 1328}
    assert all(row["contender"] == "ours" and row["whole"] and row["steps asked"] is None for row in fast)


# The page of cards.


def test_the_page_of_cards_is_what_its_command_writes(tmp_path):
    page, output = tmp_path / "cards.md", tmp_path / "costs.json"
    command = [sys.executable, "-m", "benchmarks", "costs", "--page", str(page), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs/cards.md").read_text()
    committed, written = (json.loads(path.read_text())["rows"] for path in (RESULTS / "costs.json", output))
    assert committed == written


def speed_row(device="NVIDIA H100 80GB HBM3", task="generate", **fields):
    stages = {"text s": 0.5, "encode s": 0.0, "decode s": 0.4, "rest s": 0.1, "step s": 0.2, "job s": 2.6}
    row = {"checkpoint": full_size.NAME, "task": task, "size": 1024, "contender": "ours", "preset": "quality"}
    row |= {"settings": "", "whole": False, "steps": 8, "passes": 16, "measured": "measured", "device": device}
    return row | stages | fields


def fit_row(cap=24, **fields):
    row = speed_row(**fields)
    del row["contender"], row["preset"], row["settings"], row["whole"]
    return row | {"part": f"ours-{cap}-generate", "cap GB": cap}


CARDS = {card.name: card for card in costs.CARDS}


def figure(name, fit_rows=(), speed_rows=(), task="generate", preset="quality"):
    found = costs.figure_of(CARDS[name], task, preset, list(fit_rows), list(speed_rows))
    return round(found.seconds, 3), found.basis


def test_figures_are_measured_scaled_or_not_measured():
    assert figure("H100") == (18.5, "not measured")
    assert figure("H100", task="edit") == (round(18.5 * 51.5 / 20, 3), "not measured")
    measured = [speed_row()]
    assert figure("H100", speed_rows=measured) == (0.5 + 0.4 + 0.1 + 50 * 0.2, "measured")
    assert figure("H100", speed_rows=[*measured, speed_row(whole=True, steps=50, **{"job s": 12.0})]) == (
        12,
        "measured",
    )
    assert figure("A100", speed_rows=measured) == (round(11 * 989 / 312, 3), "scaled from H100")
    # Under the card's own memory, where fit has it: a 4090 is not scaled from an unquantized layout.
    capped = [fit_row(24, **{"step s": 0.3})]
    assert figure("RTX 4090", capped, measured) == (round(16 * 989 / 165, 3), "scaled from H100")
    assert figure("L40S", capped, measured) == (round(11 * 989 / 362, 3), "scaled from H100")
    on_the_card = [fit_row(24, device="NVIDIA GeForce RTX 4090", **{"step s": 1.0})]
    assert figure("RTX 4090", on_the_card + capped, measured) == (51, "measured")


@pytest.mark.parametrize(
    "fields",
    [
        {"checkpoint": "tiny"}, {"measured": "failed: out of memory"}, {"size": 512}, {"contender": "stock"},
        {"settings": "QWEN_SAVINGS=none"}, {"device": None}, {"device": "CPU"}, {"preset": "fast"},
    ],
)  # fmt: skip
def test_what_is_no_measure_of_the_card_counts_for_nothing(fields):
    assert figure("H100", speed_rows=[speed_row(**fields)]) == (18.5, "not measured")


def test_a_card_s_name_is_a_word_of_its_device():
    assert costs.is_card("NVIDIA A40", CARDS["A40"]) and not costs.is_card("NVIDIA RTX A4000", CARDS["A40"])
    assert costs.is_card("NVIDIA RTX PRO 6000 Blackwell Server Edition", CARDS["RTX PRO 6000"])


def test_a_preset_that_is_recorded_has_its_table_and_its_line():
    from benchmarks import cards_page

    fast = speed_row(preset="fast", whole=True, steps=8, passes=8, **{"job s": 1.4})
    rows = [costs.row_of(card, preset, [], [fast]) for preset in costs.presets([fast]) for card in costs.CARDS]
    fitted = fit_row(**{"predicted peak GB": 17.5, "peak GB": 16.9, "plan": "fp8 on cuda"})
    stock_row = speed_row(contender="stock", **{"job s": 4.0, "step s": 0.4})
    ours_row = speed_row(**{"floor step s": 0.177, "of stock": 0.57})
    page = cards_page.page(rows, [fitted], [ours_row, stock_row])
    assert "| generate | 1024 | quality | 8 | 2.6 | 4 | 0.2 | 0.4 | 0.177 | 0.57 |" in page
    assert "### Preset `quality`" in page and "### Preset `fast`" in page
    assert "| ADA_80_PRO | H100 | 4.18 | 1.4 s, $0.002, measured; 100 steps |" in page
    assert "- `fast`, picture: RTX A4000 (scaled from H100)" in page
    assert "| ours-24-generate | generate | fp8 | 17.5 | 16.9 | 0.2 | NVIDIA H100 80GB HBM3 |" in page


# The commands, whole.


@pytest.mark.parametrize("name", ["fit", "speed"])
def test_the_command_writes_rows_a_table_and_a_plot(name, tmp_path):
    small = {
        "fit": ("--sizes", "256", "--steps", "1", "--part", "ours-both", "ours-24-generate"),
        "speed": ("--sizes", "256", "--steps", "1", "--repeats", "1", "--whole-size", "0", "--tasks", "generate"),
    }[name]
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks", name, *small, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["benchmark"] == name and report["runs"]["1"]["versions"]["diffusers"]
    by_checkpoint = {row["checkpoint"]: row["measured"] for row in report["rows"]}
    assert by_checkpoint == {full_size.NAME: "not measured: there is no GPU here", "tiny": "measured"}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "measured" in done.stdout


def test_without_matplotlib_the_record_stays_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    from benchmarks import plots

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.fit(importlib.import_module("benchmarks.record").Record(tmp_path / "a.json", "fit", ("part",), {}), tmp_path)
    assert "No plot: matplotlib is not installed" in capsys.readouterr().out


# What only a GPU has, with torch's calls replaced: the arithmetic around them.


class FakeEvent:
    """Records a time that moves on by 10 ms with every event."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.now += 10.0
        self.at = FakeEvent.now

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def fake_card(monkeypatch):
    """An H100 with 1 GB in use by others, on which torch has opened a context of 0.6 GB and reserved 20 GB."""
    free = [84.5 * GB]
    gpu = lambda: Gpu("NVIDIA H100 80GB HBM3", (9, 0), round(85.5 * GB), round(free[0]))  # noqa: E731
    monkeypatch.setattr("benchmarks.card.read_gpu", gpu)
    calls = {
        "mem_get_info": lambda: (0, 85 * GB),
        "memory_reserved": lambda: 20 * GB,
        "max_memory_reserved": lambda: 21 * GB,
        "max_memory_allocated": lambda: 19 * GB,
        "memory_stats": lambda: {"num_alloc_retries": 2, "num_ooms": 1},
        "memory_allocated": lambda: round(13.77 * GB),
        "host_memory_stats": lambda: {"allocated_bytes.current": 28 * GB},
        "synchronize": lambda: None,
        "Event": FakeEvent,
    }
    for name, value in calls.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return free


def test_the_cap_and_the_context_are_counted_from_both_sides(fake_card, monkeypatch):
    from benchmarks.card import Card

    fractions = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    card = Card(24)
    card.limit()
    assert fractions == [pytest.approx((24 * GB - 2**30) / (85 * GB))]
    fake_card[0] -= 20.6 * GB
    assert card.peaks() == {
        "allocated peak GB": 19, "reserved peak GB": 21, "context GB": 0.6, "peak GB": 21.6, "pinned GB": 28,
        "times full": 3,
    }  # fmt: skip
    assert card.weights([]) == 13.77
    Card(None).limit()
    assert len(fractions) == 1  # no cap, no limit


def test_on_a_card_stages_are_timed_by_events(fake_card):
    with Stopwatch("cuda").on(pipe := FakePipe()) as watch:
        pipe.draw(2)
    stages = watch.stages(2)
    # Every stage begins and ends with an event, 10 ms apart; a step's first pass begins 40 ms before the next one's.
    assert stages.text == pytest.approx(0.02) and stages.decode == pytest.approx(0.01)
    assert stages.steps == pytest.approx((0.04, 0.03)) and stages.whole > 0.1


def test_the_script_for_a_gpu_names_parts_that_there_are():
    script = (ROOT / "benchmarks/on_gpu.sh").read_text()
    known = {case.name for case in cases.CASES}
    measured = re.findall(r"^measure (fit|speed)(.*)$", script, re.MULTILINE)
    assert len(measured) > 5
    for benchmark, words in measured:
        parsed = options({"fit": fit, "speed": speed}[benchmark], *words.split())
        assert set(parsed.part or ()) <= known
    assert subprocess.run(["bash", "-n", "benchmarks/on_gpu.sh"], cwd=ROOT).returncode == 0


def test_reading_is_measured_beside_the_library_and_a_plain_read(tmp_path, monkeypatch):
    """In this process: three ways of importing everything take longer than all that is to be seen here."""
    small = {"attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)}
    written = []

    class Sender:
        send = written.append

    def measured(way, file, device, threads):
        load.measure(Sender, way, file, device, threads)
        return written[-1]

    monkeypatch.setattr(load, "write", functools.partial(load.write, **small))
    monkeypatch.setattr(load, "in_own_process", measured)
    options = argparse.Namespace(gb=1, folder=tmp_path, threads=2, rounds=1, pause=0)
    rows, facts = load.run(options)
    assert [(row["read by"], row["from"]) for row in rows] == [
        (way, place) for place in ("disk", "memory") for way in load.WAYS
    ]
    assert all(row["lowest"] == row["highest"] >= 0 and row["share"] >= 0 for row in rows) and len(written) == 6
    assert facts["into"] == "RAM" and facts["rounds"] == 1 and not list(tmp_path.iterdir())
