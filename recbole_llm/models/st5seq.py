"""ST5-Seq: a sentence encoder reads a history and the item that follows it into one space (Edinburgh thesis, 2024)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..contracts.models import ContrastiveTrainable
from ..data.cases.augmentation import augment
from ..data.reading.tables import Tables
from ..data.texts.text import UNKNOWN, ItemText
from ..errors import UserError
from ..language.prompts.templates import LazyTexts
from ..language.tokens.batches import Tokens
from ..storage.content_cache import name_of
from ..training.corpora import Corpus, draw_users
from ..training.losses import symmetric_contrast
from .base.sentence_model import SentenceModel

Pair = tuple[Tokens, Tokens]


def described(tables: Tables, config) -> bool:
    """Whether any item has a description."""
    return any(
        (tables.item_table[name] != "").any()
        for name in config["description_fields"].values()
        if name in tables.item_table
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

    `phase: item` pairs an item's text with its description, `sequence` a sequence with an augmented one, `next` a history
    with the item that follows.
    """

    @classmethod
    def check(cls, config, inputs):
        super().check(config, inputs)
        if config["phase"] != "item":
            return
        tables = inputs.interactions
        _check_answers(config, inputs.further_datasets)
        if not config["datasets"] and not described(tables, config):
            columns = ", ".join(config["description_fields"].values())
            raise UserError(
                f"phase item learns from descriptions, and {tables.name} has none in {columns}; "
                "set description_fields, or --variant=finetune"
            )

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.descriptions = (
            [self._descriptions(corpus) for corpus in self.corpora]
            if config["phase"] == "item"
            else []
        )
        if config["phase"] == "item" and not any(self.descriptions):
            raise UserError(
                "phase item learns from descriptions, and none of "
                f"{', '.join(config['datasets'] or [self.tables.name])} has one"
            )
        items = [text for sentences in self.sentences for text in sentences]
        told = [text for descriptions in self.descriptions for text in descriptions.values()]
        self.load_backbone(
            [
                *items,
                *told,
                *([self.form.instruction] * len(items) if self.form.instruction else []),
            ]
        )

    def _descriptions(self, corpus: Corpus) -> dict[int, str]:
        """Item -> description, of those that have one."""
        if not described(corpus.tables, self.config):
            return {}
        text = ItemText.from_tables(corpus.tables, self.config["description_fields"])
        return {
            item: self.form.item(text.names, row)
            for item, row in enumerate(text.values)
            if any(value != UNKNOWN for value in row)
        }

    def examples(self, epoch: int) -> list[Pair]:
        seed, pairs = self.config["seed"], []
        make = {"item": self._items, "sequence": self._sequences, "next": self._next}[
            self.config["phase"]
        ]
        for number, users in enumerate(
            draw_users([len(corpus.by_user) for corpus in self.corpora], seed, epoch)
        ):
            pairs += make(number, users, np.random.default_rng([seed, epoch, number]))
        return pairs

    def _items(self, number: int, users: np.ndarray, rng: np.random.Generator) -> list[Pair]:
        sentences = self.sentences[number]
        return [
            (self.encoder.item(sentences[item]), self.encoder.item(text))
            for item, text in self.descriptions[number].items()
        ]

    def _sequences(self, number: int, users: np.ndarray, rng: np.random.Generator) -> list[Pair]:
        corpus, shares = self.corpora[number], self.config["augmentation"]
        pairs = []
        for user in users:
            last = corpus.by_user[user][-1]
            items = corpus.tables.item[corpus.cases.begin[last] : corpus.cases.end[last] + 1]
            pairs.append(
                (self._sequence(number, items), self._sequence(number, augment(items, shares, rng)))
            )
        return pairs

    def _next(self, number: int, users: np.ndarray, rng: np.random.Generator) -> list[Pair]:
        corpus = self.corpora[number]
        events, cases = corpus.tables.item, corpus.cases
        rows = (
            rows if self.config["targets"] == "all" else [rng.choice(rows)]
            for rows in (corpus.by_user[user] for user in users)
        )
        return [
            (self._sequence(number, events[cases.begin[row] : cases.end[row]]), self.encoder.item(self.sentences[number][events[cases.end[row]]]))
            for own in rows for row in own
        ]  # fmt: skip

    def _sequence(self, number: int, items: np.ndarray) -> Tokens:
        return self.encoder.sequence(LazyTexts(self.sentences[number], items))

    def loss_and_vectors(self, batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(no loss of a text alone, [rows, width] vectors)."""
        vectors = self.bundle.pooled(batch)
        return vectors.sum() * 0.0, vectors

    def pair_loss(self, vectors: torch.Tensor, groups: list[Pair]) -> torch.Tensor:
        """The symmetric loss of vectors [pairs, 2, width]; pairs that share a text are no negatives of each other."""
        equal = torch.zeros(len(groups), len(groups), dtype=torch.bool)
        for side in range(2):
            names = np.unique(
                [name_of(pair[side].ids.tobytes()) for pair in groups], return_inverse=True
            )[1]
            equal |= torch.from_numpy(names[:, None] == names)
        return symmetric_contrast(
            vectors[:, 0],
            vectors[:, 1],
            self.config["contrast_temperature"],
            equal.to(vectors.device),
        )
