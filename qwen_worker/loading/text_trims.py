"""The text encoder of Qwen-Image without what its pipelines never use.

They take the last hidden states: the language head (545 million parameters) computes logits that are dropped, and
without an input picture the vision tower (677 million) never runs. Exact. Covers Qwen2.5-VL only.
Imports torch: import it inside functions.
"""

import torch


def drop_language_head(text_encoder: torch.nn.Module) -> None:
    """The states themselves stand for the logits that nobody reads."""
    text_encoder.lm_head = torch.nn.Identity()


def drop_vision(text_encoder: torch.nn.Module) -> None:
    """For a worker that edits nothing. An input picture fails afterwards."""
    text_encoder.model.visual = torch.nn.Identity()
