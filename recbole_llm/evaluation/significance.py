"""Is one run better than another? Of the same cases, and over users: the cases of one user are no independent evidence."""

import json
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .ranks import RankTable

# Users drawn at a time, over all samples of a block; bounds the memory of the bootstrap to some 50 MB.
DRAWS = 2**21


class TTest(NamedTuple):
    """Mean of a - b, Student's t, two-sided p and the number of pairs (users, for `user_ttest`)."""

    difference: float
    t: float
    p: float
    n: int


class Interval(NamedTuple):
    """Mean of a - b as the table takes it, the bounds of its bootstrap interval, and the number of users."""

    difference: float
    low: float
    high: float
    n_users: int


def same_measure(a: dict, b: dict) -> tuple | None:
    """What two result rows measure differently, as (key, value of a, value of b), or None; a row may be still to come.

    Read of a row: fingerprint, split, evaluation, part. `mode: full` is the same as full for validation and for test.
    """
    for key in ("fingerprint", "split", "evaluation", "part"):
        one, other = (_spelt_out(row.get(key)) for row in (a, b))
        if isinstance(one, dict) and isinstance(other, dict):
            for inner in one | other:
                if one.get(inner) != other.get(inner):
                    return f"{key}.{inner}", one.get(inner), other.get(inner)
        elif one != other:
            return key, one, other
    return None


def _spelt_out(value):
    value = json.loads(json.dumps(value, default=str))  # as a stored row has it
    if isinstance(value, dict) and (mode := value.get("mode")):
        given = mode if isinstance(mode, dict) else {"test": mode}
        value["mode"] = (
            dict.fromkeys(("valid", "test"), *given.values()) if len(given) == 1 else given
        )
    return value


def pair(table_a: RankTable, table_b: RankTable) -> tuple[RankTable, RankTable]:
    """Both tables with the same cases (user, target, position) in the order of `table_a`.

    Raises UserError if a case is in one table only or in a table twice.
    """
    names = ("user", "target", "position")
    if all(np.array_equal(getattr(table_a, name), getattr(table_b, name)) for name in names):
        return table_a, table_b
    import pandas as pd

    index_a, index_b = (
        pd.MultiIndex.from_arrays([getattr(t, n) for n in names]) for t in (table_a, table_b)
    )
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
    The pairs are taken as independent: where users have several cases, that is `user_ttest`.
    Raises ValueError for unequal shapes or values that are not finite, UserError for fewer than two cases.
    """
    from scipy.special import stdtr

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"two vectors of equal length expected, found shapes {a.shape} and {b.shape}"
        )
    if a.size < 2:
        raise UserError(
            f"expected at least two cases for a t-test, found {a.size}; evaluate more cases"
        )
    differences = a - b
    if not np.isfinite(differences).all():
        raise ValueError(
            f"finite values expected, found {int((~np.isfinite(differences)).sum())} that are not"
        )
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        mean = float(differences[0])
        return (
            TTest(mean, float(np.copysign(np.inf, mean)), 0.0, a.size)
            if mean
            else TTest(0.0, 0.0, 1.0, a.size)
        )
    t = mean / float(differences.std(ddof=1) / np.sqrt(a.size))
    return TTest(mean, t, float(2 * stdtr(a.size - 1, -abs(t))), a.size)


def per_user(
    users: np.ndarray, values: np.ndarray, group_by_user: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(sums, weights) per user, float [n_users] each, such that sums.sum() / weights.sum() is the mean that a table shows.

    users: token [n] of each case; values: float [n]. The mean is that over cases, and with group_by_user that over users
    of the means over their cases.
    """
    index, sizes = np.unique(users, return_inverse=True, return_counts=True)[1:]
    sums = np.bincount(index, weights=values, minlength=len(sizes))
    return (
        (sums / sizes, np.ones(len(sizes))) if group_by_user else (sums, sizes.astype(np.float64))
    )


def user_ttest(
    users: np.ndarray, a: np.ndarray, b: np.ndarray, group_by_user: bool = False
) -> TTest:
    """Paired t-test of `per_user`'s sums of a - b: users are independent, the cases of one user need not be.

    users, a, b: [n] by case, in the same order. Where each user has one case, it is the paired test over cases. With 100
    users, 20 cases each and a correlation of 0.2 inside a user, that test would call 39 % of equal models different at 5 %.
    """
    sums, _ = per_user(users, np.subtract(a, b, dtype=np.float64), group_by_user)
    return paired_ttest(sums, np.zeros_like(sums))


def user_bootstrap(
    users: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    group_by_user: bool = False,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Paired percentile bootstrap of the mean of a - b; users are drawn with all their cases.

    users, a, b: [n] by case, in the same order. group_by_user: see `per_user`. Efron and Tibshirani, "An introduction to
    the bootstrap" (1993), sections 8.3 and 13.3. The result depends on the seed and not on the order of cases. Raises
    UserError if there is none.
    """
    if len(users) == 0:
        raise UserError(
            "expected at least one case to compare, found none; check the split and the filters"
        )
    sums, weights = per_user(users, np.subtract(a, b, dtype=np.float64), group_by_user)
    n_users = len(sums)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, DRAWS // n_users)
    for start in range(0, samples, step):
        block = means[start : start + step]
        drawn = generator.integers(n_users, size=(len(block), n_users), dtype=np.int32)
        block[:] = sums[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / weights.sum()), float(low), float(high), n_users)
