"""The evaluation loop: it ranks the targets of cases for every model, RecBole's and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..contracts.cases import Cases
from ..contracts.interactions import Interactions
from ..contracts.models import Scorer
from ..storage.progress import progress as shown
from .ranks import UNNAMED, RankTable, rank_targets
from .recbole_scorer import RecBoleScorer, scorer_of
from .resumable import Kept, Piece, joined, missing


@dataclass(frozen=True)
class TopLists:
    """The best items of every case.

    Attributes
    ----------
    items : ndarray of int32, [n_cases, k]
        Item indices of `Interactions.items`, best first; -1 if fewer than k items are named.
    scores : ndarray of float32, [n_cases, k]
        Their scores; `UNNAMED` for no item.
    """

    items: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def rank_cases(
    model: Any,
    dataset: Any,
    cases: Cases,
    *,
    candidates: np.ndarray | None = None,
    mask_history: bool = False,
    memory: float = 128,
    topk: int = 0,
    progress: str | None = None,
    kept: Kept | None = None,
) -> tuple[RankTable, TopLists | None]:
    """Rank each case's target, in memory of O(cases + memory), whatever the catalogue's size.

    A model of RecBole reads `dataset.case_batch(cases)`, in which nothing is of the targets.

    Parameters
    ----------
    model : Scorer or recommender of RecBole
        The model, ranked by the rules of :mod:`recbole_llm.evaluation.ranks`.
    dataset : dataset of RecBole
        Has the interactions as `interactions`, and makes the batches that the model reads.
    cases : Cases
        The cases.
    candidates : ndarray of int64, [n_cases, K], optional
        Item indices among which the target is ranked; by default the catalogue.
    mask_history : bool
        Whether the items of a case's history, except its target, are no candidates.
    memory : float
        MiB of scores that are held at once.
    topk : int
        Length of the top lists.
    progress : str, optional
        Description of the progress that is shown; by default none is.
    kept : Kept, optional
        What is ranked so far of the same cases, which is continued; the caller removes its file.

    Returns
    -------
    table : RankTable
        The ranks.
    lists : TopLists or None
        The top lists; None if `topk` is 0.

    Raises
    ------
    FloatingPointError
        If a score is NaN, or a model that names all items scores a target -inf.
    """
    scorer, interactions = scorer_of(model, dataset), dataset.interactions
    scorer.eval()
    pieces, add = _started(kept)
    size = _batch_size(scorer, interactions, candidates, memory)
    batches = list(missing(pieces, len(cases), size))
    for begin, end in shown(batches, desc=progress, disable=progress is None):
        negatives = None if candidates is None else candidates[begin:end]
        ranked = _rank_batch(scorer, interactions, cases[begin:end], negatives, mask_history, topk)
        add(Piece(begin, *ranked))
    result = joined(pieces)
    return result.table, TopLists(*result.lists) if topk and result.lists else None


def _started(kept: Kept | None) -> tuple[list[Piece], Callable[[Piece], None]]:
    """What is ranked so far, and the function that adds a piece to it."""
    if kept is None:
        pieces: list[Piece] = []
        return pieces, pieces.append
    kept.start()
    return kept.pieces, kept.add


def _batch_size(
    scorer: Scorer, interactions: Interactions, candidates: np.ndarray | None, memory: float
) -> int:
    """Number of cases whose scores, 4 bytes each, fit into `memory` MiB; 1 at least."""
    width = len(interactions.items)
    if candidates is not None and scorer.judges_candidates:
        width = candidates.shape[1] + 1
    return int(max(1, min(scorer.max_cases, memory * 2**20 // (4 * width))))


def _rank_batch(
    scorer: Scorer,
    interactions: Interactions,
    cases: Cases,
    negatives: np.ndarray | None,
    mask_history: bool,
    topk: int,
) -> tuple[RankTable, tuple[np.ndarray, np.ndarray] | None]:
    """The ranks of a batch of cases, and its top lists if `topk` is not 0; see `rank_cases`."""
    target = torch.from_numpy(interactions.item[cases.end].astype(np.int64))
    column, chosen = target, None
    if negatives is not None:
        # the target comes first
        chosen = torch.cat([target[:, None], torch.from_numpy(negatives)], dim=1)
        column = torch.zeros_like(target)
    scores = _scores(scorer, cases, chosen)
    n_candidates = np.full(len(cases), scores.shape[1])
    if mask_history:
        n_candidates -= _mask(scores, interactions, cases, chosen)
    table = _rank_scores(
        scorer, interactions, cases, scores, column.to(scores.device), n_candidates
    )
    return table, _top(scores, chosen, topk) if topk else None


def _scores(scorer: Scorer, cases: Cases, chosen: torch.Tensor | None) -> torch.Tensor:
    """Scores of the catalogue, or of the items of `chosen`, int64 [n_cases, n_candidates]."""
    if chosen is None:
        return scorer.score_catalogue(cases)
    if scorer.judges_candidates:
        return scorer.score_candidates(cases, chosen)
    scores = scorer.score_catalogue(cases)
    return scores.gather(1, chosen.to(scores.device))


def _rank_scores(
    scorer: Scorer,
    interactions: Interactions,
    cases: Cases,
    scores: torch.Tensor,
    column: torch.Tensor,
    n_candidates: np.ndarray,
) -> RankTable:
    """Rank the targets of cases by scores.

    Parameters
    ----------
    scorer : Scorer
        The model that has just scored the cases.
    interactions : Interactions
        The dataset.
    cases : Cases
        The cases.
    scores : Tensor of float, [n_cases, n_columns]
        Scores of the candidates, and -inf for masked items.
    column : Tensor of int64, [n_cases]
        Column of each case's target.
    n_candidates : ndarray of int64, [n_cases]
        Number of candidates, the target included.

    Returns
    -------
    RankTable
        The ranks.
    """
    fallback = np.zeros(len(cases), bool) if scorer.fallback is None else scorer.fallback
    target_scores = scores.gather(1, column[:, None])[:, 0]
    is_unnamed = (target_scores == UNNAMED).cpu().numpy() & ~fallback
    if is_unnamed.any() and scorer.names_all:
        raise FloatingPointError(
            f"{_class_name(scorer)} scored {int(is_unnamed.sum())} targets -inf: a score must "
            "rank every item"
        )
    counts = torch.from_numpy(n_candidates).to(scores.device)
    above, tied = rank_targets(scores, column, counts)
    return RankTable(
        user=interactions.users[cases.user],
        target=interactions.items[interactions.item[cases.end]],
        position=cases.end - interactions.start[cases.user],
        above=above.cpu().numpy(),
        tied=tied.cpu().numpy(),
        n_candidates=n_candidates,
        fallback=fallback,
    )


def _class_name(scorer: Scorer) -> str:
    """Name of the class of a model that may be wrapped by a scorer."""
    return type(scorer.model if isinstance(scorer, RecBoleScorer) else scorer).__name__


def catalogue_scores(model: Any, dataset: Any, cases: Cases) -> torch.Tensor:
    """Score every item for each case.

    Parameters
    ----------
    model : Scorer or recommender of RecBole
        The model.
    dataset : dataset of RecBole
        Makes the batches that it reads.
    cases : Cases
        The cases.

    Returns
    -------
    Tensor of float, [n_cases, n_items]
        Scores on the model's device, which the caller may overwrite.
    """
    return scorer_of(model, dataset).score_catalogue(cases)


def _mask(
    scores: torch.Tensor, interactions: Interactions, cases: Cases, chosen: torch.Tensor | None
) -> np.ndarray:
    """Write -inf to the items of each case's history, except its target.

    Parameters
    ----------
    scores : Tensor of float, [n_cases, n_columns]
        Scores of the catalogue, or of `chosen`.
    interactions : Interactions
        The dataset.
    cases : Cases
        The cases.
    chosen : Tensor of int64, [n_cases, n_columns], or None
        Item indices of the columns; None for those of the catalogue.

    Returns
    -------
    ndarray of int64, [n_cases]
        Number of masked columns.
    """
    size = len(interactions.items)
    row = np.repeat(np.arange(len(cases)), cases.end - cases.begin)
    keys = np.unique(row * size + np.concatenate(cases.histories(interactions)))
    row, column = np.divmod(keys[keys % size != interactions.item[cases.end][keys // size]], size)
    if chosen is not None:
        pairs = chosen.numpy() + size * np.arange(len(cases))[:, None]
        row, column = np.isin(pairs, row * size + column).nonzero()
    index = tuple(torch.from_numpy(part).to(scores.device) for part in (row, column))
    scores[index] = -torch.inf
    return np.bincount(row, minlength=len(cases))


def _top(
    scores: torch.Tensor, chosen: torch.Tensor | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores of the top lists, as in `TopLists`."""
    k = min(k, scores.shape[1])
    scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    if scores.device.type == "cpu":
        values, items = _best(scores.numpy(), k)
    else:
        values, items = (part.cpu().numpy() for part in scores.topk(k, dim=1))
    if chosen is not None:
        items = np.take_along_axis(chosen.numpy(), items, axis=1)
    values = values.astype(np.float32, copy=False)
    return np.where(np.isneginf(values), -1, items).astype(np.int32, copy=False), values


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest scores of each row, largest first, and their columns; ties by column.

    The k-th largest of the maxima of groups of columns is a bound that at least k scores reach, and
    few more, so that only those are sorted.
    """
    size = max(1, scores.shape[1] // (3 * k))
    groups = scores.shape[1] // size
    maxima = scores[:, : size * groups].reshape(len(scores), size, groups).max(axis=1)
    bounds = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    values, columns = np.empty((len(scores), k), scores.dtype), np.empty((len(scores), k), np.int32)
    for case, (row, bound) in enumerate(zip(scores, bounds)):
        reaching = np.flatnonzero(row > bound)
        if len(reaching) < k:
            # the bound is the k-th largest score itself
            reaching = np.append(reaching, np.flatnonzero(row == bound)[: k - len(reaching)])
        falling = -row[reaching]
        # a stable sort, which only ties need, takes five times as long
        order = falling.argsort()
        if (falling[order[1:]] == falling[order[:-1]]).any():
            order = falling.argsort(kind="stable")
        values[case], columns[case] = -falling[order[:k]], reaching[order[:k]]
    return values, columns
