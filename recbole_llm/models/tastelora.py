"""TASTE-LoRA: a T5 matches the texts of histories and items, and adapters make it one's own (TASTE, CIKM '23; UMass x Spotify, 2024)."""

from pathlib import Path

import numpy as np
import torch

from ..contracts.cases import Cases
from ..contracts.models import ContrastiveTrainable
from ..errors import UserError
from ..language.backbones.encoder_decoder import FusionBackbone, SegmentEncoder
from ..language.prompts.templates import TASTE_PROMPT, LazyTexts, taste_item_text
from ..language.tokens.batches import Tokens
from ..language.vectors import embed_cached
from ..training.corpora import Corpus
from ..training.losses import over_candidates
from .base.backbone_model import BackboneModel
from .base.vector_model import VectorModel


class Choice(tuple):
    """Texts that one training case is learned from: a history, the item that follows, and sampled items.

    texts : int64 [1 + negatives], which distinct text each item is.
    """

    def __new__(cls, tokens: list[Tokens], texts: np.ndarray):
        made = super().__new__(cls, tokens)
        made.texts = texts
        return made


def targets_and_others(
    targets: np.ndarray, met: np.ndarray, pool: np.ndarray, negatives: int, rng: np.random.Generator
) -> np.ndarray:
    """int64 [cases, 1 + negatives]: each target, and others at random out of a pool, but of what is met, if there are any."""
    free = pool[~np.isin(pool, met)]
    return np.column_stack(
        [targets, rng.choice(free if len(free) else pool, (len(targets), negatives))]
    )


class TASTELoRA(VectorModel, BackboneModel, ContrastiveTrainable):
    """Ranks by the product of a history's vector and each item's, both by one encoder-decoder.

    The negatives of a case are all items of its step but those of its target's text.

    Attributes
    ----------
    events : int64 [n_events], the distinct text of each event's item. pool : int64, those that negatives are drawn from.
    """

    backbone_kind = FusionBackbone

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.corpus = Corpus(self.tables, self.text, dataset.split.train)
        self.events, self.pool = self.same[self.tables.item], self.met_in_training()
        self.sentences = [
            taste_item_text(zip(self.text.names, row, strict=True)) for row in self.text.values
        ]
        self.load_backbone([*self.sentences, *TASTE_PROMPT])

    def met_in_training(self) -> np.ndarray:
        """int64: the distinct texts of all events of training and before, by their items' ids: neither what nor in which order is met later shows."""
        cases = self.corpus.cases
        rows = np.concatenate(
            [
                np.arange(cases.begin[own].min(), cases.end[own].max() + 1)
                for own in self.corpus.by_user
            ]
        )
        known = np.unique(self.tables.item[rows])
        texts = self.same[known[np.argsort(self.tables.items[known].astype(str))]]
        return texts[np.sort(np.unique(texts, return_index=True)[1])]

    def read_text(self):
        text = super().read_text()
        return text.numbered(self.tables) if self.config["item_number"] else text

    def make_encoder(self, bundle):
        self.item_vectors = None  # of the weights before
        limits = {key: self.config[key] for key in ("max_length", "item_length", "segments")}
        encoder = SegmentEncoder(bundle.tokenizer, **limits)
        if encoder.min_length > encoder.max_length:
            raise UserError(
                f"max_length: expected at least {encoder.min_length} tokens, which leave "
                f"item_length for one item, found {encoder.max_length}"
            )
        return encoder

    def examples(self, epoch: int) -> list[Choice]:
        found, rng = [], np.random.default_rng([self.config["seed"], epoch])
        for rows in self.corpus.by_user:
            chosen = rows if self.config["targets"] == "all" else rng.choice(rows, 1)
            found += self.choices(self.corpus.cases[chosen], self.corpus.cases[rows], rng)
        return found

    def choices(self, cases: Cases, known: Cases, rng: np.random.Generator) -> list[Choice]:
        """Of cases of one user, each with its target and `negatives` other items, of those that the user does not meet in `known` cases, if there are any."""
        met = self.events[known.begin.min() : known.end.max() + 1]
        texts = targets_and_others(
            self.events[cases.end], met, self.pool, self.config["negatives"], rng
        )
        return [
            Choice([self.history(history), *map(self.item, row)], row)
            for history, row in zip(cases.histories(self.tables), texts, strict=True)
        ]

    def item(self, text: int) -> Tokens:
        """By the number of its distinct text."""
        return self.encoder.item(self.sentences[self.first[text]])

    def history(self, items: np.ndarray) -> Tokens:
        """Items by number, oldest first."""
        return self.encoder.history(LazyTexts(self.sentences, items))

    def loss_and_vectors(self, batch, with_loss: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(no loss of a text alone, [rows, width] vectors)."""
        vectors = self.bundle.vectors(batch)
        return vectors.sum() * 0.0, vectors

    def pair_loss(self, vectors: torch.Tensor, groups: list[Choice]) -> torch.Tensor:
        """Cross-entropy of vectors [groups, 2 + negatives, width] over all items of the step."""
        texts = np.stack([group.texts for group in groups])
        wrong = torch.from_numpy(texts.ravel() == texts[:, :1]).to(vectors.device)
        target = torch.arange(len(groups), device=vectors.device) * texts.shape[1]
        return over_candidates(vectors[:, 0], vectors[:, 1:].flatten(0, 1), target, wrong).mean()

    def vectors(self, tokens: list[Tokens], saved: Path | None = None) -> np.ndarray:
        """float32 [texts, width]; stored below `saved` if that is given."""
        return embed_cached(
            tokens,
            self.bundle.vectors,
            self.bundle,
            self.config["pass_tokens"],
            self.device,
            self.config["precision"],
            saved,
        )

    def encode_items(self, items):
        return self.vectors(
            [self.item(text) for text in self.same[items]],
            self.weights and self.weights.parent,
        )

    def encode_users(self, cases):
        tokens = [self.history(history) for history in cases.histories(self.tables)]
        self.count_cut(cases, [one.cut for one in tokens])
        self.count_borders([one.ids[one.roles[0] == 1] for one in tokens])
        return self.vectors(tokens)
