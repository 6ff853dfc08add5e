"""Every speed-up against stock diffusers on the tiny checkpoint: passes of the transformer each, pictures together."""

import dataclasses
import functools
import inspect
import itertools
import json
import os
import shutil
import sys

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    QwenEmbedRope,
    apply_rotary_emb_qwen,
)
from PIL import Image, ImageChops

from qwen_worker.checkpoints import checkpoint
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.drawing import inference
from qwen_worker.drawing.preview import Previewer
from qwen_worker.drawing.prompt_cache import PromptCache
from qwen_worker.drawing.queue import DrawingJob
from qwen_worker.jobs.job import Job
from qwen_worker.jobs.parsing import parse
from qwen_worker.loading import self_check, tolerances
from qwen_worker.loading.components import load_component
from qwen_worker.loading.subject import Subject
from qwen_worker.loading.tolerances import distance
from qwen_worker.lora.adapters import Adapters
from qwen_worker.lora.ranks import padded_rank
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Gpu, Machine, read_machine
from qwen_worker.model_settings import Precision, Saving, SelfCheck, Speedup
from qwen_worker.pictures.canvas import Canvas
from qwen_worker.settings import Settings
from qwen_worker.speed import (
    attention,
    compile_store,
    compiled,
    guidance,
    speedups,
    step_cache,
)
from qwen_worker.speed.compile_ahead import CompiledLoras, usual_passes, wanted_loras
from qwen_worker.speed.speedups import compile_loras

from ..conftest import ROOT, only_proved, picture_of, place_by, posted
from ..lora.test_adapters import use
from ..memory.test_placement import GENERATE, card
from ..model.test_savings import DTYPES, pipeline, plan_for
from ..support.lora_files import matrices, write
from ..support.patience import run_to_its_end

# What a pass reads: the picture, and in an edit the picture it starts from; text of two lengths.
SHAPES = {"generate": [(1, 8, 6)], "edit": [(1, 8, 6), (1, 10, 10)]}
TEXT = "encoder_hidden_states"
TOLERANCE = {precision: tolerances.PASS[dtype] for precision, dtype in DTYPES.items()}
CASES = pytest.mark.parametrize(("task", "precision", "batch"), list(itertools.product(SHAPES, DTYPES, (1, 2))))


@functools.cache
def transformer_of(task, precision):
    """Stock's, to be left as it is."""
    folder = ROOT / "models/tiny-qwen-image" / task / "transformer"
    return QwenImageTransformer2DModel.from_pretrained(folder, dtype=DTYPES[precision])


def pass_of(transformer, task, batch, tokens=9, seed=0, timestep=0.5, **changes):
    """What the transformer makes of noise and of text of which one row ends early, if there are two."""
    generator, shapes = torch.Generator().manual_seed(seed), SHAPES[task]
    length = sum(frames * rows * columns for frames, rows, columns in shapes)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[1:, -3:] = 0
    given = {
        "hidden_states": torch.randn(batch, length, 64, generator=generator).to(transformer.dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 128, generator=generator).to(transformer.dtype),
        "encoder_hidden_states_mask": mask if batch > 1 else None,
        "timestep": torch.full((batch,), timestep).to(transformer.dtype),
        "img_shapes": [shapes] * batch,
        "attention_kwargs": {},
        "return_dict": False,
    }
    device = transformer.device
    given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    with torch.no_grad():
        return transformer(**given | changes)[0].float()


@pytest.fixture(scope="module")
def built():
    """built(task, precision, *asked): what the worker builds with these speed-ups, its pipeline and the speed-ups."""

    @functools.cache
    def build(task, precision, *asked, savings=frozenset(Saving), table=False):
        folder = ROOT / "models/tiny-qwen-image" / task
        pipe, rows = pipeline(Settings, folder, precision, savings, table=table)
        plan = plan_for(folder, precision, savings, table=table)
        speed = speedups.apply(pipe, plan, Settings(QWEN_SPEEDUPS=frozenset(asked)), read_machine(), rows)
        assert all(speed.has(one) for one in asked), speed.states
        return pipe, speed

    return build


def difference(transformer, task, precision, batch, **inputs):
    """How far from stock's pass."""
    theirs = pass_of(transformer_of(task, precision), task, batch, **inputs)
    return distance(pass_of(transformer, task, batch, **inputs), theirs)


