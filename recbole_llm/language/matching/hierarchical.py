"""Hierarchical match: the attributes of a generated text against the items' (CALRec, section 6)."""

import re
from collections.abc import Sequence

import numpy as np

from ...evaluation.ranks import UNNAMED


def parse(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Read the attribute values of a text such as `Title: A. Category: B.`.

    A value may hold full stops; it ends where the next name begins.

    Parameters
    ----------
    text : str
        A generated text.
    names : sequence of str
        The names of the attributes, in their order.

    Returns
    -------
    tuple of str
        The values, as many in their order as can be read.
    """
    values: list[str] = []
    rest = text.strip()
    for index, name in enumerate(names):
        if not rest.startswith(f"{name}: "):
            break
        rest = rest[len(name) + 2 :]
        end = _end_of_value(rest, names[index + 1 :])
        if end < 0:
            values.append(rest.removesuffix("."))
            break
        values.append(rest[:end])
        rest = rest[end + 2 :]
    return tuple(_normalise_space(value) for value in values)


def _end_of_value(text: str, following_names: Sequence[str]) -> int:
    """Return where the first of the names that occurs puts an end to a value; -1 if none does."""
    for name in following_names:
        end = text.find(f". {name}: ")
        if end >= 0:
            return end
    return -1


class HierarchicalIndex:
    """Looks items up by their first attributes.

    Parameters
    ----------
    values : sequence of sequence of str
        The attribute values of every item, in their order.
    """

    def __init__(self, values: Sequence[Sequence[str]]):
        self.size = len(values)
        self.items: dict[tuple[str, ...], list[int]] = {}
        for item, row in enumerate(values):
            normalised = tuple(map(_normalise_space, row))
            for size in range(1, len(normalised) + 1):
                self.items.setdefault(normalised[:size], []).append(item)

    def __len__(self) -> int:
        return self.size

    def match(self, values: tuple[str, ...]) -> tuple[np.ndarray, int]:
        """Find the items that agree with as many of the first values as possible.

        Parameters
        ----------
        values : tuple of str
            The values of a generated text.

        Returns
        -------
        tuple of (ndarray of int64 [n], int)
            The items, and the number of first values on which they agree; no items and 0 where
            none agrees on the first value.
        """
        for size in range(len(values), 0, -1):
            items = self.items.get(values[:size])
            if items:
                return np.array(items), size
        return np.zeros(0, dtype=np.int64), 0


def _normalise_space(value: str) -> str:
    return re.sub(r"\s+", " ", value).strip()


def rank_matches(matches: Sequence[np.ndarray], items: int) -> np.ndarray:
    """Score items by the best text that matches them.

    Parameters
    ----------
    matches : sequence of ndarray of int64
        The items that each text matches, best text first.
    items : int
        Number of all items.

    Returns
    -------
    ndarray of float64 [items]
        The number of texts from an item's best text to the last one; UNNAMED for items that no
        text matches.
    """
    scores = np.full(items, UNNAMED)
    for score, matched in enumerate(reversed(matches), start=1):
        scores[matched] = score
    return scores
