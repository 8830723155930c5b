"""Replace the attention of transformers' causal LMs by a rule of our own.

Decoding and judging read shared prompts by such rules. They work for every model that takes its
attention from `ALL_ATTENTION_FUNCTIONS`, full or over a sliding window.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch

from ...errors import UserError

NAME = "recbole_llm"


class AttentionRule(Protocol):
    """Says what each token attends to."""

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
        dropout: float,
    ) -> torch.Tensor:
        """Compute the attention of one layer.

        Parameters
        ----------
        module : torch.nn.Module
            The attention module of the layer.
        query : Tensor [B, H, T, d]
            Queries.
        keys, values : Tensor [B, H', T, d]
            Keys and values of the same tokens; H' divides H.
        scaling : float
            Factor of the products.
        softcap : float or None
            Products are softly limited to this absolute value (Gemma 2).
        window : int or None
            Number of newest tokens that a token attends to; all where None.
        dropout : float
            Probability with which a weight is dropped.

        Returns
        -------
        Tensor [B, T, H, d]
            The weighted means of the values.
        """


_active: list[AttentionRule] = []  # of the passes that are running


@contextmanager
def attention_by(model: Any, rule: AttentionRule) -> Iterator[None]:
    """Let the forward passes of a model attend by a rule, within this context.

    Parameters
    ----------
    model : PreTrainedModel
        A causal LM.
    rule : AttentionRule
        The rule.

    Raises
    ------
    UserError
        In a forward pass, if a layer's attention is not fully described to attention functions.
    """
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


def same_attention(model: Any) -> tuple[Any, Any]:
    """Make the contexts of a checkpoint, whose layers attend alike when they are computed again.

    Parameters
    ----------
    model : PreTrainedModel
        The model, in or outside of an `attention_by`.

    Returns
    -------
    tuple of two contexts
        That of the forward pass, and that of the second computation, which is made in the backward
        pass.
    """
    if model.config._attn_implementation != NAME:
        return nullcontext(), nullcontext()
    return nullcontext(), attention_by(model, _active[-1])


def empty_mask(device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make a mask that masks nothing.

    A given mask keeps transformers from building its own, which no rule looks at.

    Parameters
    ----------
    device : torch.device
        Where the mask lies.
    dtype : torch.dtype
        Its type.

    Returns
    -------
    Tensor [1, 1, 1, 1]
        Zero.
    """
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
    """Compute the attention of a layer by the active rule, as transformers calls it."""
    if s_aux is not None:
        raise UserError(
            f"{type(module).__name__} has attention sinks, which are not supported here; take "
            "another backbone"
        )
    if sliding_window is None and _slides(module):
        raise UserError(
            f"{type(module).__name__} has a sliding window that it does not pass to attention "
            "functions; take another backbone"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropout = dropout if module.training else 0.0
    output = _active[-1].attend(
        module, query, key, value, scaling, softcap, sliding_window, dropout
    )
    return output, None


def _slides(module) -> bool:
    """Say whether a layer attends to a window, by its config.

    Some models put the window into their mask and nowhere else.
    """
    config = module.config
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (
        kinds is None or kinds[module.layer_idx] == "sliding_attention"
    )
