"""The exact savings against stock diffusers on the tiny checkpoint: the same pictures from fewer parameters."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline, QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from qwen_worker.checkpoints.checkpoint import inspect
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.loading import components
from qwen_worker.loading.builder import Builder
from qwen_worker.loading.tolerances import PASS, PICTURE, distance
from qwen_worker.memory import placement
from qwen_worker.memory.machine import read_machine
from qwen_worker.model import modulation
from qwen_worker.model import vae as single_frame
from qwen_worker.model.transformer import WaitFreeTransformer
from qwen_worker.model.vision import mark_picture_tokens
from qwen_worker.model_settings import LOAD_THREADS, Precision, Saving
from qwen_worker.weights import modulation_rows

EXACT = frozenset(Saving) - {Saving.CONV2D}
DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


def plan_for(folder, precision, savings, **changes):
    found = placement.plan([as_model(inspect(folder), [])], read_machine(), precision, savings=savings)
    return dataclasses.replace(found, **changes)


def pipeline(settings, folder, precision, savings, **changes):
    """What the worker builds of the folder under such a plan."""
    found = inspect(folder)
    pipe, table = Builder(LOAD_THREADS).build("tiny", found, plan_for(folder, precision, savings, **changes), {})
    return pipe, table


def stock(folder, precision, kind=QwenImagePipeline):
    pipe = kind.from_pretrained(folder, dtype=DTYPES[precision])
    pipe.set_progress_bar_config(disable=True)
    mark_picture_tokens(pipe.text_encoder)  # diffusers drops what the processor says of a picture's tokens
    return pipe


def drawn(pipe, batch=1, **inputs):
    return pipe(
        prompt="a red circle on the left, on a blue background",
        negative_prompt=" ",
        true_cfg_scale=4.0,
        width=128,
        height=128,
        num_inference_steps=2,
        num_images_per_prompt=batch,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
        **inputs,
    ).images.float()


@pytest.mark.parametrize("precision", DTYPES)
def test_all_exact_savings_together_draw_what_stock_draws(settings, tiny, precision):
    folder = tiny / "generate"
    ours, table = pipeline(settings, folder, precision, EXACT, table=True)
    theirs = stock(folder, precision)
    assert isinstance(ours.transformer, modulation.TabledTransformer) == (precision is Precision.BF16)
    assert table is not None and type(ours.text_encoder.lm_head).__name__ == "Identity"
    assert torch.equal(drawn(ours), drawn(theirs))
    # a batch of two: stock's matrix product over both rows rounds otherwise than one row at a time
    assert (drawn(ours, 2) - drawn(theirs, 2)).abs().max() <= {"fp32": 2e-5, "bf16": 0.02}[precision.value]


@pytest.mark.parametrize("precision", DTYPES)
def test_an_edit_with_all_exact_savings_is_stock_s(settings, tiny, scene, precision, monkeypatch):
    # The pipeline looks at the picture in a megapixel, for which bfloat16 takes minutes on many processors.
    as_released = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(
        pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: as_released(area // 16, ratio)
    )
    folder = tiny / "edit"
    ours, _ = pipeline(settings, folder, precision, EXACT, table=True)
    theirs = stock(folder, precision, QwenImageEditPipeline)
    assert torch.equal(drawn(ours, image=scene), drawn(theirs, image=scene))


def test_the_parameters_fall_by_what_the_plan_says(settings, tiny):
    for name in ("generate", "edit"):
        folder = tiny / name
        parts = inspect(folder).parts
        ours, _ = pipeline(settings, folder, Precision.BF16, frozenset(Saving), table=True)
        theirs = stock(folder, Precision.BF16, QwenImageEditPipeline if name == "edit" else QwenImagePipeline)

        def count(pipe):
            models = (pipe.transformer, pipe.text_encoder, pipe.vae)
            return sum(parameter.numel() for model in models for parameter in model.parameters())

        gone = ["modulation", "lm_head", "temporal"] + ["vision"] * (name == "generate")
        assert all(parts[part] > 0 for part in gone)
        assert count(theirs) - count(ours) == sum(parts[part] for part in gone)
        plan = plan_for(folder, Precision.BF16, frozenset(Saving), table=True)
        assert plan.weight_bytes == 2 * count(ours)


def test_two_dimensional_convolutions_agree_to_a_millionth(tiny):
    stock_vae = AutoencoderKLQwenImage.from_pretrained(tiny / "generate/vae")
    flat = AutoencoderKLQwenImage.from_pretrained(tiny / "generate/vae")
    single_frame.skip_feature_cache(flat)
    single_frame.use_2d_convolutions(flat)
    pixels = torch.rand(1, 3, 1, 256, 192, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = stock_vae.encode(pixels).latent_dist.mean
        for tiled in (False, True):
            if tiled:
                for vae in (stock_vae, flat):
                    vae.enable_tiling(128, 128, 96, 96)
            encoded = [vae.encode(pixels).latent_dist.mean for vae in (flat, stock_vae)]
            decoded = [vae.decode(latents).sample for vae in (flat, stock_vae)]
            assert max(distance(*encoded), distance(*decoded)) <= PICTURE[torch.float32]
    with pytest.raises(ValueError, match="1 frame, not 4"):
        flat.encode(torch.zeros(1, 3, 5, 128, 128))


def test_without_the_cache_videos_still_go_the_stock_way(tiny):
    vae, stock_vae = (AutoencoderKLQwenImage.from_pretrained(tiny / "generate/vae") for _ in range(2))
    single_frame.skip_feature_cache(vae)
    video = torch.zeros(1, 3, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(vae.encode(video).latent_dist.mean, stock_vae.encode(video).latent_dist.mean)


def small_transformer(**changes):
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
        in_channels=16, out_channels=4, **changes,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return transformer.bfloat16()


ALL_SEEN = torch.ones(1, 5)


def forward(transformer, timestep, shapes, tokens=8, mask=ALL_SEEN):
    generator = torch.Generator().manual_seed(1)
    batch = len(timestep)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(batch, tokens, 16, generator=generator).bfloat16(),
            encoder_hidden_states=torch.randn(batch, 5, 24, generator=generator).bfloat16(),
            encoder_hidden_states_mask=None if mask is None else mask.expand(batch, -1),
            timestep=timestep.bfloat16(),
            img_shapes=[shapes] * batch,
            return_dict=False,
        )[0]


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_the_table_serves_bfloat16_timesteps_and_2511_s_zero(tmp_path, zero_cond_t):
    """Edit-2511 modulates its references as at t = 0."""
    theirs = small_transformer(zero_cond_t=zero_cond_t)
    theirs.save_pretrained(tmp_path / "transformer")
    ours = modulation.TabledTransformer.from_pretrained(tmp_path / "transformer", dtype=torch.bfloat16)
    modulation_rows.build(ours, tmp_path)
    for t in (1000.0, 712.5, 20.0):
        timestep = torch.tensor([t]).bfloat16() / 1000
        shapes = [(1, 2, 2), (1, 2, 2)]
        assert torch.equal(forward(ours, timestep, shapes), forward(theirs, timestep, shapes))


@pytest.mark.parametrize("shapes", [[(1, 2, 4)], [(1, 2, 2), (1, 2, 2)], [(1, 2, 1), (1, 2, 2), (1, 1, 2)]])
@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_a_pass_without_waits_is_stock_s(tmp_path, shapes, zero_cond_t):
    """With one row and with two, each with a mask and without; of a picture, and of one with its input pictures."""
    theirs = small_transformer(zero_cond_t=zero_cond_t)
    theirs.save_pretrained(tmp_path / "transformer")
    ours = WaitFreeTransformer.from_pretrained(tmp_path / "transformer", dtype=torch.bfloat16)
    for rows in (1, 2):
        timestep = torch.full((rows,), 0.5)
        ended_early = torch.ones(rows, 5)
        ended_early[-1:, -2:] = 0
        for mask in (None, ended_early):
            given = timestep, shapes, 8, mask
            assert torch.equal(forward(ours, *given), forward(theirs, *given))


def test_a_lora_on_the_modulation_rebuilds_the_table(tmp_path):
    theirs = small_transformer()
    theirs.save_pretrained(tmp_path / "transformer")
    ours = modulation.TabledTransformer.from_pretrained(tmp_path / "transformer", dtype=torch.bfloat16)
    plain = modulation_rows.build(ours, tmp_path).source.rows
    name = "transformer_blocks.1.img_mod.1.weight"
    change = torch.randn(192, 2).mul(0.3) @ torch.randn(2, 32)
    with torch.no_grad():
        theirs.get_parameter(name).add_(change.bfloat16())
    ours = modulation.TabledTransformer.from_pretrained(tmp_path / "transformer", dtype=torch.bfloat16)
    table = modulation_rows.build(ours, tmp_path, {name: change})
    assert not torch.equal(table.source.rows[:, 1, 0], plain[:, 1, 0])
    assert torch.equal(table.source.rows[:, 0], plain[:, 0])
    timestep = torch.tensor([0.5])
    assert torch.equal(forward(ours, timestep, [(1, 2, 4)]), forward(theirs, timestep, [(1, 2, 4)]))


def test_there_are_1248_timesteps_and_zero():
    values = modulation.bfloat16_timesteps()
    assert len(values) == 1249 and values[0] == 0 and values[-1] == 1
    asked = (torch.linspace(1, 1000, 100_000).bfloat16() / 1000).unique()
    assert torch.isin(asked, values).all()


def test_a_schedule_s_rows_go_to_the_device_from_where_they_are_kept():
    """Gathered before, hundreds of megabytes would be copied twice, and wait: what is gathered is not pinned."""
    rows = torch.rand(1249, 2, 2, 6 * 32).bfloat16()
    source = modulation.StoredRows(rows)
    assert all(row.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr() for row in source([0.5, 0.0]))
    table = modulation.ModulationTable(small_transformer(), source)
    table.prepare(torch.tensor([1.0, 0.5]).bfloat16())
    wanted = [int((modulation.bfloat16_timesteps() == value).nonzero()) for value in (0.0, 0.5, 1.0)]
    assert table.schedule.values == [0.0, 0.5, 1.0] and torch.equal(table.schedule.rows[:-1], rows[wanted])
    assert table.schedule.rows[-1].isnan().all()


def test_a_timestep_outside_the_table_is_an_error_or_shows(monkeypatch):
    table = modulation.StoredRows(torch.zeros(1249, 1, 2, 6))
    with pytest.raises(ValueError, match="timestep 2.0 is not in the modulation table"):
        table([2.0])
    transformer = small_transformer()
    table = modulation.computed_table(transformer)
    table.prepare(torch.tensor([0.5]).bfloat16())
    # As on a card, where a look at the timesteps would make the host wait in every step.
    monkeypatch.setattr(modulation.ScheduleRows, "covers", lambda rows, timesteps: True)
    assert forward(transformer, torch.tensor([0.25]), [(1, 2, 4)]).isnan().all()


def test_a_second_input_in_a_class_that_may_give_it_any_value_keeps_its_modulation(tiny, tmp_path):
    folder = shutil.copytree(tiny / "generate", tmp_path / "layered")
    config = folder / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_additional_t_cond": True}))
    assert not inspect(folder).parts.keys() & {"modulation", "temporal"}
    assert placement.plan([as_model(inspect(folder), [])], read_machine()).savings == {Saving.TRIM}


def test_the_scheduler_is_left_as_it_was(tiny):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tiny / "generate/scheduler")
    table = modulation.computed_table(small_transformer())
    with table.following_schedules(scheduler, torch.bfloat16):
        scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=0.5)
        expected = (scheduler.timesteps.bfloat16() / 1000).tolist()
    assert set(expected) <= set(table.schedule.timesteps.tolist())
    assert "set_timesteps" not in vars(scheduler)


def test_a_streamed_text_encoder_says_the_same(settings, tiny):
    folder = tiny / "generate"
    ours, _ = pipeline(settings, folder, Precision.BF16, frozenset(), text_encoder="streamed")
    assert torch.equal(drawn(ours), drawn(stock(folder, Precision.BF16)))
    assert components.is_component(["diffusers", "X"])


@pytest.mark.parametrize(("version", "kind"), [(90701, "Conv3d"), (91002, "PatchProjection"), (92400, "Conv3d")])
def test_a_vision_tower_s_patches_are_multiplied_where_torch_convolves_slowly(
    settings, tiny, monkeypatch, version, kind
):
    """By cuDNN's version, and on a card alone: a CPU's pictures are stock's to the bit."""
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    ours, _ = pipeline(settings, tiny / "edit", Precision.BF16, frozenset(Saving))
    layer = ours.text_encoder.model.visual.patch_embed.proj
    assert type(layer) is torch.nn.Conv3d
    patches = torch.randn(12, *layer.weight.shape[1:], generator=torch.Generator().manual_seed(0)).bfloat16()
    theirs = layer(patches)
    components.trim(
        ours.text_encoder, "text_encoder", plan_for(tiny / "edit", Precision.BF16, frozenset(Saving), device="cuda")
    )
    assert type(layer).__name__ == kind and isinstance(layer, torch.nn.Conv3d)
    assert layer(patches).shape == theirs.shape and distance(layer(patches), theirs) < PASS[torch.bfloat16]


