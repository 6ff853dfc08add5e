"""Teaches the text encoder to read: prompts, instructions, and the picture of an edit.

Linear heads on the last tokens name what is asked for and what is seen; they are thrown away afterwards. What is
left is a text encoder whose states hold the meaning in a plain form, so that it can stay frozen (and be the same
file in both folders) while the transformers learn to draw. Knows nothing about latents.
"""

import random

import torch
import torch.nn.functional as F

from .. import architecture
from ..world import scenes as world
from ..world import tasks as dataset
from ..world import wordings as prompts

ANSWER_TOKENS = 5  # "<|im_end|>\n<|im_start|>assistant\n": the only ones that have seen the whole prompt
LABELS = {
    "colour": prompts.COLOURS,
    "shape": prompts.SHAPES,
    "background": prompts.COLOURS,
    "size": prompts.SIZES,
    "position": prompts.POSITIONS,
    "operation": prompts.OPERATIONS,
    "target": prompts.COLOURS + prompts.SHAPES,
    "seen_colour": prompts.COLOURS,
    "seen_shape": prompts.SHAPES,
    "seen_background": prompts.COLOURS,
    "seen_size": prompts.SIZES,
    "seen_position": prompts.POSITIONS,
}
ASPECTS = ((112, 112), (112, 112), (168, 112), (112, 168))  # pixels; the processor brings all to about 112 x 112
SEEN_SIDE = 112
DROPPED = 0.1  # share of prompts replaced by " ", what a negative prompt is
TOKENS = {"generate": 24, "edit": 64}  # room for the longest prompt of the world behind the template
TEXTS_AT_ONCE = 64


class Reader(torch.nn.Module):
    """The text encoder with one linear head a label; class 0 of each means "not said"."""

    def __init__(self, text_encoder):
        super().__init__()
        self.text_encoder = text_encoder
        width = architecture.TEXT["hidden_size"]
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(v) + 1) for name, v in LABELS.items()})

    def forward(self, inputs):
        """Logits for each label, at every answer token: (B, ANSWER_TOKENS, choices)."""
        states = hidden_states(self.text_encoder, inputs)
        ends = inputs["attention_mask"].sum(dim=1)
        last = torch.stack([s[end - ANSWER_TOKENS : end] for s, end in zip(states, ends.tolist(), strict=True)])
        return {name: head(last) for name, head in self.heads.items()}


def hidden_states(text_encoder, inputs):
    """What the pipelines take from the text encoder: the last hidden states, (B, tokens, 128)."""
    # the inner model: lm_head's logits are never used
    return text_encoder.model(**inputs).last_hidden_state


def embed(text_encoder, inputs, task):
    """(B, tokens, 128) prompt embeddings and their boolean mask, the template cut off as the pipelines do."""
    states = hidden_states(text_encoder, inputs)
    drop = architecture.TEMPLATE_TOKENS[task]
    mask = inputs["attention_mask"][:, drop:].bool()
    return states[:, drop:] * mask.unsqueeze(-1), mask


def tokens(tokenizer, texts):
    """Inputs of the generate pipeline's template for a list of prompts."""
    template = architecture.templates()["QwenImagePipeline"]
    batch = tokenizer([template.format(t) for t in texts], padding=True, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def on(inputs, device):
    """The same inputs on a device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def seen_tokens(processor, texts, pictures):
    """Inputs of the edit pipeline's template; `pictures` are (3, H, W) uint8 tensors, one a prompt."""
    template = architecture.templates()["QwenImageEditPipeline"]
    batch = processor(text=[template.format(t) for t in texts], images=pictures, padding=True, return_tensors="pt")
    return {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}


class Embedder:
    """What the pipelines hand the transformer for many prompts, padded to one length: states (E, T, 128) float16 and
    mask (E, T). The text encoder stays as it is."""

    def __init__(self, text_encoder, processor):
        self.text_encoder, self.processor = text_encoder, processor

    def prompts(self, texts):
        return self._all("generate", texts, lambda part: tokens(self.processor.tokenizer, texts[part]))

    def instructions(self, texts, pictures):
        """`pictures` are (3, H, W) uint8 tensors, one a text."""
        return self._all("edit", texts, lambda part: seen_tokens(self.processor, texts[part], pictures[part]))

    @torch.no_grad()
    def _all(self, task, texts, inputs):
        found = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = on(inputs(slice(start, start + TEXTS_AT_ONCE)), self.text_encoder.device)
            states, mask = embed(self.text_encoder, batch, task)
            room = TOKENS[task] - mask.shape[1]
            if room < 0:
                raise ValueError(f"a prompt must be at most {TOKENS[task]} tokens for {task}, not {mask.shape[1]}")
            found.append((F.pad(states, (0, 0, 0, room)).half().cpu(), F.pad(mask, (0, room)).cpu()))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def seen(scene, width, height):
    """A scene as the processor would bring it to its own size, from a picture of width x height pixels."""
    scale = SEEN_SIDE / min(width, height)
    return thumbnail(scene, round(width * scale), round(height * scale))


def loss(reader, tokenizer, processor, step, batch=32):
    """Cross entropy over all labels for fresh prompts and fresh edits; (loss, share of labels read right)."""
    rng = random.Random(step)  # an int or a str
    device = next(reader.parameters()).device
    texts, labels = _prompts(rng, batch)
    first = _score(reader(on(tokens(tokenizer, texts), device)), labels)
    texts, pictures, labels = _instructions(rng, batch)
    second = _score(reader(on(seen_tokens(processor, texts, pictures), device)), labels)
    return first[0] + second[0], (first[1] + second[1]) / 2


def thumbnail(scene, width, height):
    """A scene as the (3, H, W) uint8 tensor that a processor takes."""
    return torch.from_numpy(world.draw(scene, width, height)).permute(2, 0, 1).contiguous()


def _prompts(rng, count):
    texts, labels = [], []
    for _ in range(count):
        text, asked = dataset.describe(rng, dataset.training_scene(rng))
        dropped = rng.random() < DROPPED
        texts.append(" " if dropped else text)
        labels.append({} if dropped else asked)
    return texts, labels


def _instructions(rng, count):
    texts, pictures, labels = [], [], []
    for _ in range(count):
        task = dataset.edit(rng, dataset.family(rng))
        before = task.before
        label = {f"seen_{k}": getattr(before, k) for k in ("colour", "shape", "background", "size", "position")}
        dropped = rng.random() < DROPPED
        if not dropped:
            label |= {"operation": task.operation, "target": task.target}
        texts.append(" " if dropped else task.prompt)
        pictures.append(thumbnail(before, *rng.choice(ASPECTS)))
        labels.append(label)
    return texts, pictures, labels


def _score(logits, labels):
    total, right = 0.0, 0.0
    for name, values in LABELS.items():
        wanted = [values.index(label[name]) + 1 if label.get(name) else 0 for label in labels]
        wanted = torch.tensor(wanted, device=logits[name].device).unsqueeze(1).expand(-1, ANSWER_TOKENS)
        total = total + F.cross_entropy(logits[name].flatten(0, 1), wanted.flatten())
        right += (logits[name].argmax(-1) == wanted).float().mean().item() / len(LABELS)
    return total, right
