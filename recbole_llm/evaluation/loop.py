"""The one evaluation loop: every model, stock or ours, is ranked here."""

from dataclasses import dataclass

import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from tqdm import tqdm

from ..data.splits import Cases
from .ranks import RankTable, count_above_and_tied

MAX_CASES = 1024  # cases per forward pass, whatever the memory
MAX_PAIRS = 4096  # (case, item) pairs per `predict`


@dataclass(frozen=True)
class TopLists:
    """The best items of every case: int32 Tables indices [cases, k] and float32 scores [cases, k]; -1 pads."""

    items: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def rank_cases(
    model, dataset, cases: Cases, *, candidates: np.ndarray | None = None, mask_history: bool = False,
    memory: float = 128, topk: int = 0, progress: str | None = None,
) -> tuple[RankTable, TopLists | None]:  # fmt: skip
    """Rank each case's target.

    The model sees `dataset.case_batch(cases)`, which holds neither the target nor anything that came with it,
    and gives scores over the catalogue; a case's row says how many items lie above the target and how many tie
    with it. Peak memory is O(cases + memory), whatever the size of the catalogue.

    Parameters
    ----------
    candidates : int64 [cases, K] Tables indices; the target is ranked among them. None ranks the catalogue.
    mask_history : leave the items of the case's history out, except the target.
    memory : MiB of scores held at once.
    topk : length of the lists to return; 0 returns None for them.
    """
    model.eval()
    pairwise = candidates is not None and not _scores_all(model)
    width = dataset.item_num - 1 if not pairwise else candidates.shape[1] + 1
    rows = int(max(1, min(getattr(model, "max_cases", MAX_CASES), memory * 2**20 // (4 * width))))
    tables = dataset.tables
    parts, lists = [], []
    for begin in tqdm(range(0, len(cases), rows), desc=progress, disable=progress is None, ncols=100):
        batch = cases[begin : begin + rows]
        target = torch.from_numpy(tables.item[batch.end].astype(np.int64))
        chosen = None
        if candidates is not None:
            chosen = torch.cat([target[:, None], torch.from_numpy(candidates[begin : begin + rows])], dim=1)
        if pairwise:
            scores = _predict(model, dataset, dataset.case_batch(batch), chosen + 1)
        else:
            scores = catalogue_scores(model, dataset, batch)
            if mask_history:
                _mask(scores, tables, batch, target)
            if chosen is not None:
                scores = scores.gather(1, chosen.to(scores.device))
        index = (target if chosen is None else torch.zeros_like(target)).to(scores.device)
        own = scores.gather(1, index[:, None])
        if torch.isneginf(own).any():
            raise FloatingPointError(f"{type(model).__name__} scored {int(torch.isneginf(own).sum())} targets -inf: a score must rank every item")
        above, tied = count_above_and_tied(scores, index)
        count = (~torch.isneginf(scores)).sum(dim=1) if mask_history else torch.full((len(batch),), scores.shape[1])
        fallback = getattr(model, "fallback", None)
        table = RankTable(
            user=tables.users[batch.user], target=tables.items[tables.item[batch.end]], position=batch.end - tables.start[batch.user],
            above=above.cpu().numpy(), tied=tied.cpu().numpy(), n_candidates=count.cpu().numpy(),
            fallback=np.zeros(len(batch), bool) if fallback is None else fallback,
        )  # fmt: skip
        parts.append(table)
        if topk:
            lists.append(_top(scores, chosen, topk))
    top = TopLists(*(np.concatenate(column) for column in zip(*lists, strict=True))) if topk else None
    return RankTable.concat(parts), top


def _scores_all(model) -> bool:
    return type(model).full_sort_predict is not AbstractRecommender.full_sort_predict


def catalogue_scores(model, dataset, cases: Cases) -> torch.Tensor:
    """[cases, items] scores, writable, on the model's device; RecBole's padding item is cut off."""
    interaction = dataset.case_batch(cases)
    if _scores_all(model):
        return model.full_sort_predict(interaction.to(model.device)).view(len(cases), dataset.item_num)[:, 1:]
    return _predict(model, dataset, interaction, torch.arange(1, dataset.item_num).expand(len(cases), -1))


def _predict(model, dataset, interaction, items: torch.Tensor) -> torch.Tensor:
    """[cases, C] scores by `predict` on every (case, item) pair, in pieces that fit; items are RecBole's ids."""
    flat = []
    rows = max(1, MAX_PAIRS // items.shape[1])
    for row in range(0, len(items), rows):
        piece = slice(row, row + rows)
        for columns in items[piece].split(MAX_PAIRS, dim=1):
            pairs = dataset.add_items(interaction[piece], columns)
            flat.append(model.predict(pairs.to(model.device)).float().view(len(columns), -1))
    widths = -(-items.shape[1] // MAX_PAIRS)
    return torch.cat([torch.cat(flat[at : at + widths], dim=1) for at in range(0, len(flat), widths)])


def _mask(scores: torch.Tensor, tables, cases: Cases, target: torch.Tensor) -> None:
    target = target[:, None].to(scores.device)
    kept = scores.gather(1, target)
    row = np.repeat(np.arange(len(cases)), cases.end - cases.begin)
    met = np.concatenate([tables.item[begin:end] for begin, end in zip(cases.begin, cases.end, strict=True)]).astype(np.int64)
    scores[torch.from_numpy(row).to(scores.device), torch.from_numpy(met).to(scores.device)] = -torch.inf
    scores.scatter_(1, target, kept)


def _top(scores: torch.Tensor, chosen: torch.Tensor | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    values, items = best.values.float().cpu(), best.indices.cpu()
    if chosen is not None:
        items = chosen.gather(1, items)
    items = torch.where(torch.isneginf(values), -1, items)
    return items.to(torch.int32).numpy(), values.numpy()
