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
        self.folder, self.items = folder, np.load(folder / store.TOP.format(part=part))["items"]
        self.row = {case: row for row, case in enumerate(zip(ranks.user.tolist(), ranks.position.tolist(), strict=True))}

    def keep(self, scores: np.ndarray, user: str, position: int) -> np.ndarray:
        """Scores [items] of a case with every item that is not in its list below all that are, and tied."""
        row = self.row.get((user, position))
        if row is None:
            raise UserError(f"rerank_from: {self.folder.name} has stored no list for user {user}, event {position + 1}; give a run over the same cases")
        items = self.items[row][self.items[row] >= 0]
        kept = np.full_like(scores, scores.min() - 1)
        kept[items] = scores[items]
        return kept
