"""ST5-Seq: one sentence encoder embeds histories and the items that follow them.

It is described in a thesis of the University of Edinburgh (2024).
"""

from collections.abc import Mapping, Sequence

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
from ..training.corpora import Corpus, LazyExamples, chosen_cases, drawn_users
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
        instructions = [self.form.instruction] * sum(map(len, self.sentences))
        self.load_backbone(self.item_texts() + (instructions if self.form.instruction else []))

    def item_texts(self):
        """List the texts of items, and their descriptions."""
        texts = super().item_texts()
        for descriptions in self.descriptions:
            texts += descriptions.values()
        return texts

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

    def examples(self, epoch: int) -> LazyExamples:
        """Make the pairs of an epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, which decides the sample.

        Returns
        -------
        LazyExamples of tuple of (Tokens, Tokens)
            The pairs of the setting `phase`: each item that has a description, the longest training
            sequence of each user, or one training case or all of each user.
        """
        config, makers = self.config, {"sequence": self._augmented, "next": self._next}
        seed = [config["seed"], epoch]
        if config["phase"] == "item":
            items = [np.array(list(texts), dtype=np.int64) for texts in self.descriptions]
            return LazyExamples(items, self._described, seed)
        samples = drawn_users(self.corpora, config, epoch)
        if config["phase"] == "sequence":
            pairs = zip(self.corpora, samples, strict=True)
            rows = [corpus.by_user.last(users) for corpus, users in pairs]
        else:
            rows = chosen_cases(self.corpora, samples, config, epoch)
        return LazyExamples(rows, makers[config["phase"]], seed)

    def _described(self, number: int, item: int, rng: np.random.Generator) -> Pair:
        """Pair the text of an item with its description."""
        encode = self.encoder.item
        return encode(self.sentences[number][item]), encode(self.descriptions[number][item])

    def _augmented(self, number: int, row: int, rng: np.random.Generator) -> Pair:
        """Pair a sequence with an augmented one."""
        corpus = self.corpora[number]
        items = corpus.interactions.item[corpus.cases.begin[row] : corpus.cases.end[row] + 1]
        augmented = augment(items, self.config["augmentation"], rng)
        return self._sequence(number, items), self._sequence(number, augmented)

    def _next(self, number: int, row: int, rng: np.random.Generator) -> Pair:
        """Pair a history with its target."""
        corpus = self.corpora[number]
        items, end = corpus.interactions.item, corpus.cases.end[row]
        history = self._sequence(number, items[corpus.cases.begin[row] : end])
        return history, self.encoder.item(self.sentences[number][items[end]])

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
