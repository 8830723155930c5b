"""Whether training and decoding here are right for a backbone: tried on a few tokens against its own forward pass."""

from collections.abc import Callable

import numpy as np
import torch

from ...errors import UserError
from .shared_prompts import decoding, prefill

TOLERANCE = 1e-3  # of the largest logit; float32 is a hundred times closer, a wrong attention ten times farther


@torch.no_grad()
def check_backbone(backbone, name: str, error: Callable[..., float] | None = None) -> None:
    """Raise UserError for a model that hidden states, logits or continuations are wrong of.

    Such as attention that sees later tokens or does not go through transformers' attention functions, recurrent layers,
    and logits that are scaled outside of the head in a way that `Backbone.logits` does not know.

    error : of the backbone, by how much what is needed of it differs from its own forward pass; None: what decoding needs.
    """
    model, training = backbone.model, backbone.model.training
    model.eval()
    try:
        with torch.autocast(
            next(model.parameters()).device.type, enabled=False
        ):  # whose rounding is no fault of the model
            found = (error or _error)(backbone)
    except UserError:
        raise
    except Exception as fault:  # of foreign code, which may raise anything
        reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:120]}"
    else:
        reason = (
            f"its logits come out otherwise, by {found:.1%}" if not found <= TOLERANCE else None
        )
    finally:
        model.train(training)
    if reason:
        raise UserError(
            f"backbone {name!r} ({type(model).__name__}) cannot be used here ({reason}); take one that docs/backbones.md lists"
        )


def _error(backbone) -> float:
    """The largest difference between logits as they are taken here and the model's own, as a share of the largest logit."""
    model, device = backbone.model, next(backbone.model.parameters()).device
    token = np.arange(1, 9) * 37 % model.get_input_embeddings().num_embeddings
    prompts = [token[:4], token[2:4]]
    endings = [(prompt, tail) for prompt in (0, 1) for tail in (token[4:6], token[6:8])]
    rows = [np.concatenate([prompts[prompt], tail]) for prompt, tail in endings]
    own = [model(input_ids=torch.from_numpy(row)[None].to(device)).logits[0] for row in rows]
    hidden = [
        model.base_model(
            input_ids=torch.from_numpy(row)[None].to(device), use_cache=False
        ).last_hidden_state[0]
        for row in rows
    ]
    pairs = [(backbone.logits(states), logits) for states, logits in zip(hidden, own, strict=True)]
    cache, last = prefill(model, prompts, backbone.tokenizer.pad_token_id, steps=2)
    first = backbone.logits(last)
    pairs += [
        (first[prompt], logits[len(prompts[prompt]) - 1])
        for (prompt, _), logits in zip(endings, own, strict=True)
    ]
    slot = np.array([0, 0, 1, 1])
    with decoding(model, cache) as read:
        for step in range(2):
            slot = cache.advance(slot)
            logits = backbone.logits(read(slot, np.array([tail[step] for _, tail in endings])))
            pairs += [(logits[slot[at]], own[at][len(rows[at]) - 2 + step]) for at in range(4)]
    return max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)
