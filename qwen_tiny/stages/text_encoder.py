"""Teaches the text encoder to read: prompts, instructions, and the picture of an edit.

Linear heads on the last tokens name what is asked for and what is seen; they are thrown away afterwards. What is
left is a text encoder whose states hold the meaning in a plain form, so that it can stay frozen (and be the same
file in both folders) while the transformers learn to draw. Knows nothing about latents.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .. import architecture
from ..world import scenes, tasks, wordings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

Inputs = dict[str, torch.Tensor]  # what the text encoder's forward takes, by name

ANSWER_TOKENS = 5  # "<|im_end|>\n<|im_start|>assistant\n": the only ones that have seen the whole prompt
LABELS = {
    "colour": wordings.COLOURS,
    "shape": wordings.SHAPES,
    "background": wordings.COLOURS,
    "size": wordings.SIZES,
    "position": wordings.POSITIONS,
    "operation": wordings.OPERATIONS,
    "target": wordings.COLOURS + wordings.SHAPES,
    "seen_colour": wordings.COLOURS,
    "seen_shape": wordings.SHAPES,
    "seen_background": wordings.COLOURS,
    "seen_size": wordings.SIZES,
    "seen_position": wordings.POSITIONS,
}
ASPECTS = ((112, 112), (112, 112), (168, 112), (112, 168))  # pixels; the processor brings all to about 112 x 112
SEEN_SIDE = 112  # pixels of the shorter side of a picture that the processor is given
DROPPED = 0.1  # share of prompts replaced by " ", what a negative prompt is
TOKENS = {"generate": 24, "edit": 64}  # room for the longest prompt of the world behind the template
PROMPTS_AT_ONCE = 64


class Reader(torch.nn.Module):
    """The text encoder with one linear head a label; class 0 of each means that the prompt leaves the label open."""

    def __init__(self, text_encoder: "Qwen2_5_VLForConditionalGeneration"):
        super().__init__()
        self.text_encoder = text_encoder
        width = architecture.TEXT["hidden_size"]
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(width, len(words) + 1) for name, words in LABELS.items()}
        )

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Logits for each label, at every answer token: (B, ANSWER_TOKENS, choices)."""
        states = hidden_states(self.text_encoder, inputs)
        ends = inputs["attention_mask"].sum(dim=1)
        last = torch.stack([s[end - ANSWER_TOKENS : end] for s, end in zip(states, ends.tolist(), strict=True)])
        return {name: head(last) for name, head in self.heads.items()}


