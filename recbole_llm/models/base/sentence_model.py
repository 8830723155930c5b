"""Text models that embed: users and items become vectors of one sentence encoder, and a score is their cosine."""

from pathlib import Path

import numpy as np

from ...contracts.cases import Cases
from ...errors import UserError
from ...language.backbones.sources import SentenceBackbone
from ...language.prompts.templates import LazyTexts, TextForm
from ...language.tokens.batches import MIN_ITEM_TOKENS, SentenceEncoder, Tokens
from ...language.vectors import embed_cached
from ...training.corpora import Corpus, load_corpora
from .backbone_model import BackboneModel
from .vector_model import VectorModel


class SentenceModel(VectorModel, BackboneModel):
    """Ranks by the cosine of a history's vector and each item's."""

    backbone_kind = SentenceBackbone

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.form = TextForm.named(config["text_form"])
        self.corpora = load_corpora(
            self.inputs, Corpus(self.tables, self.text, dataset.split.train)
        )
        self.sentences = [
            [self.form.item(corpus.text.names, row) for row in corpus.text.values]
            for corpus in self.corpora
        ]

    def make_encoder(self, bundle):
        self.item_vectors = None  # of the weights before
        encoder = SentenceEncoder(
            bundle.tokenizer, self.config["max_length"], form=self.form, marks=bundle.marks
        )
        if (least := encoder.min_length) > encoder.max_length:
            raise UserError(
                f"max_length: expected at least {least}, which leave {MIN_ITEM_TOKENS} tokens for "
                f"the newest item, found {encoder.max_length}"
            )
        return encoder

    def vectors(self, tokens: list[Tokens], saved: Path | None = None) -> np.ndarray:
        """float32 [texts, width], of length 1; stored below `saved` if that is given."""
        found = embed_cached(
            tokens,
            self.bundle.pooled,
            self.bundle,
            self.config["pass_tokens"],
            self.device,
            self.config["precision"],
            saved,
            bool(self.config["show_progress"]) and saved is not None,
        )
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def encode_items(self, items):
        return self.vectors(
            [self.encoder.item(self.sentences[0][item]) for item in items],
            self.weights and self.weights.parent,
        )

    def encode_users(self, cases: Cases) -> np.ndarray:
        tokens = [
            self.encoder.sequence(LazyTexts(self.sentences[0], history))
            for history in cases.histories(self.tables)
        ]
        self.count_cut(cases, [one.cut for one in tokens])
        self.count_borders([one.ids for one in tokens])
        return self.vectors(tokens)
