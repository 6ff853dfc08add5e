"""LoRAs on the transformer against stock diffusers, and what they leave behind: nothing."""

import dataclasses
import hashlib

import pytest
import torch
from safetensors.torch import save_file

from qwen_worker.errors import InvalidInput
from qwen_worker.loading.components import load_component
from qwen_worker.lora import file as lora_file
from qwen_worker.lora.adapters import KEPT_SETS, Adapters, linear_shapes
from qwen_worker.lora.file import LoraUse
from qwen_worker.lora.names import LOHA_PARTS, Kind
from qwen_worker.lora.products import AdaptedLinear, AddedProduct, product_of
from qwen_worker.lora.ranks import padded_rank
from qwen_worker.model import modulation
from qwen_worker.model_settings import Precision
from qwen_worker.settings import Settings
from qwen_worker.weights import modulation_rows

from ..model.test_quantization import CLASSES
from ..model.test_savings import DTYPES, EXACT, drawn, forward, pipeline, plan_for, small_transformer, stock
from ..support.lora_files import LAYERS, OTHERS, PLAIN, matrices, size_of, write

BF16, FP32 = Precision.BF16, Precision.FP32


def use(path, scale=1.0, label="loras[0]"):
    return LoraUse(lora_file.open_lora(path, hashlib.sha256(path.read_bytes()).hexdigest(), label), scale, label)


@pytest.fixture(scope="module")
def base(tiny):
    return stock(tiny / "generate", FP32).transformer


@pytest.fixture(scope="module")
def ours(tiny):
    """ours(precision, table): the worker's pipeline and its adapters, built once."""
    built = {}

    def of(precision, table):
        if (precision, table) not in built:
            pipe, rows = pipeline(lambda: Settings(), tiny / "generate", precision, EXACT, table=table)
            built[precision, table] = pipe, Adapters(pipe.transformer, rows, DTYPES[precision], "cpu", "tiny")
        return built[precision, table]

    return of


@pytest.fixture
def theirs(tiny):
    """theirs(precision, files): stock diffusers with the LoRAs in these files, by their scales."""

    def of(precision, files):
        pipe = stock(tiny / "generate", precision)
        for number, file in enumerate(files):
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"a{number}")
        pipe.set_adapters([f"a{number}" for number in range(len(files))], list(files.values()))
        return pipe

    return of


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # of diffusers' own injection
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("layers", [PLAIN, LAYERS + OTHERS], ids=["plain", "modulation too"])
def test_pictures_are_stock_s_and_afterwards_the_base_s(base, ours, theirs, tmp_path, layers, precision, table):
    one = write(tmp_path / "one.safetensors", matrices(base, layers, seed=1))
    two = write(tmp_path / "two.safetensors", matrices(base, layers[:9], seed=2, rank=7))
    pipe, adapters = ours(precision, table)
    before, modules = drawn(pipe), dict(pipe.transformer.named_modules())
    uses = [use(one, 0.7), use(two, -0.5, "loras[1]")]
    adapters.require_made_for_model(uses)
    with adapters.apply(uses):
        with_loras = drawn(pipe)
    with adapters.apply(uses[:1]):
        with_one = drawn(pipe)
    assert not torch.equal(with_loras, before) and not torch.equal(with_loras, with_one)
    assert torch.equal(with_loras, drawn(theirs(precision, {one: 0.7, two: -0.5})))
    assert torch.equal(with_one, drawn(theirs(precision, {one: 0.7})))
    after = dict(pipe.transformer.named_modules())
    assert list(after) == list(modules) and all(after[name] is module for name, module in modules.items())
    assert torch.equal(drawn(pipe), before)


def test_a_failure_while_drawing_leaves_nothing(base, ours, tmp_path):
    pipe, adapters = ours(BF16, True)
    before = drawn(pipe)
    uses = [use(write(tmp_path / "one.safetensors", matrices(base, LAYERS)))]
    with pytest.raises(RuntimeError, match="planted"), adapters.apply(uses):
        raise RuntimeError("planted")
    assert torch.equal(drawn(pipe), before)


def test_a_lora_that_cannot_be_brought_leaves_nothing(base, ours, tmp_path, monkeypatch):
    pipe, adapters = ours(BF16, True)
    before = drawn(pipe)
    uses = [use(write(tmp_path / "one.safetensors", matrices(base, LAYERS)))]

    def full(changes):
        if changes:
            raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(adapters.table, "set_changes", full)  # the last of what is done before the drawing
    with pytest.raises(torch.OutOfMemoryError), adapters.apply(uses):
        pytest.fail("was drawn")
    monkeypatch.undo()
    assert torch.equal(drawn(pipe), before)


