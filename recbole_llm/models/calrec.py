"""CALRec: a causal LM generates the next item's text, and BM25 finds similar items (RecSys '24)."""

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
import torch

from ..contracts.models import ContrastiveTrainable
from ..language.prompts.templates import Example, LazyTexts
from ..language.tokens.batches import Batch, Tokens
from ..training.corpora import LazyExamples, Windows, drawn_users, one_case_each
from ..training.losses import in_batch_contrast
from .base.generative_model import GenerativeModel

LAST_TARGETS = 5  # newest cases of a user, of which an epoch learns one


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

    def examples(self, epoch: int) -> LazyExamples:
        """Make the examples of an epoch.

        With `nig_targets: last` there is one for each user, whose target is one of the user's last
        five (the paper's augmentation). With `all`, every case is learned once, in windows of as
        many items as fit.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        LazyExamples of tuple of Tokens
            A history with its target; and the target alone, if there are contrastive terms.
        """
        samples = drawn_users(self.corpora, self.config, epoch)
        if self.config["nig_targets"] == "last":
            rows = one_case_each(self.corpora, samples, self.config["seed"], epoch, LAST_TARGETS)
        else:
            rows = [windows.of(users) for windows, users in zip(self.windows, samples, strict=True)]
        return LazyExamples(rows, self._group, [self.config["seed"], epoch])

    def use(self, bundle):
        """Make a language model that of this model, whose tokens decide the windows."""
        super().use(bundle)
        self.__dict__.pop("windows", None)

    @cached_property
    def windows(self) -> list[Windows]:
        """For each corpus, windows that cover every training case."""
        encoder, template = self.encoder, self.template
        prefix, room = encoder.prefix_size(template), encoder.room(template)
        windows = []
        for corpus in self.corpora:
            sizes = np.array([len(encoder.item(text)) for text in corpus.sentences])
            windows.append(
                Windows(corpus, sizes + prefix, partial(_room_before, room + prefix, sizes))
            )
        return windows

    def _group(self, number: int, row: int, rng: np.random.Generator) -> tuple[Tokens, ...]:
        """Encode one case of one corpus."""
        corpus = self.corpora[number]
        begin, end = corpus.cases.begin[row], corpus.cases.end[row]
        history = LazyTexts(corpus.sentences, corpus.interactions.item[begin:end])
        target = corpus.sentences[corpus.interactions.item[end]]
        flags = None if self.config["nig_targets"] == "last" else corpus.learned[begin:end]
        tokens = self.encoder.encode(Example(self.template, history, target, flags))
        if self.contrastive:
            return tokens, self.encoder.encode_item(target)
        return (tokens,)

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


def _room_before(most: int, sizes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What the histories before some targets may take, int64 [n]."""
    return most - sizes[targets]
