"""Paired tests: against scipy, against known effects, and whatever the order of rows."""

import itertools
from functools import partial

import numpy as np
import pytest
import rank_tables
from effort import lines_run
from scipy.stats import t as student
from scipy.stats import ttest_rel
from suites import fast_only

from recbole_llm.errors import UserError
from recbole_llm.evaluation.metrics import case_values, evaluate
from recbole_llm.evaluation.ranks import RankTable
from recbole_llm.evaluation.significance import (
    holm,
    pair,
    paired_ttest,
    per_user,
    same_measure,
    user_bootstrap,
    user_ttest,
)


def make_table(above, user=None, tied=None):
    n = len(above)
    user = None if user is None else [str(name) for name in user]
    return rank_tables.make_table(
        np.asarray(above, dtype=np.int64), tied, 1000, user, [f"i{i % 7}" for i in range(n)]
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
    for name in ("user", "target", "position", "above"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    first, second = pair(a.take(order), a)
    assert np.array_equal(second.above, order), "rows follow the first table"


def test_pair_tells_user_target_and_position_apart():
    columns = {
        "above": [0, 1, 2, 3],
        "tied": [0] * 4,
        "n_candidates": [9] * 4,
        "fallback": [False] * 4,
    }
    a = RankTable(
        user=["u", "u", "u", "v"], target=["i", "i", "j", "i"], position=[1, 2, 1, 1], **columns
    )
    assert pair(a, a.take(np.array([3, 2, 1, 0])))[1].above.tolist() == [0, 1, 2, 3]


def test_pair_counts_what_is_missing():
    a = make_table(np.arange(10))
    with pytest.raises(
        UserError, match="found 3 only in the first and 1 only in the second"
    ) as fault:
        pair(a.take(np.arange(9)), a.take(np.array([9, 2, 3, 4, 5, 6, 7])))
    assert "\n" not in str(fault.value)
    with pytest.raises(UserError, match="1 repeats in the second"):
        pair(a.take(np.array([0, 1])), a.take(np.array([0, 1, 1])))


# Over users


def test_sums_and_weights_give_the_mean_of_the_table():
    rng = np.random.default_rng(0)
    table = make_table(rng.integers(0, 20, 200), rng.integers(0, 40, 200), rng.integers(0, 5, 200))
    for grouped in (False, True):
        sums, weights = per_user(table.user, case_values(table, "ndcg@10"), grouped)
        assert sums.sum() / weights.sum() == pytest.approx(
            evaluate(table, ["ndcg"], [10], grouped)["ndcg@10"], abs=1e-14
        )
        assert len(sums) == len(weights) == len(set(table.user))


def test_one_case_per_user_is_the_test_over_cases():
    rng = np.random.default_rng(0)
    users, (a, b) = np.array([f"u{i}" for i in range(50)]), rng.normal(size=(2, 50))
    for grouped in (False, True):
        assert user_ttest(users, a, b, grouped) == pytest.approx(paired_ttest(a, b), rel=1e-12)


def test_group_by_user_weighs_users_alike():
    """Over cases a is worse, over users better.

    One busy user is worse by 1 in each of 50 cases, ten others better by 0.4 and more in one.
    """
    users = np.array(["busy"] * 50 + [f"u{i}" for i in range(10)])
    a, b = np.zeros(60), np.array([1.0] * 50 + [0.0] * 10)
    a[50:] = 0.4 + np.arange(10) / 100
    for grouped, sign in ((False, -1), (True, 1)):
        interval, test = (
            user_bootstrap(users, a, b, grouped, samples=200),
            user_ttest(users, a, b, grouped),
        )
        assert np.sign(interval.difference) == np.sign(test.difference) == sign
        assert test.n == interval.n_users == 11
    means = [-1.0] + (0.4 + np.arange(10) / 100).tolist()
    assert user_bootstrap(users, a, b, True).difference == pytest.approx(np.mean(means))
    assert user_ttest(users, a, b, True).t == pytest.approx(
        ttest_rel(means, np.zeros(11)).statistic
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_equal_models_differ_at_5_percent_in_5_percent_of_worlds(grouped):
    """Cases are no independent evidence: 100 users of 1 to 39 cases that correlate by 0.2."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, 100)
    users = np.repeat([f"u{i}" for i in range(100)], sizes)
    worlds, by_user, by_case = 600, 0, 0
    for _ in range(worlds):
        gap = np.sqrt(0.2) * np.repeat(rng.normal(size=100), sizes) + np.sqrt(0.8) * rng.normal(
            size=len(users)
        )
        by_user += user_ttest(users, gap, np.zeros_like(gap), grouped).p < 0.05
        by_case += paired_ttest(gap, np.zeros_like(gap)).p < 0.05
    assert by_user / worlds == pytest.approx(0.05, abs=0.027)  # three standard errors
    assert by_case / worlds > 0.3


def test_a_difference_is_found():
    rng = np.random.default_rng(1)
    users = np.repeat([f"u{i}" for i in range(100)], 20)
    gap = (
        0.3
        + np.sqrt(0.2) * np.repeat(rng.normal(size=100), 20)
        + np.sqrt(0.8) * rng.normal(size=2000)
    )
    assert user_ttest(users, gap, np.zeros(2000)).p < 1e-4


# Several seeds


def models_with_seeds(rng, seeds, effect=0.0, by_seed=0.0, users=120):
    """(a, b), float [seeds of each, users].

    A user means as much to both; a seed moves all users of one model by `by_seed`.
    """
    taste = rng.normal(size=users)
    return tuple(
        taste + more + by_seed * rng.normal(size=(count, 1)) + rng.normal(size=(count, users))
        for count, more in zip(seeds, (effect, 0.0))
    )


@pytest.mark.parametrize(
    ("seeds", "by_seed"),
    fast_only([((3, 2), 0.3)], itertools.product([(3, 2), (2, 2), (3, 3)], [0.0, 0.3])),
)
def test_equal_models_of_several_seeds_differ_in_5_percent_of_worlds(seeds, by_seed):
    """A seed that moves all users alike is no evidence of a better model."""
    rng, users, worlds = np.random.default_rng(0), np.arange(120), 600
    found = {"users and seeds": 0, "users": 0, "interval": 0}
    for world in range(worlds):
        a, b = models_with_seeds(rng, seeds, by_seed=by_seed)
        found["users and seeds"] += user_ttest(users, a, b).p < 0.05
        found["users"] += paired_ttest(a.mean(axis=0), b.mean(axis=0)).p < 0.05
        if world < 150:
            interval = user_bootstrap(users, a, b, samples=200, seed=world)
            found["interval"] += not interval.low <= 0 <= interval.high
    assert found["users and seeds"] / worlds < 0.05 + 0.03  # three standard errors
    assert found["interval"] / 150 < 0.05 + 0.054
    if by_seed:
        assert found["users"] / worlds > 0.25  # what resampling users alone would say


def test_a_difference_of_several_seeds_is_found():
    a, b = models_with_seeds(np.random.default_rng(1), (3, 3), effect=0.6, by_seed=0.05)
    users = np.arange(120)
    test, interval = user_ttest(users, a, b), user_bootstrap(users, a, b)
    assert test.p < 0.01 and test.difference == pytest.approx(a.mean() - b.mean())
    assert 0 < interval.low < interval.difference == pytest.approx(test.difference)


def test_seeds_add_to_the_variance_over_users():
    """Two users and two seeds by hand: the mean's variance is (MS_user + MS_seed - MS_rest) / 4."""
    a, b = np.array([[1.0, 3.0], [2.0, 8.0]]), np.zeros((1, 2))
    rows, columns = a.mean(axis=1), a.mean(axis=0)  # 2 and 5; 1.5 and 5.5
    rest = ((a - rows[:, None] - columns + a.mean()) ** 2).sum()
    users, seeds = 2 * columns.var(ddof=1), 2 * rows.var(ddof=1)
    of_users = (users - rest) / 4
    variance = seeds / 4 + of_users
    found = user_ttest(np.array(["u", "v"]), a, b)
    assert (users, seeds, rest) == (16, 9, 4) and found.t == pytest.approx(3.5 / np.sqrt(variance))
    freedom = variance**2 / ((seeds / 4) ** 2 / 1 + of_users**2 / 1)
    assert found.p == pytest.approx(2 * student.sf(found.t, freedom))


def test_one_seed_is_the_same_with_and_without_an_axis_of_seeds():
    rng = np.random.default_rng(0)
    users, (a, b) = rng.integers(0, 30, 100), rng.normal(size=(2, 100))
    assert user_ttest(users, a, b) == user_ttest(users, a[None], b[None])
    assert user_bootstrap(users, a, b) == user_bootstrap(users, a[None], b[None])


# Several tests


def test_holm_of_known_p():
    """Holm's adjusted p of statsmodels 0.15, multipletests(method="holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.02, 0.9, 0.2]) == pytest.approx([0.08, 0.08, 0.9, 0.4])
    assert holm([0.5, 0.6]).tolist() == [1.0, 1.0] and holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


def test_holm_rejects_step_by_step():
    """The smallest p of m is compared with 5 % / m, the next with 5 % / (m - 1), and so on.

    This ends at the first that is not below.
    """
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(rng.integers(1, 12)) ** 4
        rejected = np.zeros(len(p), dtype=bool)
        for step, number in enumerate(np.argsort(p)):
            if p[number] >= 0.05 / (len(p) - step):
                break
            rejected[number] = True
        assert ((holm(p) < 0.05) == rejected).all()


def test_holm_equals_statsmodels():
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.random(rng.integers(1, 40)) ** 3
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


# The bootstrap


def bootstrap(a, b, metric, group_by_user=False, **more):
    a, b = pair(a, b)
    return user_bootstrap(
        a.user, case_values(a, metric), case_values(b, metric), group_by_user, **more
    )


def test_bootstrap_covers_a_known_effect():
    """Recall@1 differs for 30 % of the users: the interval is a proportion's around 0.3."""
    rng = np.random.default_rng(1)
    n = 4000
    better = rng.random(n) < 0.3
    found = bootstrap(make_table(np.zeros(n)), make_table(better * 5), "recall@1", samples=1000)
    assert found.difference == better.mean() and found.n_users == n
    assert found.low < 0.3 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / n), rel=0.15)
    assert found.low < found.difference < found.high


def test_bootstrap_draws_users_and_not_cases():
    """Twenty equal cases a user carry the information of one: the interval must not shrink."""
    rng = np.random.default_rng(2)
    users = np.arange(300)
    effect = rng.random(300) < 0.5
    one = bootstrap(make_table(np.zeros(300), users), make_table(effect * 3, users), "recall@1")
    many = np.repeat(users, 20)
    twenty = bootstrap(
        make_table(np.zeros(6000), many), make_table(effect[many] * 3, many), "recall@1"
    )
    assert twenty.n_users == 300
    assert twenty == pytest.approx(one, abs=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrap_is_a_loop_over_samples(grouped):
    """The same draws in a plain loop: a mean over cases or over users' means."""
    rng = np.random.default_rng(3)
    users = np.sort(rng.integers(0, 40, 200))
    a, b = (make_table(rng.integers(0, 20, 200), users, rng.integers(0, 5, 200)) for _ in range(2))
    found = bootstrap(a, b, "ndcg@10", grouped, samples=50, seed=9, level=0.8)
    difference = case_values(a, "ndcg@10") - case_values(b, "ndcg@10")
    names = np.unique(a.user)
    draws = np.random.default_rng(9).integers(len(names), size=(50, len(names)), dtype=np.int32)
    own = {name: difference[a.user == name] for name in names}
    own = {name: values.mean(keepdims=True) for name, values in own.items()} if grouped else own
    means = []
    for draw in draws:
        means.append(np.concatenate([own[names[i]] for i in draw]).mean())
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(means, [0.1, 0.9])), abs=1e-12
    )
    assert found.difference == pytest.approx(np.concatenate(list(own.values())).mean())