def test_the_same_lora_twice_has_both_scales(base, ours, tmp_path):
    pipe, adapters = ours(FP32, False)
    file = write(tmp_path / "one.safetensors", matrices(base, PLAIN))
    with adapters.apply([use(file, 0.25), use(file, 0.5)]):
        twice = drawn(pipe)
    with adapters.apply([use(file, 0.75)]):
        assert torch.equal(drawn(pipe), twice)


def test_the_endpoint_s_own_is_part_of_every_picture(base, ours, tmp_path):
    pipe, _ = ours(FP32, False)
    file, other = (write(tmp_path / f"{n}.safetensors", matrices(base, PLAIN, seed=n)) for n in (1, 2))
    own = Adapters(pipe.transformer, None, torch.float32, "cpu", "tiny", [use(file, 0.5)])
    plain = Adapters(pipe.transformer, None, torch.float32, "cpu", "tiny")
    with own.apply(()):
        alone = drawn(pipe)
    with own.apply([use(other)]):
        both = drawn(pipe)
    with plain.apply([use(file, 0.5)]):
        assert torch.equal(drawn(pipe), alone)
    with plain.apply([use(file, 0.5), use(other)]):
        assert torch.equal(drawn(pipe), both)


def test_alpha_scales_as_diffusers_has_it(base, ours, theirs, tmp_path):
    """diffusers multiplies it into a matrix, which rounds: equal up to that."""
    pipe, adapters = ours(FP32, False)
    file = write(tmp_path / "one.safetensors", matrices(base, PLAIN), "lightning", alpha=1.3)
    with adapters.apply([use(file)]):
        assert (drawn(pipe) - drawn(theirs(FP32, {file: 1.0}))).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("metadata", "alpha"),
    [
        ({"transformer.r": 4, "transformer.lora_alpha": 2}, {"": 2.0}),
        ({"transformer.lora_alpha": 2, "transformer.use_rslora": True}, {"": 4.0}),
        ({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn.to_q": 8}}, {"attn.to_q": 8.0, "": 4.0}),
        ({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {PLAIN[1]: 1}}, {PLAIN[1]: 1.0, "": 4.0}),
        ({}, {"": 4.0}),
    ],
)
def test_alphas_in_the_metadata_count(base, tmp_path, metadata, alpha):
    file = write(tmp_path / "one.safetensors", matrices(base, PLAIN), metadata=metadata)
    for name, layer in use(file).file.layers.items():
        expected = next(value for end, value in alpha.items() if name.endswith(end))
        assert layer.scaling == pytest.approx(expected / 4), name


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NF4])
def test_quantized_layers_take_loras_and_stay_what_they_are(base, tiny, tmp_path, precision, table):
    """y = Q(W) x + B A x: exact in the LoRA, whatever became of W."""
    from qwen_worker.checkpoints.checkpoint import inspect

    plan = plan_for(tiny / "generate", precision, frozenset(), table=table)
    transformer = load_component(inspect(tiny / "generate"), "transformer", CLASSES["transformer"], plan)
    adapters = Adapters(transformer, None, torch.bfloat16, "cpu")
    weights = matrices(base, PLAIN)
    uses = [use(write(tmp_path / "one.safetensors", weights), 0.5)]
    adapters.require_made_for_model(uses)
    random = torch.Generator().manual_seed(0)
    for name, (down, up) in weights.items():
        layer = transformer.get_submodule(name)
        x = torch.randn(1, 7, layer.in_features, generator=random).bfloat16()
        with torch.no_grad():
            before = layer(x)
            with adapters.apply(uses):
                changed = transformer.get_submodule(name)(x)
            low_rank = torch.nn.functional.linear(torch.nn.functional.linear(x, down.bfloat16()), up.bfloat16())
            assert torch.equal(changed, before + low_rank * 0.5), name
            assert transformer.get_submodule(name) is layer and torch.equal(layer(x), before)


def test_a_lora_of_the_timestep_embedder_needs_its_modulation(base, ours, tmp_path):
    name = "time_text_embed.timestep_embedder.linear_1"
    uses = [use(write(tmp_path / "one.safetensors", matrices(base, [name])))]
    with pytest.raises(InvalidInput, match=r"loras\[0\] changes time_text_embed.*QWEN_SAVINGS without table"):
        ours(BF16, True)[1].require_made_for_model(uses)
    pipe, adapters = ours(BF16, False)
    adapters.require_made_for_model(uses)
    before = drawn(pipe)
    with adapters.apply(uses):
        assert not torch.equal(drawn(pipe), before)


