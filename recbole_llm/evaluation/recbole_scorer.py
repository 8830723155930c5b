"""RecBole's models as scorers."""

from collections import Counter
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender

from ..contracts.cases import Cases
from ..contracts.models import Scorer
from .histories import by_history
from .ranks import checked_scores

# (case, item) pairs in one call of `predict`
MAX_PAIRS = 4096
# items that `probe` scores with a model without `full_sort_predict`
PROBED_ITEMS = 64


def scorer_of(model: Any, dataset: Any) -> Scorer:
    """Adapt a model to what evaluation reads.

    Parameters
    ----------
    model : Scorer or recommender of RecBole
        The model.
    dataset : dataset of RecBole
        The data that it was built on.

    Returns
    -------
    Scorer
        The model itself if it is one, else a scorer that calls it.
    """
    return model if isinstance(model, Scorer) else RecBoleScorer(model, dataset)


class RecBoleScorer(Scorer):
    """Scores by `full_sort_predict` of a model of RecBole, or by `predict` if it has no other.

    RecBole's padding item is removed. A model may have an attribute `alike`, int64 [n_items]: the
    item whose score each item gets. Without it, items of equal vectors may differ in the last bit
    of a product over the catalogue, so that they do not tie.

    Parameters
    ----------
    model : recommender of RecBole
        The model.
    dataset : dataset of RecBole
        Makes the batches that the model reads.
    """

    def __init__(self, model: Any, dataset: Any) -> None:
        self.model, self.dataset = model, dataset
        self.device = torch.device(model.device)
        self.counts = Counter()
        kind = type(model)
        self.scores_all = kind.full_sort_predict is not AbstractRecommender.full_sort_predict
        self.judges_candidates = not self.scores_all
        self.alike: torch.Tensor | None = getattr(model, "alike", None)

    @property
    def training(self) -> bool:
        """Whether RecBole's model trains now."""
        return bool(self.model.training)

    def eval(self) -> None:
        """Switch dropout off."""
        self.model.eval()

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off."""
        self.model.train(mode)

    def score_catalogue(self, cases: Cases) -> torch.Tensor:
        """See :meth:`recbole_llm.contracts.models.Scorer.score_catalogue`."""

        def score(rows: np.ndarray) -> torch.Tensor:
            return self._score_catalogue(cases[rows])

        return by_history(self.model, self.dataset, cases, score)

    def _score_catalogue(self, cases: Cases) -> torch.Tensor:
        """`score_catalogue` with the histories that the model holds."""
        batch, count = self.dataset.case_batch(cases), self.dataset.item_num
        scores: torch.Tensor
        if self.scores_all:
            scores = self.model.full_sort_predict(batch.to(self.model.device))
            if scores.numel() == len(cases) * count:
                scores = scores.view(len(cases), count)
            method = f"{type(self.model).__name__}.full_sort_predict, with RecBole's padding item 0"
            scores = checked_scores(scores, len(cases), count, method)[:, 1:]
        else:
            scores = self._predict(batch, torch.arange(1, count).expand(len(cases), -1))
        return scores if self.alike is None else scores.index_select(1, self.alike)

    def score_candidates(self, cases: Cases, items: torch.Tensor) -> torch.Tensor:
        """See :meth:`recbole_llm.contracts.models.Scorer.score_candidates`."""
        if self.scores_all:
            scores = self.score_catalogue(cases)
            return scores.gather(1, items.to(scores.device))

        def score(rows: np.ndarray) -> torch.Tensor:
            return self._predict(self.dataset.case_batch(cases[rows]), items[rows] + 1)

        return by_history(self.model, self.dataset, cases, score)

    def _predict(self, batch: Any, items: torch.Tensor) -> torch.Tensor:
        """Score (case, item) pairs by `predict`, in parts of at most `MAX_PAIRS`.

        Parameters
        ----------
        batch : Interaction
            One row per case.
        items : Tensor of int64, [n_cases, n_candidates]
            RecBole's ids of items.

        Returns
        -------
        Tensor of float, [n_cases, n_candidates]
            Scores.
        """
        rows = max(1, MAX_PAIRS // items.shape[1])
        blocks = []
        for row in range(0, len(items), rows):
            part = slice(row, row + rows)
            columns = [
                self._predict_part(batch[part], candidates)
                for candidates in torch.split(items[part], MAX_PAIRS, dim=1)
            ]
            blocks.append(torch.cat(columns, dim=1))
        return torch.cat(blocks)

    def _predict_part(self, batch: Any, items: torch.Tensor) -> torch.Tensor:
        """`_predict` in one call of the model."""
        pairs = self.dataset.add_items(batch, items)
        scores: torch.Tensor = self.model.predict(pairs.to(self.model.device)).float()
        return scores.view(len(items), -1)

    def probe(self, cases: Cases) -> torch.Tensor:
        """See :meth:`recbole_llm.contracts.models.Scorer.probe`."""
        if self.scores_all:
            return self.score_catalogue(cases)
        items = torch.arange(1, min(self.dataset.item_num, PROBED_ITEMS + 1))
        return self._predict(self.dataset.case_batch(cases), items.expand(len(cases), -1))
