"""RecBole's models as what evaluation ranks by."""

from collections import Counter

import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender

from ..contracts.cases import Cases
from ..contracts.models import Scorer
from .histories import by_history

MAX_PAIRS = 4096  # (case, item) pairs per `predict`
PROBED_ITEMS = 64  # items that a model without `full_sort_predict` is probed by


def scorer_of(model, dataset) -> Scorer:
    """What evaluation ranks by: the model itself, or a model of RecBole's as a scorer."""
    return model if isinstance(model, Scorer) else RecBoleScorer(model, dataset)


class RecBoleScorer(Scorer):
    """Scores by `full_sort_predict`, or by `predict` on pairs where a model has no other.

    RecBole's padding item is cut off. A model may say by `alike`, int64 [items], whose score each
    item has: a product over the catalogue breaks ties in the last bit.

    Parameters
    ----------
    model : RecBole's recommender
    dataset : its dataset, which makes the batches that it reads
    """

    def __init__(self, model: AbstractRecommender, dataset):
        self.model, self.dataset = model, dataset
        self.counts: Counter = Counter()
        kind = type(model)
        self.scores_all = kind.full_sort_predict is not AbstractRecommender.full_sort_predict
        self.judges_candidates = not self.scores_all
        self.alike = getattr(model, "alike", None)  # a buffer of replaced embeddings

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def training(self) -> bool:
        return self.model.training

    def eval(self):
        self.model.eval()

    def train(self, mode: bool = True):
        self.model.train(mode)

    def score_catalogue(self, cases):
        return by_history(
            self.model, self.dataset, cases, lambda rows: self._score_catalogue(cases[rows])
        )

    def _score_catalogue(self, cases: Cases) -> torch.Tensor:
        batch, count = self.dataset.case_batch(cases), self.dataset.item_num
        if self.scores_all:
            scores = self.model.full_sort_predict(batch.to(self.model.device))
            scores = scores.view(len(cases), count)[:, 1:]
        else:
            scores = self._predict(batch, torch.arange(1, count).expand(len(cases), -1))
        return scores if self.alike is None else scores.index_select(1, self.alike)

    def score_candidates(self, cases, items):
        if self.scores_all:
            scores = self.score_catalogue(cases)
            return scores.gather(1, items.to(scores.device))

        def score(rows: np.ndarray) -> torch.Tensor:
            return self._predict(self.dataset.case_batch(cases[rows]), items[rows] + 1)

        return by_history(self.model, self.dataset, cases, score)

    def _predict(self, batch, items: torch.Tensor) -> torch.Tensor:
        """[cases, C] scores by `predict` of (case, item) pairs, in parts; items are RecBole's ids."""
        flat = []
        rows = max(1, MAX_PAIRS // items.shape[1])
        for row in range(0, len(items), rows):
            part = slice(row, row + rows)
            for columns in items[part].split(MAX_PAIRS, dim=1):
                pairs = self.dataset.add_items(batch[part], columns)
                scores = self.model.predict(pairs.to(self.model.device)).float()
                flat.append(scores.view(len(columns), -1))
        widths = -(-items.shape[1] // MAX_PAIRS)
        lines = [flat[at : at + widths] for at in range(0, len(flat), widths)]
        return torch.cat([torch.cat(line, dim=1) for line in lines])

    def probe(self, cases):
        if self.scores_all:
            return self.score_catalogue(cases)
        items = torch.arange(1, min(self.dataset.item_num, PROBED_ITEMS + 1))
        return self._predict(self.dataset.case_batch(cases), items.expand(len(cases), -1))
