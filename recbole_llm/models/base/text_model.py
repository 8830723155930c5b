"""What RecBole and the evaluation loop need of our models, derived from what a paper's model can do."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType, ModelType

from ...contracts.cases import Cases
from ...data.texts.text import ItemText
from ...errors import UserError
from ...evaluation.ranks import UNNAMED, names_nothing
from ...language.backbones.precision import autocast
from ...language.tokens.batches import PASS_COST


class TextModel(AbstractRecommender):
    """A model that reads item texts. Subclasses give `score`; RecBole's methods follow.

    Attributes
    ----------
    tables, text : the events and the item texts.
    fallback : bool [cases] of the last `score`: cases for which it names no item.
    unmatched : bool [cases], set by a `score` that ranks by something else where no answer could be parsed; else `fallback`.
    names_all : whether `score` gives every item a score, so that one of -inf is an error; if not, it is `UNNAMED`.
    counts : tallies of one ranking, see `rates`.
    unmatched_reason : what is the matter if it could say nothing about any case.
    answer_keys : settings that `evaluate` may change, since they decide how a trained model answers.
    pass_cost : what a pass of training costs beside its tokens, in tokens.
    """

    type = ModelType.SEQUENTIAL
    input_type = InputType.POINTWISE
    skip_flops = True  # an LLM is not deep-copied to be counted
    answer_keys: tuple[str, ...] = ()
    pass_cost = PASS_COST
    names_all = True
    unmatched_reason = "it names no item for any case"

    @classmethod
    def moves(cls, settings: dict) -> bool:
        """Whether a run of these settings can rank the items of a dataset that it was not trained on."""
        return True

    @classmethod
    def check(cls, config, tables) -> None:
        """Raise UserError for settings that cannot work, before anything is trained."""

    def __init__(self, config, dataset):
        super().__init__()
        if config["settings"] is None and (
            asked := [key for key in ("stages", "datasets", "rerank_from") if config[key]]
        ):
            raise UserError(
                f"{', '.join(asked)}: of runs of recbole_llm; RecBole's run_recbole trains one model on one dataset. Use recbole_llm.run"
            )
        self.config, self.dataset, self.tables = config, dataset, dataset.tables
        self.device = config["device"]
        self.text = self.read_text()
        for line in self.text.log:
            self.logger.info(f"{self.tables.name}: {line}")
        self.choosing = False
        self.fallback: np.ndarray | None = None
        self.unmatched: np.ndarray | None = None
        self.counts: Counter = Counter()

    def read_text(self) -> ItemText:
        return ItemText.from_tables(
            self.tables, self.config["text_fields"], self.config["text_words"]
        )

    def start_ranking(self, part: str, choosing: bool, folder: Path | None = None) -> None:
        """Called before the cases of a part, "valid" or "test", are ranked.

        choosing : while a checkpoint is chosen. folder : of the run whose weights these are, for answers to be kept in.
        """
        self.choosing = choosing
        self.counts.clear()

    def score(self, cases: Cases) -> np.ndarray:
        """float [cases, items]: what to rank the catalogue by; equal texts get equal scores, items that are not named `UNNAMED`."""
        raise NotImplementedError(f"{type(self).__name__}.score")

    def scores(self, cases: Cases) -> np.ndarray:
        """`score` in the precision that is set; the cases that it says nothing about are counted, and all items `UNNAMED`."""
        self.unmatched = None
        with self.autocast():
            scores = self.score(cases)
        self.fallback = ~scores.any(axis=1) if self.names_all else names_nothing(scores)
        if self.fallback.any():
            scores = np.where(self.fallback[:, None], UNNAMED, scores)
        unmatched = self.fallback if self.unmatched is None else self.unmatched
        self.counts.update(cases=len(cases), unmatched=int(unmatched.sum()))
        return scores

    def probe(self, cases: Cases) -> np.ndarray:
        """[cases, ...] by which weights that are read back are compared with those that were saved.

        It is the same for the same weights and differs for others, in whatever the scores depend
        on, and costs little. Models whose scores are dear answer by what these are made of.
        """
        return self.score(cases)

    def autocast(self):
        """`precision`: bf16 and fp16 compute in it, with weights in float32."""
        return autocast(self.device, self.config["precision"])

    def full_sort_predict(self, interaction) -> torch.Tensor:
        scores = torch.as_tensor(self.scores(self.dataset.cases_of(interaction)))
        padding = torch.full((len(scores), 1), -torch.inf, dtype=scores.dtype)
        return torch.cat([padding, scores], dim=1).to(self.device)

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
