"""Tests and intervals of the difference between two runs over the same cases.

Users are the independent units, because the cases of one user are not independent evidence.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from .ranks import RankTable

# users drawn at a time, over all samples of a block; bounds the memory of the bootstrap to some
# 50 MB
DRAWS = 2**21
# samples of a bootstrap
SAMPLES = 2000
# keys of a result row that tell what it measures
MEASURE = ("fingerprint", "split", "evaluation", "part")
# columns of a rank table that identify a case
CASE = ("user", "target", "position")


class TTest(NamedTuple):
    """Result of a t-test.

    Attributes
    ----------
    difference : float
        Mean of a - b.
    t : float
        Student's t.
    p : float
        Two-sided p.
    n : int
        Number of pairs; for `user_ttest`, of users.
    """

    difference: float
    t: float
    p: float
    n: int


class Interval(NamedTuple):
    """Bootstrap interval of a difference.

    Attributes
    ----------
    difference : float
        Mean of a - b, averaged like the metrics in a table.
    low, high : float
        Bounds of the interval.
    n_users : int
        Number of users.
    """

    difference: float
    low: float
    high: float
    n_users: int


def same_measure(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Compare what two result rows measure, by the keys in `MEASURE`.

    `mode: full` equals full for both validation and test.

    Parameters
    ----------
    a, b : mapping of str to object
        Rows of the results file, or rows that are not yet written.

    Returns
    -------
    tuple of (str, object, object), or None
        The first key that differs, with the values of `a` and of `b`; None if none differs.

    Examples
    --------
    >>> same_measure({"part": "test"}, {"part": "valid"})
    ('part', 'test', 'valid')
    >>> same_measure({"split": {"mode": "full"}}, {"split": {"mode": {"test": "full"}}}) is None
    True
    """
    for key in MEASURE:
        one, other = (_spelt_out(row.get(key)) for row in (a, b))
        if isinstance(one, dict) and isinstance(other, dict):
            for inner in one | other:
                if one.get(inner) != other.get(inner):
                    return f"{key}.{inner}", one.get(inner), other.get(inner)
        elif one != other:
            return key, one, other
    return None


def _spelt_out(value: Any) -> Any:
    """A value as a stored row has it, with the mode of each part."""
    value = json.loads(json.dumps(value, default=str))
    if not isinstance(value, dict) or not value.get("mode"):
        return value
    mode = value["mode"]
    modes = mode if isinstance(mode, dict) else {"test": mode}
    if len(modes) == 1:
        modes = dict.fromkeys(("valid", "test"), *modes.values())
    return value | {"mode": modes}


def pair(table_a: RankTable, table_b: RankTable) -> tuple[RankTable, RankTable]:
    """Align two rank tables by case: user, target and position.

    Parameters
    ----------
    table_a, table_b : RankTable
        The tables.

    Returns
    -------
    table_a, table_b : RankTable
        The tables, both in the order of `table_a`.

    Raises
    ------
    UserError
        If a case is in one table only, or in a table twice.
    """
    if all(np.array_equal(getattr(table_a, name), getattr(table_b, name)) for name in CASE):
        return table_a, table_b
    import pandas as pd

    def index_of(table: RankTable, label: str) -> Any:
        index = pd.MultiIndex.from_arrays([getattr(table, name) for name in CASE])
        if not index.is_unique:
            raise UserError(
                f"expected each case once per run, found {int(index.duplicated().sum())} repeats "
                f"in the {label}; evaluate it again"
            )
        return index

    index_a, index_b = index_of(table_a, "first"), index_of(table_b, "second")
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
    """Compare values of the same cases by a two-sided paired t-test.

    Pairs are taken as independent; if users have several cases, use `user_ttest`. If all
    differences are equal, t is 0 and p is 1 for no difference, else t is infinite and p is 0.

    Parameters
    ----------
    a, b : ndarray of float, [n_cases]
        Values, in the same order of cases, see `pair`.

    Returns
    -------
    TTest
        The result.

    Raises
    ------
    ValueError
        If shapes differ or values are not finite.
    UserError
        If there are fewer than two cases.

    Examples
    --------
    >>> result = paired_ttest(np.array([1.0, 0.5, 1.0, 0.0]), np.array([0.5, 0.5, 0.0, 0.0]))
    >>> f"difference {result.difference:.3f}, t {result.t:.2f}, p {result.p:.2f}"
    'difference 0.375, t 1.57, p 0.22'
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
    if np.ptp(differences) == 0:
        constant = float(differences[0])
        if constant:
            return TTest(constant, float(np.copysign(np.inf, constant)), 0.0, a.size)
        return TTest(0.0, 0.0, 1.0, a.size)
    mean = float(differences.mean())
    t = mean / float(differences.std(ddof=1) / np.sqrt(a.size))
    return TTest(mean, t, float(2 * stdtr(a.size - 1, -abs(t))), a.size)


def per_user(
    users: np.ndarray, values: np.ndarray, group_by_user: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Sum values and weights by user, so that sums.sum() / weights.sum() is the mean of a table.

    Parameters
    ----------
    users : ndarray of str, [n_cases]
        Token of the user of each case.
    values : ndarray of float, [n_cases]
        Value of each case.
    group_by_user : bool
        Whether the mean is over users of the means over their cases, or over all cases.

    Returns
    -------
    sums, weights : ndarray of float64, [n_users]
        Sums by user, in the order of tokens.

    Examples
    --------
    >>> users, values = np.array(["bob", "ann", "bob"]), np.array([1.0, 3.0, 2.0])
    >>> sums, weights = per_user(users, values)
    >>> sums.tolist(), weights.tolist()
    ([3.0, 3.0], [1.0, 2.0])
    >>> sums, weights = per_user(users, values, group_by_user=True)
    >>> sums.tolist(), weights.tolist()
    ([3.0, 1.5], [1.0, 1.0])
    """
    index, sizes = np.unique(users, return_inverse=True, return_counts=True)[1:]
    sums = np.bincount(index, weights=values, minlength=len(sizes))
    if group_by_user:
        return sums / sizes, np.ones(len(sizes))
    return sums, sizes.astype(np.float64)


