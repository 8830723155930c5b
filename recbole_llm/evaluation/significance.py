"""Is one run better than another? Of the same cases, and over users: the cases of one user are no independent evidence."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .ranks import RankTable

# Users drawn at a time, over all samples of a block; bounds the memory of the bootstrap to some 50 MB.
DRAWS = 2**21
SAMPLES = 2000  # of a bootstrap


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
                f"expected each case once per run, found {int(index.duplicated().sum())} repeats "
                f"in the {label}; evaluate it again"
            )
    order = index_b.get_indexer(index_a)
    only_a = int((order < 0).sum())
    only_b = len(table_b) - (len(table_a) - only_a)
    if only_a or only_b:
        raise UserError(
            f"expected two runs over the same cases, found {only_a} only in the first and {only_b} "
            "only in the second; "
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

    With 100 users, 20 cases each and a correlation of 0.2 inside a user, a test over cases would call 39 % of equal models
    different at 5 %. Where each user has one case and each model one seed, this is the paired test over cases.

    Parameters
    ----------
    users : token [n], the user of each case.
    a, b : float [n], or [seeds, n] for a model with several seeds; cases in the same order.
    group_by_user : see `per_user`.
    """
    return ttest_of_sums(*(user_sums(users, values, group_by_user)[0] for values in (a, b)))


def user_sums(
    users: np.ndarray, values: np.ndarray, group_by_user: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`per_user` of every seed: (sums, float64 [seeds, n_users]; weights, float64 [n_users]).

    Parameters
    ----------
    users : token [n], the user of each case.
    values : float [n] or [seeds, n].
    """
    by_seed = [
        per_user(users, seed, group_by_user)
        for seed in np.atleast_2d(np.asarray(values, dtype=np.float64))
    ]
    return np.stack([sums for sums, _ in by_seed]), by_seed[0][1]


def ttest_of_sums(a: np.ndarray, b: np.ndarray) -> TTest:
    """Test that two models have the same mean, with users and seeds as two crossed random factors.

    Users are the same for both models, the seeds of one model independent of the other's. A model's only seed is taken as
    it is: where both have one, this is `paired_ttest` over users.

    Parameters
    ----------
    a, b : float [seeds of a, users] and [seeds of b, users].
    """
    by_user = a.mean(axis=0) - b.mean(axis=0)
    plain = paired_ttest(by_user, np.zeros_like(by_user))
    variance, freedom = _variance(a, b)
    if len(a) == len(b) == 1 or variance == 0:
        return plain
    from scipy.special import stdtr

    t = plain.difference / float(np.sqrt(variance))
    return TTest(plain.difference, t, float(2 * stdtr(freedom, -abs(t))), plain.n)


def _variance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of a - b over users and seeds, and its degrees of freedom.

    It is the variance over users plus that over the seeds of each model, less what both of them count, as in studies with
    several readers and cases; degrees of freedom after Hillis, "A comparison of denominator degrees of freedom methods for
    multiple observer ROC analysis" (Statistics in Medicine 26, 2007).

    Parameters
    ----------
    a, b : float [seeds of a, users] and [seeds of b, users], two users or more.
    """
    n_users = a.shape[1]
    of_users = (a.mean(axis=0) - b.mean(axis=0)).var(ddof=1) / n_users
    of_seeds, spread = 0.0, 0.0
    for values in (a, b):
        n_seeds, by_seed = len(values), values.mean(axis=1)
        if n_seeds == 1:
            continue
        variance = by_seed.var(ddof=1) / n_seeds
        residuals = values - by_seed[:, None] - values.mean(axis=0) + values.mean()
        of_users -= (residuals**2).sum() / ((n_seeds - 1) * (n_users - 1) * n_seeds * n_users)
        of_seeds += variance
        spread += variance**2 / (n_seeds - 1)
    of_users = max(of_users, 0.0)
    spread += of_users**2 / (n_users - 1)
    total = of_users + of_seeds
    return float(total), float(total**2 / spread) if spread else float(n_users - 1)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p of tests that are looked at together: below 5 % for any true null in at most 5 % of families.

    Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics 6, 1979).

    Parameters
    ----------
    p : float [tests].

    Returns
    -------
    float64 [tests], in the order of `p`.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def user_bootstrap(
    users: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    group_by_user: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of the mean of a - b: users are drawn with all their cases, and with them each model's seeds.

    For one seed of each model, a percentile interval: Efron and Tibshirani, "An introduction to the bootstrap" (1993),
    sections 8.3 and 13.3. Of S seeds, S - 1 are drawn, since S of them would vary by (S - 1) / S of what they should (Rao and
    Wu, "Resampling inference with complex survey data", JASA 83, 1988), and the bounds are moved away from the difference as
    far as Student's t of so few seeds is wider than the normal distribution. The result depends on `seed` and not on the
    order of cases.

    Parameters
    ----------
    users : token [n], the user of each case.
    a, b : float [n], or [seeds, n] for a model with several seeds; cases in the same order.
    group_by_user : see `per_user`.

    Raises
    ------
    UserError : for no case at all.
    """
    if len(users) == 0:
        raise UserError(
            "expected at least one case to compare, found none; check the split and the filters"
        )
    (one, weights), (other, _) = (user_sums(users, values, group_by_user) for values in (a, b))
    factors = [one - other] if len(one) == len(other) == 1 else [one, -other]
    n_users = len(weights)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, DRAWS // n_users)
    for start in range(0, samples, step):
        block = means[start : start + step]
        drawn = generator.integers(n_users, size=(len(block), n_users), dtype=np.int32)
        sums = np.zeros(len(block))
        for factor in factors:
            shares = _shares(len(factor), len(block), generator)
            for values, share in zip(factor, shares.T, strict=True):
                sums += share * values[drawn].sum(1)
        block[:] = sums / weights[drawn].sum(1)
    difference = float((one.mean(axis=0) - other.mean(axis=0)).sum() / weights.sum())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    if len(factors) > 1 and n_users > 1:
        from scipy.stats import norm, t

        wider = t.ppf((1 + level) / 2, _variance(one, other)[1]) / norm.ppf((1 + level) / 2)
        low, high = (difference + wider * (bound - difference) for bound in (low, high))
    return Interval(difference, float(low), float(high), n_users)


def _shares(n_seeds: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """float [samples, seeds]: how much each seed counts for in each sample; every row adds up to 1."""
    if n_seeds == 1:
        return np.ones((samples, 1))
    chosen = generator.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), samples)
    return chosen / (n_seeds - 1)
