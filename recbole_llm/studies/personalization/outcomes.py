"""For whom a personal adapter helps: wins, draws and losses of users, by their activity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...evaluation.metrics import case_values
from ...evaluation.ranks import RankTable

OUTCOMES = ("win", "draw", "loss", "mixed", "inconclusive")
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
LEVELS = ("very low", "low", "high", "very high")  # the paper's names of four groups
NOISE = 1e-9  # more than rounding can change a sum


def user_values(
    table: RankTable, metrics: Sequence[str] = METRICS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average metrics over the cases of each user.

    Parameters
    ----------
    table : RankTable
        Ranks of the cases.
    metrics : sequence of str
        Names of the metrics.

    Returns
    -------
    users : ndarray of str [n]
        The users.
    cases : ndarray of int64 [n]
        Number of cases of each user.
    means : ndarray of float64 [n, metrics]
        Means over the user's cases.
    """
    users, row, cases = np.unique(table.user, return_inverse=True, return_counts=True)
    sums = [np.bincount(row, case_values(table, metric), len(users)) for metric in metrics]
    return users, cases, np.stack(sums, axis=1) / cases[:, None]


def outcomes(values: np.ndarray, baseline: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """Compare two models for each user by the paper's rules.

    A user is a win if two or more metrics are better, a loss if three or more are worse, a draw if
    all are equal and not all zero, and inconclusive if all are zero for both models. These rules
    exclude each other; a user to whom none applies is mixed.

    Parameters
    ----------
    values, baseline : ndarray of float [users, 4]
        Metrics by the two models.
    threshold : float
        Differences up to it, or up to NOISE, count as equal.

    Returns
    -------
    ndarray of str [users]
        One of `OUTCOMES`.
    """
    gap, threshold = values - baseline, max(threshold, NOISE)
    better, worse = (gap > threshold).sum(axis=1), (gap < -threshold).sum(axis=1)
    all_zero = ~(values.any(axis=1) | baseline.any(axis=1))
    rules = [all_zero, better >= 2, worse >= 3, (better == 0) & (worse == 0)]
    return np.select(rules, ["inconclusive", "win", "loss", "draw"], default="mixed")


@dataclass(frozen=True)
class Groups:
    """Users by activity, the least active group first.

    Attributes
    ----------
    names : tuple of str
        Names of the groups, with their numbers of test cases.
    of : ndarray of int64 [users]
        Group of each user.
    """

    names: tuple[str, ...]
    of: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of users in each group, int64 [groups]."""
        return np.bincount(self.of, minlength=len(self.names))


def by_activity(cases: np.ndarray, borders: Sequence[int] | None) -> Groups:
    """Group users by their numbers of test cases.

    Parameters
    ----------
    cases : ndarray of int64 [users]
        Numbers of test cases, at least 1.
    borders : sequence of int, or None
        The largest number in each group but the last, ascending. A group may be empty. None means
        quartiles of the users; equal numbers are in one quartile where possible.

    Returns
    -------
    Groups
        The groups.
    """
    if borders is None:
        return _quartiles(cases)
    ranges = [f"up to {borders[0]}"]
    for below, border in zip(borders, borders[1:]):
        ranges.append(f"{below + 1} to {border}" if below + 1 < border else str(border))
    ranges.append(f"more than {borders[-1]}")
    if len(ranges) == len(LEVELS):
        ranges = [f"{level} ({numbers})" for level, numbers in zip(LEVELS, ranges, strict=True)]
    return Groups(tuple(ranges), np.searchsorted(borders, cases, side="left"))


def _quartiles(cases: np.ndarray) -> Groups:
    """Four groups of approximately equal size."""
    # equal numbers share the mean of their ranks, and so their group
    ranks = np.searchsorted(np.sort(cases), cases, side="left")
    mean_ranks = ranks + (np.bincount(cases)[cases] - 1) / 2
    count = len(LEVELS)
    quartile = (mean_ranks * count / max(1, len(cases))).astype(np.int64)
    names = tuple(f"{level} (quartile)" for level in LEVELS)
    return Groups(names, np.minimum(quartile, count - 1))
