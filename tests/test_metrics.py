"""Metrics equal brute force, and RecBole's own where there are no ties."""

import itertools
import math
import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from effort import lines_run
from rank_tables import make_table

from recbole_llm.errors import UserError
from recbole_llm.evaluation.metrics import case_values, evaluate, list_metrics, rank_values
from recbole_llm.evaluation.ranks import RankTable, count_above_and_tied

INF = math.inf
NAMES = ["recall@1", "recall@3", "hit@3", "ndcg@1", "ndcg@4", "ndcg@50", "mrr@2", "mrr@50", "mrr"]


# Metrics


def order_value(name, rank):
    base, _, k = name.partition("@")
    if k and rank > int(k):
        return 0.0
    return {"recall": 1.0, "hit": 1.0, "ndcg": 1 / math.log2(1 + rank), "mrr": 1 / rank}[base]


def enumerated(name, above, tied):
    """Return mean, best and worst over every order of the target and the items tied with it."""
    orders = itertools.permutations(range(tied + 1))
    values = [order_value(name, above + 1 + order.index(0)) for order in orders]
    return math.fsum(values) / len(values), max(values), min(values)


@pytest.mark.parametrize("name", NAMES)
def test_expectation_over_all_orders_of_ties(name):
    cases = list(itertools.product(range(5), range(6)))
    table = make_table(*map(list, zip(*cases)))
    found = np.stack([case_values(table, name + order) for order in ("", "_opt", "_pes")], 1)
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        found, [enumerated(name, a, t) for a, t in cases], rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("base", ["ndcg", "mrr"])
def test_long_ties_are_exact(base):
    for above, tied in [(0, 99_999), (50_000, 49_999), (99_990, 3), (7, 60_000)]:
        found = rank_values(base, None, "", [above], [tied])[0]
        wanted = math.fsum(order_value(base, r) for r in range(above + 1, above + tied + 2)) / (
            tied + 1
        )
        assert abs(found - wanted) < 1e-12


def test_without_ties_the_orders_agree_to_the_last_bit():
    above = np.arange(100_000)
    for base in ("recall", "ndcg", "mrr"):
        for k in (None, 10):
            values = [
                rank_values(base, k, order, above, np.zeros_like(above))
                for order in ("", "_opt", "_pes")
            ]
            assert np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2])


def test_constant_scores_give_chance():
    table = make_table([0] * 4, [99] * 4)
    assert evaluate(table, ["recall"], [10]) == {
        "recall@10": pytest.approx(0.1),
        "recall@10_opt": 1.0,
        "recall@10_pes": 0.0,
    }


def test_names_and_means():
    table = make_table([0, 3, 1], [1, 0, 0], user=["a", "a", "b"])
    result = evaluate(table, ["NDCG", "MRR", "recall@2"], [1, 5])
    names = ["ndcg@1", "ndcg@5", "mrr@1", "mrr@5", "mrr", "recall@2"]
    assert list(result) == ["".join(parts) for parts in product(names, ("", "_opt", "_pes"))]
    assert result["mrr"] == pytest.approx((0.75 + 0.25 + 0.5) / 3)
    assert np.array_equal(case_values(table, "Mrr"), [0.75, 0.25, 0.5])
    by_user = evaluate(table, ["mrr"], [5], group_by_user=True)
    assert by_user["mrr"] == pytest.approx(((0.75 + 0.25) / 2 + 0.5) / 2)
    assert evaluate(table, ["hit"], [2])["hit@2"] == result["recall@2"]
    assert list(evaluate(table, ["ndcg@3_opt", "ndcg@3"], [])) == [
        "ndcg@3",
        "ndcg@3_opt",
        "ndcg@3_pes",
    ]


@pytest.mark.parametrize(
    "name", ["ndgc@10", "ndcg", "ndcg@0", "mrr@", "mrr@-1", "recall@5_mean", "map", "auc@3"]
)
def test_unknown_names_are_refused_in_one_line(name):
    with pytest.raises(UserError, match="expected a metric among") as fault:
        case_values(make_table([0], [0]), name)
    assert "\n" not in str(fault.value) and name in str(fault.value)


def test_no_cases_is_an_error():
    with pytest.raises(UserError, match="at least one case"):
        evaluate(RankTable([], [], [], [], [], [], []), ["ndcg"], [10])


