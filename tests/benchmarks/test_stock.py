"""Stock diffusers beside ours: the same weights, the same pictures as plain stock."""

import copy

import torch

from benchmarks.measure import stock


def test_stock_beside_ours_shares_its_weights_and_draws_what_plain_stock_draws(warm_worker, tiny, quiet):
    ours = warm_worker.pipelines.load("generate").pipe
    plain, beside = (
        stock.load(tiny / "generate", "cpu", stock.RESIDENT),
        stock.load_beside(ours, tiny / "generate", "cpu"),
    )
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
        call = {"prompt": "a red circle", "negative_prompt": " ", "width": 64, "height": 64}
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