@CASES
def test_the_real_rotary_embedding_is_bit_equal(built, task, precision, batch):
    pipe, _ = built(task, precision, Speedup.ROTARY)
    assert difference(pipe.transformer, task, precision, batch) == 0


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_the_attention_of_a_block_of_the_released_width_is_bit_equal(dtype):
    """Of 16 tokens of a picture and 8 of a text."""
    torch.manual_seed(0)
    stock = QwenDoubleStreamAttnProcessor2_0()
    layers = Attention(
        query_dim=3072, added_kv_proj_dim=3072, dim_head=128, heads=24, out_dim=3072, context_pre_only=False, bias=True,
        processor=stock, qk_norm="rms_norm", eps=1e-6,
    ).to(dtype)  # fmt: skip
    rotary = QwenEmbedRope(theta=10_000, axes_dim=[16, 56, 56], scale_rope=True)
    angles = rotary([[(1, 4, 4)]], max_txt_seq_len=8, device=torch.device("cpu"))
    given = {name: torch.randn(1, tokens, 3072).to(dtype) for name, tokens in (("hidden_states", 16), (TEXT, 8))}
    with torch.no_grad():
        theirs = stock(layers, **given, encoder_hidden_states_mask=None, image_rotary_emb=angles)
        real = tuple(map(attention.real_angles, angles))
        ours = attention.JointAttention()(layers, **given, image_rotary_emb=real)
    assert all(map(torch.equal, ours, theirs))


def test_the_real_rotary_embedding_turns_as_complex_numbers_do():
    """A CPU contracts the last few products of a row to fused multiply-adds: a unit in the last place of float32."""
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(0))
    frequencies = torch.polar(torch.ones(7, 4), torch.arange(28.0).view(7, 4))
    angles = attention.real_angles(frequencies)
    for dtype, tolerance in ((torch.float32, 5e-7), (torch.bfloat16, 0)):
        theirs = apply_rotary_emb_qwen(x.to(dtype), frequencies, use_real=False)
        assert (attention.rotate(x.to(dtype), angles) - theirs).abs().max() <= tolerance
    assert not any(one.is_complex() for one in angles)


def start(folder, *loads):
    """What a worker process says at its start with compiled blocks, load by load; torch's own graphs are gone before.

    What its temporary folder has of C++ libraries and headers stays: on a CPU they are no part of what is kept.
    """
    (folder / "tmp").mkdir(exist_ok=True)
    for graphs in ("fxgraph", "aotautograd"):
        for place in (folder / "tmp").glob(f"torchinductor_*/{graphs}"):
            shutil.rmtree(place)
    compiler = folder / "g++"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')  # kernels of these sizes: no gain
    compiler.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}
    environment |= {"CXX": str(compiler), "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "tests.support.compiled_start", str(folder / "kept"), *loads]
    ended = run_to_its_end(command, env=environment)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1]), ended.stdout


@pytest.fixture(scope="module")
def starts(tmp_path_factory, sample):
    """A first start, and a second; with --prove the second goes on with pairs of pictures in bfloat16."""
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler, which torch.compile needs on a CPU")
    folder = tmp_path_factory.mktemp("compiled")
    return start(folder, "fp32:1"), start(folder, "fp32:1", *sample((), ("bf16:2",)))


def test_compiled_blocks_agree_with_stock(starts):
    """One graph for both tasks and all sizes; a second for more than one picture."""
    ((first,), _), ((_, *in_bf16), _) = starts
    assert first["speedups"] == {"generate": "compile, rotary", "edit": "compile, rotary"}
    assert first["graphs"] == 1 and len(first["differences"]) == 4
    assert first["known"] == {"generate": True, "edit": True}
    assert max(first["differences"].values()) < TOLERANCE[Precision.FP32]
    for pairs in in_bf16:
        assert pairs["graphs"] == 2 and max(pairs["differences"].values()) < TOLERANCE[Precision.BF16]


def test_the_self_check_passes_compiled_blocks_and_compiles_no_other_graph(starts):
    (loads, _), (more, _) = starts
    passed = {"compile": True, "rotary": True, "lora": True}
    assert all(load["checks"] == {"generate": passed, "edit": passed} for load in (*loads, *more))
    assert [load["graphs"] for load in (*loads, *more)] == [1, 1, 2][: 1 + len(more)]


def test_a_second_start_compiles_nothing(starts):
    ((first,), said), ((second, *_), said_again) = starts
    assert first["compiled"] == 1 and first["found"] == 0 and first["kept"]
    assert "MB of compiled blocks are in" in said and "has blocks that an earlier start compiled" in said_again
    assert second["compiled"] == 0 and second["found"] == 1 and not second["kept"]
    assert second["differences"] == first["differences"]