def test_bootstrap_depends_on_the_seed_only():
    rng = np.random.default_rng(4)
    users = rng.integers(0, 100, 500)
    a, b = (make_table(rng.integers(0, 30, 500), users) for _ in range(2))
    order = rng.permutation(500)
    first = bootstrap(a, b, "mrr", samples=200, seed=5)
    assert bootstrap(a, b, "mrr", samples=200, seed=5) == first
    assert bootstrap(a.take(order), b, "mrr", samples=200, seed=5) == pytest.approx(
        first, abs=1e-12
    )
    assert bootstrap(a, b, "mrr", samples=200, seed=6) != first
    assert bootstrap(b, a, "mrr", samples=200, seed=5).difference == -first.difference


def test_bootstrap_of_no_cases_is_an_error():
    with pytest.raises(UserError, match="at least one case"):
        bootstrap(make_table([]), make_table([]), "mrr")


def test_no_line_of_the_bootstrap_is_run_for_each_case():
    rng = np.random.default_rng(6)
    sizes = (100, 10_000)
    lines = []
    for size in sizes:
        a, b = (make_table(rng.integers(0, 900, size)) for _ in range(2))
        lines.append(lines_run(partial(bootstrap, a, b, "ndcg@10", samples=20)))
    few, many = lines
    assert 0 < many <= 2 * few


