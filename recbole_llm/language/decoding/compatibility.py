"""Check that training and decoding compute what a backbone's own forward pass computes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ..backbones.shallow import is_float32, shallow_copy
from .shared_prompts import decoding, prefill

# As a share of the largest logit: float32 differs a hundred times less, wrong attention ten times
# more.
TOLERANCE = 1e-3
CHECKED_LAYERS = 2  # of a model that is not in float32, read as one that is


@torch.no_grad()
def check_backbone(backbone: Any, name: str, error: Callable[[Any], float] | None = None) -> None:
    """Refuse a backbone whose states, logits or continuations differ from its own forward pass.

    They do for attention that sees later tokens or does not go through transformers' attention
    functions, for recurrent layers, and for logits that are scaled outside of the head in a way
    that `Backbone.logits` does not know.

    Parameters
    ----------
    backbone : Backbone
        A causal LM.
    name : str
        How the user named it.
    error : callable, optional
        Measures the deviation of a backbone; `decoding_deviation` where None.

    Raises
    ------
    UserError
        If the deviation is larger than TOLERANCE, or cannot be measured.
    """
    model, training = backbone.model, backbone.model.training
    measure = error or decoding_deviation
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    reason: str | None = None
    model.eval()
    try:
        if not is_float32(model):  # whose rounding would look like a fault
            backbone = replace(backbone, model=shallow_copy(model, CHECKED_LAYERS))
        # without autocast, whose rounding is no fault of the model
        with torch.autocast(device.type, enabled=False):
            deviation = measure(backbone)
        if not deviation <= TOLERANCE:  # or NaN
            reason = f"its logits differ from its own forward pass by {deviation:.1%}"
    except UserError:
        raise
    except Exception as fault:  # of foreign code, which may raise anything
        reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:120]}"
    finally:
        model.train(training)
    if reason:
        raise UserError(
            f"backbone {name!r} ({type(model).__name__}) cannot be used here ({reason}); take one "
            "that docs/backbones.md lists"
        )


def decoding_deviation(backbone: Any) -> float:
    """Measure how far decoding deviates from the model's own forward pass, on a few tokens.

    Parameters
    ----------
    backbone : Backbone
        A causal LM.

    Returns
    -------
    float
        The largest difference between logits, as a share of the largest logit.
    """
    model, device = backbone.model, next(backbone.model.parameters()).device
    token = np.arange(1, 9) * 37 % model.get_input_embeddings().num_embeddings
    prompts = [token[:4], token[2:4]]
    # two continuations of each prompt, two tokens each
    owners, tails = [0, 0, 1, 1], [token[4:6], token[6:8]] * 2
    texts = [np.concatenate([prompts[owner], tail]) for owner, tail in zip(owners, tails)]
    inputs = [torch.from_numpy(text)[None].to(device) for text in texts]
    expected = [model(input_ids=ids).logits[0] for ids in inputs]
    pairs = []
    for ids, logits in zip(inputs, expected):
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        pairs.append((backbone.logits(states), logits))
    cache, last = prefill(model, prompts, backbone.tokenizer.pad_token_id, steps=2)
    first = backbone.logits(last)
    for owner, logits in zip(owners, expected):
        pairs.append((first[owner], logits[len(prompts[owner]) - 1]))
    slot = np.array(owners)
    with decoding(model, cache) as read:
        for step in range(2):
            slot = cache.advance(slot)
            logits = backbone.logits(read(slot, np.array([tail[step] for tail in tails])))
            for number, text in enumerate(texts):
                pairs.append((logits[slot[number]], expected[number][len(text) - 2 + step]))
    return max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)