def user_ttest(
    users: np.ndarray, a: np.ndarray, b: np.ndarray, group_by_user: bool = False
) -> TTest:
    """Compare two models by a paired t-test over users, of `per_user`'s sums of a - b.

    Users are independent, the cases of one user are not. With 100 users, 20 cases each and a
    correlation of 0.2 inside a user, a test over cases would find 39 % of equal models different
    at 5 %. If each user has one case and each model one seed, this is the paired test over cases.

    Parameters
    ----------
    users : ndarray of str, [n_cases]
        Token of the user of each case.
    a, b : ndarray of float, [n_cases] or [n_seeds, n_cases]
        Values of the two models, in the same order of cases.
    group_by_user : bool
        See `per_user`.

    Returns
    -------
    TTest
        The result.

    Examples
    --------
    >>> users = np.array(["ann", "ann", "bob", "eve"])
    >>> result = user_ttest(users, np.array([1.0, 1.0, 0.0, 1.0]), np.zeros(4))
    >>> f"difference {result.difference:.1f}, t {result.t:.2f}, n {result.n}"
    'difference 1.0, t 1.73, n 3'
    """
    sums_a, sums_b = (user_sums(users, values, group_by_user)[0] for values in (a, b))
    return ttest_of_sums(sums_a, sums_b)


