"""Hierarchical match: a generated text's attributes against the items' (CALRec, section 6)."""

import re
from collections.abc import Sequence

import numpy as np

from ...evaluation.ranks import UNNAMED


def parse(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """The values of a text `Title: A. Category: B.`, as many of the attributes in their order as can be read.

    A value may hold full stops; it ends where the next name begins.
    """
    values: list[str] = []
    rest = text.strip()
    for index, name in enumerate(names):
        if not rest.startswith(f"{name}: "):
            break
        rest = rest[len(name) + 2 :]
        following = next(
            (at for other in names[index + 1 :] if (at := rest.find(f". {other}: ")) >= 0), -1
        )
        if following < 0:
            values.append(rest.removesuffix("."))
            break
        values.append(rest[:following])
        rest = rest[following + 2 :]
    return tuple(_plain(value) for value in values)


class HierarchicalIndex:
    """Items by their first attributes.

    Parameters
    ----------
    values : the attributes of every item, in their order.
    """

    def __init__(self, values: Sequence[Sequence[str]]):
        self.size = len(values)
        self.items: dict[tuple[str, ...], list[int]] = {}
        for item, row in enumerate(values):
            plain = tuple(map(_plain, row))
            for size in range(1, len(plain) + 1):
                self.items.setdefault(plain[:size], []).append(item)

    def __len__(self) -> int:
        return self.size

    def match(self, values: tuple[str, ...]) -> tuple[np.ndarray, int]:
        """(items, size): the items that agree on all values; where none does, on all but the last, down to the first. Size 0: none agrees on that."""
        for size in range(len(values), 0, -1):
            if found := self.items.get(values[:size]):
                return np.array(found), size
        return np.zeros(0, dtype=np.int64), 0


def _plain(value: str) -> str:
    return re.sub(r"\s+", " ", value).strip()


def rank_matches(matches: Sequence[np.ndarray], items: int) -> np.ndarray:
    """float64 [items] from the items of each text, best text first: an item gets the place of its best text, all others `UNNAMED`."""
    scores = np.full(items, UNNAMED)
    for place, found in enumerate(reversed(matches), start=1):
        scores[found] = place
    return scores
