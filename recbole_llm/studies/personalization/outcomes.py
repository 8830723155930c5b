"""Whom an own adapter helps: every user a win, a draw, a loss, mixed or inconclusive, by how much there is to test the user on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...evaluation.metrics import case_values
from ...evaluation.ranks import RankTable

OUTCOMES = ("win", "draw", "loss", "mixed", "inconclusive")
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
LEVELS = ("very low", "low", "high", "very high")  # the paper's names, where there are four groups
NOISE = 1e-9  # sums of the same numbers in another order differ by less


def user_values(
    table: RankTable, metrics: Sequence[str] = METRICS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users [n], test cases of each [n], float64 [n, metrics]: means over the user's cases)."""
    users, row, cases = np.unique(table.user, return_inverse=True, return_counts=True)
    sums = [np.bincount(row, case_values(table, metric), len(users)) for metric in metrics]
    return users, cases, np.stack(sums, axis=1) / cases[:, None]


def outcomes(own: np.ndarray, other: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """str [users]: how users fare by one model, against another, on four metrics, float [users, 4] each.

    win: better in two of them or more; loss: worse in three or more; draw: equal in all, and not zero in all; inconclusive: zero in all by both
    models; mixed: what these rules of the paper leave open. The first four exclude each other.

    threshold : a difference up to it counts as none, and so does one up to NOISE.
    """
    gap, threshold = own - other, max(threshold, NOISE)
    better, worse = (gap > threshold).sum(axis=1), (gap < -threshold).sum(axis=1)
    nothing = ~(own.any(axis=1) | other.any(axis=1))
    rules = [nothing, better >= 2, worse >= 3, (better == 0) & (worse == 0)]
    return np.select(rules, ["inconclusive", "win", "loss", "draw"], default="mixed")


@dataclass(frozen=True)
class Groups:
    """Users by activity, the least active first.

    names : of the groups, with the numbers of test cases that belong there. of : int64 [users], the group of each user.
    """

    names: tuple[str, ...]
    of: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """int64 [groups], 0 for a group without users."""
        return np.bincount(self.of, minlength=len(self.names))


def by_activity(cases: np.ndarray, borders: Sequence[int] | None) -> Groups:
    """Groups of users by the number of their test cases.

    Parameters
    ----------
    cases : int64 [users], at least 1.
    borders : the largest number of each group but the last, ascending; a group may be empty. None for quartiles of these
        users: four groups of all but equally many users, equal numbers in one group where that can be.
    """
    if borders is None:
        return _quartiles(cases)
    ranges = [f"up to {borders[0]}"]
    for below, border in zip(borders, borders[1:]):
        ranges.append(f"{below + 1} to {border}" if below + 1 < border else str(border))
    ranges.append(f"more than {borders[-1]}")
    if len(ranges) == len(LEVELS):
        ranges = [f"{level} ({cases})" for level, cases in zip(LEVELS, ranges, strict=True)]
    return Groups(tuple(ranges), np.searchsorted(borders, cases, side="left"))


def _quartiles(cases: np.ndarray) -> Groups:
    ranks = (
        np.searchsorted(np.sort(cases), cases, side="left") + (np.bincount(cases)[cases] - 1) / 2
    )  # of equal ones the middle
    count = len(LEVELS)
    of = np.minimum((ranks * count / max(1, len(cases))).astype(np.int64), count - 1)
    return Groups(tuple(f"{level} (quartile)" for level in LEVELS), of)
