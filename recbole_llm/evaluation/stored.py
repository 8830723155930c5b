"""The lists another run has stored, to rank again what it retrieved."""

from pathlib import Path

import numpy as np

from .. import store
from ..errors import UserError
from .ranks import RankTable


class StoredLists:
    """Top lists of one part of a finished run, by case."""

    def __init__(self, folder: Path, part: str):
        ranks = RankTable.load(folder / store.RANKS.format(part=part))
        top = np.load(folder / store.TOP.format(part=part))
        self.folder, self.items, self.values = folder, top["items"], top["scores"]
        self.row = {case: row for row, case in enumerate(zip(ranks.user.tolist(), ranks.position.tolist(), strict=True))}

    def keep(self, scores: np.ndarray, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Scores [cases, items] with every item that is not in a case's list below all that are, and tied. Zeros for a list that is empty."""
        kept = np.repeat(scores.min(axis=1, keepdims=True) - 1, scores.shape[1], axis=1)
        for case, (items, _) in enumerate(self.of(users, positions)):
            kept[case, items] = scores[case, items]
            if not len(items):
                kept[case] = 0
        return kept

    def of(self, users: np.ndarray, positions: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(items, their scores) of each case, best first."""
        found = []
        for user, position in zip(users.tolist(), positions.tolist(), strict=True):
            row = self.row.get((user, position))
            if row is None:
                raise UserError(f"rerank_from: {self.folder.name} has stored no list for user {user}, event {position + 1}; give a run over the same cases")
            there = self.items[row] >= 0
            found.append((self.items[row][there], self.values[row][there]))
        return found
