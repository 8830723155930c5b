"""Score items by generated texts: by the words they share, or the attributes they agree on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.texts.text import ItemText
from .bm25 import BM25Index
from .hierarchical import HierarchicalIndex, parse, rank_matches
from .round_robin import quasi_round_robin


class BM25Match:
    """Quasi-round-robin BM25 of the attribute values (CALRec, section 3.5).

    Parameters
    ----------
    text : ItemText
        The texts of all items.
    config : mapping
        The settings `epsilon`, `bm25_k1` and `bm25_b`.
    """

    def __init__(self, text: ItemText, config: Mapping[str, Any]):
        self.names, self.epsilon = text.names, config["epsilon"]
        self.index = BM25Index(
            [text.plain(item) for item in range(len(text))], config["bm25_k1"], config["bm25_b"]
        )

    def scores(self, texts: Sequence[str], logprobs: np.ndarray) -> np.ndarray:
        """Score all items.

        Parameters
        ----------
        texts : sequence of str
            The generated texts of a case, best first.
        logprobs : ndarray of float [texts]
            Their log-probabilities.

        Returns
        -------
        ndarray of float64 [items]
            Scores.
        """
        columns = self.index.scores([self._values(text) for text in texts])
        return quasi_round_robin(columns, logprobs, self.epsilon)

    def _values(self, text: str) -> str:
        """Remove the names of attributes from a generated text; the corpus has none."""
        for name in self.names:
            text = text.replace(f"{name}: ", " ")
        return text


class HierarchicalMatch:
    """Items that agree on the most attributes of a text (CALRec, section 6).

    Parameters
    ----------
    text : ItemText
        The texts of all items.
    """

    def __init__(self, text: ItemText):
        self.names, self.index = text.names, HierarchicalIndex(text.values)

    def scores(self, texts: Sequence[str], logprobs: np.ndarray) -> np.ndarray:
        """Score all items by the order of the texts.

        Parameters
        ----------
        texts : sequence of str
            The generated texts of a case, best first.
        logprobs : ndarray of float [texts]
            Not used.

        Returns
        -------
        ndarray of float64 [items]
            Scores; UNNAMED for items that agree with no text.
        """
        matches = [self.index.match(parse(text, self.names))[0] for text in texts]
        return rank_matches(matches, len(self.index))

    def tally(self, texts: Sequence[str], times: Sequence[int]) -> dict[str, int]:
        """Count how well texts keep to the format and match items.

        Parameters
        ----------
        texts : sequence of str
            Distinct generated texts.
        times : sequence of int
            How often each was generated.

        Returns
        -------
        dict of str to int
            Generations that have all attributes in their order (`formatted`), that agree with an
            item on all attributes (`matched_all`), and on the first (`matched_first`).
        """
        counts = {"formatted": 0, "matched_all": 0, "matched_first": 0}
        for text, count in zip(texts, times, strict=True):
            values = parse(text, self.names)
            size = self.index.match(values)[1]
            if text.endswith(".") and len(values) == len(self.names):
                counts["formatted"] += count
            if size == len(self.names):
                counts["matched_all"] += count
            if size > 0:
                counts["matched_first"] += count
        return counts
