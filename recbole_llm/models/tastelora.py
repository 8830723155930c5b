"""TASTE-LoRA: a T5 matches the texts of histories and items, and adapters personalise it.

The model is TASTE's (CIKM '23); the adapters of users and groups are those of UMass and Spotify
(2024).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..contracts.models import ContrastiveTrainable
from ..errors import UserError
from ..language.backbones.encoder_decoder import FusionBackbone, SegmentEncoder
from ..language.prompts.templates import TASTE_PROMPT, LazyTexts, taste_item_text
from ..language.tokens.batches import Batch, Tokens
from ..language.vectors import embed_cached
from ..storage.arrays import ranges
from ..training.corpora import Corpus, LazyExamples, chosen_cases
from ..training.losses import over_candidates
from .base.backbone_model import BackboneModel
from .base.vector_model import VectorModel

REDRAWS = 8  # times that negatives are drawn again where a user has met them


class Choice(tuple[Tokens, ...]):
    """The texts of one training case: a history, the item that follows, and sampled items.

    Parameters
    ----------
    tokens : iterable of Tokens
        The encoded texts.
    texts : ndarray of int64 [1 + negatives]
        The number of each item's distinct text.
    """

    texts: np.ndarray

    def __new__(cls, tokens: Iterable[Tokens], texts: np.ndarray) -> "Choice":
        """See the class."""
        choice = super().__new__(cls, tokens)
        choice.texts = texts
        return choice


def targets_and_others(
    targets: np.ndarray, met: np.ndarray, pool: np.ndarray, negatives: int, rng: np.random.Generator
) -> np.ndarray:
    """Sample negatives for targets of one user.

    Parameters
    ----------
    targets : ndarray of int64 [cases]
        The distinct text of each target.
    met : ndarray of int64
        Texts of the user's interactions.
    pool : ndarray of int64
        Texts to sample from.
    negatives : int
        Number of negatives of each target.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray of int64 [cases, 1 + negatives]
        Each target, followed by its negatives. These are not in `met`, unless all of `pool` is.
    """
    sample = rng.choice(pool, (len(targets), negatives))
    for _ in range(REDRAWS):  # which costs less than a look at the whole pool
        wrong = np.isin(sample, met)
        if not wrong.any():
            return np.column_stack([targets, sample])
        sample[wrong] = rng.choice(pool, wrong.sum())
    unmet = pool[~np.isin(pool, met)]
    if len(unmet):
        wrong = np.isin(sample, met)
        sample[wrong] = rng.choice(unmet, wrong.sum())
    return np.column_stack([targets, sample])


class TASTELoRA(VectorModel, BackboneModel, ContrastiveTrainable):
    """Ranks by the inner product of a history's vector and each item's, by one encoder-decoder.

    The negatives of a case are all items of its step but those with its target's text.

    Attributes
    ----------
    corpus : Corpus
        The dataset that the model trains on.
    events : ndarray of int64 [events]
        The distinct text of each event's item.
    pool : ndarray of int64
        The distinct texts that negatives are sampled from.
    sentences : list of str
        The text of each item.
    """

    backbone_kind = FusionBackbone
    bundle: FusionBackbone
    encoder: SegmentEncoder

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpus = Corpus(self.interactions, self.text, dataset.split.train)
        self.events, self.pool = self.same[self.interactions.item], self.met_in_training()
        self.sentences = [
            taste_item_text(zip(self.text.names, row, strict=True)) for row in self.text.values
        ]
        self.load_backbone([*self.sentences, *TASTE_PROMPT])

    def met_in_training(self) -> np.ndarray:
        """Collect the distinct texts of all events up to the last training case of each user.

        Returns
        -------
        ndarray of int64
            Numbers of texts, sorted by the ids of their items, so that later events cannot
            influence them.
        """
        begin, end = self.corpus.spans.T
        items = np.unique(self.interactions.item[ranges(begin, end + 1)])
        texts = self.same[items[np.argsort(self.interactions.items[items].astype(str))]]
        return texts[np.sort(np.unique(texts, return_index=True)[1])]

    def read_text(self):
        """Return the texts of the items, with numbers if `item_number` is set."""
        text = super().read_text()
        return text.numbered(self.interactions) if self.config["item_number"] else text

    def make_encoder(self, bundle):
        """Make the encoder, and forget the vectors of items by earlier weights."""
        self.item_vectors = None
        limits = {key: self.config[key] for key in ("max_length", "item_length", "segments")}
        encoder = SegmentEncoder(bundle.tokenizer, **limits)
        if encoder.min_length > encoder.max_length:
            raise UserError(
                f"max_length: expected at least {encoder.min_length} tokens, which leave "
                f"item_length for one item, found {encoder.max_length}"
            )
        self.tokenise_items(encoder, self.sentences)
        return encoder

    def examples(self, epoch: int) -> LazyExamples:
        """Make an example of each training case, or of one case of each user.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        LazyExamples of Choice
            The examples.
        """
        everybody = [np.arange(len(self.corpus.by_user))]
        rows = chosen_cases([self.corpus], everybody, self.config, epoch)
        return LazyExamples(rows, self._choice, [self.config["seed"], epoch])

    def _choice(self, number: int, row: int, rng: np.random.Generator) -> Choice:
        """Make the example of a training case: history, target and `negatives` sampled items.

        Negatives are items that do not occur in any training case of the user, if there are any.
        """
        cases = self.corpus.cases
        spans = self.corpus.spans
        begin, end = spans[np.searchsorted(spans[:, 1], cases.end[row])]
        target, met = self.events[cases.end[[row]]], self.events[begin : end + 1]
        (texts,) = targets_and_others(target, met, self.pool, self.config["negatives"], rng)
        history = self.interactions.item[cases.begin[row] : cases.end[row]]
        return Choice([self.history(history), *map(self.item, texts)], texts)

    def item(self, text: int) -> Tokens:
        """Encode an item.

        Parameters
        ----------
        text : int
            The number of its distinct text.

        Returns
        -------
        Tokens
            The encoded item.
        """
        return self.encoder.item(self.sentences[self.first[text]])

    def history(self, items: np.ndarray) -> Tokens:
        """Encode a history.

        Parameters
        ----------
        items : ndarray of int [n]
            Item numbers, oldest first.

        Returns
        -------
        Tokens
            The encoded history.
        """
        return self.encoder.history(LazyTexts(self.sentences, items))

    def loss_and_vectors(self, batch: Batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed texts, which have no loss by themselves.

        Parameters
        ----------
        batch : Batch
            Texts.
        with_loss : bool
            Not used.

        Returns
        -------
        loss : Tensor of float []
            0.
        vectors : Tensor of float [rows, width]
            One vector for each text.
        """
        vectors = self.bundle.vectors(batch)
        return vectors.sum() * 0.0, vectors

    def pair_loss(self, vectors: torch.Tensor, examples: Sequence[Choice]) -> torch.Tensor:
        """Compute the cross-entropy of each target among all items of the step.

        Parameters
        ----------
        vectors : Tensor of float [examples, 2 + negatives, width]
            Vectors of histories, targets and negatives.
        examples : sequence of Choice
            The examples of the step.

        Returns
        -------
        Tensor of float []
            Mean over the examples.
        """
        texts = np.stack([example.texts for example in examples])
        wrong = torch.from_numpy(texts.ravel() == texts[:, :1]).to(vectors.device)
        target = torch.arange(len(examples), device=vectors.device) * texts.shape[1]
        return over_candidates(vectors[:, 0], vectors[:, 1:].flatten(0, 1), target, wrong).mean()

    def vectors(self, tokens: Sequence[Tokens], saved: Path | None = None) -> np.ndarray:
        """Embed encoded texts.

        Parameters
        ----------
        tokens : sequence of Tokens
            The texts.
        saved : Path, optional
            The folder of runs, where vectors are cached; they are not cached where None.

        Returns
        -------
        ndarray of float32 [texts, width]
            One vector for each text.
        """
        return embed_cached(
            tokens,
            self.bundle.vectors,
            self.bundle,
            self.passes,
            self.device,
            self.config["precision"],
            saved,
        )

    def encode_items(self, items):
        """Embed the texts of items."""
        tokens = [self.item(text) for text in self.same[items]]
        return self.vectors(tokens, self.weights and self.weights.parent)

    def encode_users(self, cases):
        """Embed the histories of cases."""
        tokens = [self.history(history) for history in cases.histories(self.interactions)]
        self.count_cut(cases, [text.cut for text in tokens])
        self.count_borders([_first_segment(text) for text in tokens])
        return self.vectors(tokens)


def _first_segment(tokens: Tokens) -> np.ndarray:
    """Token ids of the newest segment of a history, int64 [length]."""
    assert tokens.roles is not None
    return tokens.ids[tokens.roles[0] == 1]