# What may be compared at all

ROW = {
    "fingerprint": "f",
    "split": {"split": {"LS": "valid_and_test"}, "mode": "full"},
    "evaluation": {"mask_history": False, "group_by_user": False},
}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({}, None),
        ({"seed": 7, "test": {"ndcg@10": 0.5}}, None),
        (
            {
                "split": {
                    "split": {"LS": "valid_and_test"},
                    "mode": {"valid": "full", "test": "full"},
                }
            },
            None,
        ),
        (
            {"split": {"split": {"LS": "valid_and_test"}, "mode": {"valid": "full"}}},
            None,
        ),  # RecBole takes it for both
        ({"fingerprint": "g"}, ("fingerprint", "f", "g")),
        (
            {"split": ROW["split"] | {"mode": "uni5"}},
            ("split.mode", {"valid": "full", "test": "full"}, {"valid": "uni5", "test": "uni5"}),
        ),
        (
            {"split": ROW["split"] | {"split": {"RS": (8, 1, 1)}}},
            ("split.split", {"LS": "valid_and_test"}, {"RS": [8, 1, 1]}),
        ),
        (
            {"evaluation": {"mask_history": True, "group_by_user": False}},
            ("evaluation.mask_history", False, True),
        ),
        (
            {"evaluation": ROW["evaluation"] | {"candidate_seed": 1}},
            ("evaluation.candidate_seed", None, 1),
        ),
        ({"evaluation": None}, ("evaluation", ROW["evaluation"], None)),
    ],
)
def test_rows_that_measure_the_same(other, found):
    assert same_measure(ROW, ROW | other) == found
    assert same_measure(ROW | other, ROW) == (found and (found[0], *found[:0:-1]))


def test_rows_of_before_the_evaluation_was_written_compare_with_each_other():
    old = {key: value for key, value in ROW.items() if key != "evaluation"}
    assert same_measure(old, old) is None and same_measure(old, ROW) == (
        "evaluation",
        None,
        ROW["evaluation"],
    )


def test_a_row_to_come_and_a_stored_one():
    assert (
        same_measure(
            ROW | {"split": {"split": {"RS": (8, 1, 1)}}},
            ROW | {"split": {"split": {"RS": [8, 1, 1]}}},
        )
        is None
    )
