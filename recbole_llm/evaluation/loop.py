"""The one evaluation loop: every model, stock or ours, is ranked here."""

from dataclasses import dataclass

import numpy as np
import torch

from ..contracts.cases import Cases
from ..storage.progress import progress as shown
from .ranks import UNNAMED, RankTable, rank_targets
from .recbole_scorer import scorer_of
from .resumable import Kept, Piece, joined, missing


@dataclass(frozen=True)
class TopLists:
    """The best items of every case: int32 Tables indices [cases, k] and float32 scores [cases, k], best first.

    Where there is no item, -1 with `UNNAMED`: fewer than k items were named.
    """

    items: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def rank_cases(
    model, dataset, cases: Cases, *, candidates: np.ndarray | None = None, mask_history: bool = False,
    memory: float = 128, topk: int = 0, progress: str | None = None, kept: Kept | None = None,
) -> tuple[RankTable, TopLists | None]:  # fmt: skip
    """Rank each case's target.

    The model sees `dataset.case_batch(cases)`, which holds neither the target nor anything that came with it,
    and gives scores over the catalogue; a case's row says how many items lie above the target and how many tie
    with it. Peak memory is O(cases + memory), whatever the size of the catalogue. A model that names only a part of the
    catalogue says so by `names_all` = False, and is ranked by the rule of `ranks`.

    Parameters
    ----------
    candidates : int64 [cases, K] Tables indices; the target is ranked among them. None ranks the catalogue.
    mask_history : leave the items of the case's history out, except the target.
    memory : MiB of scores held at once.
    topk : length of the lists to return; 0 returns None for them.
    kept : what is ranked so far of the same cases, from which the ranking goes on; the caller removes it.
    """
    scorer, tables = scorer_of(model, dataset), dataset.tables
    scorer.eval()
    pairwise = candidates is not None and scorer.judges_candidates
    width = candidates.shape[1] + 1 if pairwise else len(tables.items)
    rows = int(max(1, min(scorer.max_cases, memory * 2**20 // (4 * width))))
    pieces: list[Piece] = [] if kept is None else kept.pieces
    if kept is not None:
        kept.start()
    for begin, end in shown(
        list(missing(pieces, len(cases), rows)), desc=progress, disable=progress is None
    ):
        batch = cases[begin:end]
        target = torch.from_numpy(tables.item[batch.end].astype(np.int64))
        chosen = None
        if candidates is not None:
            chosen = torch.cat([target[:, None], torch.from_numpy(candidates[begin:end])], dim=1)
        if pairwise:
            scores = scorer.score_candidates(batch, chosen)
        else:
            scores = scorer.score_catalogue(batch)
            if chosen is not None:
                scores = scores.gather(1, chosen.to(scores.device))
        masked = _mask(scores, tables, batch, chosen) if mask_history else 0
        index = (target if chosen is None else torch.zeros_like(target)).to(scores.device)
        no_item = np.zeros(len(batch), bool)
        fallback = no_item if scorer.fallback is None else scorer.fallback
        unnamed = (scores.gather(1, index[:, None])[:, 0] == UNNAMED).cpu().numpy() & ~fallback
        if unnamed.any() and scorer.names_all:
            raise FloatingPointError(
                f"{type(model).__name__} scored {int(unnamed.sum())} targets -inf: a score must "
                "rank every item"
            )
        n_candidates = np.full(len(batch), scores.shape[1]) - masked
        above, tied = rank_targets(scores, index, torch.from_numpy(n_candidates).to(scores.device))
        table = RankTable(
            user=tables.users[batch.user], target=tables.items[tables.item[batch.end]], position=batch.end - tables.start[batch.user],
            above=above.cpu().numpy(), tied=tied.cpu().numpy(), n_candidates=n_candidates, fallback=fallback,
        )  # fmt: skip
        lists = _top(scores, chosen, topk) if topk else None
        if kept is None:
            pieces.append(Piece(begin, table, lists))
        else:
            kept.add(Piece(begin, table, lists))
    whole = joined(pieces)
    return whole.table, TopLists(*whole.lists) if topk else None


def catalogue_scores(model, dataset, cases: Cases) -> torch.Tensor:
    """[cases, items] scores, writable, on the model's device."""
    return scorer_of(model, dataset).score_catalogue(cases)


def _mask(scores: torch.Tensor, tables, cases: Cases, chosen: torch.Tensor | None) -> np.ndarray:
    """Write -inf at the items of each case's history, its target excepted; returns how many columns, int [cases].

    The columns of scores are the catalogue, or the items of `chosen` [cases, C].
    """
    size = len(tables.items)
    row = np.repeat(np.arange(len(cases)), cases.end - cases.begin)
    met = np.concatenate(
        [tables.item[begin:end] for begin, end in zip(cases.begin, cases.end, strict=True)]
    )
    keys = np.unique(row * size + met)
    row, column = np.divmod(keys[keys % size != tables.item[cases.end][keys // size]], size)
    if chosen is not None:
        pairs = chosen.numpy() + size * np.arange(len(cases))[:, None]
        row, column = np.isin(pairs, row * size + column).nonzero()
    scores[
        torch.from_numpy(row).to(scores.device), torch.from_numpy(column).to(scores.device)
    ] = -torch.inf
    return np.bincount(row, minlength=len(cases))


def _top(
    scores: torch.Tensor, chosen: torch.Tensor | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(items, scores) as in TopLists."""
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
    """The k largest of each row, [cases, k], in falling order, equal ones by column; their columns.

    The k-th largest of group maxima has at least k scores that reach it, and few more: only those are sorted.
    """
    size = max(1, scores.shape[1] // (3 * k))
    groups = scores.shape[1] // size
    maxima = scores[:, : size * groups].reshape(len(scores), size, groups).max(axis=1)
    bounds = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    values, columns = np.empty((len(scores), k), scores.dtype), np.empty((len(scores), k), np.int32)
    for case, (row, bound) in enumerate(zip(scores, bounds)):
        over = np.flatnonzero(row > bound)
        if len(over) < k:  # then the bound is the k-th largest itself
            over = np.append(over, np.flatnonzero(row == bound)[: k - len(over)])
        falling = -row[over]
        order = falling.argsort()  # five times as fast as a stable sort, which only ties need
        if (falling[order[1:]] == falling[order[:-1]]).any():
            order = falling.argsort(kind="stable")
        values[case], columns[case] = -falling[order[:k]], over[order[:k]]
    return values, columns
