"""LIR, the last-item repeater: BM25 of the newest items' text (CALRec, section 4)."""

from ..language.matching.bm25 import BM25Index
from .base.text_model import TextModel


class LIR(TextModel):
    """A text baseline without training: ranks items by their BM25 with the newest items' text."""

    names_all = False  # a history without a word in common with any item names none
    unmatched_reason = (
        "the newest items of every history have no word in their texts (set text_fields to columns "
        "that have)"
    )
    inference_settings = ("last_n", "bm25_k1", "bm25_b")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.last_n = config["last_n"]
        self.corpus = [self.text.plain(item) for item in range(len(self.text))]
        self.index = BM25Index(self.corpus, config["bm25_k1"], config["bm25_b"])

    def score(self, cases):
        """Score every item by the text of each history's newest items."""
        queries = []
        for history in cases.histories(self.interactions):
            queries.append(" ".join(self.corpus[item] for item in history[-self.last_n :]))
        return self.index.scores(queries)
