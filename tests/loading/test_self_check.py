"""The self-check: a planted wrong result is found under the right name, and what is sound passes."""

import contextlib
import dataclasses
import functools
import json
import math

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from qwen_worker.checkpoints.checkpoint import inspect
from qwen_worker.errors import CudaSpoiledError, LoadError
from qwen_worker.loading import self_check
from qwen_worker.loading.self_check import Finding
from qwen_worker.loading.subject import Subject
from qwen_worker.lora import adapters, padded
from qwen_worker.lora.adapters import Adapters
from qwen_worker.memory import cuda
from qwen_worker.model import residency, vision
from qwen_worker.model import vae as single_frame
from qwen_worker.model_settings import Precision, Saving, SelfCheck, Speedup
from qwen_worker.settings import Settings
from qwen_worker.speed import attention, compiled, gelu, guidance, speedups

from ..conftest import ROOT
from ..model.test_savings import pipeline, plan_for

SPEEDUPS = (Speedup.ROTARY, Speedup.GUIDANCE, Speedup.ATTENTION)
LOSSY = [Precision.FP8, Precision.INT8, Precision.NF4]


@functools.cache
def built(precision, on, task, savings, shared, changes):
    folder = ROOT / "models/tiny-qwen-image" / task
    pipe, table = pipeline(None, folder, precision, savings, **dict(changes))
    plan = plan_for(folder, precision, savings, **dict(changes))
    speed = speedups.Speed(dict.fromkeys(on, speedups.ON), pipe.transformer)
    if Speedup.ROTARY in on:
        attention.use_real_rotary(pipe.transformer)
    if Speedup.COMPILE in on:
        speed = dataclasses.replace(speed, blocks=compiled.CompiledBlocks(pipe.transformer))
    swap = None
    if plan.swapped:
        swap = residency.Swap("cpu")
        swap.add("m", pipe.transformer)
    return Subject("m", inspect(folder), plan, pipe, table, speed, swap, shared)


@pytest.fixture
def subject():
    """subject(precision, speed-ups, **changes of the plan): of the tiny checkpoint, loaded for it.

    `fresh`: not one that an earlier test had. Its VAE, whose comparisons take longest, is compared in its own tests
    only.
    """

    def of(
        precision=Precision.BF16, on=(), task="generate", savings=frozenset(Saving), shared=("vae",), fresh=False,
        **changes,
    ):  # fmt: skip
        build = built.__wrapped__ if fresh or Speedup.COMPILE in on else built
        return build(precision, tuple(on), task, savings, shared, tuple(changes.items()))

    return of


@pytest.fixture
def uncompiled(monkeypatch):
    """uncompiled(change): compiled blocks that compute what the block's class does, and then `change` it."""

    def of(change=lambda result: result):
        def forward(block_class):
            return lambda block, **inputs: tuple(map(change, block_class.forward(block, **inputs)))

        monkeypatch.setattr(compiled, "compiled_forward", forward)

    return of


def failed(subject):
    """The names of what did not pass."""
    return {finding.name for finding in self_check.compare_all(subject) if not finding.passed}


def hooks_of(subject):
    return [list(block._forward_pre_hooks) for block in subject.transformer.transformer_blocks]


@pytest.mark.parametrize(
    ("precision", "task"),
    [*((one, "generate") for one in (Precision.FP32, Precision.BF16, *LOSSY)), (Precision.BF16, "edit")],
)
def test_what_is_sound_passes_and_leaves_nothing(subject, uncompiled, precision, task):
    uncompiled()
    text_encoder = "quantized" if precision in LOSSY else "streamed"
    changes = {"table": True, "swapped": True, "text_encoder": text_encoder}
    shared = () if (task, precision) == ("generate", Precision.FP32) else ("vae",)  # which computes in no other way
    checked = subject(precision, [*SPEEDUPS, Speedup.COMPILE], task, shared=shared, **changes)
    before, hooks = dict(checked.transformer.named_modules()), hooks_of(checked)
    findings = {finding.name: finding for finding in self_check.compare_all(checked)}
    assert all(finding.passed for finding in findings.values()), findings
    expected = {"swapped", "table", "rotary", "attention", "compile", "lora"}
    expected |= set() if shared else {"single_frame", "conv2d"}
    expected |= {precision.value} if precision in LOSSY else {"streamed"}
    assert set(findings) == expected | ({"guidance"} if task == "generate" else set())
    assert dict(checked.transformer.named_modules()) == before and hooks_of(checked) == hooks
    assert "forward" not in vars(checked.transformer) and not checked.speed.blocks.is_off