def test_every_layer_is_known_with_and_without_a_table(ours):
    assert linear_shapes(ours(BF16, True)[0].transformer) == linear_shapes(ours(BF16, False)[0].transformer)


def test_the_matrices_of_lookups_are_not_put_in_the_tree(base, ours, tmp_path):
    """`Turns` and placement see the transformer's own parameters only, also for a job that failed while it was put."""
    pipe, adapters = ours(BF16, True)
    names = [name for name, _ in pipe.transformer.named_parameters()]
    uses = [use(write(tmp_path / "one.safetensors", matrices(base, LAYERS)))]
    with adapters.apply(uses):
        within = [name for name, _ in pipe.transformer.named_parameters()]
        assert any(".base_layer." in name for name in within) and not any("_mod" in name for name in within)
    assert [name for name, _ in pipe.transformer.named_parameters()] == names


def test_what_is_longest_unused_is_let_go(base, ours, tmp_path):
    pipe, _ = ours(FP32, False)
    files = [write(tmp_path / f"{n}.safetensors", matrices(base, PLAIN, seed=n)) for n in range(4)]
    uses = [use(file) for file in files]
    kept_bytes = 10 * uses[0].file.parameters
    adapters = Adapters(pipe.transformer, None, torch.float32, "cpu", always_applied=uses[:1], kept_bytes=kept_bytes)
    for one in (uses[1], uses[2], uses[1], uses[3]):
        with adapters.apply([one]):
            assert sum(weights.host_bytes for weights in adapters.weights.values()) <= kept_bytes
    kept = {uses[0].file.key, uses[3].file.key}
    assert set(adapters.weights) == kept and all(set(names) <= kept for names in adapters.layers)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_host_memory_has_no_room_for_is_drawn_and_not_kept(base, ours, tmp_path, streamed):
    pipe, _ = ours(FP32, False)
    files = [write(tmp_path / f"{n}.safetensors", matrices(base, PLAIN, seed=n)) for n in range(2)]
    bytes_of_one = 4 * use(files[0]).file.parameters
    kept, poor = (Adapters(pipe.transformer, None, torch.float32, "cpu", kept_bytes=n * bytes_of_one) for n in (9, 1))
    with kept.apply([use(file) for file in files]):
        pictures = drawn(pipe)
    for _ in range(2):
        with poor.apply([use(file) for file in files], streamed):
            assert sum(weights.host_bytes for weights in poor.weights.values()) == bytes_of_one
            assert torch.equal(drawn(pipe), pictures)
        assert list(poor.weights) == [use(files[0]).file.key] and not poor.layers
    with poor.apply([use(files[1])]):
        assert list(poor.weights) == [use(files[1]).file.key]


@pytest.mark.parametrize("table", [True, False])
def test_a_block_brings_its_streamed_matrices_itself(base, ours, tmp_path, table):
    """A CPU's copy is the tensor itself: in its place stands what would spoil the picture."""
    pipe, adapters = ours(BF16, table)
    file = write(tmp_path / "one.safetensors", matrices(base, LAYERS + OTHERS))
    with adapters.apply([use(file)]):
        pictures = drawn(pipe)
    with adapters.apply([use(file)], streamed=True):
        weights = adapters.weights[use(file).file.key]
        streamed = [*weights.of_block("transformer_blocks.0"), *weights.of_block("transformer_blocks.3")]
        assert len(streamed) == 2 * 12 * 2
        for parameter in streamed:
            parameter.data = torch.full_like(parameter, torch.nan)
        assert torch.equal(drawn(pipe), pictures)
    assert not any(block._forward_hooks for block in pipe.transformer.transformer_blocks)
    with adapters.apply([use(file)]):
        assert torch.equal(drawn(pipe), pictures)


def test_refused_jobs_leave_no_more_than_drawn_ones(base, ours, tmp_path):
    pipe, _ = ours(FP32, False)
    adapters = Adapters(pipe.transformer, None, torch.float32, "cpu", kept_bytes=1)
    spoilt = {name: (down * torch.nan, up) for name, (down, up) in matrices(base, PLAIN, seed=9).items()}
    bad = write(tmp_path / "bad.safetensors", spoilt)
    for number in range(3):
        good = write(tmp_path / f"{number}.safetensors", matrices(base, PLAIN, seed=number))
        with pytest.raises(InvalidInput, match="holds infinite numbers"), adapters.apply([use(good), use(bad)]):
            pytest.fail("was drawn")
        assert not adapters.weights


