"""Paired tests: against scipy, against known effects, and whatever the order of rows."""

import time

import numpy as np
import pytest
from scipy.stats import ttest_rel

from recbole_llm.errors import UserError
from recbole_llm.evaluation.metrics import case_values
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.evaluation.significance import pair, paired_ttest, user_bootstrap


def make_table(above, user=None, tied=None):
    n = len(above)
    return RankTable(
        user=np.array([f"u{i}" for i in range(n)] if user is None else user, dtype=str),
        target=np.array([f"i{i % 7}" for i in range(n)], dtype=str),
        position=np.arange(n),
        above=np.asarray(above, dtype=np.int64),
        tied=np.zeros(n, int) if tied is None else tied,
        n_candidates=np.full(n, 1000),
        fallback=np.zeros(n, bool),
    )


def test_ttest_equals_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 50, 5000):
        a, b = rng.normal(size=(2, n))
        a += 0.1
        found, wanted = paired_ttest(a, b), ttest_rel(a, b)
        assert found.n == n
        assert found.difference == pytest.approx((a - b).mean())
        assert found.t == pytest.approx(wanted.statistic, rel=1e-9)
        assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)


def test_ttest_without_variance():
    a = np.array([0.5, 0.25, 1.0])
    assert paired_ttest(a, a) == (0, 0, 1, 3)
    assert paired_ttest(a, a - 0.25) == (0.25, np.inf, 0, 3)
    assert paired_ttest(a - 0.25, a) == (-0.25, -np.inf, 0, 3)


def test_ttest_refuses():
    with pytest.raises(UserError, match="at least two cases"):
        paired_ttest(np.ones(1), np.zeros(1))
    with pytest.raises(ValueError, match="equal length"):
        paired_ttest(np.ones(3), np.ones(1))
    with pytest.raises(ValueError, match="finite"):
        paired_ttest(np.array([1.0, np.nan]), np.ones(2))


def test_pair_aligns_by_case():
    rng = np.random.default_rng(0)
    a, order = make_table(np.arange(100)), rng.permutation(100)
    first, second = pair(a, a.take(order))
    assert np.array_equal(first.key(), second.key()) and np.array_equal(second.above, a.above)
    first, second = pair(a.take(order), a)
    assert np.array_equal(second.above, order), "rows follow the first table"


def test_pair_tells_user_target_and_position_apart():
    columns = {"above": [0, 1, 2, 3], "tied": [0] * 4, "n_candidates": [9] * 4, "fallback": [False] * 4}
    a = RankTable(user=["u", "u", "u", "v"], target=["i", "i", "j", "i"], position=[1, 2, 1, 1], **columns)
    assert pair(a, a.take(np.array([3, 2, 1, 0])))[1].above.tolist() == [0, 1, 2, 3]


def test_pair_counts_what_is_missing():
    a = make_table(np.arange(10))
    with pytest.raises(UserError, match="found 3 only in the first and 1 only in the second") as fault:
        pair(a.take(np.arange(9)), a.take(np.array([9, 2, 3, 4, 5, 6, 7])))
    assert "\n" not in str(fault.value)
    with pytest.raises(UserError, match="1 repeats in the second"):
        pair(a.take(np.array([0, 1])), a.take(np.array([0, 1, 1])))


def test_bootstrap_covers_a_known_effect():
    """recall@1 differs for 30 % of the users: the interval holds 0.3 and has the width of a proportion's."""
    rng = np.random.default_rng(1)
    n = 4000
    better = rng.random(n) < 0.3
    found = user_bootstrap(make_table(np.zeros(n)), make_table(better * 5), "recall@1", samples=1000)
    assert found.difference == better.mean() and found.n_users == n
    assert found.low < 0.3 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / n), rel=0.15)
    assert found.low < found.difference < found.high


def test_bootstrap_draws_users_and_not_cases():
    """Twenty equal cases a user carry the information of one: the interval must not shrink."""
    rng = np.random.default_rng(2)
    users = np.arange(300)
    effect = rng.random(300) < 0.5
    one = user_bootstrap(make_table(np.zeros(300), users), make_table(effect * 3, users), "recall@1")
    many = np.repeat(users, 20)
    twenty = user_bootstrap(make_table(np.zeros(6000), many), make_table(effect[many] * 3, many), "recall@1")
    assert twenty.n_users == 300
    assert twenty == pytest.approx(one, abs=1e-12)


def test_bootstrap_is_a_loop_over_samples():
    """The same draws in a plain loop, users with different numbers of cases, a mean over cases."""
    rng = np.random.default_rng(3)
    users = np.sort(rng.integers(0, 40, 200))
    a, b = (make_table(rng.integers(0, 20, 200), users, rng.integers(0, 5, 200)) for _ in range(2))
    found = user_bootstrap(a, b, "ndcg@10", samples=50, seed=9, level=0.8)
    difference = case_values(a, "ndcg@10") - case_values(b, "ndcg@10")
    names = np.unique(a.user)
    draws = np.random.default_rng(9).integers(len(names), size=(50, len(names)), dtype=np.int32)
    means = [np.concatenate([difference[a.user == names[i]] for i in draw]).mean() for draw in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-12)
    assert found.difference == pytest.approx(difference.mean())


def test_bootstrap_depends_on_the_seed_only():
    rng = np.random.default_rng(4)
    users = rng.integers(0, 100, 500)
    a, b = (make_table(rng.integers(0, 30, 500), users) for _ in range(2))
    order = rng.permutation(500)
    first = user_bootstrap(a, b, "mrr", samples=200, seed=5)
    assert user_bootstrap(a, b, "mrr", samples=200, seed=5) == first
    assert user_bootstrap(a.take(order), b, "mrr", samples=200, seed=5) == pytest.approx(first, abs=1e-12)
    assert user_bootstrap(a, b, "mrr", samples=200, seed=6) != first
    assert user_bootstrap(b, a, "mrr", samples=200, seed=5).difference == -first.difference


def test_bootstrap_of_no_cases_is_an_error():
    with pytest.raises(UserError, match="at least one case"):
        user_bootstrap(make_table([]), make_table([]), "mrr")


def test_bootstrap_is_fast():
    rng = np.random.default_rng(6)
    a, b = (make_table(rng.integers(0, 900, 10_000)) for _ in range(2))
    start = time.process_time()
    user_bootstrap(a, b, "ndcg@10")
    assert time.process_time() - start < 3
