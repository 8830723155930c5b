"""LIR, the last-item repeater: BM25 of the newest items' text against the catalogue (CALRec, section 4)."""

from ..language.matching.bm25 import BM25Index
from .base.text_model import TextModel


class LIR(TextModel):
    """The text baseline without training: whoever bought this may buy what reads like it."""

    unmatched_reason = "the newest items of every history have no word in their texts (set text_fields to columns that have)"
    inference_settings = ("last_n", "bm25_k1", "bm25_b")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.last_n = config["last_n"]
        self.corpus = [self.text.plain(item) for item in range(len(self.text))]
        self.index = BM25Index(self.corpus, config["bm25_k1"], config["bm25_b"])

    def score(self, cases):
        newest = (history[-self.last_n :] for history in cases.histories(self.tables))
        return self.index.scores(
            [" ".join(self.corpus[item] for item in items) for items in newest]
        )
