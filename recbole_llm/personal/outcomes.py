"""Whom an own adapter helps: every user a win, a draw, a loss, mixed or inconclusive, by how much there is to test the user on."""

from collections.abc import Sequence

import numpy as np

from ..evaluation.metrics import case_values
from ..evaluation.ranks import RankTable

OUTCOMES = ("win", "draw", "loss", "mixed", "inconclusive")
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
BUCKETS = ("very low", "low", "high", "very high")


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

    threshold : a difference up to it counts as none.
    """
    gap = own - other
    better, worse = (gap > threshold).sum(axis=1), (gap < -threshold).sum(axis=1)
    nothing = ~(own.any(axis=1) | other.any(axis=1))
    rules = [nothing, better >= 2, worse >= 3, (better == 0) & (worse == 0)]
    return np.select(rules, ["inconclusive", "win", "loss", "draw"], default="mixed")


def by_activity(cases: np.ndarray, buckets: int = len(BUCKETS)) -> np.ndarray:
    """int64 [users]: bucket of each user by the number of its test cases, all but equally many users in each, equal numbers in one bucket where that can be.

    The paper has 85 users in each of four and tells the borders of one (low: 6 to 10).
    """
    ranks = (
        np.searchsorted(np.sort(cases), cases, side="left") + (np.bincount(cases)[cases] - 1) / 2
    )  # of equal ones the middle
    return np.minimum((ranks * buckets / len(cases)).astype(np.int64), buckets - 1)
