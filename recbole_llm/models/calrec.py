"""CALRec: a causal LM generates the next item's text, and BM25 finds similar items (RecSys '24)."""

from collections.abc import Sequence

import numpy as np
import torch

from ..contracts.models import ContrastiveTrainable
from ..language.prompts.templates import Example, LazyTexts
from ..language.tokens.batches import Batch, Tokens
from ..training.corpora import Corpus, draw_users, every_case_once
from ..training.losses import in_batch_contrast
from .base.generative_model import GenerativeModel


class CALRec(GenerativeModel, ContrastiveTrainable):
    """Next-item generation with contrastive alignment of histories and targets."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.contrastive = bool(config["alpha"] or config["beta"])
        if config["blend"] > 0 > config["beta"]:
            self.logger.warning(
                f"blend adds cos(v^U, v^T) to an item's score, and beta {config['beta']} trains it "
                "to be low at the target: set --beta above 0, or leave blend at 0"
            )

    def examples(self, epoch: int) -> list[tuple[Tokens, ...]]:
        """Make the examples of an epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        list of tuple of Tokens
            A history with its target; and the target alone, if there are contrastive terms.
        """
        seed = self.config["seed"]
        sizes = [len(corpus.by_user) for corpus in self.corpora]
        samples = draw_users(sizes, seed, epoch, self.config["mixture_exponent"])
        examples = []
        for number, users in enumerate(samples):
            rng = np.random.default_rng([seed, epoch, number])
            examples += self._examples(self.corpora[number], users, rng)
        return examples

    def _examples(
        self, corpus: Corpus, users: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[Tokens, ...]]:
        """Make the examples of one corpus.

        With `nig_targets: last` there is one for each user, whose target is one of the user's last
        five (the paper's augmentation). With `all`, every case is learned once, in windows of as
        many items as fit.
        """
        if self.config["nig_targets"] != "last":
            return every_case_once(
                corpus, users, lambda row, learned: self._group(corpus, row, learned)
            )
        examples = []
        for user in users:
            rows = corpus.by_user[user]
            row = rows[-1 - rng.integers(min(5, len(rows)))]
            examples.append(self._group(corpus, row, None)[0])
        return examples

    def _group(
        self, corpus: Corpus, row: int, learned: np.ndarray | None
    ) -> tuple[tuple[Tokens, ...], int]:
        """Encode one case.

        Parameters
        ----------
        corpus : Corpus
            The dataset.
        row : int
            Number of the case.
        learned : ndarray of bool [events] or None
            The events whose texts are learned beside the target; none where None.

        Returns
        -------
        tuple of (tuple of Tokens, int)
            The example, and the number of items that were left out.
        """
        begin, end = corpus.cases.begin[row], corpus.cases.end[row]
        history = LazyTexts(corpus.sentences, corpus.interactions.item[begin:end])
        target = corpus.sentences[corpus.interactions.item[end]]
        flags = None if learned is None else learned[begin:end]
        tokens = self.encoder.encode(Example(self.template, history, target, flags))
        if self.contrastive:
            return (tokens, self.encoder.encode_item(target)), tokens.cut
        return (tokens,), tokens.cut

    def loss_and_vectors(self, batch: Batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the generation loss and the mean hidden states.

        Parameters
        ----------
        batch : Batch
            Texts.
        with_loss : bool
            Whether the loss is computed; it is 0 otherwise.

        Returns
        -------
        loss : Tensor of float []
            Weighted sum of -log P over the learned tokens.
        vectors : Tensor of float32 [rows, 2, width]
            Mean last hidden states of history and target.
        """
        hidden = self.hidden(batch)
        vectors = batch.means(hidden)
        loss = self.generation_loss(hidden, batch) if with_loss else None
        if loss is None:
            return vectors.sum() * 0.0, vectors
        return (1 - self.config["alpha"] - self.config["beta"]) * loss, vectors

    def loss(self, batch: Batch) -> torch.Tensor:
        """Compute the weighted generation loss alone."""
        return self.loss_and_vectors(batch, True)[0]

    def pair_loss(self, vectors: torch.Tensor, examples: Sequence) -> torch.Tensor:
        """Compute alpha L_TT + beta L_UT.

        Parameters
        ----------
        vectors : Tensor of float [examples, 2, 2, width]
            History and target means (axis 2) of the sequence and of the lone target (axis 1).
        examples : sequence
            The examples of the step.

        Returns
        -------
        Tensor of float32 []
            The contrastive loss.
        """
        user, user_target, target = vectors[:, 0, 0], vectors[:, 0, 1], vectors[:, 1, 1]
        config = self.config
        target_loss = in_batch_contrast(user_target, target, config["contrast_temperature"])
        user_loss = in_batch_contrast(user, target, config["contrast_temperature"])
        return config["alpha"] * target_loss + config["beta"] * user_loss
