"""What RecBole and the evaluation loop need of our models, derived from what a paper's model can do."""

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
from ...evaluation.ranks import UNNAMED, names_nothing
from ...language.backbones.precision import autocast


def as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Numbers of a model as an array: a tensor may be on a device, and have a gradient."""
    return values.detach().cpu().numpy() if torch.is_tensor(values) else values


class TextModel(AbstractRecommender, Scorer, StoredWeights):
    """A model that reads item texts. Subclasses give `score`; RecBole's methods follow.

    Attributes
    ----------
    tables, text : the events and the item texts.
    fallback : bool [cases] of the last `score`: cases for which it names no item.
    unmatched : bool [cases], set by a `score` that ranks by something else where no answer could be parsed; else `fallback`.
    names_all : whether `score` gives every item a score, so that one of -inf is an error; if not, it is `UNNAMED`.
    counts : tallies of one ranking, see `rates`.
    unmatched_reason : what is the matter if it could say nothing about any case.
    inference_settings : settings that `evaluate` may change, since they decide how a trained model answers.
    """

    type = ModelType.SEQUENTIAL
    input_type = InputType.POINTWISE
    skip_flops = True  # an LLM is not deep-copied to be counted
    inference_settings: tuple[str, ...] = ()

    @classmethod
    def transferable(cls, settings: dict) -> bool:
        """Whether a run of these settings can rank the items of a dataset that it was not trained on."""
        return True

    @classmethod
    def check(cls, config, inputs: ModelInputs) -> None:
        """Raise UserError for settings that cannot work, before anything is trained."""

    def __init__(self, config, dataset):
        super().__init__()
        self.config, self.dataset, self.tables = config, dataset, dataset.tables
        self.inputs: ModelInputs = dataset.inputs
        self.split = dataset.split
        self.device = config["device"]
        self.text = self.read_text()
        for line in self.text.log:
            self.logger.info(f"{self.tables.name}: {line}")
        self.selecting = False
        self.fallback: np.ndarray | None = None
        self.unmatched: np.ndarray | None = None
        self.counts: Counter = Counter()

    def read_text(self) -> ItemText:
        return self.inputs.text

    def text_vectors(self) -> torch.Tensor:
        """float32 [items, width]: what the frozen encoder `text_encoder` makes of the items' texts.

        Vectors are stored below `checkpoint_dir` and read again by other runs.
        """
        from ...language.vectors import frozen_vectors

        texts = [self.text.plain(item) for item in range(len(self.text))]
        vectors = frozen_vectors(self.config["text_encoder"], texts, self.config)
        return torch.from_numpy(vectors).to(self.device)

    def start_ranking(self, part: str, selecting: bool, folder: Path | None = None) -> None:
        """Called before the cases of a part, "valid" or "test", are ranked.

        selecting : while a checkpoint is chosen. folder : of the run whose weights these are, for answers to be kept in.
        """
        self.selecting = selecting
        self.counts.clear()

    @abstractmethod
    def score(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """float [cases, items]: what to rank the catalogue by; equal texts get equal scores, items that are not named `UNNAMED`."""

    def scores(self, cases: Cases) -> np.ndarray:
        """`score` in the precision that is set; the cases that it says nothing about are counted, and all items `UNNAMED`."""
        self.unmatched = None
        with self.autocast():
            scores = as_array(self.score(cases))
        self.fallback = ~scores.any(axis=1) if self.names_all else names_nothing(scores)
        if self.fallback.any():
            scores = np.where(self.fallback[:, None], UNNAMED, scores)
        unmatched = self.fallback if self.unmatched is None else self.unmatched
        self.counts.update(cases=len(cases), unmatched=int(unmatched.sum()))
        return scores

    def score_catalogue(self, cases: Cases) -> torch.Tensor:
        return torch.as_tensor(self.scores(cases)).to(self.device)

    def score_candidates(self, cases: Cases, items: torch.Tensor) -> torch.Tensor:
        scores = self.score_catalogue(cases)
        return scores.gather(1, items.to(scores.device))

    def probe(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """`probed` in the precision that is set."""
        with self.autocast():
            return self.probed(cases)

    def probed(self, cases: Cases) -> np.ndarray | torch.Tensor:
        """[cases, ...], see `Scorer.probe`. A model whose scores are dear gives what these are made of."""
        return self.score(cases)

    def autocast(self):
        """`precision`: bf16 and fp16 compute in it, with weights in float32."""
        return autocast(self.device, self.config["precision"])

    def full_sort_predict(self, interaction) -> torch.Tensor:
        scores = self.score_catalogue(self.dataset.cases_of(interaction))
        return F.pad(scores, (1, 0), value=-torch.inf)  # RecBole's padding item

    def predict(self, interaction) -> torch.Tensor:
        """Scores of (case, item) pairs; the pairs of one case stand together and are scored once."""
        cases = self.dataset.cases_of(interaction)
        rows = np.stack([cases.begin, cases.end], axis=1)
        first = np.flatnonzero(np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)])
        which = np.cumsum(np.isin(np.arange(len(rows)), first)) - 1
        item = interaction[self.dataset.iid_field].cpu().numpy() - 1
        return torch.as_tensor(self.scores(cases[first])[which, item]).to(self.device)

    def rates(self) -> dict[str, float]:
        """Shares worth printing beside the metrics (parsed answers, cut histories, …)."""
        shares = {"cut_users": "cases", "cut_items": "items"}
        found = {
            name: self.counts[name] / self.counts[of]
            for name, of in shares.items()
            if self.counts["items"]
        }
        return found | {"unmatched": self.counts["unmatched"] / max(1, self.counts["cases"])}

    def count_cut(self, cases: Cases, cut: Sequence[int]) -> None:
        """Tally how many items of each case's history were left out."""
        self.counts.update(
            cut_items=int(sum(cut)),
            cut_users=sum(one > 0 for one in cut),
            items=int((cases.end - cases.begin).sum()),
        )
