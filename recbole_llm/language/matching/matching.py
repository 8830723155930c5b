"""From generated texts to item scores: by the words they share, or by the attributes they agree on."""

from collections.abc import Sequence

import numpy as np

from ...data.texts.text import ItemText
from .bm25 import BM25Index
from .hierarchical import HierarchicalIndex, parse, rank_matches
from .round_robin import quasi_round_robin


class BM25Match:
    """Quasi-round-robin BM25 of the attribute values (CALRec, section 3.5)."""

    def __init__(self, text: ItemText, config):
        self.names, self.epsilon = text.names, config["epsilon"]
        self.index = BM25Index(
            [text.plain(item) for item in range(len(text))], config["bm25_k1"], config["bm25_b"]
        )

    def scores(self, texts: Sequence[str], logprobs: np.ndarray) -> np.ndarray:
        """float64 [items] from texts, best first."""
        return quasi_round_robin(
            self.index.scores([self._values(text) for text in texts]), logprobs, self.epsilon
        )

    def _values(self, text: str) -> str:
        """A generated text without the attribute names, as the corpus has it."""
        for name in self.names:
            text = text.replace(f"{name}: ", " ")
        return text


class HierarchicalMatch:
    """Items that agree on the most of a text's attributes, in the order of the texts (CALRec, section 6)."""

    def __init__(self, text: ItemText):
        self.names, self.index = text.names, HierarchicalIndex(text.values)

    def scores(self, texts: Sequence[str], logprobs: np.ndarray) -> np.ndarray:
        """float64 [items] from texts, best first; `UNNAMED` for items that no text agrees with."""
        return rank_matches(
            [self.index.match(parse(text, self.names))[0] for text in texts], len(self.index)
        )

    def tally(self, texts: Sequence[str], times: Sequence[int]) -> dict[str, int]:
        """How many texts have all attributes in their order, agree with an item on all of them, and on the first; each counts as often as it was drawn."""
        parsed = [parse(text, self.names) for text in texts]
        sizes = [self.index.match(values)[1] for values in parsed]
        good = [
            text.endswith(".") and len(values) == len(self.names)
            for text, values in zip(texts, parsed, strict=True)
        ]
        told = {
            "formatted": good,
            "matched_all": [size == len(self.names) for size in sizes],
            "matched_first": [size > 0 for size in sizes],
        }
        return {
            name: sum(number for number, yes in zip(times, flags, strict=True) if yes)
            for name, flags in told.items()
        }
