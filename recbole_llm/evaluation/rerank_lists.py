"""The lists another run has stored, to rank again what it retrieved."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..storage import run_folders
from .ranks import UNNAMED, UNREADABLE, RankTable, in_front

NAMES = ("items", "scores")  # of the arrays in a file of top lists

Judge = Callable[
    [list[int], list[np.ndarray]], list[np.ndarray]
]  # (cases, their items) -> float scores of those


def unranked(folder: Path, row: dict) -> list[str]:
    """Parts of the cases that `row` has metrics of and whose ranks or top lists are lost.

    They are lost if the file is missing, damaged or another one. The contents of top lists, which
    are large, are not read.
    """
    lost = []
    for part in ("valid", "test"):
        if part not in row:
            continue
        try:
            RankTable.load(folder / run_folders.RANKS.format(part=part))
            with np.load(folder / run_folders.TOP.format(part=part)) as top:
                whole = set(NAMES) <= set(top.files)
        except PermissionError:
            raise
        except (UserError, *UNREADABLE):
            whole = False
        if not whole:
            lost.append(part)
    return lost


def _load(path: Path, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """(items, scores) of a file of top lists, [cases, k] each.

    Raises UserError if they are not there.
    """
    try:
        with np.load(path, allow_pickle=False) as top:
            items, scores = (top[name] for name in NAMES)
        fits = (
            items.ndim == 2
            and len(items) == cases
            and items.shape == scores.shape
            and (items.dtype.kind, scores.dtype.kind) == ("i", "f")
            and items.min(initial=-1) >= -1
        )
    except PermissionError:
        raise
    except UNREADABLE:
        fits = False
    if not fits:
        raise UserError(
            f"rerank_from: the top lists {path} are missing or damaged, or not those of its "
            f"{cases} cases; "
            f"remove {path}, and {run_folders.ranked_again(path.parent)}"
        )
    return items, scores


class StoredLists:
    """Top lists of one part of a finished run, by case.

    Parameters
    ----------
    folder : The run's folder.
    part : `valid` or `test`.
    row : The run's result, which has an entry for each part that was ranked.
    """

    def __init__(self, folder: Path, part: str, row: dict):
        if part not in row:
            raise UserError(
                f"rerank_from: {folder.name} has ranked no {part} cases; give a run that has"
            )
        ranks = RankTable.load(folder / run_folders.RANKS.format(part=part))
        self.folder = folder
        self.items, self.values = _load(folder / run_folders.TOP.format(part=part), len(ranks))
        self.row = {
            case: row
            for row, case in enumerate(
                zip(ranks.user.tolist(), ranks.position.tolist(), strict=True)
            )
        }

    def keep(self, scores: np.ndarray, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Scores of the items in each case's list; those that `scores` does not name stand behind, as they are listed.

        scores : float [cases, items], `UNNAMED` for items without a score. Returns float64 [cases, items], `UNNAMED` for
        the items that are not in the list.
        """
        kept, listed = np.full(scores.shape, UNNAMED), np.full(scores.shape, UNNAMED)
        for case, (items, stored) in enumerate(self.of(users, positions)):
            kept[case, items], listed[case, items] = scores[case, items], stored
        return in_front(kept, listed)

    def judged(
        self, users: np.ndarray, positions: np.ndarray, most: int, catalogue: int, judge: Judge
    ) -> np.ndarray:
        """float64 [cases, catalogue]: the first `most` items of each list by what is said of them, above the rest of the list as it stands.

        `UNNAMED` for the items that are not in the list.
        """
        listed = self.of(users, positions)
        asked = [case for case, (items, _) in enumerate(listed) if len(items)]
        first = [listed[case][0][:most] for case in asked]
        verdicts = np.full((len(listed), catalogue), UNNAMED)
        rest = verdicts.copy()
        for case, own, values in zip(
            asked, first, judge(asked, first) if asked else (), strict=True
        ):
            verdicts[case, own] = values
            items, stored = listed[case]
            rest[case, items] = stored
        return in_front(verdicts, rest)

    def of(self, users: np.ndarray, positions: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(items, their scores) of each case, best first."""
        found = []
        for user, position in zip(users.tolist(), positions.tolist(), strict=True):
            row = self.row.get((user, position))
            if row is None:
                raise UserError(
                    f"rerank_from: {self.folder.name} has stored no list for user {user}, event "
                    f"{position + 1}; give a run over the same cases"
                )
            there = self.items[row] >= 0
            found.append((self.items[row][there], self.values[row][there]))
        return found