def test_a_plan_without_optimisations_has_little_to_compare(subject):
    assert [finding.name for finding in self_check.compare_all(subject(savings=frozenset(), shared=()))] == ["lora"]


def shifted(rows, by):
    """Rows of which each timestep has a neighbour's, and the last its own."""
    places = torch.arange(len(rows)).add(by).clamp(0, len(rows) - 1)
    return rows[places]


@pytest.mark.parametrize(
    "plant",
    [
        lambda rows: shifted(rows, 1),
        lambda rows: shifted(rows, -1),
        lambda rows: rows.roll(1, 1),  # another block's
        lambda rows: rows.flip(2),  # the text's for the picture's
        lambda rows: rows.where(torch.arange(rows.shape[1])[:, None, None] != 3, torch.nan),
    ],
)
def test_a_wrong_row_of_the_table_is_found(subject, plant):
    checked = subject(table=True, fresh=True)
    checked.table.source.rows = plant(checked.table.source.rows)
    assert failed(checked) == {"table"}


@pytest.mark.parametrize("precision", LOSSY)
@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_a_dropped_scale_of_a_quantized_matrix_is_found(subject, precision, component):
    checked = subject(precision, text_encoder="quantized", fresh=True)
    model = getattr(checked.pipe, component)
    layer = (model if component == "transformer" else model.model.language_model).get_submodule(
        "transformer_blocks.0.attn.add_k_proj" if component == "transformer" else "layers.0.mlp.up_proj"
    )
    scale = layer.weight.quant_state.absmax if precision is Precision.NF4 else layer.weight.scale
    scale.fill_(1)
    assert failed(checked) == {precision.value}


@pytest.mark.parametrize("plant", [("to_k", "to_q", "to_v"), ("to_q", "to_k", "to_k")])
def test_swapped_projections_in_the_attention_processor_are_found(subject, monkeypatch, plant):
    checked = subject(on=SPEEDUPS)
    monkeypatch.setitem(attention.PROJECTIONS, "picture", plant)
    assert failed(checked) == {"rotary"}


def test_angles_of_the_wrong_sign_are_found(subject, monkeypatch):
    rotate = attention.rotate
    monkeypatch.setattr(attention, "rotate", lambda x, angles: rotate(x, (angles[0], -angles[1])))
    assert failed(subject(on=SPEEDUPS)) == {"rotary"}


def test_an_activated_product_with_another_activation_is_found(subject, monkeypatch):
    checked = subject(on=(Speedup.GELU,), fresh=True)
    gelu.use_activated_products(checked.transformer)
    assert failed(checked) == set()
    monkeypatch.setattr(gelu.ActivatedProduct, "forward", lambda layer, x: torch.relu(layer.proj(x)))
    assert failed(checked) == {"gelu"}


@pytest.mark.parametrize("fault", ["mask", "scale", "nan"])
def test_a_wrong_attention_kernel_is_found(subject, monkeypatch, fault):
    stock = torch.nn.functional.scaled_dot_product_attention

    def wrong(query, *arguments, attn_mask=None, **options):
        query = query * (1.5 if fault == "scale" else math.nan if fault == "nan" else 1)
        return stock(query, *arguments, attn_mask=None if fault == "mask" else attn_mask, **options)

    @contextlib.contextmanager
    def wrong_kernel():
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
            yield

    monkeypatch.setattr(attention, "prefer_cudnn", wrong_kernel)
    assert failed(subject(on=SPEEDUPS)) == {"attention"}


