"""Losses that several models share, and their backward pass over batches larger than memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

# (batch, with_loss) -> (loss of the batch alone, vectors [rows, ...])
Forward = Callable[[Any, bool], tuple[torch.Tensor, torch.Tensor]]
# vectors of all batches -> their joint loss
Join = Callable[[torch.Tensor], torch.Tensor]
Scale = Callable[[torch.Tensor], torch.Tensor]


def in_batch_contrast(
    queries: torch.Tensor, keys: torch.Tensor, temperature: float, equal: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the contrastive loss of pairs, with the other pairs as negatives.

    It is -(1/N) sum_i log [ exp(cos(q_i, k_i) / t) / sum_j exp(cos(q_j, k_i) / t) ]. The negatives
    of a key are the other queries (CALRec, equations 2 and 3: the sum runs over the first
    argument).

    Parameters
    ----------
    queries : Tensor of float [N, width]
        One vector of each pair.
    keys : Tensor of float [N, width]
        The other vector of each pair.
    temperature : float
        The t of the formula.
    equal : Tensor of bool [N, N], optional
        Pairs i, j that are no negatives of each other, such as two pairs of one item. They are not
        in the sums.

    Returns
    -------
    Tensor of float32 []
        Mean over the pairs.
    """
    similarity = (
        F.normalize(keys.float(), dim=1) @ F.normalize(queries.float(), dim=1).T / temperature
    )
    if equal is not None:
        diagonal = torch.eye(len(keys), dtype=torch.bool, device=keys.device)
        similarity = similarity.masked_fill(equal & ~diagonal, -torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(keys), device=keys.device))


def symmetric_contrast(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    temperature: float,
    equal: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the symmetric multiple-negatives ranking loss.

    It is the mean of `in_batch_contrast` in both directions.

    Parameters
    ----------
    anchors : Tensor of float [N, width]
        One vector of each pair.
    positives : Tensor of float [N, width]
        The other vector of each pair.
    temperature : float
        Divisor of the cosines.
    equal : Tensor of bool [N, N], optional
        See `in_batch_contrast`.

    Returns
    -------
    Tensor of float32 []
        Mean over the pairs and both directions.
    """
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
    """Compute the softmax loss over all items by the cosine of states and item vectors.

    It is the sum over rows of -log [ exp(cos(s, v_label) / t) / sum_j exp(cos(s, v_j) / t) ]. It is
    computed in float32 also under autocast, because bf16 has steps of 0.004 near 1.

    Parameters
    ----------
    states : Tensor of float [rows, width]
        One state for each prediction.
    items : Tensor of float [vectors, width]
        Distinct item vectors.
    same : Tensor of int64 [items]
        The index of each item's vector.
    labels : Tensor of int64 [rows]
        The item number to be predicted in each row.
    temperature : float
        The t of the formula.

    Returns
    -------
    Tensor of float32 []
        Sum over the rows.
    """
    with torch.autocast(states.device.type, enabled=False):
        cosines = F.normalize(states.float(), dim=1) @ F.normalize(items.float(), dim=1)[same].T
        return F.cross_entropy(cosines / temperature, labels, reduction="sum")


def over_candidates(
    users: torch.Tensor, items: torch.Tensor, target: torch.Tensor, wrong: torch.Tensor
) -> torch.Tensor:
    """Compute the softmax loss over candidates by inner products (TASTE, CIKM 2023).

    It is -log [ exp(u · v_target) / sum_j exp(u · v_j) ] for each user, where j runs over the
    items that are not `wrong`.

    Parameters
    ----------
    users : Tensor of float [..., users, width]
        User vectors.
    items : Tensor of float [..., items, width]
        Candidate vectors.
    target : Tensor of int64 [users]
        Index of each user's target among the candidates.
    wrong : Tensor of bool [..., users, items]
        Candidates that are no negatives of a user. The value at the target has no effect.

    Returns
    -------
    Tensor of float32 or float64 [..., users]
        Losses; float64 where the vectors are.
    """
    with torch.autocast(users.device.type, enabled=False):
        products = _at_least_float32(users) @ _at_least_float32(items).transpose(-1, -2)
        is_target = F.one_hot(target, products.shape[-1]).bool()
        products = products.masked_fill(wrong & ~is_target, -torch.inf)
        return products.logsumexp(dim=-1) - products.masked_fill(~is_target, 0).sum(dim=-1)


def _at_least_float32(vectors: torch.Tensor) -> torch.Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def backward(
    forward: Forward,
    batches: Sequence,
    join: Join | None,
    scale: Scale = lambda loss: loss,
    keep_graphs: bool = False,
) -> float:
    """Compute the gradients of a loss over several batches.

    The loss is the sum of the batches' losses, plus `join` of the vectors of all batches. The graph
    of one batch is in memory at a time, unless `keep_graphs`: vectors are computed without a graph,
    `join` gives their gradients, and each batch is run again with its share of these (gradient
    caching; Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    RepL4NLP 2021).

    Parameters
    ----------
    forward : callable
        (batch, with_loss) -> (loss, vectors). The loss has no effect where `with_loss` is False.
    batches : sequence
        Batches, in any form that `forward` takes.
    join : callable or None
        Vectors of all batches -> loss; None if no loss is taken over all batches. The vectors then
        have no effect.
    scale : callable
        The method `scale` of a gradient scaler.
    keep_graphs : bool
        Whether the graphs of all batches fit in memory together, so that no batch is run twice.

    Returns
    -------
    float
        The value of the loss.
    """
    if join is None:
        return _backward_by_batch(forward, batches, scale)
    if keep_graphs or len(batches) == 1:
        results = [forward(batch, True) for batch in batches]
        loss = sum(loss for loss, _ in results) + join(torch.cat([part for _, part in results]))
        scale(loss).backward()
        return loss.item()
    return _backward_cached(forward, batches, join, scale)


def _backward_by_batch(forward: Forward, batches: Sequence, scale: Scale) -> float:
    """Sum the gradients of the batches' losses."""
    total = 0.0
    for batch in batches:
        loss, _ = forward(batch, True)
        scale(loss).backward()
        total += loss.item()
    return total


def _backward_cached(forward: Forward, batches: Sequence, join: Join, scale: Scale) -> float:
    """Run each batch twice: without a graph for its vectors, then with their gradients."""
    states, parts = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(random_state())
            parts.append(forward(batch, False)[1])
    vectors = torch.cat(parts).requires_grad_()
    loss = join(vectors)
    loss.backward()
    total = loss.item()
    assert vectors.grad is not None
    gradients = vectors.grad.split([len(part) for part in parts])
    state_after = random_state()
    for batch, state, gradient in zip(batches, states, gradients, strict=True):
        set_random_state(state)  # the same dropout as in the first pass
        loss, part = forward(batch, True)
        total += loss.item()
        scale(loss + (part * gradient).sum()).backward()
    set_random_state(state_after)
    return total


def random_state() -> list[torch.Tensor]:
    """Return the states of torch's generators.

    Returns
    -------
    list of Tensor of uint8
        That of the CPU, followed by those of all GPUs.
    """
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *gpu_states]


def set_random_state(state: list[torch.Tensor]) -> None:
    """Set torch's generators.

    Parameters
    ----------
    state : list of Tensor
        What `random_state` has returned.
    """
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