@pytest.fixture
def store(tmp_path):
    """store(limit): that of a card, with what an earlier start has kept."""

    def of(limit=compile_store.MB):
        return compile_store.CompileStore(tmp_path / "kept", limit, "card")

    of().keep(b"packed")
    return of


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[:-5] + b"wrong", "damaged"),
        (lambda data: b"PK\x03\x04" + data, "no file of compiled blocks"),
        (lambda data: b"", "no file of compiled blocks"),
        (lambda data: data + bytes(2 * compile_store.MB), "larger than QWEN_COMPILED_MB"),
        (lambda data: data, "torch cannot read it"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_ignored_and_replaced(store, capsys, caplog, damage, words):
    file = store().file
    file.write_bytes(damage(file.read_bytes()))
    store().load()
    assert words in capsys.readouterr().out
    store().keep(b"anew")
    assert compile_store.read_verified(file, compile_store.MB) == b"anew"


def test_the_files_of_all_cards_stay_below_the_bound(store, capsys):
    folder = store().file.parent
    (folder / "older.compiled").write_bytes(bytes(800_000))
    (folder / "newer.compiled").write_bytes(bytes(500_000))
    os.utime(folder / "older.compiled", (1, 1))
    store().keep(bytes(400_000))
    assert {path.name for path in folder.iterdir()} == {"card.compiled", "newer.compiled"}
    store().keep(bytes(2_000_000))
    assert "2 MB are more than QWEN_COMPILED_MB" in capsys.readouterr().out
    assert compile_store.read_verified(store().file, compile_store.MB) == bytes(400_000)
    store(limit=0).load()
    store(limit=0).save()
    assert not capsys.readouterr().out


def test_a_file_that_cannot_be_written_leaves_nothing_behind(store, capsys):
    file = store().file
    file.unlink()
    file.mkdir()  # which no file can take the place of
    store().keep(b"packed")
    assert "what was compiled is not kept" in capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def steps_of(transformer, task, batch, steps=3):
    """What the pipelines' loop gets of the transformer: the passes of guidance over the same latents, step by step."""
    generator, found = torch.Generator().manual_seed(3), []
    texts = [torch.randn(batch, tokens, 128, generator=generator).to(transformer.dtype) for tokens in (12, 7)]
    masks = [None, torch.ones(batch, 7, dtype=torch.long) if batch > 1 else None]
    if batch > 1:
        masks[1][1, -2:] = 0
    length = sum(frames * rows * columns for frames, rows, columns in SHAPES[task])
    for step in range(steps):
        latents = torch.randn(batch, length, 64, generator=generator).to(transformer.dtype)
        for text, mask in zip(texts, masks, strict=True):
            found.append(
                pass_of(
                    transformer, task, batch, timestep=1 - step / 4, hidden_states=latents, guidance=None,
                    encoder_hidden_states=text, encoder_hidden_states_mask=mask,
                )
            )  # fmt: skip
    return torch.stack(found)


@CASES
def test_both_passes_of_guidance_in_one(built, task, precision, batch):
    pipe, _ = built(task, precision)
    theirs = steps_of(transformer_of(task, precision), task, batch)
    with guidance.share_passes(pipe.transformer) as sharing:
        ours = steps_of(pipe.transformer, task, batch)
    assert sharing.shared == 2  # the first step finds the second prompt
    assert distance(ours, theirs) < TOLERANCE[precision]
    assert torch.equal(steps_of(pipe.transformer, task, batch), theirs)  # nothing is left of it


def test_a_large_picture_s_passes_stay_apart(built, monkeypatch):
    monkeypatch.setattr(guidance, "FULL_PASS_TOKENS", 48)  # what a pass of these tests has
    pipe, _ = built("generate", Precision.FP32)
    with guidance.share_passes(pipe.transformer) as sharing:
        ours = steps_of(pipe.transformer, "generate", 1)
    assert sharing.shared == 0
    assert torch.equal(ours, steps_of(transformer_of("generate", Precision.FP32), "generate", 1))


def test_a_pass_that_is_not_the_expected_one_is_computed(built):
    """Without guidance from here on, or with another prompt: nothing that was computed ahead is taken for it."""
    pipe, _ = built("generate", Precision.FP32)
    with guidance.share_passes(pipe.transformer) as sharing:
        steps_of(pipe.transformer, "generate", 1, steps=2)
        assert sharing.shared == 1
        sharing.answer = torch.zeros(1), torch.zeros(1), torch.full((1, 48, 64), torch.nan)
        ours = [pass_of(pipe.transformer, "generate", 1, seed=seed, guidance=None) for seed in (5, 6)]
    theirs = [pass_of(transformer_of("generate", Precision.FP32), "generate", 1, seed=seed) for seed in (5, 6)]
    assert all(map(torch.equal, ours, theirs))


def test_cudnn_s_attention_is_asked_first_and_the_others_stay(built):
    before = torch._C._get_sdp_priority_order()
    theirs = pass_of(transformer_of("generate", Precision.BF16), "generate", 2)
    pipe, _ = built("generate", Precision.BF16)
    with attention.prefer_cudnn():
        assert torch._C._get_sdp_priority_order()[:4] == [3, 1, 2, 0]  # cuDNN, Flash, memory-efficient, plain
        assert torch.equal(pass_of(pipe.transformer, "generate", 2), theirs)
    assert torch._C._get_sdp_priority_order() == before


def on_card(capability, *asked, cudnn_first=False, **changes):
    """States of the speed-ups that are asked for, all by name if none is, on a card."""
    gpu = Gpu("a card", capability, 80_000_000_000, 80_000_000_000)
    found = placement.plan(
        [as_model(checkpoint.released("Qwen/Qwen-Image"), [])], Machine(gpu, 200 * 10**9, 200 * 10**9)
    )
    plan = dataclasses.replace(found, **changes)
    return speedups.decide(plan, frozenset(asked) if asked else None, capability, cudnn_first)


def test_a_card_has_by_itself_what_pays_and_a_cpu_nothing(settings, tiny):
    states = on_card((9, 0))
    auto = {one for one, state in states.items() if state == "on"}
    assert auto == set(Speedup)
    assert "quantized" in on_card((9, 0), precision=Precision.FP8)[Speedup.GELU]
    for capability in ((8, 9), (10, 3), (12, 0)):
        assert "torch's own order" in on_card(capability)[Speedup.ATTENTION]
    assert "by itself" in on_card((10, 0), cudnn_first=True)[Speedup.ATTENTION]
    assert on_card((9, 0), Speedup.ROTARY)[Speedup.GUIDANCE] == "not in QWEN_SPEEDUPS"
    on_cpu = speedups.decide(plan_for(tiny / "generate", Precision.FP32, frozenset(Saving)), None, None)
    assert len(on_cpu) == len(Speedup) and all("bit-equal" in state for state in on_cpu.values())


def test_jobs_say_so_and_draw_with_all_that_a_cpu_can_have(cold_worker, capsys):
    """Without compiling, which has its own tests: a picture of each task, and the stock one's within a rounding."""
    names = "rotary,guidance"
    worker, plain = cold_worker(QWEN_SPEEDUPS=names, QWEN_PRECISION="fp32"), cold_worker(QWEN_PRECISION="fp32")
    job = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 4, "seed": 3}
    ours, theirs = (picture_of(posted(one, **job)["output"]["image"]) for one in (worker, plain))
    furthest = max(high for _, high in ImageChops.difference(ours, theirs).getextrema())
    assert furthest <= 1  # of 255
    assert "speed-ups: rotary, guidance" in capsys.readouterr().out
    (model,) = posted(worker, task="health")["output"]["models"]
    assert model["speedups"]["guidance"] == "on" and model["speedups"]["compile"] == "not in QWEN_SPEEDUPS"