@pytest.mark.parametrize("change", [lambda result: result * 1.05, lambda result: result * math.nan])
def test_a_wrong_compiled_block_is_found(subject, uncompiled, change):
    uncompiled(change)
    assert failed(subject(on=[*SPEEDUPS, Speedup.COMPILE])) == {"compile"}


def test_a_wrong_graph_for_short_prompts_is_found(subject, monkeypatch):
    def forward(block_class):
        def call(block, **inputs):
            wrong = 2 if inputs["encoder_hidden_states"].shape[1] == compiled.SHORT_TEXT else 1
            return tuple(result * wrong for result in block_class.forward(block, **inputs))

        return call

    monkeypatch.setattr(compiled, "compiled_forward", forward)
    assert failed(subject(Precision.INT8, [Speedup.COMPILE])) == {"compile"}


def test_patches_that_are_multiplied_in_the_wrong_order_are_found(subject, monkeypatch):
    checked = subject(task="edit", fresh=True)
    vision.project_patches(checked.pipe.text_encoder.model.visual)
    assert {"trim"} <= {finding.name for finding in self_check.compare_all(checked) if finding.passed}
    project = vision.project
    monkeypatch.setattr(vision, "project", lambda patches, weight: project(patches.flip(-1), weight))
    assert failed(checked) == {"trim"}


def test_padding_that_is_not_masked_is_found(subject, monkeypatch):
    padded = guidance.padded_text

    def unmasked(inputs, other):
        text, mask = padded(inputs, other)
        return text, torch.ones_like(mask)

    monkeypatch.setattr(guidance, "padded_text", unmasked)
    assert failed(subject(on=SPEEDUPS)) == {"guidance"}


def test_the_wrong_slice_of_a_convolution_is_found(subject, tiny):
    checked, stock = (
        subject(shared=()),
        AutoencoderKLQwenImage.from_pretrained(tiny / "generate/vae", dtype=torch.bfloat16),
    )
    name = next(
        name for name, module in checked.pipe.vae.decoder.named_modules()
        if isinstance(module, single_frame.SingleFrameConv) and module.weight is not None and module.weight.numel() > 9
    )  # fmt: skip
    first = stock.decoder.get_submodule(name).weight[:, :, :1]
    checked.pipe.vae.decoder.get_submodule(name).weight = torch.nn.Parameter(first, requires_grad=False)
    assert failed(checked) == {"conv2d"}


@pytest.mark.parametrize("savings", [frozenset(Saving), frozenset({Saving.SINGLE_FRAME})])
def test_a_wrong_frame_is_found(subject, monkeypatch, savings):
    stock = single_frame._decode

    def upside_down(self, z, return_dict=True):
        return stock(self, z.flip(-2), return_dict)

    monkeypatch.setattr(single_frame, "_decode", upside_down)
    assert failed(subject(savings=savings, shared=(), fresh=True)) == {"single_frame"}


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_a_wrong_scale_of_a_lora_is_found(subject, monkeypatch, precision):
    stock = Adapters.insert_layers

    def without_alpha(self, layers, scales):
        stock(self, layers, scales)
        for layer in layers.values():
            layer.scaling.update(scales)

    monkeypatch.setattr(Adapters, "insert_layers", without_alpha)
    assert failed(subject(precision)) == {"lora"}


def test_a_scale_that_compiled_blocks_lora_lacks_is_found(subject, monkeypatch):
    stock = padded.LowRankPart
    monkeypatch.setattr(adapters, "LowRankPart", lambda down, up, scale: stock(down, up, 1.0))
    assert failed(subject()) == {"lora"}


