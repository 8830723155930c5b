"""ST5-Seq: one sentence encoder embeds histories and the items that follow them.

It is described in a thesis of the University of Edinburgh (2024).
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch

from ..contracts.interactions import Interactions
from ..contracts.models import ContrastiveTrainable
from ..data.cases.augmentation import augment
from ..data.texts.text import UNKNOWN, ItemText
from ..errors import UserError
from ..language.prompts.templates import LazyTexts
from ..language.tokens.batches import Batch, Tokens
from ..storage.content_cache import name_of
from ..training.corpora import Corpus, draw_users
from ..training.losses import symmetric_contrast
from .base.sentence_model import SentenceModel

Pair = tuple[Tokens, Tokens]


def described(interactions: Interactions, config) -> bool:
    """Return whether any item has a description.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    config : Config
        The setting `description_fields`.

    Returns
    -------
    bool
        Whether any of its columns has a cell that is not empty.
    """
    return any(
        (interactions.item_table[name] != "").any()
        for name in config["description_fields"].values()
        if name in interactions.item_table
    )


def _check_answers(config, further_datasets: Sequence[Mapping]) -> None:
    """Raise UserError if an item's text holds the description that phase `item` pairs it with."""
    for settings in (config, *further_datasets):
        descriptions = settings["description_fields"].values()
        fields = settings["text_fields"]
        if both := [name for name, column in fields.items() if column in descriptions]:
            rest = ", ".join(f"{name}: {fields[name]}" for name in fields if name not in both)
            raise UserError(
                "phase item pairs an item's text with its description, and the text on "
                f"{settings['dataset']} has the description "
                f"in it (text_fields: {', '.join(both)}); set "
                f"--text_fields='{{{rest or 'Title: title'}}}', or --variant=finetune"
            )


class ST5Seq(SentenceModel, ContrastiveTrainable):
    """Sequential recommendation as retrieval of sentences, learned from three kinds of pairs.

    `phase: item` pairs an item's text with its description, `sequence` a sequence with an augmented
    one, and `next` a history with the item that follows.

    Attributes
    ----------
    descriptions : list of dict of int to str
        Item -> description, for each corpus; empty in other phases than `item`.
    """

    @classmethod
    def check(cls, config, inputs):
        """See `TextModel.check`."""
        super().check(config, inputs)
        if config["phase"] != "item":
            return
        interactions = inputs.interactions
        _check_answers(config, inputs.further_datasets)
        if not config["datasets"] and not described(interactions, config):
            columns = ", ".join(config["description_fields"].values())
            raise UserError(
                f"phase item learns from descriptions, and {interactions.name} has none in "
                f"{columns}; set description_fields, or --variant=finetune"
            )

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.descriptions: list[dict[int, str]] = []
        if config["phase"] == "item":
            self.descriptions = [self._descriptions(corpus) for corpus in self.corpora]
            if not any(self.descriptions):
                raise UserError(
                    "phase item learns from descriptions, and none of "
                    f"{', '.join(config['datasets'] or [self.interactions.name])} has one"
                )
        texts = list(chain.from_iterable(self.sentences))
        count = len(texts)
        for descriptions in self.descriptions:
            texts += descriptions.values()
        if self.form.instruction:
            texts += [self.form.instruction] * count
        self.load_backbone(texts)

    def _descriptions(self, corpus: Corpus) -> dict[int, str]:
        """Return item -> description, for the items that have one."""
        if not described(corpus.interactions, self.config):
            return {}
        text = ItemText.from_interactions(corpus.interactions, self.config["description_fields"])
        return {
            item: self.form.item(text.names, row)
            for item, row in enumerate(text.values)
            if set(row) - {UNKNOWN}
        }

    def examples(self, epoch: int) -> list[Pair]:
        """Make the pairs of an epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        list of tuple of (Tokens, Tokens)
            The pairs of the setting `phase`.
        """
        seed = self.config["seed"]
        makers = {"item": self._items, "sequence": self._sequences, "next": self._next}
        make = makers[self.config["phase"]]
        sizes = [len(corpus.by_user) for corpus in self.corpora]
        samples = draw_users(sizes, seed, epoch, self.config["mixture_exponent"])
        pairs: list[Pair] = []
        for number, users in enumerate(samples):
            pairs += make(number, users, np.random.default_rng([seed, epoch, number]))
        return pairs

    def _items(self, number: int, users: np.ndarray, rng: np.random.Generator) -> list[Pair]:
        """Pair the texts of one corpus's items with their descriptions."""
        sentences = self.sentences[number]
        return [
            (self.encoder.item(sentences[item]), self.encoder.item(text))
            for item, text in self.descriptions[number].items()
        ]

    def _sequences(self, number: int, users: np.ndarray, rng: np.random.Generator) -> list[Pair]:
        """Pair the longest training sequence of each user with an augmented one."""
        corpus, shares = self.corpora[number], self.config["augmentation"]
        pairs = []
        for user in users:
            last = corpus.by_user[user][-1]
            items = corpus.interactions.item[corpus.cases.begin[last] : corpus.cases.end[last] + 1]
            augmented = augment(items, shares, rng)
            pairs.append((self._sequence(number, items), self._sequence(number, augmented)))
        return pairs

    def _next(self, number: int, users: np.ndarray, rng: np.random.Generator) -> list[Pair]:
        """Pair histories with their targets, in one case or all cases of each user."""
        corpus = self.corpora[number]
        items, cases = corpus.interactions.item, corpus.cases
        pairs = []
        for user in users:
            rows = corpus.by_user[user]
            for row in rows if self.config["targets"] == "all" else [rng.choice(rows)]:
                history = self._sequence(number, items[cases.begin[row] : cases.end[row]])
                target = self.sentences[number][items[cases.end[row]]]
                pairs.append((history, self.encoder.item(target)))
        return pairs

    def _sequence(self, number: int, items: np.ndarray) -> Tokens:
        """Encode items of one corpus by number, oldest first."""
        return self.encoder.sequence(LazyTexts(self.sentences[number], items))

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
        vectors = self.bundle.pooled(batch)
        return vectors.sum() * 0.0, vectors

    def pair_loss(self, vectors: torch.Tensor, examples: Sequence[Pair]) -> torch.Tensor:
        """Compute the symmetric contrastive loss.

        Parameters
        ----------
        vectors : Tensor of float [pairs, 2, width]
            The vectors of pairs.
        examples : sequence of tuple of (Tokens, Tokens)
            The pairs. Pairs that share a text are no negatives of each other.

        Returns
        -------
        Tensor of float32 []
            The loss.
        """
        equal = torch.zeros(len(examples), len(examples), dtype=torch.bool)
        for side in range(2):
            names = [name_of(pair[side].ids.tobytes()) for pair in examples]
            numbers = np.unique(names, return_inverse=True)[1]
            equal |= torch.from_numpy(numbers[:, None] == numbers)
        return symmetric_contrast(
            vectors[:, 0],
            vectors[:, 1],
            self.config["contrast_temperature"],
            equal.to(vectors.device),
        )
