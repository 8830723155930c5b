"""The base class of text models: the interfaces of RecBole and of evaluation from one `score`."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType, ModelType

from ...contracts.cases import Cases
from ...contracts.model_inputs import ModelInputs
from ...contracts.models import Scorer, StoredWeights
from ...data.texts.text import ItemText
from ...evaluation.ranks import UNNAMED, checked_scores, names_nothing
from ...language.backbones.precision import autocast, check_precision
from ...language.passes import AUTO, PassBudget


def as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Convert what a model returns to an array.

    Parameters
    ----------
    values : ndarray or Tensor
        Numbers; a tensor may be on any device and have a gradient.

    Returns
    -------
    ndarray
        The same numbers.
    """
    return values.detach().cpu().numpy() if torch.is_tensor(values) else values


class TextModel(AbstractRecommender, Scorer, StoredWeights):
    """A model that reads item texts.

    Subclasses implement `score`; the methods of RecBole and of the evaluation loop follow from it.

    Parameters
    ----------
    config : Config
        The settings.
    dataset : Dataset
        The dataset that the model is trained on.

    Attributes
    ----------
    interactions : Interactions
        The interactions.
    text : ItemText
        The texts of the items.
    split : Splits
        The training, validation and test cases.
    passes : PassBudget
        The most tokens of a forward pass.
    selecting : bool
        Whether the current ranking chooses a checkpoint.
    fallback : ndarray of bool [cases] or None
        The cases of the last `score_catalogue` for which no item got a score.
    unmatched : ndarray of bool [cases] or None
        The cases of the last `score_catalogue` without a parsable answer. A `score` sets it where a
        second method ranks these cases; otherwise it is `fallback`.
    names_all : bool
        Whether `score` gives every item a score, so that a score of -inf is an error. Otherwise an
        item without a score has `UNNAMED`, and a case whose scores are all zero has none.
    counts : Counter
        Tallies of one ranking, see `rates`.
    unmatched_reason : str
        The message for a ranking in which every case is in `fallback`.
    inference_settings : tuple of str
        Settings that `evaluate` may change, because a trained model does not depend on them.
    """

    type = ModelType.SEQUENTIAL
    input_type = InputType.POINTWISE
    skip_flops = True  # counting operations would copy the language model
    inference_settings: tuple[str, ...] = ()
    fallback: np.ndarray | None
    unmatched: np.ndarray | None

    @classmethod
    def transferable(cls, settings: dict) -> bool:
        """Return whether a run can rank the items of a dataset that it was not trained on.

        Parameters
        ----------
        settings : dict
            The settings of the run.

        Returns
        -------
        bool
            Whether it can.
        """
        return True

    @classmethod
    def check(cls, config, inputs: ModelInputs) -> None:
        """Check the settings before anything is trained.

        Parameters
        ----------
        config : Config
            The settings, as RecBole's Config holds them.
        inputs : ModelInputs
            The data and the earlier runs that the model would be made from.

        Raises
        ------
        UserError
            If they cannot work.
        """
        check_precision(config)

    def __init__(self, config, dataset):
        super().__init__()
        self.config, self.dataset, self.interactions = config, dataset, dataset.interactions
        self.inputs: ModelInputs = dataset.inputs
        self.split = dataset.split
        self.device = config["device"]
        self.text = self.read_text()
        for line in self.text.log:
            self.logger.info(f"{self.interactions.name}: {line}")
        self.passes = PassBudget(config["pass_tokens"] or AUTO)
        self.selecting = False
        self.fallback = None
        self.unmatched = None
        self.counts: Counter = Counter()

    def read_text(self) -> ItemText:
        """Return the texts of the items as the model reads them."""
        return self.inputs.text

    def text_vectors(self) -> torch.Tensor:
        """Embed the items' texts by the frozen encoder `text_encoder`.

        Vectors are stored below `checkpoint_dir` and read again by other runs.

        Returns
        -------
        Tensor of float32 [items, width]
            One vector for each item.
        """
        from ...language.vectors import frozen_vectors

        texts = [self.text.plain(item) for item in range(len(self.text))]
        vectors = frozen_vectors(self.config["text_encoder"], texts, self.config)
        return torch.from_numpy(vectors).to(self.device)

    def start_ranking(self, part: str, selecting: bool, folder: Path | None = None) -> None:
        """Prepare for the ranking of the cases of a part, see `Scorer.start_ranking`."""
        self.selecting = selecting
        self.counts.clear()

    @abstractmethod
    def score(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """Score every item for each case.

        Parameters
        ----------
        cases : Cases
            The cases.

        Returns
        -------
        ndarray or Tensor of float [cases, items]
            Scores. Items with equal texts have equal scores; an item without a score has `UNNAMED`.
        """

    def scores(self, cases: Cases) -> np.ndarray:
        """Compute `score` in the precision of the settings, and count the cases without any score.

        Parameters
        ----------
        cases : Cases
            The cases.

        Returns
        -------
        ndarray of float [cases, items]
            Scores. All items of a case without any score have `UNNAMED`.
        """
        self.unmatched = None
        with self.autocast():
            scores = as_array(self._checked_score(cases))
        fallback = np.zeros(len(cases), bool) if self.names_all else names_nothing(scores)
        if fallback.any():
            scores = np.where(fallback[:, None], UNNAMED, scores)
        unmatched = fallback if self.unmatched is None else self.unmatched
        self.fallback = fallback
        self.counts.update(cases=len(cases), unmatched=int(unmatched.sum()))
        return scores

    def _checked_score(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """`score`, which must give a number for each case and item."""
        method = f"{type(self).__name__}.score"
        return checked_scores(self.score(cases), len(cases), len(self.text), method)

    def score_catalogue(self, cases: Cases) -> torch.Tensor:
        """See :meth:`recbole_llm.contracts.models.Scorer.score_catalogue`."""
        return torch.as_tensor(self.scores(cases)).to(self.device)

    def score_candidates(self, cases: Cases, items: torch.Tensor) -> torch.Tensor:
        """See :meth:`recbole_llm.contracts.models.Scorer.score_candidates`."""
        scores = self.score_catalogue(cases)
        return scores.gather(1, items.to(scores.device))

    def probe(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """Compute `probed` in the precision of the settings."""
        with self.autocast():
            return self.probed(cases)

    def probed(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """Compute numbers that depend on all weights, see `Scorer.probe`.

        A model whose scores are expensive overrides it, and returns what its scores depend on.

        Parameters
        ----------
        cases : Cases
            The cases.

        Returns
        -------
        ndarray or Tensor [cases, ...]
            The numbers.
        """
        return self._checked_score(cases)

    def autocast(self):
        """Return the context in which the model computes in `precision`, with float32 weights."""
        return autocast(self.device, self.config["precision"])

    @torch.no_grad()
    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Score every item, and RecBole's padding item, for the cases of an interaction."""
        scores = self.score_catalogue(self.dataset.cases_of(interaction))
        return F.pad(scores, (1, 0), value=-torch.inf)  # RecBole's padding item

    @torch.no_grad()
    def predict(self, interaction) -> torch.Tensor:
        """Score (case, item) pairs; the pairs of one case are neighbours and are scored once."""
        cases = self.dataset.cases_of(interaction)
        rows = np.stack([cases.begin, cases.end], axis=1)
        first = np.flatnonzero(np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)])
        which = np.cumsum(np.isin(np.arange(len(rows)), first)) - 1
        item = interaction[self.dataset.iid_field].cpu().numpy() - 1
        return torch.as_tensor(self.scores(cases[first])[which, item]).to(self.device)

    def rates(self) -> dict[str, float]:
        """Return shares of the last ranking that are printed beside its metrics.

        Returns
        -------
        dict of str to float
            The shares of parsed answers, of histories that were cut, and so on.
        """
        shares = {}
        if self.counts["items"]:
            shares["cut_users"] = self.counts["cut_users"] / self.counts["cases"]
            shares["cut_items"] = self.counts["cut_items"] / self.counts["items"]
        return shares | {"unmatched": self.counts["unmatched"] / max(1, self.counts["cases"])}

    def count_cut(self, cases: Cases, cut: Sequence[int]) -> None:
        """Tally the items of histories that were left out.

        Parameters
        ----------
        cases : Cases
            The cases.
        cut : sequence of int
            Number of items of each case's history that were left out.
        """
        self.counts.update(
            cut_items=int(sum(cut)),
            cut_users=sum(count > 0 for count in cut),
            items=int((cases.end - cases.begin).sum()),
        )
