"""What a job asks of torch on the way to its picture, with torch's real choices: on cards that have no arithmetic."""

import logging
import shutil

import pytest

from ..support.stored_quantized import store_transformer_nf4
from . import life
from .card import Card
from .cases import ADA, AMPERE_PRO, BLACKWELL, HOPPER

SIDE, LARGE = 1024, 2048
TABLED = ("tabled/generate", "tabled/edit")
B200, B300 = (10, 0), (10, 3)

# The functions that begin with `see` are called in a process with a null card.


def see_peaks(card):
    """`peak_vram_gb` of jobs of several sizes, one after the other."""
    served, _ = life.served_for(card, TABLED[:1])
    return [served.ask("generate", side, side)["metadata"]["peak_vram_gb"] for side in (SIDE, LARGE, SIDE)]


def test_a_small_job_s_peak_is_its_own_after_a_large_one(on_card):
    before, large, after = on_card(see_peaks, Card(80, HOPPER, 64))
    assert before < large and after == pytest.approx(before, rel=0.001)


def see_streamed(card):
    """What diffusers says while a text encoder streams, and the layers whose runs it still notes."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("diffusers.hooks.group_offloading").addHandler(handler)
    served, _ = life.served_for(card, TABLED)
    codes = [life.code_of(served.ask("generate", SIDE, SIDE))]
    encoder, typed = served.loaded("generate").pipe.text_encoder, []

    def note_types(_module, _arguments, named):
        typed.append(named.get("mm_token_type_ids") is not None)

    encoder.model.register_forward_pre_hook(note_types, with_kwargs=True)
    codes += [life.code_of(served.ask("edit", SIDE, SIDE, 1))]
    assert served.loaded("edit").pipe.text_encoder is encoder
    modules = dict(served.loaded("edit").pipe.text_encoder.named_modules())
    hooks = {name: module._diffusers_hook for name, module in modules.items() if hasattr(module, "_diffusers_hook")}
    noted = [name for name, registry in hooks.items() if registry.get_hook("layer_execution_tracker")]
    codes += [life.code_of(served.ask("generate", SIDE, SIDE))]
    held = {name for name, module in modules.items() if any(p.is_cuda for p in module.parameters(recurse=False))}
    plan = str(served.plan("edit"))
    return {"codes": codes, "said": said, "noted": noted, "held": sorted(held), "plan": plan, "typed": typed}


def test_a_streamed_text_encoder_fetches_the_vision_tower_in_an_order_of_its_own(on_card):
    """Text comes first, which leaves the tower out: nothing is missed, nothing noted for ever or left on the card."""
    seen = on_card(see_streamed, Card(24, ADA, 64))
    assert "streamed" in seen["plan"] and seen["codes"] == ["ok"] * 3
    assert seen["said"] == [] and seen["noted"] == [] and seen["held"] == []
    assert seen["typed"][:2] == [True, True]  # both prompts of the edit are told which tokens are the picture's


def see_stored(card, folder):
    """The code of a job with a checkpoint that is stored quantized, its plan, and the classes of its parameters."""
    from .served import Served

    served = Served(card, folder)
    reply = served.ask("generate", 256, 256)
    loaded = served.loaded("generate")
    parameters = list(loaded.pipe.transformer.parameters())
    places = sorted({parameter.device.type for parameter in parameters})
    return reply.get("error", "ok"), str(loaded.plan), places, sum("4bit" in type(p).__name__ for p in parameters)


def test_a_transformer_that_is_stored_quantized_goes_to_the_card_as_it_is(on_card, tiny, tmp_path):
    folder = shutil.copytree(tiny / "generate", tmp_path / "own" / "copy")
    store_transformer_nf4(folder)
    code, plan, places, quantized = on_card(see_stored, Card(24, ADA, 64), str(folder))
    assert (code, places) == ("ok", ["cuda"]) and "transformer as it is stored" in plan
    assert quantized == 5 * (12 + 2)  # in each block the matrices, and the modulation of both streams


def see_order(card):
    """The first of torch's own order of attention kernels, and what the worker makes of the speed-up there."""
    import torch

    from qwen_worker.memory.machine import read_machine
    from qwen_worker.model_settings import Speedup
    from qwen_worker.speed import speedups

    from . import arithmetic

    kernels = arithmetic.install()
    query = torch.empty(1, 4, 64, 128, dtype=torch.bfloat16, device="cuda")
    torch.nn.functional.scaled_dot_product_attention(query, query, query)
    first = torch._C._get_sdp_priority_order()[0]
    del kernels
    gpu = read_machine().gpu
    served, _ = life.served_for(card, TABLED[:1])
    states = speedups.decide(served.plan("generate"), None, gpu.capability, speedups.asks_cudnn_first())
    return torch.nn.attention.SDPBackend(first).name, states[Speedup.ATTENTION]


@pytest.mark.parametrize("capability", [AMPERE_PRO, ADA, HOPPER, B200, B300, BLACKWELL], ids=str)
def test_cudnn_s_attention_is_left_to_torch_where_torch_asks_it_first(on_card, capability):
    first, state = on_card(see_order, Card(80, capability, 64))
    if capability in (HOPPER, B200):
        assert first == "CUDNN_ATTENTION" and "cuDNN first by itself" in state
    else:
        assert "torch's own order" in state
        assert first == ("CUDNN_ATTENTION" if capability == B300 else "FLASH_ATTENTION")
