"""The base class of models that embed histories and items by one sentence encoder."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ...contracts.cases import Cases
from ...data.texts.text import ItemText
from ...errors import UserError
from ...language.backbones.sources import SentenceBackbone
from ...language.prompts.templates import LazyTexts, TextForm
from ...language.tokens.batches import MIN_ITEM_TOKENS, SentenceEncoder, Tokens
from ...language.vectors import embed_cached
from ...training.corpora import Corpus, load_corpora
from .backbone_model import BackboneModel
from .vector_model import VectorModel


class SentenceModel(VectorModel, BackboneModel):
    """Ranks by the cosine of a history's vector and each item's.

    Attributes
    ----------
    form : TextForm
        How items and sequences are written.
    corpora : list of Corpus
        The datasets that the model trains on, the run's own first.
    sentences : list of list of str
        The text of each item, for each corpus.
    """

    backbone_kind = SentenceBackbone
    bundle: SentenceBackbone
    encoder: SentenceEncoder

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.form = TextForm.named(config["text_form"])
        self.corpora = load_corpora(
            self.inputs, Corpus(self.interactions, self.text, dataset.split.train)
        )
        self.sentences = [self._sentences(corpus.text) for corpus in self.corpora]

    def item_texts(self) -> list[str]:
        """List all texts that are encoded as items."""
        return list(chain.from_iterable(self.sentences))

    def _sentences(self, text: ItemText) -> list[str]:
        return [self.form.item(text.names, row) for row in text.values]

    def make_encoder(self, bundle):
        """Make the encoder, and forget the vectors of items by earlier weights."""
        self.item_vectors = None
        encoder = SentenceEncoder(
            bundle.tokenizer, self.config["max_length"], form=self.form, marks=bundle.marks
        )
        if encoder.min_length > encoder.max_length:
            raise UserError(
                f"max_length: expected at least {encoder.min_length}, which leave "
                f"{MIN_ITEM_TOKENS} tokens for the newest item, found {encoder.max_length}"
            )
        self.tokenise_items(encoder, self.item_texts())
        return encoder

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
            Vectors of length 1.
        """
        vectors = embed_cached(
            tokens,
            self.bundle.pooled,
            self.bundle,
            self.passes,
            self.device,
            self.config["precision"],
            saved,
            bool(self.config["show_progress"]) and saved is not None,
        )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_items(self, items):
        """Embed the texts of items."""
        tokens = [self.encoder.item(self.sentences[0][item]) for item in items]
        return self.vectors(tokens, self.weights and self.weights.parent)

    def encode_users(self, cases: Cases) -> np.ndarray:
        """Embed the histories of cases."""
        tokens = [
            self.encoder.sequence(LazyTexts(self.sentences[0], history))
            for history in cases.histories(self.interactions)
        ]
        self.count_cut(cases, [text.cut for text in tokens])
        self.count_borders([text.ids for text in tokens])
        return self.vectors(tokens)