def test_guidance_s_passes_stay_two_where_a_picture_is_decoded_in_tiles(cold_worker, monkeypatch):
    """The room for both is what a picture is decoded in whole. So it is in the retry after a lack of memory."""
    worker = cold_worker(QWEN_SPEEDUPS="guidance")
    posted(worker, prompt="a red circle", width=256, height=256, num_inference_steps=1)
    loaded, drawn = worker.pipelines.loaded[worker.settings.QWEN_IMAGE_MODEL], []

    def draw_pictures(pipe, *arguments):
        drawn.append("forward" in vars(pipe.transformer))
        if drawn == [True]:
            raise torch.OutOfMemoryError
        return [Image.new("RGB", (64, 64))], 1

    def in_one(plan=loaded.plan, size=512, task="generate", **fields):
        fields = {"task": task, "prompt": "a red circle", "width": size, "height": size} | fields
        sources = [Image.new("RGB", (64, 64))] * (task == "edit")
        planned = dataclasses.replace(loaded, plan=plan)
        entry = DrawingJob(Job("one", parse(fields, "one")), Canvas(sources, None, (size, size)))
        inference.draw(planned, entry, PromptCache(1), Previewer())
        return [drawn.pop(0) for _ in list(drawn)]

    monkeypatch.setattr(inference, "draw_pictures", draw_pictures)
    assert in_one() == [True, False]  # the second without memory for the first
    drawn.append(True)
    assert in_one()[1:] == [True]
    plan = placement.plan([GENERATE], card(80))
    tight = dataclasses.replace(plan, limit_bytes=plan.peak_bytes(512, 512))
    assert in_one(tight, 768) == [False]
    assert in_one(preset="balanced") == [False]
    assert in_one(task="edit", image_url="https://example.com/a.png") == [False]


def test_blocks_that_do_not_compile_take_the_room_of_blocks_that_are_not_compiled(cold_worker):
    """The plan was made for compiled ones. A CPU's pipeline has none."""
    worker = cold_worker()
    job = {"prompt": "a red circle", "width": 1024, "height": 1024, "num_inference_steps": 1}
    posted(worker, **job | {"width": 256, "height": 256})
    quantized = dataclasses.replace(worker.pipelines.place("generate"), device="cuda", precision=Precision.FP8)
    assert quantized.compiled
    place_by(worker, dataclasses.replace(quantized, limit_bytes=quantized.peak_bytes(1024, 1024, tiled=True)))
    assert posted(worker, **job)["error"].startswith("out_of_memory: 1024x1024 needs ")


