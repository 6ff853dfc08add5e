"""`python -m qwen_worker.check_card`: a table, a report, an exit code; a planted fault shows in all three."""

import json
import math
import sys
import types

import pytest

import test_qwen_integration as script
from qwen_worker import check_card
from qwen_worker.lora.adapters import Adapters
from qwen_worker.memory import cuda
from qwen_worker.memory.nvml import Gpu
from qwen_worker.model import vae as single_frame
from qwen_worker.model_settings import Precision
from qwen_worker.speed import attention

from ..support.patience import run_to_its_end

SMALL = {
    "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
    "axes_dims_rope": (4, 6, 6), "in_channels": 16, "out_channels": 4,
}  # fmt: skip


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """checked(): (exit code, report, lines of the table), with a block of less width than the released one."""
    monkeypatch.setattr(check_card, "WIDE", SMALL)

    def run(*arguments):
        file = tmp_path / "report.json"
        with pytest.raises(SystemExit) as ended:
            check_card.main(["--device", "cpu", "--output", str(file), *arguments])
        return ended.value.code, json.loads(file.read_text()), capsys.readouterr().out.splitlines()

    return run


def test_what_is_sound_passes(checked):
    code, report, lines = checked()
    assert code == 0 and report["passed"] and lines[-1] == "All passed."
    found = {case["name"]: {finding["name"] for finding in case["findings"]} for case in report["cases"]}
    own = {"table", "rotary", "guidance", "lora"}
    assert found == {
        "tiny, fp32": own | {"swapped", "streamed", "single_frame", "conv2d"},
        "tiny, fp8": own | {"fp8"}, "tiny, int8": own | {"int8"}, "tiny, nf4": own | {"nf4"},
        "released width, fp32": own,
    }  # fmt: skip
    assert report["card"].startswith("a CPU") and report["packages"]["diffusers"] and report["torch"]
    assert sum(line.endswith("passed") for line in lines) == sum(map(len, found.values()))


def test_a_planted_fault_fails_the_command_and_is_named(checked, monkeypatch):
    stock = Adapters.insert_layers

    def twice(self, layers, scales):
        stock(self, layers, {key: 2 * scale for key, scale in scales.items()})

    monkeypatch.setattr(Adapters, "insert_layers", twice)
    some = [case for case in check_card.cases(None, False) if "fp" in case.name and "tiny" not in case.name]
    some += [check_card.Case("tiny, int8", Precision.INT8, True)]
    monkeypatch.setattr(check_card, "cases", lambda gpu, compiled: some)
    code, report, lines = checked()
    failed = {finding["name"] for case in report["cases"] for finding in case["findings"] if not finding["passed"]}
    assert code == 1 and not report["passed"] and failed == {"lora"} and lines[-1] == "Not all passed."
    assert sum("FAILED" in line for line in lines) == len(some) == 2


def test_nan_is_null_in_the_report(checked, monkeypatch):
    case = check_card.Case("one", Precision.FP32, True, layout={"swapped": True})
    monkeypatch.setattr(check_card, "cases", lambda gpu, compiled: [case])
    stock = single_frame._decode
    monkeypatch.setattr(single_frame, "_decode", lambda self, z, return_dict=True: stock(self, z * math.nan))
    code, report, _ = checked()
    findings = {finding["name"]: finding for finding in report["cases"][0]["findings"]}
    assert code == 1 and findings["single_frame"]["distance"] is None
    assert findings["single_frame"]["words"] == "single_frame gives NaN"


def test_nothing_is_computed_after_an_error_of_cuda(checked, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(attention.JointAttention, "__call__", fail)
    monkeypatch.setattr(cuda, "has_spoiled", lambda error: "CUDA error" in str(error))  # as the card's next call tells
    code, report, lines = checked()
    first, *others = report["cases"]
    assert code == 1 and "an illegal memory access was encountered, in the self-check of rotary" in first["failure"]
    assert {case["left_out"] for case in others} == {"CUDA had failed"}
    assert lines[-2].endswith("left out: CUDA had failed") and lines[-1] == "Not all passed."


def test_what_there_is_no_time_for_is_left_out_and_said(checked, monkeypatch):
    cases = [check_card.Case(name, Precision.FP32, True) for name in ("one", "two")]
    monkeypatch.setattr(check_card, "cases", lambda gpu, compiled: cases)
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(check_card, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    code, report, lines = checked()
    done = [case["name"] for case in report["cases"] if case["findings"]]
    assert code == 0 and done == ["one"] and "left out: there was no time for it" in lines[-2]


def test_without_the_tiny_checkpoint_nothing_is_sound(checked, monkeypatch, tmp_path):
    monkeypatch.setattr(check_card, "TINY", tmp_path / "none")
    code, report, lines = checked()
    assert code == 1 and not report["passed"] and "models/tiny-qwen-image is not here" in lines[2]


@pytest.mark.parametrize(("capability", "lossy"), [((8, 6), "int8"), ((8, 9), "fp8"), ((9, 0), "fp8")])
def test_a_card_is_checked_in_the_layouts_that_it_can_have(capability, lossy):
    cases = check_card.cases(Gpu("a card", capability, 24 * 10**9, 24 * 10**9), compiled=True)
    names = [f"{width}, {precision}" for width in ("tiny", "released width") for precision in ("bf16", lossy, "nf4")]
    assert [case.name for case in cases] == names
    assert [case.name for case in cases if case.compiled] == [f"released width, {one}" for one in ("bf16", lossy)]


def test_a_card_that_is_asked_for_and_is_not_there_ends_the_command(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match="no card here"):
        check_card.main(["--device", "cuda"])


def test_the_integration_script_reports_what_the_command_found(tmp_path, monkeypatch):
    """The command is another process; a script in its place writes what one with a fault would."""
    outcome = check_card.Outcome("tiny, bf16", [check_card.Finding("compile", 0.3, 0.02, 0.1)], 1.0)
    sound = check_card.Outcome("tiny, bf16", [check_card.Finding("table", 0.001, 0.005, 0.1)], 1.0)
    failed = check_card.Outcome("tiny, fp8", failure="RuntimeError: no kernel")
    run = script.Run(None, types.SimpleNamespace(output=tmp_path))

    def verdict(code, *outcomes):
        report = json.dumps({"cases": [check_card.report_of(one) for one in outcomes]})
        command = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_text({report!r}); sys.exit({code})"
        stock = script.subprocess.run
        with monkeypatch.context() as patch:
            patch.setattr(
                script.subprocess, "run", lambda line, **options: stock([sys.executable, "-c", command, line[-1]])
            )
            return script.optimises(run)

    assert verdict(0, sound)[0] and "1 findings" in verdict(0, sound)[2]
    passed, _, words = verdict(1, outcome, failed)
    assert not passed and words == (
        "tiny, bf16: compile is 0.3 from the plain way, where 0.02 may be; tiny, fp8: RuntimeError: no kernel"
    )


def test_it_is_a_command():
    ended = run_to_its_end([sys.executable, "-m", "qwen_worker.check_card", "--help"])
    assert ended.returncode == 0 and "--output" in ended.stdout
