"""CALRec: a causal LM writes the next item's text, and BM25 finds the items that read like it (RecSys '24)."""

import numpy as np
import torch
import torch.nn.functional as F

from ..contracts.models import ContrastiveTrainable
from ..language.prompts.templates import Example, LazyTexts
from ..language.tokens.batches import IGNORED, Tokens, padded_size
from ..training.corpora import Corpus, draw_users, every_case_once
from ..training.losses import in_batch_contrast
from .base.generative_model import GenerativeModel


class CALRec(GenerativeModel, ContrastiveTrainable):
    """Next-item generation with contrastive alignment of histories and targets."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        if config["blend"] > 0 > config["beta"]:
            self.logger.warning(
                f"blend adds cos(v^U, v^T) to an item's score, and beta {config['beta']} trains it "
                "to be low at the target: set --beta above 0, or leave blend at 0"
            )

    @property
    def contrastive(self) -> bool:
        return bool(self.config["alpha"] or self.config["beta"])

    def examples(self, epoch: int) -> list[tuple[Tokens, ...]]:
        """One epoch's groups: a history with its target, and the target alone if there are contrastive terms."""
        seed, groups = self.config["seed"], []
        for number, users in enumerate(
            draw_users([len(corpus.by_user) for corpus in self.corpora], seed, epoch)
        ):
            groups += self._examples(
                self.corpora[number], users, np.random.default_rng([seed, epoch, number])
            )
        return groups

    def _examples(
        self, corpus: Corpus, users: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[Tokens, ...]]:
        """With `nig_targets: last`, one per user: up to four of the user's last cases are passed over (the paper's augmentation).

        With `all`, every case is learned once, in windows of as many whole items as fit.
        """
        if self.config["nig_targets"] == "last":
            chosen = (
                own[-1 - rng.integers(min(5, len(own)))]
                for own in (corpus.by_user[user] for user in users)
            )
            return [self._group(corpus, row, None)[0] for row in chosen]
        return every_case_once(
            corpus, users, lambda row, learned: self._group(corpus, row, learned)
        )

    def _group(
        self, corpus: Corpus, row: int, learned: np.ndarray | None
    ) -> tuple[tuple[Tokens, ...], int]:
        """The texts of one case and how many items were cut; learned: bool [events], whose texts are training targets beside the case's own."""
        begin, end = corpus.cases.begin[row], corpus.cases.end[row]
        history = LazyTexts(corpus.sentences, corpus.tables.item[begin:end])
        target = corpus.sentences[corpus.tables.item[end]]
        flags = None if learned is None else learned[begin:end]
        tokens = self.encoder.encode(Example(self.template, history, target, flags))
        return (
            (tokens, self.encoder.encode_item(target)) if self.contrastive else (tokens,)
        ), tokens.cut

    def loss_and_vectors(self, batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted sum of -log P over the learned tokens, [rows, 2, width] mean last hidden states of history and target)."""
        hidden = self.hidden(batch)
        vectors = batch.means(hidden)
        labels = batch.labels[:, 1:]
        learned = labels != IGNORED
        if not with_loss or not learned.any():
            return vectors.sum() * 0.0, vectors
        place = learned.flatten().nonzero()[:, 0]
        spare = (0, int(padded_size(len(place))) - len(place))
        logits = self.bundle.logits(hidden[:, :-1].flatten(0, 1)[F.pad(place, spare)])
        loss = F.cross_entropy(
            logits.float(),
            F.pad(labels[learned], spare, value=IGNORED),
            reduction="sum",
            ignore_index=IGNORED,
        )
        return (1 - self.config["alpha"] - self.config["beta"]) * loss, vectors

    def pair_loss(self, vectors: torch.Tensor, groups: list) -> torch.Tensor:
        """alpha L_TT + beta L_UT from vectors [groups, 2, 2, width]: sequence and lone target, each history and target means."""
        user, user_target, target = vectors[:, 0, 0], vectors[:, 0, 1], vectors[:, 1, 1]
        alpha, beta, temperature = (
            self.config[key] for key in ("alpha", "beta", "contrast_temperature")
        )
        return alpha * in_batch_contrast(
            user_target, target, temperature
        ) + beta * in_batch_contrast(user, target, temperature)