def test_an_error_within_leaves_the_transformer_and_its_blocks_as_they_were(tiny, traced):
    transformer = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")
    blocks, counts, _ = traced(transformer)
    with pytest.raises(KeyError), guidance.share_passes(transformer), blocks.pause():
        raise KeyError
    assert "forward" not in vars(transformer)
    pass_of(transformer, "generate", 1)
    assert counts["calls"] == len(transformer.transformer_blocks)


def test_a_second_pass_with_other_latents_is_computed_as_it_comes(tiny):
    transformer = transformer_of("generate", Precision.FP32)
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 48, 64, generator=generator) for _ in range(3)]
    texts = [torch.randn(1, tokens, 128, generator=generator) for tokens in (9, 5)]

    def passes():
        calls = [(latents[0], texts[0]), (latents[0], texts[1]), (latents[1], texts[0]), (latents[2], texts[1])]
        common = {"guidance": None, "encoder_hidden_states_mask": None}
        return [
            pass_of(transformer, "generate", 1, hidden_states=one, encoder_hidden_states=text, **common)
            for one, text in calls
        ]

    theirs = passes()
    with guidance.share_passes(transformer):
        ours = passes()
    assert all(distance(one, other) < TOLERANCE[Precision.FP32] for one, other in zip(ours, theirs, strict=True))


@pytest.fixture
def traced(monkeypatch):
    """traced(transformer): its blocks compiled by torch's tracer alone, of which the kernels are its own; `.calls`."""
    import torch._dynamo

    from qwen_worker.speed import compiled

    torch._dynamo.reset()
    counts = {"graphs": 0, "calls": 0}

    def backend(graph, inputs):
        counts["graphs"] += 1

        def call(*arguments):
            counts["calls"] += 1
            return graph(*arguments)

        return call

    def of(transformer, backend=backend, limit=compiled.MAX_GRAPHS):
        def compile_block(kind):
            options = compiled.keep_graphs(limit)
            return torch.compile(kind.forward, fullgraph=True, dynamic=True, backend=backend, **options)

        monkeypatch.setattr(compiled, "compiled_forward", compile_block)
        told = []
        return compiled.CompiledBlocks(transformer, told.append), counts, told

    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):  # is as it was again
        yield of
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8, Precision.NF4])
def test_quantized_blocks_are_one_graph(tiny, traced, precision):
    plan = plan_for(tiny / "generate", precision, frozenset(Saving))
    found = checkpoint.inspect(tiny / "generate")
    transformer = load_component(found, "transformer", ["diffusers", "QwenImageTransformer2DModel"], plan)
    theirs = [pass_of(transformer, "generate", 1, tokens=tokens) for tokens in (9, 14)]
    blocks, counts, told = traced(transformer)
    assert all(map(torch.equal, theirs, (pass_of(transformer, "generate", 1, tokens=tokens) for tokens in (9, 14))))
    assert counts == {"graphs": 1, "calls": 2 * len(transformer.transformer_blocks)} and not told


def test_int8_has_its_own_product_also_where_nothing_is_compiled(tiny, monkeypatch):
    from torchao.kernel import intmm

    stock = inspect.unwrap(intmm.safe_int_mm)  # an earlier INT8 pipeline of this process may have put ours in its place
    monkeypatch.setattr(intmm, "safe_int_mm", stock)
    pipe, _ = pipeline(Settings, tiny / "generate", Precision.BF16, frozenset())
    for precision, own in ((Precision.BF16, False), (Precision.INT8, True)):
        plan = plan_for(tiny / "generate", precision, frozenset())
        speedups.apply(pipe, plan, Settings(QWEN_SPEEDUPS=frozenset()), read_machine(), None)
        assert (intmm.safe_int_mm is not stock) is own


def test_graphs_are_kept_by_attention_s_order_and_int8_is_ready_for_short_texts(tiny, tmp_path, monkeypatch):
    seen = []

    def warm(self, table, references, passes, compare):
        seen.append((torch.compiler.config.cache_key_tag, list(passes)))

    monkeypatch.setattr(compiled.CompiledBlocks, "warm", warm)
    monkeypatch.setattr(torch.compiler.config, "cache_key_tag", "")  # as it was again at the end
    settings = Settings(QWEN_COMPILED_FOLDER=tmp_path, QWEN_COMPILED_MB=0)
    pipes = {task: pipeline(Settings, tiny / task, Precision.BF16, frozenset())[0] for task in ("generate", "edit")}
    for task, precision, *on in (
        ("generate", Precision.BF16, Speedup.ATTENTION, Speedup.GUIDANCE),
        ("generate", Precision.INT8),
        ("edit", Precision.INT8, Speedup.GUIDANCE),
    ):
        speed = speedups.Speed(dict.fromkeys(on, speedups.ON), transformer=pipes[task].transformer)
        speedups.compile_blocks(speed, pipes[task], settings, None, precision, None, task)
    assert seen == [("cudnn first", [(1, 50), (2, 50)]), ("", [(1, 50), (1, 6)]), ("", [(1, 50)])]