def user_sums(
    users: np.ndarray, values: np.ndarray, group_by_user: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Apply `per_user` to every seed.

    Parameters
    ----------
    users : ndarray of str, [n_cases]
        Token of the user of each case.
    values : ndarray of float, [n_cases] or [n_seeds, n_cases]
        Value of each case.
    group_by_user : bool
        See `per_user`.

    Returns
    -------
    sums : ndarray of float64, [n_seeds, n_users]
        Sums by user.
    weights : ndarray of float64, [n_users]
        Weights by user.
    """
    seeds = np.atleast_2d(np.asarray(values, dtype=np.float64))
    by_seed = [per_user(users, seed, group_by_user) for seed in seeds]
    return np.stack([sums for sums, _ in by_seed]), by_seed[0][1]


def ttest_of_sums(a: np.ndarray, b: np.ndarray) -> TTest:
    """Test that two models have the same mean, with users and seeds as crossed random factors.

    Users are the same for both models; seeds of one model are independent of the other's. The only
    seed of a model counts as a fixed factor: if both have one, this is `paired_ttest` over users.

    Parameters
    ----------
    a, b : ndarray of float, [n_seeds, n_users]
        Sums by user, see `user_sums`. The models may have different numbers of seeds.

    Returns
    -------
    TTest
        The result.
    """
    by_user = a.mean(axis=0) - b.mean(axis=0)
    over_users = paired_ttest(by_user, np.zeros_like(by_user))
    variance, freedom = _variance(a, b)
    if len(a) == len(b) == 1 or variance == 0:
        return over_users
    from scipy.special import stdtr

    t = over_users.difference / float(np.sqrt(variance))
    return TTest(over_users.difference, t, float(2 * stdtr(freedom, -abs(t))), over_users.n)


def _variance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Estimate the variance of the mean of a - b over users and seeds.

    It is the variance over users plus that over the seeds of each model, less what both include, as
    in studies with several readers and cases. The degrees of freedom are those of Hillis, "A
    comparison of denominator degrees of freedom methods for multiple observer ROC analysis"
    (Statistics in Medicine 26, 2007).

    Parameters
    ----------
    a, b : ndarray of float, [n_seeds, n_users]
        Sums by user, of two users or more.

    Returns
    -------
    variance, freedom : float
        The variance and its degrees of freedom.
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
    """Adjust the p-values of several tests, to bound the probability of any false rejection.

    Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of
    Statistics 6, 1979).

    Parameters
    ----------
    p : sequence of float, [n_tests]
        The p-values.

    Returns
    -------
    ndarray of float64, [n_tests]
        Adjusted p-values, in the order of `p`. Rejecting those below 5 % rejects a true hypothesis
        in at most 5 % of families.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
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
    """Compute a bootstrap interval of the mean of a - b over users and seeds.

    Users are drawn with all their cases, and the seeds of each model as well. For one seed of each
    model it is a percentile interval: Efron and Tibshirani, "An introduction to the bootstrap"
    (1993), sections 8.3 and 13.3. Of S seeds, S - 1 are drawn, because S of them would vary by
    (S - 1) / S of what they should (Rao and Wu, "Resampling inference with complex survey data",
    JASA 83, 1988). The bounds are then moved away from the difference by the ratio of the
    quantiles of Student's t for so few seeds and of the normal distribution. The result does not
    depend on the order of cases.

    Parameters
    ----------
    users, a, b, group_by_user : ndarray, ndarray, ndarray, bool
        As of `user_ttest`.
    samples : int
        Number of bootstrap samples.
    seed : int
        Seed of the samples.
    level : float
        Nominal coverage of the interval.

    Returns
    -------
    Interval
        The interval.

    Raises
    ------
    UserError
        If there is no case.

    Examples
    --------
    >>> users = np.array(["ann", "ann", "bob", "eve"])
    >>> user_bootstrap(users, np.ones(4), np.zeros(4))
    Interval(difference=1.0, low=1.0, high=1.0, n_users=3)
    """
    if len(users) == 0:
        raise UserError(
            "expected at least one case to compare, found none; check the split and the filters"
        )
    (sums_a, weights), (sums_b, _) = (user_sums(users, part, group_by_user) for part in (a, b))
    has_one_seed = len(sums_a) == len(sums_b) == 1
    factors = [sums_a - sums_b] if has_one_seed else [sums_a, -sums_b]
    means = _bootstrap_means(factors, weights, samples, seed)
    difference = float((sums_a.mean(axis=0) - sums_b.mean(axis=0)).sum() / weights.sum())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    if not has_one_seed and len(weights) > 1:
        wider = _widening(_variance(sums_a, sums_b)[1], level)
        low, high = (difference + wider * (bound - difference) for bound in (low, high))
    return Interval(difference, float(low), float(high), len(weights))


def _bootstrap_means(
    factors: Sequence[np.ndarray], weights: np.ndarray, samples: int, seed: int
) -> np.ndarray:
    """Draw users and seeds, and average.

    Parameters
    ----------
    factors : sequence of ndarray of float, [n_seeds, n_users] each
        Sums by user whose seeds are drawn independently; the means of the factors are added.
    weights : ndarray of float, [n_users]
        Weights by user.
    samples : int
        Number of samples.
    seed : int
        Seed of the samples.

    Returns
    -------
    ndarray of float64, [n_samples]
        Mean of each sample.
    """
    n_users = len(weights)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, DRAWS // n_users)
    for start in range(0, samples, step):
        block = means[start : start + step]
        draws = generator.integers(n_users, size=(len(block), n_users), dtype=np.int32)
        sums = np.zeros(len(block))
        for factor in factors:
            shares = _shares(len(factor), len(block), generator)
            for values, share in zip(factor, shares.T, strict=True):
                sums += share * values[draws].sum(1)
        block[:] = sums / weights[draws].sum(1)
    return means


def _widening(freedom: float, level: float) -> float:
    """Ratio of the quantiles of Student's t and of the normal distribution, for an interval."""
    from scipy.stats import norm, t

    return float(t.ppf((1 + level) / 2, freedom) / norm.ppf((1 + level) / 2))


def _shares(n_seeds: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw the weight of each seed in each sample, float [samples, n_seeds]; rows add up to 1."""
    if n_seeds == 1:
        return np.ones((samples, 1))
    counts = generator.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), samples)
    return counts / (n_seeds - 1)
