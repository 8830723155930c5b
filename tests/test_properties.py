"""Properties that ranks, metrics and their tables have for any input."""

import itertools
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.evaluation.metrics import GAINS, case_values, evaluate, rank_values
from recbole_llm.evaluation.ranks import (
    UNNAMED,
    RankTable,
    count_above_and_tied,
    in_front,
    rank_targets,
)
from recbole_llm.evaluation.resumable import Piece, joined, missing
from recbole_llm.evaluation.significance import holm, pair, per_user

quick = settings(max_examples=50, deadline=None, derandomize=True, database=None)
COLUMNS = ("user", "target", "position", "above", "tied", "n_candidates", "fallback")
# every metric at a cut-off, and the reciprocal rank without one
METRICS = [*itertools.product(GAINS, (1, 2, 3, 10)), ("mrr", None)]
TRANSFORMS = {
    "affine": lambda scores: 3 * scores - 7,
    "cube": lambda scores: scores**3,
    "exp": np.exp,
    "rank": lambda scores: np.unique(scores, return_inverse=True)[1].astype(float),
}


@st.composite
def scored_cases(draw, most=8):
    """Integer scores of a few items, which often tie, and the column of the target."""
    scores = draw(st.lists(st.integers(-3, 3), min_size=1, max_size=most))
    return np.array(scores, dtype=float), draw(st.integers(0, len(scores) - 1))


@st.composite
def rank_tables(draw, most=12):
    """Rank tables of any tokens and any possible counts."""
    size = draw(st.integers(1, most))

    def column(elements):
        return draw(st.lists(elements, min_size=size, max_size=size))

    # numpy strips NUL characters from the end of strings
    tokens = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=5)
    above, tied, rest = (column(st.integers(0, 10**6)) for _ in range(3))
    return RankTable(
        user=column(tokens),
        target=column(tokens),
        position=column(st.integers(0, 2**31 - 1)),
        above=above,
        tied=tied,
        n_candidates=[1 + sum(counts) for counts in zip(above, tied, rest, strict=True)],
        fallback=column(st.booleans()),
    )


def counts(scores, target):
    """(above, tied) of one case."""
    above, tied = count_above_and_tied(torch.tensor(scores)[None], torch.tensor([target]))
    return above.item(), tied.item()


def gain(base, k, rank):
    """A metric of one relevant item at a rank, by its definition."""
    if k is not None and rank > k:
        return 0.0
    values = {"ndcg": 1 / math.log2(1 + rank), "mrr": 1 / rank, "map": 1 / rank}
    return values.get(base, 1 / k if base == "precision" else 1.0)


def value(base, k, order, above, tied):
    return rank_values(base, k, order, np.array([above]), np.array([tied])).item()


def same(first, second):
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        and getattr(first, name).dtype.kind == getattr(second, name).dtype.kind
        for name in COLUMNS
    )


# Metrics of one case


@quick
@given(scored_cases(most=6))
def test_a_metric_is_the_mean_over_all_orders_of_tied_items(case):
    scores, target = case
    ties = np.flatnonzero(scores == scores[target]).tolist()
    above, tied = counts(scores, target)
    ranks = []
    for order in itertools.permutations(ties):
        ranking = [*np.flatnonzero(scores > scores[target]), *order]
        ranks.append(1 + ranking.index(target))
    for base, k in METRICS:
        gains = [gain(base, k, rank) for rank in ranks]
        assert value(base, k, "", above, tied) == pytest.approx(np.mean(gains), abs=1e-12)
        assert value(base, k, "_opt", above, tied) == pytest.approx(max(gains), abs=1e-12)
        assert value(base, k, "_pes", above, tied) == pytest.approx(min(gains), abs=1e-12)


@quick
@given(st.integers(0, 10**5), st.integers(0, 10**5), st.sampled_from(METRICS))
def test_the_expectation_lies_between_the_extremes(above, tied, metric):
    best, expected, worst = (value(*metric, order, above, tied) for order in ("_opt", "", "_pes"))
    # the mean of many equal gains is rounded
    assert 1 + 1e-12 >= best * (1 + 1e-12) >= expected and expected * (1 + 1e-12) >= worst >= 0
    if tied == 0:
        assert best == expected == worst


@quick
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 200), st.integers(0, 200))
def test_a_longer_list_finds_no_less(above, tied, k, more):
    """Precision divides by the length of the list, and may fall."""
    for base in sorted(set(GAINS) - {"precision"}):
        for order in ("", "_opt", "_pes"):
            shorter, longer = (value(base, top, order, above, tied) for top in (k, k + more))
            assert shorter <= longer + 1e-12


