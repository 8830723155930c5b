"""From generated texts to item scores: by the words they share, or by the attributes they agree on."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..data.text import ItemText
from .bm25 import BM25Index
from .hierarchical import HierarchicalIndex, parse, rank_matches
from .round_robin import quasi_round_robin


def formatted(text: str, names: Sequence[str]) -> bool:
    """Whether a text has all attributes in their order."""
    return text.endswith(".") and len(parse(text, names)) == len(names)


class BM25Match:
    """Quasi-round-robin BM25 of the attribute values (CALRec, section 3.4)."""

    def __init__(self, text: ItemText, config):
        self.names, self.epsilon = text.names, config["epsilon"]
        self.index = BM25Index([text.plain(item) for item in range(len(text))], config["bm25_k1"], config["bm25_b"])

    def scores(self, texts: Sequence[str], logprobs: np.ndarray, counts: Counter) -> np.ndarray:
        """float64 [items] from texts, best first."""
        return quasi_round_robin(self.index.scores([self._values(text) for text in texts]), logprobs, self.epsilon)

    def _values(self, text: str) -> str:
        """A generated text without the attribute names, as the corpus has it."""
        for name in self.names:
            text = text.replace(f"{name}: ", " ")
        return text


class HierarchicalMatch:
    """Items that agree on the most of a text's attributes, in the order of the texts."""

    def __init__(self, text: ItemText, config):
        self.names, self.index = text.names, HierarchicalIndex(text.values)

    def scores(self, texts, logprobs, counts):
        matches, sizes = zip(*(self.index.match(parse(text, self.names)) for text in texts), strict=True) if texts else ((), ())
        counts.update(matched=len(texts), matched_all=sum(size == len(self.names) for size in sizes), matched_first=sum(size > 0 for size in sizes))
        return rank_matches(matches, len(self.index))


MATCHES = {"bm25": BM25Match, "hierarchical": HierarchicalMatch}