def test_transformers_take_turns(tiny):
    from qwen_worker.model.residency import Swap

    turns = Swap("cpu")
    models = {}
    for name in ("generate", "edit"):
        turns.clear()
        models[name] = QwenImageTransformer2DModel.from_pretrained(tiny / name / "transformer")
        turns.add(name, models[name])
    before = {name: model.proj_out.weight.clone() for name, model in models.items()}
    assert turns.activate("edit") == 0.0
    assert turns.activate("generate") > 0.0 and turns.active == "generate"
    assert turns.activate("edit") > 0.0
    assert all(torch.equal(models[name].proj_out.weight, weight) for name, weight in before.items())


def test_quantized_transformers_take_turns_from_homes_of_their_own(tiny):
    """On a card a copy each way through memory that is not pinned would cost a second a job."""
    from qwen_worker.model.residency import Swap

    plan = plan_for(tiny / "generate", Precision.FP8, frozenset(Saving))
    kind = ["diffusers", "QwenImageTransformer2DModel"]
    model = components.load_component(inspect(tiny / "generate"), "transformer", kind, plan)
    weight = model.transformer_blocks[0].attn.to_q.weight
    before, loaded_at = weight.dequantize(), weight.qdata.data_ptr()
    turns = Swap("cpu")
    turns.add("generate", model)
    homes = {home.tensor.data_ptr() for home in turns.homes["generate"]}
    assert loaded_at not in homes
    turns.clear()
    assert {weight.qdata.data_ptr(), weight.scale.data_ptr(), model.proj_out.weight.data_ptr()} <= homes
    assert turns.activate("generate") > 0.0 and torch.equal(weight.dequantize(), before)
    for home in (one for one in turns.homes["generate"] if one.owner is weight):
        home.load(torch.device("meta"))  # stands for a card
    assert weight.qdata.is_meta and weight.scale.is_meta
    turns.clear()
    assert torch.equal(weight.dequantize(), before)