@quick
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 50))
def test_a_better_item_more_never_helps_the_target(above, tied, k):
    for base, order in itertools.product(GAINS, ("", "_opt", "_pes")):
        before, after = (value(base, k, order, count, tied) for count in (above, above + 1))
        assert after <= before + 1e-12


# Counts


@quick
@given(scored_cases(), st.sampled_from(sorted(TRANSFORMS)))
def test_only_the_order_of_scores_counts(case, transform):
    scores, target = case
    assert counts(TRANSFORMS[transform](scores), target) == counts(scores, target)


@quick
@given(scored_cases(), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_count(case, random):
    scores, target = case
    order = list(range(len(scores)))
    random.shuffle(order)
    assert counts(scores[order], order.index(target)) == counts(scores, target)


@quick
@given(scored_cases(), st.data())
def test_an_unnamed_target_is_last_and_a_named_one_stands_where_it_did(case, data):
    scores, target = case
    is_unnamed = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    scores[is_unnamed] = UNNAMED
    found = rank_targets(
        torch.tensor(scores)[None], torch.tensor([target]), torch.tensor([len(scores)])
    )
    above, tied = (part.item() for part in found)
    if is_unnamed[target]:
        assert (above, tied) == (len(scores) - 1, 0)
    else:
        assert (above, tied) == counts(
            scores[~np.array(is_unnamed)], sum(not unnamed for unnamed in is_unnamed[:target])
        )


@quick
@given(scored_cases(), scored_cases(), st.data())
def test_the_first_method_ranks_before_the_second(first, second, data):
    size = min(len(first[0]), len(second[0]))
    named, behind = first[0][:size], second[0][:size]
    named[data.draw(st.lists(st.booleans(), min_size=size, max_size=size))] = UNNAMED
    scores = in_front(named[None], behind[None])[0]
    for one, other in itertools.permutations(range(size), 2):
        before = (named[one] != UNNAMED, named[one], behind[one] * (named[one] == UNNAMED))
        after = (named[other] != UNNAMED, named[other], behind[other] * (named[other] == UNNAMED))
        assert (scores[one] > scores[other]) == (before > after)


# Tables


@quick
@given(rank_tables())
def test_a_table_is_read_as_it_was_saved(table):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranks.npz"
        table.save(path)
        assert same(RankTable.load(path), table)
        assert list(Path(folder).iterdir()) == [path]


@quick
@given(rank_tables(), st.data())
def test_the_parts_of_a_table_make_the_table(table, data):
    cuts = data.draw(st.lists(st.integers(0, len(table)), max_size=3))
    bounds = sorted({0, len(table), *cuts})
    rows = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
    assert same(RankTable.concat(table.take(part) for part in rows), table)


@quick
@given(rank_tables(), st.randoms(use_true_random=False))
def test_pairs_are_found_in_any_order(table, random):
    cases = list(zip(table.user.tolist(), table.target.tolist(), table.position.tolist()))
    table = table.take(np.array([cases.index(case) for case in dict.fromkeys(cases)]))
    order = list(range(len(table)))
    random.shuffle(order)
    first, second = pair(table, table.take(np.array(order)))
    assert same(first, table) and same(second, table)


@quick
@given(rank_tables(), st.booleans())
def test_means_are_those_of_sums_and_weights_of_users(table, grouped):
    sums, weights = per_user(table.user, case_values(table, "ndcg@10"), grouped)
    mean = evaluate(table, ["ndcg"], [10], grouped)["ndcg@10"]
    assert sums.sum() / weights.sum() == pytest.approx(mean, abs=1e-12)


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 5))
def test_what_is_ranked_and_what_is_missing_are_all_cases(is_ranked, rows, longest):
    def piece(begin, end):
        size = end - begin
        zeros = [0] * size
        users = [f"u{case}" for case in range(begin, end)]
        return Piece(begin, RankTable(users, users, zeros, zeros, zeros, [1] * size, [True] * size))

    pieces, begin = [], 0
    for is_done, run in itertools.groupby(is_ranked):
        end = begin + len(list(run))
        if is_done:
            pieces += [piece(at, min(at + longest, end)) for at in range(begin, end, longest)]
        begin = end
    batches = list(missing(pieces[::-1], len(is_ranked), rows))
    assert all(0 < end - begin <= rows for begin, end in batches)
    filled = [*(piece(begin, end) for begin, end in batches), *pieces]
    users = joined(filled).table.user.tolist()
    assert users == [f"u{case}" for case in range(len(is_ranked))]


# Several tests


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_adjusted_p_are_no_smaller_in_the_same_order_and_of_each_test(p, random):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    order = list(range(len(p)))
    random.shuffle(order)
    assert holm(np.array(p)[order]) == pytest.approx(adjusted[order])