def test_the_sets_that_are_kept_are_bounded(base, ours, tmp_path):
    pipe, _ = ours(FP32, False)
    adapters = Adapters(pipe.transformer, None, torch.float32, "cpu")
    for number in range(KEPT_SETS + 2):
        file = write(tmp_path / f"{number}.safetensors", matrices(base, PLAIN, seed=number))
        with adapters.apply([use(file)]):
            pass
    assert len(adapters.layers) == KEPT_SETS and len(adapters.weights) == KEPT_SETS + 2


def test_the_room_of_loras_is_part_of_the_plan():
    from qwen_worker.memory.footprint import GB, Model, Plan

    plan = Plan(
        "cuda", BF16, (Model("m", False, {"transformer": 10**9}),), limit_bytes=round(10 * GB), lora_bytes=10**9
    )
    bare = dataclasses.replace(plan, lora_bytes=0)
    assert plan.peak_bytes(1024, 1024) - bare.peak_bytes(1024, 1024) == plan.pinned_bytes - bare.pinned_bytes == 10**9
    assert plan.with_loras(500_000_000).peak_bytes(1024, 1024) - plan.peak_bytes(1024, 1024) == 10**9


@pytest.mark.parametrize("table", [True, False])
def test_a_reference_is_modulated_as_at_zero_by_the_lora_too(tmp_path, table):
    """Edit-2511's `zero_cond_t` doubles the timesteps; the LoRA changes the rows of 0 as well."""
    theirs = small_transformer(zero_cond_t=True)
    theirs.save_pretrained(tmp_path / "transformer")
    names = ["transformer_blocks.0.img_mod.1", "transformer_blocks.1.txt_mod.1"]
    file = write(tmp_path / "lora/one.safetensors", matrices(theirs, names))
    kind = modulation.TabledTransformer if table else type(theirs)
    ours = kind.from_pretrained(tmp_path / "transformer", dtype=torch.bfloat16)
    adapters = Adapters(ours, modulation_rows.build(ours, tmp_path) if table else None, torch.bfloat16, "cpu")
    shapes, timestep = [(1, 2, 2), (1, 2, 2)], torch.tensor([712.5]).bfloat16() / 1000
    before = forward(ours, timestep, shapes)
    with adapters.apply([use(file)]):
        changed = forward(ours, timestep, shapes)
    theirs.load_lora_adapter(str(file.parent), weight_name=file.name)
    assert torch.equal(changed, forward(theirs, timestep, shapes)) and not torch.equal(changed, before)
    assert torch.equal(forward(ours, timestep, shapes), before)


