"""Is one run better than another? Paired over cases, or with whole users resampled."""

from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .metrics import case_values
from .ranks import RankTable

# Users drawn at a time, over all samples of a block; bounds the memory of the bootstrap to some 50 MB.
DRAWS = 2**21


class TTest(NamedTuple):
    """Mean of a - b, Student's t, two-sided p and the number of pairs."""

    difference: float
    t: float
    p: float
    n: int


class Interval(NamedTuple):
    """Mean of a - b over cases, the bounds of its bootstrap interval, and the number of users."""

    difference: float
    low: float
    high: float
    n_users: int


def pair(table_a: RankTable, table_b: RankTable) -> tuple[RankTable, RankTable]:
    """Both tables with the same cases (user, target, position) in the order of `table_a`.

    Raises UserError if a case is in one table only or in a table twice.
    """
    names = ("user", "target", "position")
    if all(np.array_equal(getattr(table_a, name), getattr(table_b, name)) for name in names):
        return table_a, table_b
    import pandas as pd

    index_a, index_b = (pd.MultiIndex.from_arrays([getattr(t, n) for n in names]) for t in (table_a, table_b))
    for label, index in (("first", index_a), ("second", index_b)):
        if not index.is_unique:
            raise UserError(
                f"expected each case once per run, found {int(index.duplicated().sum())} repeats in the {label}; evaluate it again"
            )
    order = index_b.get_indexer(index_a)
    only_a = int((order < 0).sum())
    only_b = len(table_b) - (len(table_a) - only_a)
    if only_a or only_b:
        raise UserError(
            f"expected two runs over the same cases, found {only_a} only in the first and {only_b} only in the second; "
            "evaluate both with the same data and split"
        )
    return table_a, table_b.take(order)


def paired_ttest(a: np.ndarray, b: np.ndarray) -> TTest:
    """Two-sided paired t-test of the case values a and b, float [n] each, in the same order of cases (see `pair`).

    If all differences are equal, t is 0 and p is 1 for no difference, t is infinite and p is 0 for any other.
    Cases of one user are treated as independent; where users have several, `user_bootstrap` is the safer test.
    Raises ValueError for unequal shapes or values that are not finite, UserError for fewer than two cases.
    """
    from scipy.special import stdtr

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"two vectors of equal length expected, found shapes {a.shape} and {b.shape}")
    if a.size < 2:
        raise UserError(f"expected at least two cases for a t-test, found {a.size}; evaluate more cases")
    differences = a - b
    if not np.isfinite(differences).all():
        raise ValueError(f"finite values expected, found {int((~np.isfinite(differences)).sum())} that are not")
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        mean = float(differences[0])
        return TTest(mean, float(np.copysign(np.inf, mean)), 0.0, a.size) if mean else TTest(0.0, 0.0, 1.0, a.size)
    t = mean / float(differences.std(ddof=1) / np.sqrt(a.size))
    return TTest(mean, t, float(2 * stdtr(a.size - 1, -abs(t))), a.size)


def user_bootstrap(
    table_a: RankTable, table_b: RankTable, metric: str, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Paired percentile bootstrap of the mean case difference in `metric`; users are drawn with all their cases.

    Efron and Tibshirani, "An introduction to the bootstrap" (1993), sections 8.3 and 13.3. The result depends on the seed
    and not on the order of rows. Raises UserError if the tables hold different cases or none.
    """
    table_a, table_b = pair(table_a, table_b)
    if len(table_a) == 0:
        raise UserError("expected at least one case to compare, found none; check the split and the filters")
    users, sizes = np.unique(table_a.user, return_inverse=True, return_counts=True)[1:]
    difference = case_values(table_a, metric) - case_values(table_b, metric)
    sums, n_users = np.bincount(users, weights=difference), len(sizes)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, DRAWS // n_users)
    for start in range(0, samples, step):
        block = means[start : start + step]
        drawn = generator.integers(n_users, size=(len(block), n_users), dtype=np.int32)
        block[:] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high), n_users)