def test_the_scales_of_nf4_leave_the_card_with_the_weights(tiny):
    from qwen_worker.model.residency import Swap

    plan = plan_for(tiny / "generate", Precision.NF4, frozenset(Saving))
    kind = ["diffusers", "QwenImageTransformer2DModel"]
    model = components.load_component(inspect(tiny / "generate"), "transformer", kind, plan)
    state = model.transformer_blocks[0].attn.to_q.weight.quant_state
    before = state.absmax.clone()
    turns = Swap("cpu")
    turns.add("generate", model)
    for home in (one for one in turns.homes["generate"] if one.owner is state):
        home.load(torch.device("meta"))  # stands for a card
    assert state.absmax.is_meta
    turns.clear()
    assert torch.equal(state.absmax, before)
    waiting = {home.tensor.data_ptr(): home.tensor.nbytes for home in turns.homes["generate"]}
    assert state.absmax.data_ptr() in waiting
    # What is planned for a swapped transformer is what waits for its turn.
    (planned,) = plan.models
    assert sum(waiting.values()) == pytest.approx(plan.transformer_bytes(planned), rel=0.01)


def test_a_dropped_module_leaves_nothing_behind(tiny):
    from qwen_worker.model.residency import Swap

    turns = Swap("cpu")
    turns.add("generate", torch.nn.Linear(2, 3))
    turns.drop("generate")
    assert not turns.homes and not turns.modules and turns.active is None
    turns.drop("generate")
    turns.clear()


def test_a_transformer_that_was_read_into_host_memory_is_brought_to_the_device(monkeypatch):
    from qwen_worker.model.residency import Swap

    brought = []
    monkeypatch.setattr(Swap, "activate", lambda self, name: brought.append((name, len(self.homes[name]))))
    there, away = Swap("cpu"), Swap("meta")  # meta stands for a card: another device than the host's
    there.add("generate", torch.nn.Linear(2, 3))
    assert not brought and there.active == "generate"
    away.add("generate", torch.nn.Linear(2, 3))
    assert brought == [("generate", 2)]