def test_what_does_not_compile_is_drawn_as_before(tiny, traced):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    transformer = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")
    _, _, told = traced(transformer, broken)
    for _ in range(2):
        theirs = pass_of(transformer_of("generate", Precision.FP32), "generate", 1)
        assert torch.equal(pass_of(transformer, "generate", 1), theirs)
    assert len(told) == 1 and "no such instruction" in told[0]


def test_torch_without_the_option_keeps_as_many_graphs_by_its_setting(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, *, fullgraph=False, dynamic=None, backend=None: None)
    with torch._dynamo.config.patch(recompile_limit=8):
        assert compiled.keep_graphs(16) == {} and torch._dynamo.config.recompile_limit == 16


def test_prompts_of_one_length_share_the_graph_of_those_that_differ(tiny, traced):
    """The pipelines drop a mask that masks nothing; a card would compile for a minute within that job."""
    transformer = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")
    _, counts, told = traced(transformer)
    for mask in (torch.ones(2, 9), None):
        inputs = {"encoder_hidden_states_mask": mask}
        theirs = pass_of(transformer_of("generate", Precision.FP32), "generate", 2, **inputs)
        assert distance(pass_of(transformer, "generate", 2, **inputs), theirs) < TOLERANCE[Precision.FP32]
    assert counts["graphs"] == 1 and not told


@pytest.mark.parametrize(("threads", "asked", "found"), [(32, None, 4), (2, None, 2), (32, "32", 32)])
def test_kernels_are_compiled_in_few_processes_unless_the_environment_says_in_how_many(
    monkeypatch, threads, asked, found
):
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", asked)
    with torch._inductor.config.patch(compile_threads=threads):
        compiled.compiled_forward.__wrapped__(QwenImageTransformer2DModel)
        assert torch._inductor.config.compile_threads == found


def test_more_graphs_than_are_kept_are_drawn_as_before(tiny, traced):
    transformer = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")
    _, counts, told = traced(transformer, limit=1)
    for batch in (1, 2, 1):
        theirs = pass_of(transformer_of("generate", Precision.FP32), "generate", batch)
        assert torch.equal(pass_of(transformer, "generate", batch), theirs)
    assert counts["graphs"] == 1 and len(told) == 1


def test_a_job_s_own_lora_is_drawn_uncompiled_and_the_endpoint_s_compiled(tiny, traced, tmp_path):
    transformer = QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer")
    names = [f"transformer_blocks.{number}.attn.to_k" for number in range(len(transformer.transformer_blocks))]
    write(tmp_path / "lora.safetensors", matrices(transformer, names))
    adapters = Adapters(transformer, None, torch.float32, "cpu", "tiny")
    blocks, counts, _ = traced(transformer)
    speed, calls = speedups.Speed({}, transformer=transformer, blocks=blocks), []
    drawn_by = {}
    for own in (False, True, False):
        lora = dataclasses.replace(use(tmp_path / "lora.safetensors"), from_settings=own)
        with adapters.apply([lora]), speed.drawing(compiled=own):
            drawn_by[own] = pass_of(transformer, "generate", 1)
        calls.append(counts["calls"])
    assert calls == [0, len(names), len(names)] and counts["graphs"] == 1
    assert torch.equal(drawn_by[True], drawn_by[False])
    with speed.drawing():
        plain = pass_of(transformer, "generate", 1)
    assert counts == {"graphs": 2, "calls": 2 * len(names)}
    assert torch.equal(plain, pass_of(transformer_of("generate", Precision.FP32), "generate", 1))


@pytest.fixture
def lora(tmp_path):
    """lora(transformer, layers, rank): one in a file, of these layers of every block."""

    def of(transformer, layers, rank, strength=3):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        names = [f"transformer_blocks.{n}.{one}" for n in range(len(transformer.transformer_blocks)) for one in layers]
        stock = transformer_of("generate", Precision.FP32)
        return use(write(path, matrices(stock, names, seed=rank, rank=rank, strength=strength)))

    return of


def quantized_transformer(precision):
    folder = ROOT / "models/tiny-qwen-image/generate"
    plan = plan_for(folder, precision, frozenset(Saving))
    return load_component(checkpoint.inspect(folder), "transformer", ["diffusers", "QwenImageTransformer2DModel"], plan)


ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]