@pytest.mark.parametrize(("base", "k"), [("recall", 10), ("ndcg", 10), ("mrr", None)])
def test_no_line_is_run_for_each_case(base, k):
    """Millions of cases take as many lines of Python as a few."""
    above, tied = np.random.default_rng(0).integers(0, 10_000, (2, 10_000), dtype=np.int32)
    few = lines_run(lambda: rank_values(base, k, "", above[:100], tied[:100]))
    many = lines_run(lambda: rank_values(base, k, "", above, tied))
    assert 0 < many <= 2 * few


# Lists


def loop_gini(frequency):
    """Return the mean absolute difference over twice the mean, which defines the coefficient."""
    n = len(frequency)
    differences = sum(abs(x - y) for x, y in product(frequency, repeat=2))
    return differences / (2 * n * sum(frequency))


def test_list_metrics_by_hand():
    items = np.array([[1, 2, 3], [1, 4, 0], [1, 0, 0], [0, 0, 0]])
    counts = np.array([99, 10, 5, 0, 1, 7])
    result = list_metrics(
        items, counts, [1, 3], tail=0.4
    )  # the tail is items 3 (never trained) and 4
    assert result["item_coverage@1"] == 1 / 5 and result["item_coverage@3"] == 4 / 5
    assert result["average_popularity@1"] == 10
    assert result["average_popularity@3"] == pytest.approx((15 / 3 + 11 / 2 + 10) / 3)
    assert result["tail_share@1"] == 0
    assert result["tail_share@3"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert result["gini@1"] == pytest.approx(loop_gini([3, 0, 0, 0, 0]))
    assert result["gini@3"] == pytest.approx(loop_gini([3, 1, 1, 1, 0]))


def test_list_metrics_refuse_other_ids():
    counts = np.array([0, 1, 2])
    for items in ([[3]], [[-1]], np.zeros((0, 1), int)):
        with pytest.raises(UserError, match="expected item ids"):
            list_metrics(np.array(items), counts, [1])
    with pytest.raises(UserError, match="at least 5 items"):
        list_metrics(np.array([[1]]), counts, [5])


def test_without_any_list_there_is_nothing_to_say():
    """No text could be parsed, which is no reason to lose a run at its end."""
    assert list_metrics(np.zeros((3, 5), int), np.array([0, 1, 2]), [1, 5]) == {}


# RecBole


@pytest.fixture
def recbole():
    compat = pytest.importorskip("recbole_llm.compat")
    compat.install()
    return pytest.importorskip("recbole.evaluator")


def settings(metrics, topk=(1, 3, 10), **more):
    """Return what RecBole's evaluator and collector read of a Config."""
    common = {
        "eval_args": {"mode": "full"},
        "device": "cpu",
        "metric_decimal_place": 12,
        "tail_ratio": None,
    }
    return common | {"metrics": list(metrics), "topk": list(topk)} | more


def evaluate_with_recbole(recbole, config, batches, **data):
    collector, evaluator = recbole.Collector(config), recbole.Evaluator(config)
    for key, value in data.items():
        collector.data_struct.set(key.replace("__", "."), value)
    for scores, rows, targets in batches:
        collector.eval_batch_collect(scores, None, rows, targets)
    return collector, evaluator.evaluate(collector.get_data_struct())


def random_batches(n_batches=3, n_rows=20, width=200, ties=False):
    generator = torch.Generator().manual_seed(width)
    batches = []
    for _ in range(n_batches):
        scores = torch.rand(n_rows, width, generator=generator).log()
        scores = scores.mul(2).round() if ties else scores
        targets = torch.randint(1, width, (n_rows,), generator=generator)
        # Each target gets one of the best 15 places, so that the cut-offs are met.
        places = torch.randint(0, 15, (n_rows,), generator=generator)
        scores[torch.arange(n_rows), targets] = scores.topk(15).values[
            torch.arange(n_rows), places
        ] + (0 if ties else 1e-6)
        scores[:, 0] = -INF
        batches.append((scores, torch.arange(n_rows), targets))
    return batches


def test_equal_to_recbole_without_ties(recbole):
    from recbole_llm.evaluation.metrics import register

    register()
    batches = random_batches()
    metrics = ["Recall", "Hit", "NDCG", "MRR"]
    _, stock = evaluate_with_recbole(recbole, settings(metrics), batches)
    _, ours = evaluate_with_recbole(recbole, settings([f"Tie{name}" for name in metrics]), batches)
    assert 0 < stock["ndcg@1"] < stock["ndcg@10"] < 1
    for key, value in stock.items():
        for order in ("", "_opt", "_pes"):
            assert ours[f"tie{key}{order}"] == pytest.approx(value, abs=1e-12)
    counts = [count_above_and_tied(scores[:, 1:], targets - 1) for scores, _, targets in batches]
    above, tied = (torch.cat(parts).numpy() for parts in zip(*counts))
    table = make_table(above, tied, n_candidates=199)
    for key, value in evaluate(table, metrics, [1, 3, 10]).items():
        assert ours[f"tie{key}"] == pytest.approx(value, abs=1e-12)


def test_recbole_counts_candidates_and_starts_every_evaluation_afresh(recbole):
    from recbole_llm.evaluation.metrics import register

    register()
    register()
    config = settings(["TieNDCG", "Recall"])
    collector = recbole.Collector(config)
    for n_batches in (3, 1, 2):
        for scores, _, _ in random_batches(n_batches, ties=True):
            scores[3, 5:50] = -INF
            rows, targets = torch.tensor([0, 0, 3, 7]), torch.tensor([60, 61, 62, 63])
            collector.eval_batch_collect(scores, None, rows, targets)
        gathered = collector.get_data_struct()
        assert gathered.get("rec.rank").shape == (4 * n_batches, 3)
        assert gathered.get("rec.rank").dtype == torch.int64
        assert "rec.rank" not in collector.data_struct
    for row, target, found in zip(
        rows.tolist(), targets.tolist(), gathered.get("rec.rank")[-4:].tolist()
    ):
        values = [x for x in scores[row].tolist() if x > -INF]
        bound = scores[row, target].item()
        assert found == [
            sum(x > bound for x in values),
            sum(x == bound for x in values) - 1,
            len(values),
        ]
    assert [len(values) for values in gathered.get("rec.rank").T] == [8, 8, 8]


def test_stock_metrics_gather_no_ranks(recbole):
    from recbole_llm.evaluation.metrics import register

    register()
    collector = recbole.Collector(settings(["Recall"]))
    for batch in random_batches(1):
        collector.eval_batch_collect(batch[0], None, *batch[1:])
    assert "rec.rank" not in collector.get_data_struct()


@pytest.mark.slow
def test_registration_reaches_recbole_while_it_is_being_imported():
    """In a fresh process, the hook runs inside RecBole's import; a class pickles by its name."""
    code = """
import pickle, sys
from recbole_llm import recbole_hooks
recbole_hooks.register()
assert "recbole" not in sys.modules and "torch" not in sys.modules
from recbole.evaluator.register import metrics_dict, metric_types, smaller_metrics
from recbole.config import configurator
from recbole_llm.evaluation.metrics import TieNDCG
assert configurator.metric_types["tiendcg"] == metric_types["ndcg"]
assert "tiendcg" not in smaller_metrics
assert metrics_dict["tiendcg"] is TieNDCG is pickle.loads(pickle.dumps(TieNDCG))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_metrics_equal_recbole(recbole):
    """RecBole's classes are the oracle, for a catalogue without padding, all of it trained."""
    rng = np.random.default_rng(0)
    n_items, cases = 300, 30
    weights = np.arange(1, n_items + 1) / np.arange(1, n_items + 1).sum()
    counts = np.concatenate(
        [[0], rng.integers(1, 4, n_items)]
    )  # the tail ends among items that are equally popular
    items = np.stack([1 + rng.choice(n_items, 10, replace=False, p=weights) for _ in range(cases)])
    struct = recbole.collector.DataStruct()
    struct.set("rec.items", torch.tensor(items))
    struct.set("data.num_items", n_items)
    struct.set("data.count_items", Counter({i: int(counts[i]) for i in range(1, n_items + 1)}))
    ours = list_metrics(items, counts, [3, 10])
    names = {
        "ItemCoverage": "item_coverage",
        "AveragePopularity": "average_popularity",
        "GiniIndex": "gini",
        "TailPercentage": "tail_share",
    }
    for stock, name in names.items():
        values = recbole.metrics_dict[stock.lower()](
            settings([stock], topk=(3, 10))
        ).calculate_metric(struct)
        for k in (3, 10):
            assert ours[f"{name}@{k}"] == pytest.approx(values[f"{stock.lower()}@{k}"], abs=1e-12)