class Embedder:
    """Many prompts as the pipelines hand them to the transformer, by a text encoder that stays as it is.

    Both methods return states (E, T, 128) float16 and mask (E, T) bool, padded to the task's `TOKENS`.
    """

    def __init__(self, text_encoder: "Qwen2_5_VLForConditionalGeneration", processor: "Qwen2VLProcessor"):
        self.text_encoder, self.processor = text_encoder, processor

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises `ValueError` for a prompt of more tokens than `TOKENS`."""
        return self._embed("generate", prompts, lambda part: prompt_inputs(self.processor.tokenizer, prompts[part]))

    def embed_instructions(
        self, instructions: Sequence[str], pictures: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`pictures`: (3, H, W) uint8, one an instruction. Raises `ValueError` like `embed_prompts`."""
        return self._embed(
            "edit", instructions, lambda part: instruction_inputs(self.processor, instructions[part], pictures[part])
        )

    @torch.no_grad()
    def _embed(
        self, task: str, prompts: Sequence[str], inputs_of: Callable[[slice], Inputs]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batches = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            inputs = to_device(inputs_of(slice(start, start + PROMPTS_AT_ONCE)), self.text_encoder.device)
            states, mask = embed(self.text_encoder, inputs, task)
            room = TOKENS[task] - mask.shape[1]
            if room < 0:
                raise ValueError(f"a prompt must be at most {TOKENS[task]} tokens for {task}, not {mask.shape[1]}")
            batches.append((F.pad(states, (0, 0, 0, room)).half().cpu(), F.pad(mask, (0, room)).cpu()))
        states, mask = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return states, mask


def hidden_states(text_encoder: "Qwen2_5_VLForConditionalGeneration", inputs: Inputs) -> torch.Tensor:
    """What the pipelines take from the text encoder: the last hidden states, (B, tokens, 128)."""
    return text_encoder.model(**inputs).last_hidden_state  # the inner model: nobody uses the logits of `lm_head`


def embed(
    text_encoder: "Qwen2_5_VLForConditionalGeneration", inputs: Inputs, task: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, tokens, 128) prompt embeddings and their boolean mask, the template cut off as the pipelines do."""
    states = hidden_states(text_encoder, inputs)
    drop = architecture.TEMPLATE_TOKENS[task]
    mask = inputs["attention_mask"][:, drop:].bool()
    return states[:, drop:] * mask.unsqueeze(-1), mask


def prompt_inputs(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> Inputs:
    """Prompts in the generate pipeline's template."""
    template = architecture.templates()["QwenImagePipeline"]
    batch = tokenizer([template.format(prompt) for prompt in prompts], padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def instruction_inputs(
    processor: "Qwen2VLProcessor", instructions: Sequence[str], pictures: Sequence[torch.Tensor]
) -> Inputs:
    """Instructions in the edit pipeline's template, beside their `pictures`, each (3, H, W) uint8."""
    template = architecture.templates()["QwenImageEditPipeline"]
    prompts = [template.format(instruction) for instruction in instructions]
    batch = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
    # With the type of each token, a picture's tokens lie in rows and columns, as in the released models.
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
    return {name: batch[name] for name in names}


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def draw_seen(scene: scenes.Scene, width: int, height: int) -> torch.Tensor:
    """The scene in a picture of width x height pixels, drawn at the size that the processor brings the picture to."""
    scale = SEEN_SIDE / min(width, height)
    return draw_for_processor(scene, round(width * scale), round(height * scale))


def draw_for_processor(scene: scenes.Scene, width: int, height: int) -> torch.Tensor:
    """The scene as the (3, height, width) uint8 tensor that a processor takes."""
    return torch.from_numpy(scenes.draw(scene, width, height)).permute(2, 0, 1).contiguous()


def loss(
    reader: Reader,
    tokenizer: "PreTrainedTokenizerBase",
    processor: "Qwen2VLProcessor",
    seed: int | str,
    batch: int = 32,
) -> tuple[torch.Tensor, float]:
    """Cross entropy over all labels for fresh prompts and fresh edits; (loss, share of labels read right)."""
    rng = Random(seed)
    device = next(reader.parameters()).device
    prompts, labels = _label_prompts(rng, batch)
    prompt_loss, prompts_right = _score(reader(to_device(prompt_inputs(tokenizer, prompts), device)), labels)
    instructions, pictures, labels = _label_instructions(rng, batch)
    inputs = to_device(instruction_inputs(processor, instructions, pictures), device)
    edit_loss, edits_right = _score(reader(inputs), labels)
    return prompt_loss + edit_loss, (prompts_right + edits_right) / 2


def _label_prompts(rng: Random, count: int) -> tuple[list[str], list[dict]]:
    prompts, labels = [], []
    for _ in range(count):
        prompt, asked = tasks.describe(rng, tasks.training_scene(rng))
        dropped = rng.random() < DROPPED
        prompts.append(" " if dropped else prompt)
        labels.append({} if dropped else asked)
    return prompts, labels


def _label_instructions(rng: Random, count: int) -> tuple[list[str], list[torch.Tensor], list[dict]]:
    instructions, pictures, labels = [], [], []
    for _ in range(count):
        edit = tasks.random_edit(rng, tasks.family(rng))
        attributes = ("colour", "shape", "background", "size", "position")
        label = {f"seen_{name}": getattr(edit.before, name) for name in attributes}
        dropped = rng.random() < DROPPED
        if not dropped:
            label |= {"operation": edit.operation, "target": edit.target}
        instructions.append(" " if dropped else edit.prompt)
        pictures.append(draw_for_processor(edit.before, *rng.choice(ASPECTS)))
        labels.append(label)
    return instructions, pictures, labels


def _score(logits: dict[str, torch.Tensor], labels: list[dict]) -> tuple[torch.Tensor, float]:
    """Cross entropy summed over the labels, and the share of them that is read right."""
    total, right = 0.0, 0.0
    for name, words in LABELS.items():
        classes = [words.index(label[name]) + 1 if label.get(name) else 0 for label in labels]
        expected = torch.tensor(classes, device=logits[name].device).unsqueeze(1).expand(-1, ANSWER_TOKENS)
        total = total + F.cross_entropy(logits[name].flatten(0, 1), expected.flatten())
        right += (logits[name].argmax(-1) == expected).float().mean().item() / len(LABELS)
    return total, right