@pytest.mark.parametrize("precision", [Precision.FP32, pytest.param(Precision.FP8, marks=only_proved), Precision.INT8])
def test_loras_of_jobs_share_a_graph_whatever_their_rank(traced, lora, tiny, precision):
    """And whatever layers they change, however many a job has, and at whatever scale; without them none is compiled."""
    transformer = quantized_transformer(precision)
    adapters = Adapters(transformer, None, transformer.dtype, "cpu", "tiny")
    small, other = lora(transformer, ATTENTION, 4), lora(transformer, ["img_mlp.net.0.proj", "attn.to_q"], 7)
    large, whole = lora(transformer, ATTENTION, 130), lora(transformer, ATTENTION, 32)  # which needs no padding
    jobs = [[small], [dataclasses.replace(other, scale=-0.7)], [small, other], [large], [large, small], [whole]]
    ranks = [padded_rank([one.file for one in job], has_table=True) for job in jobs]
    assert ranks == [16, 16, 16, 144, 144, 32]
    plain = pass_of(transformer, "generate", 1)
    theirs = []
    for job in jobs:
        with adapters.apply(job):
            theirs.append(pass_of(transformer, "generate", 1))
    assert min(distance(one, plain) for one in theirs) > 5 * TOLERANCE[Precision.BF16]
    blocks, counts, told = traced(transformer)
    speed = speedups.Speed({}, transformer=transformer, blocks=blocks)
    blocks.warm(None, 0, [(1, compiled.WARM_TEXT)])
    with adapters.example():
        blocks.warm(None, 0, [(1, compiled.WARM_TEXT)])
    assert counts["graphs"] == 2
    assert torch.equal(pass_of(transformer, "generate", 1), plain)
    for job, rank, their in zip(jobs, ranks, theirs, strict=True):
        for streamed in (False, True):
            with adapters.apply(job, streamed, rank), speed.drawing(lora_rank=rank):
                ours = pass_of(transformer, "generate", 1)
            assert distance(ours, their) < tolerances.pass_tolerance(
                plan_for(tiny / "generate", precision, frozenset())
            )
    assert torch.equal(pass_of(transformer, "generate", 1), plain) and not told and not speed.failures
    assert counts == {"graphs": 2, "calls": 16 * len(transformer.transformer_blocks)}


def test_where_loras_do_not_compile_what_has_none_is_drawn_compiled_still(traced, lora, capsys):
    transformer = quantized_transformer(Precision.FP32)
    adapters = Adapters(transformer, None, transformer.dtype, "cpu", "tiny")
    small, plain = lora(transformer, ATTENTION, 4), pass_of(transformer, "generate", 1)
    with adapters.apply([small]):
        theirs = pass_of(transformer, "generate", 1)
    calls = []

    def first_alone(graph, inputs):
        if calls:
            raise RuntimeError("too many registers")
        return lambda *arguments: calls.append(1) or graph(*arguments)

    blocks, _, told = traced(transformer, first_alone)
    speed = speedups.Speed({Speedup.COMPILE: "on"}, transformer=transformer, blocks=blocks)
    pass_of(transformer, "generate", 1)
    assert len(calls) == len(transformer.transformer_blocks)
    with adapters.apply([small], rank=16), speed.drawing(lora_rank=16):
        assert distance(pass_of(transformer, "generate", 1), theirs) < TOLERANCE[Precision.FP32]
    assert "too many registers" in speed.failures[speedups.COMPILED_LORAS] and speed.has(Speedup.COMPILE)
    assert "LoRAs are drawn without compiled blocks" in capsys.readouterr().out and not told
    with speed.drawing():
        assert torch.equal(pass_of(transformer, "generate", 1), plain)
    assert len(calls) == 2 * len(transformer.transformer_blocks)


@pytest.mark.parametrize("fault", [lambda result: result * 1.5, lambda result: result * float("nan"), None])
def test_a_wrong_graph_of_loras_is_found_as_it_is_compiled(traced, tiny, fault, capsys):
    pipe, _ = pipeline(Settings, tiny / "generate", Precision.FP32, frozenset(), table=False)
    transformer, plan = pipe.transformer, plan_for(tiny / "generate", Precision.INT8, frozenset())
    adapters = Adapters(transformer, None, transformer.dtype, "cpu", "tiny")
    plain, graphs = pass_of(transformer, "generate", 1), []

    def wrong_with_loras(graph, inputs):
        graphs.append(graph)
        change = fault if len(graphs) > 1 and fault else lambda result: result
        return lambda *arguments: tuple(change(result) for result in graph(*arguments))

    blocks, _, told = traced(transformer, wrong_with_loras)
    speed = speedups.Speed({Speedup.COMPILE: "on"}, transformer=transformer, blocks=blocks)
    assert torch.equal(pass_of(transformer, "generate", 1), plain) and len(graphs) == 1
    settings = Settings(QWEN_SELF_CHECK=SelfCheck.ON)
    compare = self_check.block_comparison(
        speedups.COMPILED_LORAS, Subject("m", checkpoint.inspect(tiny / "generate"), plan, pipe, None, speed), settings
    )
    bf16 = dataclasses.replace(plan, precision=Precision.BF16)  # without code of its own for short texts
    found = compile_loras(speed, CompiledLoras.JOBS, pipe, bf16, settings, None, adapters.example(), compare)
    assert found.loras is CompiledLoras.JOBS and len(graphs) == 2 and not told and speed.has(Speedup.COMPILE)
    assert (speedups.COMPILED_LORAS in speed.failures) == bool(fault)
    assert ("LoRAs are drawn without compiled blocks" in capsys.readouterr().out) == bool(fault)
    with speed.drawing():
        assert torch.equal(pass_of(transformer, "generate", 1), plain)
    assert not any("lora" in name or "base_layer" in name for name, _ in transformer.named_modules())