def lycoris(path, base, layers, **tensors):
    """A LoKr of every other layer, factored and whole by turns, and a LoHa of the rest; and their matrices, whole."""
    random, deltas = torch.Generator().manual_seed(5), {}
    for number, layer in enumerate(layers):
        outputs, inputs = size_of(base, layer)
        if number % 2:
            parts = {
                f"hada_w{n}_{part}": shape for n in (1, 2) for part, shape in (("a", (outputs, 2)), ("b", (2, inputs)))
            }
        else:
            parts = {"lokr_w1": (4, 8), "lokr_w2_a": (outputs // 4, 3), "lokr_w2_b": (3, inputs // 8), "alpha": ()}
        made = {part: torch.randn(shape, generator=random) * 0.3 for part, shape in parts.items()}
        if number % 2:
            deltas[layer] = (made["hada_w1_a"] @ made["hada_w1_b"]) * (made["hada_w2_a"] @ made["hada_w2_b"])
        else:
            made["alpha"] = torch.tensor(6)
            deltas[layer] = torch.kron(made["lokr_w1"], made["lokr_w2_a"] @ made["lokr_w2_b"]) * 2
        tensors |= {f"lycoris_{layer.replace('.', '_')}.{part}": tensor for part, tensor in made.items()}
    save_file(tensors, path)
    return path, deltas


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("table", [True, False])
def test_lokr_and_loha_draw_as_merged_weights_and_beside_loras(base, tiny, ours, tmp_path, table, streamed):
    """On the modulation too, where a table stands for its layers."""
    path, deltas = lycoris(tmp_path / "l.safetensors", base, LAYERS + OTHERS)
    low_rank = matrices(base, PLAIN, seed=2)
    uses = [use(write(tmp_path / "one.safetensors", low_rank), 0.5), use(path, 0.1, "loras[1]")]
    pipe, adapters = ours(FP32, table)
    adapters.require_made_for_model(uses)
    before = drawn(pipe)
    with adapters.apply(uses, streamed):
        pictures = drawn(pipe)
    assert torch.equal(drawn(pipe), before)
    merged, _ = pipeline(Settings, tiny / "generate", FP32, EXACT, table=False)
    with torch.no_grad():
        for layer, delta in deltas.items():
            merged.transformer.get_submodule(layer).weight += 0.1 * delta
        for layer, (down, up) in low_rank.items():
            merged.transformer.get_submodule(layer).weight += 0.5 * up @ down
    expected = drawn(merged)
    assert (pictures - expected).abs().max() < 1e-3 < (before - expected).abs().max()


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NF4])
def test_quantized_layers_take_lokr_and_loha(base, tiny, tmp_path, precision):
    from qwen_worker.checkpoints.checkpoint import inspect

    plan = plan_for(tiny / "generate", precision, frozenset(), table=True)
    transformer = load_component(inspect(tiny / "generate"), "transformer", CLASSES["transformer"], plan)
    adapters = Adapters(transformer, None, torch.bfloat16, "cpu")
    path, deltas = lycoris(tmp_path / "l.safetensors", base, PLAIN)
    adapters.require_made_for_model([use(path)])
    random = torch.Generator().manual_seed(0)
    for name, delta in deltas.items():
        layer = transformer.get_submodule(name)
        x = torch.randn(1, 7, layer.in_features, generator=random).bfloat16()
        with torch.no_grad(), adapters.apply([use(path, 8.0)]):
            base_outputs, changed = layer(x).float(), transformer.get_submodule(name)(x).float()
        added = 8 * x.float() @ delta.T
        assert (changed - base_outputs - added).norm() < 0.01 * changed.norm() < 0.1 * added.norm(), name
        assert transformer.get_submodule(name) is layer


def test_lokr_and_loha_take_the_room_that_they_compute_in_and_no_compiled_blocks(base, tmp_path):
    path, _ = lycoris(tmp_path / "l.safetensors", base, PLAIN[:2])
    file = use(path).file
    (kr_out, kr_in), (ha_out, ha_in) = (size_of(base, layer) for layer in PLAIN[:2])
    kept = 32 + 3 * (kr_out // 4 + kr_in // 8) + 4 * (ha_out + ha_in)
    assert (file.parameters, file.scratch_parameters) == (kept, 3 * ha_out * ha_in)
    assert padded_rank([file], has_table=True) == 0


@pytest.mark.parametrize(
    "sides", [((1, 128), (128, 1)), ((128, 1), (1, 128)), ((1, 1), (128, 128)), ((64, 2), (2, 64))]
)
def test_a_lokr_of_any_factors_takes_no_more_room_than_its_layer(sides):
    """Whichever of the two is multiplied first: the other way, a row of 128 numbers would become one of 16,384."""
    w1, w2 = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in sides)
    x, largest = torch.randn(3, 128), 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.numel())
            return result

    with Largest():
        found = product_of(Kind.LOKR, {"lokr_w1": w1, "lokr_w2": w2})(x)
    assert torch.allclose(found, x @ torch.kron(w1, w2).T, atol=1e-4) and largest <= max(
        3 * 128, w1.numel(), w2.numel()
    )


def test_lokr_and_loha_of_the_endpoint_s_own_are_compiled_in_with_one_graph_for_all_blocks():
    """Compiled blocks have a bound of graphs, and blocks that are beyond it are drawn without."""
    from torch._dynamo.testing import CompileCounter

    def layer():
        adapted = AdaptedLinear(torch.nn.Linear(16, 16))
        parts = {"lokr_w1": (4, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}
        for kind, shapes in ((Kind.LOKR, parts), (Kind.LOHA, {part: (16, 16) for part in LOHA_PARTS})):
            made = {part: torch.nn.Parameter(torch.randn(shape)) for part, shape in shapes.items()}
            adapted.products[kind] = AddedProduct(kind, made, 0.5)
        return adapted.requires_grad_(False)

    counter, inputs = CompileCounter(), torch.randn(3, 16)
    compiled = torch.compile(lambda block, x: block(x), backend=counter, fullgraph=True)
    for block in (layer(), layer(), layer()):
        assert torch.allclose(compiled(block, inputs), block(inputs), atol=1e-5)
    assert counter.frame_count == 1
