"""No step waits for the card: on tensors that claim to lie on one, every copy between host and card is seen."""

import traceback
from contextlib import ExitStack

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwen_worker.memory.machine import read_machine
from qwen_worker.model import modulation
from qwen_worker.model_settings import Precision, Saving, Speedup
from qwen_worker.settings import Settings
from qwen_worker.speed import speedups
from qwen_worker.speed.step_cache import CachedSteps

from ..model.test_savings import pipeline, plan_for

STEPS, CACHED_STEPS = 3, 9  # the least that a step cache skips one of is 8
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
# What the host asks of a tensor's values: `.item()`, `bool()`, `.tolist()`, an index by a mask.
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)


class Waits(TorchDispatchMode):
    """Notes where the host waits for the card, while `stepping`."""

    def __init__(self):
        super().__init__()
        self.found, self.stepping = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.stepping:  # what values decide before, as whether a picture's are below 0: as if they were not
            asked = func is torch.ops.aten._local_scalar_dense.default
            return False if asked else func(*args, **kwargs or {})
        if func in READS:
            self.note(func)
        result = func(*args, **kwargs or {})
        if func in COPIES:
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            if len({tensor.device.type for tensor in tensors}) > 1:
                self.note(func)
        return result

    def note(self, func):
        self.found.append(f"{func}\n" + "".join(traceback.format_stack(limit=9)[:-2]))


def encode_prompt(prompt, **_):
    """Random numbers in place of an encoding, for which the host asks how long it is, once a picture."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    text = torch.randn(len(prompts), max(map(len, prompts)), 128, device="cuda", dtype=torch.bfloat16)
    mask = torch.ones(text.shape[:2], dtype=torch.long, device="cuda")
    return text, mask if len(prompts) > 1 else None


def built(folder, monkeypatch, **changes):
    """The worker's pipeline, its table and its speed-ups; `changes`: of the transformer's configuration."""
    pipe, table = pipeline(Settings, folder, Precision.BF16, frozenset(Saving), table=True)
    if changes:
        transformer = type(pipe.transformer).from_config({**pipe.transformer.config, **changes}).bfloat16()
        table = modulation.ModulationTable(transformer, table.source)
        pipe = QwenImageEditPlusPipeline(**pipe.components | {"transformer": transformer})
    plan = plan_for(folder, Precision.BF16, frozenset(Saving), table=True)
    asked = Settings(QWEN_SPEEDUPS=frozenset([Speedup.ROTARY, Speedup.GUIDANCE]))
    pipe.encode_prompt = encode_prompt
    shape = table.source.rows.shape[1:]

    def prepare(self, timesteps):
        """In place of the rows of these timesteps, whose values a card that is none cannot tell."""
        self.schedule = modulation.ScheduleRows(timesteps, timesteps.new_empty(len(timesteps) + 1, *shape), [])

    monkeypatch.setattr(modulation.ModulationTable, "prepare", prepare)
    return pipe, table, speedups.apply(pipe, plan, asked, read_machine(), table)


APART = {"separate_passes": True}
CASES = {
    "plain": ("generate", {}, APART, {}),
    "guidance in one pass": ("generate", {}, {}, {}),
    "a step cache": ("generate", {}, APART | {"cached_steps": CachedSteps(CACHED_STEPS)}, {}),
    "two pictures a call": ("generate", {}, {}, {"prompt": ["a red circle", "a"], "negative_prompt": [" ", " "]}),
    "an edit": ("edit", {}, APART, {}),
    "an edit by 2511": ("edit", {"zero_cond_t": True}, APART, {}),
}


@pytest.mark.parametrize(("task", "changes", "drawing", "prompts"), CASES.values(), ids=CASES)
def test_no_step_waits_for_the_card(tiny, scene, monkeypatch, task, changes, drawing, prompts):
    call = {"prompt": "a red circle", "negative_prompt": " ", "true_cfg_scale": 4.0, "width": 256, "height": 256}
    steps = CACHED_STEPS if "cached_steps" in drawing else STEPS
    call |= {"num_inference_steps": steps, "output_type": "latent"} | ({"image": scene} if task == "edit" else {})
    pipe, table, speed = built(tiny / task, monkeypatch, **changes)
    passes = []
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits, ExitStack() as stack:
        pipe.to("cuda")
        stack.enter_context(speed.drawing(**drawing))
        stack.enter_context(table.following_schedules(pipe.scheduler, torch.bfloat16))
        pipe.transformer.register_forward_pre_hook(lambda *_: passes.append(waits.stepping))

        def after_step(_pipe, step, _timestep, tensors):
            assert tensors["latents"].is_cuda
            waits.stepping = step < steps - 1
            return tensors

        pipe(**call | prompts, callback_on_step_end=after_step)
    assert sum(passes) == 2 * (steps - 1)
    assert waits.found == []