def test_what_fails_as_it_is_compiled_for_loras_leaves_the_rest(traced, tiny, capsys):
    """Not while compiling, but when the code runs: torch raises an error of any kind then."""
    pipe, _ = pipeline(Settings, tiny / "generate", Precision.FP32, frozenset(), table=False)
    adapters = Adapters(pipe.transformer, None, torch.float32, "cpu", "tiny")
    graphs = []

    def failing(*_):
        raise AssertionError("expected stride 16")

    def fails_with_loras(graph, inputs):
        graphs.append(graph)
        return graph if len(graphs) == 1 else failing

    blocks, _, told = traced(pipe.transformer, fails_with_loras)
    speed = speedups.Speed({Speedup.COMPILE: "on"}, transformer=pipe.transformer, blocks=blocks)
    plain = pass_of(pipe.transformer, "generate", 1)
    plan = plan_for(tiny / "generate", Precision.FP32, frozenset())
    compile_loras(speed, CompiledLoras.PRESET, pipe, plan, Settings(), None, adapters.example(), None)
    assert "expected stride 16" in speed.failures[speedups.COMPILED_LORAS] and not told
    assert torch.equal(pass_of(pipe.transformer, "generate", 1), plain) and not blocks.is_off


@pytest.mark.parametrize(
    ("settings", "precision", "has_preset_lora", "expected"),
    [
        ({}, Precision.FP8, False, CompiledLoras.JOBS),
        ({"QWEN_LORA_MB": 0}, Precision.INT8, False, CompiledLoras.NONE),
        ({"QWEN_LORA_MB": 0}, Precision.INT8, True, CompiledLoras.PRESET),
        ({}, Precision.BF16, False, CompiledLoras.NONE),
        ({}, Precision.NF4, True, CompiledLoras.PRESET),
    ],
)
def test_blocks_are_compiled_for_the_loras_that_come_and_pay(settings, precision, has_preset_lora, expected):
    assert wanted_loras(Settings(**settings), precision, has_preset_lora) is expected


@pytest.mark.parametrize(
    ("references", "batch", "shares", "precision", "expected"),
    [
        (0, 1, True, Precision.BF16, [(1, 50), (2, 50)]),
        (0, 1, False, Precision.BF16, [(1, 50)]),
        (0, 2, False, Precision.INT8, [(1, 50), (2, 50), (1, 6)]),
        (1, 2, True, Precision.INT8, [(1, 50)]),
    ],
)
def test_the_passes_of_usual_jobs(references, batch, shares, precision, expected):
    assert usual_passes(Settings(QWEN_BATCH=batch), precision, references, shares) == expected


def test_step_caches_skip_compiled_blocks_and_take_no_shared_passes(tiny, traced):
    """Their histories are one for each of guidance's passes; what they compute, they compute compiled."""
    pipe, _ = pipeline(Settings, tiny / "generate", Precision.FP32, frozenset(Saving))
    call = {"prompt": "a red circle", "negative_prompt": " ", "true_cfg_scale": 4.0, "width": 256, "height": 256}
    call |= {"num_inference_steps": 10, "output_type": "latent"}

    def drawn_cached():
        with step_cache.predict_steps(pipe.transformer, step_cache.CachedSteps(10)):
            return pipe(**call, generator=torch.Generator().manual_seed(1)).images

    theirs = drawn_cached()
    blocks, counts, told = traced(pipe.transformer)
    speed = speedups.Speed({Speedup.GUIDANCE: "on"}, transformer=pipe.transformer, blocks=blocks)
    with speed.drawing(separate_passes=True):
        assert "forward" not in vars(pipe.transformer)
        ours = drawn_cached()
    assert (ours - theirs).abs().max() < 1e-4 and not told
    assert 0 < counts["calls"] < 20 * len(pipe.transformer.transformer_blocks)
    with speed.drawing():
        assert "forward" in vars(pipe.transformer)