def test_weights_that_a_stream_loses_are_found(subject, monkeypatch):
    checked, stock = subject(text_encoder="streamed"), residency.stream

    def lose(module, device):
        module.mlp.down_proj.weight.data[: len(module.mlp.down_proj.weight) // 2] = 0
        stock(module, device)

    monkeypatch.setattr(residency, "stream", lose)
    assert failed(checked) == {"streamed"}


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_a_tensor_that_did_not_arrive_whole_is_found(subject, precision):
    checked = subject(precision, swapped=True, fresh=True)
    home = max(checked.swap.homes["m"], key=lambda home: home.tensor.numel())
    here = getattr(home.owner, home.attribute).clone()
    here.view(-1)[-1] = 3
    setattr(home.owner, home.attribute, here)
    assert failed(checked) == {"swapped"}


def test_a_transformer_whose_turn_it_is_not_is_not_compared_with_its_homes(subject):
    checked = subject(swapped=True, fresh=True)
    checked.swap.active = "another"
    assert "swapped" not in {finding.name for finding in self_check.compare_all(checked)}


def test_an_optimisation_that_raises_did_not_pass_and_says_why(subject, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No valid execution plans built\nby cuDNN")

    monkeypatch.setattr(attention.JointAttention, "__call__", fail)
    findings = {finding.name: finding for finding in self_check.compare_all(subject(on=[Speedup.ROTARY]))}
    assert findings["rotary"].reason == "RuntimeError: No valid execution plans built" and not findings["rotary"].passed
    assert findings["lora"].passed


def test_a_file_that_cannot_be_read_is_a_finding_too(subject, monkeypatch):
    def fail(*_):
        raise LoadError("transformer/ cannot be read: Input/output error")

    monkeypatch.setattr(Subject, "read_first_rows", fail)
    (finding,) = [one for one in self_check.compare_all(subject(table=True)) if not one.passed]
    assert finding.name == "table" and finding.reason.endswith("transformer/ cannot be read: Input/output error")


def test_an_error_of_cuda_itself_is_raised_with_the_name_of_what_was_compared(subject, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(attention.JointAttention, "__call__", fail)
    monkeypatch.setattr(cuda, "has_spoiled", lambda error: "CUDA error" in str(error))  # as the card's next call tells
    with pytest.raises(CudaSpoiledError, match="CUDA error") as caught:
        self_check.compare_all(subject(on=[Speedup.ROTARY]))
    assert caught.value.__notes__ == ["in the self-check of rotary"]


def test_weights_that_are_not_on_this_machine_are_not_compared_with(subject, tiny, tmp_path):
    """Of a hub's checkpoint there may be a prepared form alone, which has neither modulation nor whole matrices."""
    checked = subject(Precision.FP8, table=True, shared=())
    without = dataclasses.replace(checked, checkpoint=dataclasses.replace(checked.checkpoint, folder=None))
    assert [finding.name for finding in self_check.compare_all(without)] == ["lora"]


def test_components_of_an_earlier_pipeline_are_not_compared_again(subject):
    assert [finding.name for finding in self_check.compare_all(subject(shared=("vae", "text_encoder")))] == ["lora"]


# What is kept


@pytest.fixture
def kept(subject, tmp_path, monkeypatch):
    """kept(card, **settings): the findings on one subject; `.made` counts how often they were made."""

    class Checked:
        def __init__(self):
            self.made, self.subject = 0, subject(on=[Speedup.GUIDANCE])

        def __call__(self, card="a card", **settings):
            options = {"QWEN_SELF_CHECK": SelfCheck.ON, "QWEN_COMPILED_FOLDER": tmp_path / "kept"}
            return self_check.check(self.subject, Settings(**options | settings), card)

    checked, compare_all = Checked(), self_check.compare_all

    def count(subject):
        checked.made += 1
        return compare_all(subject)

    monkeypatch.setattr(self_check, "compare_all", count)
    return checked


def test_a_later_start_takes_what_an_earlier_one_found(kept, capsys):
    first = kept()
    assert "self-check: 2 of 2 optimisations give what the plain way gives" in capsys.readouterr().out
    assert kept() == first and kept.made == 1
    assert kept(card="another") and kept.made == 2
    assert kept(QWEN_WORKER_VERSION="v2") and kept.made == 3
    with_guidance = kept.subject
    kept.subject = dataclasses.replace(with_guidance, speed=speedups.Speed())
    assert len(kept()) == 1 and kept.made == 4
    kept.subject = with_guidance
    assert kept() == first and kept.made == 4


def test_what_did_not_pass_is_kept_and_what_could_not_be_compared_is_not(kept, monkeypatch, capsys):
    stock = guidance.padded_text
    monkeypatch.setattr(guidance, "padded_text", lambda *passes: (stock(*passes)[0] * torch.nan, stock(*passes)[1]))
    for _ in range(2):
        found = {finding.name: finding for finding in kept()}
        assert math.isnan(found["guidance"].distance) and not found["guidance"].passed
    assert kept.made == 1 and "guidance gives NaN" in capsys.readouterr().out
    monkeypatch.setattr(guidance, "padded_text", lambda *passes: 1 / 0)
    for _ in range(2):
        assert any(finding.reason.startswith("ZeroDivisionError") for finding in kept(card="another"))
    assert kept.made == 3 and "guidance could not be compared: ZeroDivisionError" in capsys.readouterr().out


def test_it_is_for_cards_unless_it_is_asked_for(kept):
    assert kept(QWEN_SELF_CHECK=SelfCheck.AUTO) == [] == kept(QWEN_SELF_CHECK=SelfCheck.OFF)
    assert not kept.made and kept()
    kept.subject = dataclasses.replace(kept.subject, plan=dataclasses.replace(kept.subject.plan, device="cuda"))
    assert kept(QWEN_SELF_CHECK=SelfCheck.OFF) == []
    assert kept(QWEN_SELF_CHECK=SelfCheck.AUTO) and kept.made == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": [{"name": 1}]}', '{"a": [1]}'])
def test_a_file_that_holds_something_else_is_written_anew(kept, tmp_path, text):
    kept()
    (file,) = (tmp_path / "kept").glob("*.checked.json")
    file.write_text(text)
    assert kept() and kept.made == 2
    assert list(json.loads(file.read_text()).values())[0] and kept() and kept.made == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_disk_that_takes_nothing_is_no_failure(kept, tmp_path, monkeypatch, capsys):
    (tmp_path / "kept").write_text("a file in the folder's place")
    assert kept() and kept() and kept.made == 2
    assert "the self-check's findings are not kept: " in capsys.readouterr().out


def test_a_finding_is_json_without_nan():
    finding = Finding("compile", math.nan, 0.02, 0.12345)
    assert json.loads(json.dumps(finding.report(), allow_nan=False)) == {
        "name": "compile", "passed": False, "distance": None, "tolerance": 0.02, "seconds": 0.123,
        "words": "compile gives NaN",
    }  # fmt: skip
    assert str(Finding("table", 0.031, 0.005, 1.0)) == "table is 0.031 from the plain way, where 0.005 may be"


def test_health_tells_of_the_findings(cold_worker):
    from ..conftest import posted

    worker = cold_worker()
    posted(worker, prompt="a red circle", width=256, height=256, num_inference_steps=1)
    ((setting, loaded),) = worker.pipelines.loaded.items()
    assert loaded.report()["self_check"] == []  # a CPU has none by itself
    worker.pipelines.loaded[setting] = dataclasses.replace(loaded, findings=(Finding("table", 0.001, 0.005, 0.1),))
    (model,) = posted(worker, task="health")["output"]["models"]
    assert [(finding["name"], finding["passed"]) for finding in model["self_check"]] == [("table", True)]
