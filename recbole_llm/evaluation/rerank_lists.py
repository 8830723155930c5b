"""Reranking: the stored top lists of another run, and scores for the items in them."""

from collections.abc import Callable, Container
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..storage import run_folders
from .ranks import UNNAMED, UNREADABLE, RankTable, in_front

# arrays in a file of top lists
NAMES = ("items", "scores")
# scores items: numbers of cases, items of each case -> float scores of the items of each case
Judge = Callable[[list[int], list[np.ndarray]], list[np.ndarray]]


def unranked(folder: Path, row: Container[str]) -> list[str]:
    """Find the parts of the cases whose ranks or top lists are missing or damaged.

    The contents of top lists, which are large, are not read.

    Parameters
    ----------
    folder : Path
        The run's folder.
    row : container of str
        The run's result, which has an entry for each part that was ranked.

    Returns
    -------
    list of str
        Those of "valid" and "test" that `row` has and that have to be ranked again.

    Raises
    ------
    PermissionError
        If a file must not be read.
    """
    lost = []
    for part in ("valid", "test"):
        if part not in row:
            continue
        try:
            RankTable.load(folder / run_folders.RANKS.format(part=part))
            with np.load(folder / run_folders.TOP.format(part=part)) as top:
                is_readable = set(NAMES) <= set(top.files)
        except PermissionError:
            raise
        except (UserError, *UNREADABLE):
            is_readable = False
        if not is_readable:
            lost.append(part)
    return lost


def _load(path: Path, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores, [cases, k] each, in a file of top lists; UserError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as top:
            items, scores = (top[name] for name in NAMES)
        is_valid = (
            items.ndim == 2
            and len(items) == cases
            and items.shape == scores.shape
            and (items.dtype.kind, scores.dtype.kind) == ("i", "f")
            and items.min(initial=-1) >= -1
        )
    except PermissionError:
        raise
    except UNREADABLE:
        is_valid = False
    if not is_valid:
        raise UserError(
            f"rerank_from: the top lists {path} are missing or damaged, or not those of its "
            f"{cases} cases; "
            f"remove {path}, and {run_folders.ranked_again(path.parent)}"
        )
    return items, scores


class StoredLists:
    """The top lists of one part of a finished run.

    Parameters
    ----------
    folder : Path
        The run's folder.
    part : {"valid", "test"}
        The part.
    row : container of str
        The run's result, which has an entry for each part that was ranked.

    Attributes
    ----------
    items : ndarray of int, [n_cases, k]
        Item indices, best first; -1 for no item.
    values : ndarray of float, [n_cases, k]
        Their scores.
    row : dict of tuple of (str, int) to int
        (token of the user, position of the target) of a case -> its row in `items` and `values`.

    Raises
    ------
    UserError
        If the run has not ranked the part, or its files are damaged.
    """

    def __init__(self, folder: Path, part: str, row: Container[str]) -> None:
        if part not in row:
            raise UserError(
                f"rerank_from: {folder.name} has ranked no {part} cases; give a run that has"
            )
        ranks = RankTable.load(folder / run_folders.RANKS.format(part=part))
        self.folder = folder
        self.items, self.values = _load(folder / run_folders.TOP.format(part=part), len(ranks))
        cases = zip(ranks.user.tolist(), ranks.position.tolist(), strict=True)
        self.row = {case: number for number, case in enumerate(cases)}

    def keep(self, scores: np.ndarray, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Restrict scores to the items in each case's list.

        Parameters
        ----------
        scores : ndarray of float, [n_cases, n_items]
            Scores; `UNNAMED` for items without a score.
        users : ndarray of str, [n_cases]
            Tokens of the cases' users.
        positions : ndarray of int, [n_cases]
            Positions of the cases' targets.

        Returns
        -------
        ndarray of float64, [n_cases, n_items]
            Scores of the listed items: those that `scores` does not name rank behind the others,
            in the order of the list. `UNNAMED` for all other items.
        """
        new, listed = np.full(scores.shape, UNNAMED), np.full(scores.shape, UNNAMED)
        for case, (items, stored) in enumerate(self.of(users, positions)):
            new[case, items] = scores[case, items]
            listed[case, items] = stored
        return in_front(new, listed)

    def judged(
        self, users: np.ndarray, positions: np.ndarray, most: int, catalogue: int, judge: Judge
    ) -> np.ndarray:
        """Rerank the first items of each list.

        Parameters
        ----------
        users : ndarray of str, [n_cases]
            Tokens of the cases' users.
        positions : ndarray of int, [n_cases]
            Positions of the cases' targets.
        most : int
            Number of items of each list to rerank.
        catalogue : int
            Number of items of the catalogue.
        judge : callable
            Scores the items to rerank, see `Judge`. It is called once, without the cases whose
            lists are empty.

        Returns
        -------
        ndarray of float64, [n_cases, n_items]
            Scores: the reranked items by the judge, behind them the rest of the list in its order.
            `UNNAMED` for all other items.
        """
        listed = self.of(users, positions)
        cases = [case for case, (items, _) in enumerate(listed) if len(items)]
        first = [listed[case][0][:most] for case in cases]
        judgements = judge(cases, first) if cases else []
        new = np.full((len(listed), catalogue), UNNAMED)
        rest = new.copy()
        for case, items, scores in zip(cases, first, judgements, strict=True):
            new[case, items] = scores
            all_items, stored = listed[case]
            rest[case, all_items] = stored
        return in_front(new, rest)

    def of(self, users: np.ndarray, positions: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Look up the lists of cases.

        Parameters
        ----------
        users : ndarray of str, [n_cases]
            Tokens of the cases' users.
        positions : ndarray of int, [n_cases]
            Positions of the cases' targets.

        Returns
        -------
        list of tuple of ndarray, [n_listed] each
            Item indices and their scores, best first, of each case.

        Raises
        ------
        UserError
            If the run has not ranked one of the cases.
        """
        lists = []
        for user, position in zip(users.tolist(), positions.tolist(), strict=True):
            row = self.row.get((user, position))
            if row is None:
                raise UserError(
                    f"rerank_from: {self.folder.name} has stored no list for user {user}, event "
                    f"{position + 1}; give a run over the same cases"
                )
            is_item = self.items[row] >= 0
            lists.append((self.items[row][is_item], self.values[row][is_item]))
        return lists
