"""Losses that several models share, and their backward pass over batches larger than memory."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

Forward = Callable[[object, bool], tuple[torch.Tensor, torch.Tensor]]
Join = Callable[[torch.Tensor], torch.Tensor]


def in_batch_contrast(
    queries: torch.Tensor, keys: torch.Tensor, temperature: float, equal: torch.Tensor | None = None
) -> torch.Tensor:
    """-(1/N) sum_i log [ exp(cos(q_i, k_i) / t) / sum_j exp(cos(q_j, k_i) / t) ] for [N, width] vectors.

    The negatives of a key are the other queries (CALRec, equations 2 and 3: the sum runs over the first argument).

    equal : bool [N, N], pairs i, j that are no negatives of each other, such as those of one item; they are left out of the sums.
    """
    similarity = (
        F.normalize(keys.float(), dim=1) @ F.normalize(queries.float(), dim=1).T / temperature
    )
    if equal is not None:
        similarity = similarity.masked_fill(
            equal & ~torch.eye(len(keys), dtype=torch.bool, device=keys.device), -torch.inf
        )
    return F.cross_entropy(similarity, torch.arange(len(keys), device=keys.device))


def symmetric_contrast(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    temperature: float,
    equal: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiple negatives, symmetric: with S_ij = cos(a_i, p_j) / t, the mean of the cross-entropies of rows and of columns, the diagonal being right."""
    return (
        in_batch_contrast(positives, anchors, temperature, equal)
        + in_batch_contrast(anchors, positives, temperature, equal)
    ) / 2


def over_catalogue(
    states: torch.Tensor,
    items: torch.Tensor,
    same: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Sum over [rows] of -log [ exp(cos(s, v_label) / t) / sum_j exp(cos(s, v_j) / t) ], in float32 also under autocast: near 1, bf16 has steps of 0.004.

    states, items : [rows, width] and distinct item vectors [texts, width].
    same, labels : int64 [items], which vector is each item's; int64 [rows], numbers of items.
    """
    with torch.autocast(states.device.type, enabled=False):
        cosines = F.normalize(states.float(), dim=1) @ F.normalize(items.float(), dim=1)[same].T
        return F.cross_entropy(cosines / temperature, labels, reduction="sum")


def over_candidates(
    users: torch.Tensor, items: torch.Tensor, target: torch.Tensor, wrong: torch.Tensor
) -> torch.Tensor:
    """[..., users] in float32, or float64 as the vectors: -log [ exp(u · v_target) / sum_j exp(u · v_j) ], j over items that are not `wrong` (TASTE).

    users, items : [..., users, width] and [..., items, width]. target : int64 [users]. wrong : bool [..., users, items], not looked at for the target.
    """
    with torch.autocast(users.device.type, enabled=False):
        users, items = (
            one if one.dtype == torch.float64 else one.float() for one in (users, items)
        )
        products = users @ items.transpose(-1, -2)
        own = F.one_hot(target, products.shape[-1]).bool()
        products = products.masked_fill(wrong & ~own, -torch.inf)
        return products.logsumexp(dim=-1) - products.masked_fill(~own, 0).sum(dim=-1)


def backward(
    forward: Forward,
    batches: Sequence,
    join: Join | None,
    scale: Callable = lambda loss: loss,
    whole: bool = False,
) -> float:
    """Gradients of sum(own losses of the batches) + join(vectors of all batches), with one batch's graph in memory at a time unless `whole`.

    Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021):
    vectors are computed without a graph, `join` gives their gradients, and each batch is run again with its share of them.

    Parameters
    ----------
    forward : (batch, own) -> (own loss, vectors [rows, ...]); the own loss is not looked at where `own` is False.
    join : None if no loss is taken over all rows.
    scale : a gradient scaler's `scale`.
    whole : the graphs of all batches fit in memory together: nothing has to be run twice.

    Returns
    -------
    The value of the whole loss.
    """
    total = 0.0
    if join is None:
        for batch in batches:
            loss, _ = forward(batch, True)
            scale(loss).backward()
            total += loss.item()
        return total
    if whole or len(batches) == 1:
        losses, parts = zip(*(forward(batch, True) for batch in batches), strict=True)
        loss = sum(losses) + join(torch.cat(parts))
        scale(loss).backward()
        return loss.item()
    states, parts = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(_random_state())
            parts.append(forward(batch, False)[1])
    vectors = torch.cat(parts).requires_grad_()
    loss = join(vectors)
    loss.backward()
    total += loss.item()
    after = _random_state()
    for batch, state, gradient in zip(
        batches, states, vectors.grad.split([len(part) for part in parts]), strict=True
    ):
        _set_random_state(state)  # the same dropout as in the first pass
        loss, part = forward(batch, True)
        total += loss.item()
        scale(loss + (part * gradient).sum()).backward()
    _set_random_state(after)
    return total


def _random_state() -> list[torch.Tensor]:
    return [
        torch.get_rng_state(),
        *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []),
    ]


def _set_random_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
