"""Attention by a rule of our own in transformers' causal LMs: what reading shared prompts, in decoding and in judging, has in common.

Works for every model that takes its attention from `ALL_ATTENTION_FUNCTIONS`, full or over a sliding window.
"""

from contextlib import contextmanager
from typing import Protocol

import torch

from ...errors import UserError

NAME = "recbole_llm"


class AttentionRule(Protocol):
    """Says what each token attends to."""

    def attend(
        self,
        module,
        query,
        keys,
        values,
        scaling: float,
        softcap: float | None,
        window: int | None,
        dropout: float,
    ) -> torch.Tensor:
        """[B, T, H, d] from query [B, H, T, d] and the keys and values of the same tokens, [B, H', T, d], in one layer, `module`."""


_active: list[AttentionRule] = []  # of the passes that are running


@contextmanager
def attention_by(model, rule: AttentionRule):
    """Within it, forward passes attend by the rule. Raises UserError for a layer whose attention is told of less than it does."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _active.append(rule)
    try:
        yield
    finally:
        _active.pop()
        model.set_attn_implementation(before)


def empty_mask(device, dtype=torch.float32) -> torch.Tensor:
    """A mask that says nothing: a ready one keeps transformers from building its own, which a rule makes idle."""
    return torch.zeros(1, 1, 1, 1, device=device, dtype=dtype)


def _attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    softcap=None,
    sliding_window=None,
    s_aux=None,
    **kwargs,
):
    if s_aux is not None:
        raise UserError(
            f"{type(module).__name__} has attention sinks, which shared prompts here do not know; take another backbone"
        )
    if sliding_window is None and _slides(module):
        raise UserError(
            f"{type(module).__name__} has a sliding window that attention functions are not told of; take another backbone"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _active[-1].attend(
        module,
        query,
        key,
        value,
        scaling,
        softcap,
        sliding_window,
        dropout if module.training else 0.0,
    ), None


def _slides(module) -> bool:
    """Whether a layer attends to a window alone, by its config: some models put that into their mask and nowhere else."""
    config = module.config
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (
        kinds is None or kinds[module.layer_idx] == "sliding_attention"
    )
