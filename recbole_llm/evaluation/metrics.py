"""Metrics from counts above and tied: expectations over the orders of tied items, and extremes.

A target with `above` better and `tied` equal candidates has, over all orders of the tied ones, a
rank that is uniform on above + 1 .. above + 1 + tied. A metric is a gain g(rank), cut off at k, so
that its expectation is a difference of prefix sums of g divided by tied + 1 (McSherry and Najork,
"Computing information retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008). The suffixes _opt and _pes rank the target first and last among its ties.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..contracts.metrics import LIST_METRICS
from ..errors import UserError
from .ranks import RankTable, scored_rows


def _one(rank: np.ndarray) -> np.ndarray:
    return np.ones_like(rank)


def _reciprocal(rank: np.ndarray) -> np.ndarray:
    return 1 / rank


def _discount(rank: np.ndarray) -> np.ndarray:
    discount: np.ndarray = 1 / np.log2(1 + rank)
    return discount


# Gain of each metric at ranks, float64 from 1. There is one relevant item per case, so that recall
# equals hit, the ideal DCG is 1 and the average precision is the reciprocal rank.
GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "recall": _one,
    "hit": _one,
    "ndcg": _discount,
    "mrr": _reciprocal,
    # divided by k in `rank_values`
    "precision": _one,
    "map": _reciprocal,
}
ORDERS = ("", "_opt", "_pes")
# largest difference between the means of one metric on two machines, which add in other orders
ROUNDING = 1e-9
_NAME = re.compile(rf"({'|'.join(GAINS)})(?:@([1-9]\d*))?(_opt|_pes)?")


def rank_values(
    base: str, k: int | None, order: str, above: np.ndarray, tied: np.ndarray
) -> np.ndarray:
    """Compute one metric of each case. Without ties, the three orders agree to the last bit.

    Parameters
    ----------
    base : str
        A key of `GAINS`.
    k : int or None
        Cut-off; None for no cut-off.
    order : {"", "_opt", "_pes"}
        Expectation over the orders of ties, or the target first or last among its ties.
    above, tied : ndarray of int, [n_cases]
        Candidates above the target, and other candidates tied with it.

    Returns
    -------
    ndarray of float64, [n_cases]
        Values.

    Raises
    ------
    ValueError
        If there is no cut-off for precision.

    Examples
    --------
    A target that ties with the three best other items is at rank 1 to 4, each with probability 1/4:

    >>> [rank_values("recall", 1, order, [0], [3]).item() for order in ORDERS]
    [0.25, 1.0, 0.0]
    >>> rank_values("mrr", None, "", [1], [1]).item() == (1 / 2 + 1 / 3) / 2
    True
    """
    above, tied = np.asarray(above, dtype=np.int64), np.asarray(tied, dtype=np.int64)
    first, last = above + 1, above + 1 + tied
    worst = int(last.max(initial=0))
    top = worst if k is None else min(k, worst)
    # by rank; index 0 and the ranks below the cut-off, index top + 1, gain nothing
    gains = np.zeros(top + 2)
    gains[1:-1] = GAINS[base](np.arange(1.0, top + 1))
    if base == "precision":
        if k is None:
            raise ValueError("precision: expected a cut-off, found none")
        gains = gains / k
    values: np.ndarray
    if order:
        values = gains[np.minimum(first if order == "_opt" else last, top + 1)]
        return values
    # in extended precision where the platform has it: the difference of two long harmonic sums
    # cancels digits
    prefix = np.cumsum(gains, dtype=np.longdouble)
    total = (prefix[np.minimum(last, top)] - prefix[np.minimum(above, top)]).astype(np.float64)
    values = np.where(tied == 0, gains[np.minimum(first, top + 1)], total / (tied + 1))
    return values


class _Metric(NamedTuple):
    """A name of a metric, taken apart; see the parameters of `rank_values`."""

    base: str
    k: int | None
    order: str


def _match(name: str) -> _Metric | None:
    """Take apart a name such as 'ndcg@10_opt'; None if ranks alone do not determine the metric.

    Only the reciprocal rank needs no cut-off.
    """
    match = _NAME.fullmatch(name.lower())
    if match is None or (match[2] is None and match[1] != "mrr"):
        return None
    return _Metric(match[1], int(match[2]) if match[2] else None, match[3] or "")


def _parse(name: str) -> _Metric:
    """Take apart a name such as 'ndcg@10_opt', or raise UserError."""
    metric = _match(name)
    if metric is None:
        known = ", ".join(f"{base}@K" for base in GAINS)
        raise UserError(
            f"expected a metric among {known}, mrr, each also with _opt or _pes; found {name!r}; "
            "change `metrics`"
        )
    return metric


def case_values(table: RankTable, metric: str) -> np.ndarray:
    """Compute one metric of each case.

    Parameters
    ----------
    table : RankTable
        The ranks.
    metric : str
        A name such as "ndcg@10", "ndcg@10_opt", "mrr" or "mrr_pes", in upper or lower case.

    Returns
    -------
    ndarray of float64, [n_cases]
        Values.

    Raises
    ------
    UserError
        If the name is unknown.

    Examples
    --------
    >>> table = RankTable(
    ...     user=["ann", "bob"],
    ...     target=["pen", "ink"],
    ...     position=[4, 2],
    ...     above=[0, 3],
    ...     tied=[0, 1],
    ...     n_candidates=[10, 10],
    ...     fallback=[False, False],
    ... )
    >>> case_values(table, "recall@4").tolist()
    [1.0, 0.5]
    """
    return rank_values(*_parse(metric), table.above, table.tied)


def evaluate(
    table: RankTable, metrics: Sequence[str], topk: Sequence[int], group_by_user: bool = False
) -> dict[str, float]:
    """Average metrics over cases, each as an expectation over ties and with both extremes.

    Parameters
    ----------
    table : RankTable
        The ranks.
    metrics : sequence of str
        A name without a cut-off ("ndcg") gives a key for each k in `topk` ("ndcg@10"), and "mrr"
        gives itself as well. A name with a cut-off ("ndcg@3") gives itself only. `LIST_METRICS`
        are ignored.
    topk : sequence of int
        Cut-offs.
    group_by_user : bool
        Whether to average over users the means over their cases.

    Returns
    -------
    dict of str to float
        Name -> mean; each name also with _opt and _pes.

    Raises
    ------
    UserError
        If a name is unknown or the table is empty.

    Examples
    --------
    Constant scores over 100 items give the values of chance:

    >>> table = RankTable(["ann"], ["pen"], [4], [0], [99], [100], [False])
    >>> evaluate(table, ["Recall"], [10])
    {'recall@10': 0.1, 'recall@10_opt': 1.0, 'recall@10_pes': 0.0}
    """
    if len(table) == 0:
        raise UserError(
            "expected at least one case to evaluate, found none; check the split and the filters"
        )
    names: dict[str, None] = {}
    for metric in map(str.lower, metrics):
        if metric not in LIST_METRICS:
            name = metric.removesuffix("_opt").removesuffix("_pes")
            names |= dict.fromkeys([name] if "@" in name else _with_cutoffs(name, topk))
    keys = list(map("".join, itertools.product(names, ORDERS)))
    return _means(table, keys, group_by_user)


def differing(
    stored: Mapping[str, float], table: RankTable, group_by_user: bool = False
) -> dict[str, tuple[float, float]]:
    """Find stored metrics that are not those of a rank table.

    Metrics that ranks alone do not determine, such as the coverage of the catalogue, are ignored.

    Parameters
    ----------
    stored : mapping of str to float
        Name -> value.
    table : RankTable
        At least one case.
    group_by_user : bool
        Whether the values are means over users of the means over their cases.

    Returns
    -------
    dict of str to tuple of float
        Name -> (stored value, value of the ranks), for values that differ by more than `ROUNDING`.
    """
    computed = _means(table, [name for name in stored if _match(name)], group_by_user)
    pairs = {name: (stored[name], value) for name, value in computed.items()}
    # `not <=` and not `>`, so that NaN differs
    return {name: pair for name, pair in pairs.items() if not abs(pair[0] - pair[1]) <= ROUNDING}


def _means(table: RankTable, names: Sequence[str], group_by_user: bool) -> dict[str, float]:
    if group_by_user:
        users, sizes = np.unique(table.user, return_inverse=True, return_counts=True)[1:]
        weights = 1 / (len(sizes) * sizes[users])
    else:
        weights = np.full(len(table), 1 / len(table))
    return {name: float(weights @ case_values(table, name)) for name in names}


def _with_cutoffs(base: str, topk: Sequence[int]) -> list[str]:
    return [f"{base}@{k}" for k in topk] + (["mrr"] if base == "mrr" else [])


def list_metrics(
    items: np.ndarray, train_counts: np.ndarray, topk: Sequence[int], tail: float = 0.1
) -> dict[str, float]:
    """Describe what top-k lists recommend: coverage, popularity, inequality and long tail.

    These are RecBole's ItemCoverage, AveragePopularity, GiniIndex and TailPercentage (tail_ratio,
    default 0.1), with two corrections. Padding is no part of the catalogue. Items without training
    interactions belong to the tail; RecBole ignores them, so that they pass for popular.

    Parameters
    ----------
    items : ndarray of int, [n_cases, K]
        Internal item ids in the order of ranks, 0 for no item. Cases without any are ignored.
    train_counts : ndarray of int, [n_items + 1]
        Training interactions by internal id; id 0 is padding.
    topk : sequence of int
        Cut-offs, K at most.
    tail : float
        Share of the catalogue that is the tail.

    Returns
    -------
    dict of str to float
        For each k:

        - item_coverage@k: share of the catalogue that is recommended to anybody.
        - average_popularity@k: mean training count of a case's items, averaged over cases.
        - gini@k: Gini index of how often each item of the catalogue is recommended.
        - tail_share@k: share of tail items in a list, averaged over cases. The tail is the
          max(int(tail * n_items), 1) items of fewest training interactions; ties are broken by id.

        Empty if no case has an item, as when no answer could be parsed.

    Raises
    ------
    UserError
        If lists are shorter than k, or ids are outside the catalogue.

    Examples
    --------
    >>> result = list_metrics(np.array([[1, 2], [1, 4]]), np.array([0, 8, 2, 2, 0]), [2])
    >>> result["item_coverage@2"], result["average_popularity@2"], result["tail_share@2"]
    (0.75, 4.5, 0.25)
    """
    items, train_counts = np.asarray(items), np.asarray(train_counts)
    n_items = len(train_counts) - 1
    _check_lists(items, n_items, max(topk))
    results: dict[str, float] = {}
    if not items.any():
        return results
    popularity, in_tail = np.append(0.0, train_counts[1:]), np.zeros(n_items + 1)
    in_tail[1 + np.argsort(train_counts[1:], kind="stable")[: max(int(n_items * tail), 1)]] = 1
    for k in topk:
        top = items[:, :k]
        frequency = np.bincount(top.ravel(), minlength=n_items + 1)[1:]
        results[f"item_coverage@{k}"] = float(np.count_nonzero(frequency) / n_items)
        results[f"average_popularity@{k}"] = _mean_of_lists(popularity, top)
        results[f"gini@{k}"] = _gini(frequency)
        results[f"tail_share@{k}"] = _mean_of_lists(in_tail, top)
    return results


def _gini(frequency: np.ndarray) -> float:
    """Gini index of how often each item is recommended."""
    n_items = len(frequency)
    order = 2 * np.arange(1, n_items + 1) - n_items - 1
    return float(order @ np.sort(frequency) / (n_items * frequency.sum()))


def _check_lists(items: np.ndarray, n_items: int, longest: int) -> None:
    """Raise UserError for lists that are too short, and for ids outside the catalogue."""
    if items.ndim != 2 or items.shape[1] < longest:
        raise UserError(
            f"expected lists of at least {longest} items, found shape {items.shape}; store "
            "longer lists"
        )
    if not items.size or items.min() < 0 or items.max() > n_items:
        found = f"{items.min()} to {items.max()}" if items.size else "no list"
        raise UserError(
            f"expected item ids 1 to {n_items}, 0 for none, found {found}; use the ids of this "
            "data set"
        )


def _mean_of_lists(values: np.ndarray, items: np.ndarray) -> float:
    """Average values, [n_items + 1], over the items of each case, then over cases with an item.

    values[0], of padding, must be 0.
    """
    lengths = (items > 0).sum(1)
    has_items = lengths > 0
    return float((values[items[has_items]].sum(1) / lengths[has_items]).mean())


RECBOLE_METRICS = {"TieRecall": "recall", "TieHit": "hit", "TieNDCG": "ndcg", "TieMRR": "mrr"}


@functools.cache
def _recbole_classes() -> dict[str, Any]:
    """The RecBole metric classes by name.

    They are built when they are first used, because their base class is RecBole's.
    """
    from recbole.evaluator.base_metric import AbstractMetric
    from recbole.utils import EvaluatorType

    class TieMetric(AbstractMetric):
        metric_type = EvaluatorType.RANKING
        metric_need = ("rec.rank",)
        base: str

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.topk = config["topk"]

        def calculate_metric(self, dataobject: Any) -> dict[str, float]:
            above, tied, _ = dataobject.get("rec.rank").numpy().T
            results: dict[str, float] = {}
            for name in _with_cutoffs(self.base, self.topk):
                for order in ORDERS:
                    values = rank_values(*_parse(name + order), above, tied)
                    results[f"tie{name}{order}"] = round(float(values.mean()), self.decimal_place)
            return results

    classes = {}
    for name, base in RECBOLE_METRICS.items():
        members = {
            "base": base,
            "__module__": __name__,
            "__doc__": f"RecBole metric: `{base}` of this module, keys 'tie{base}...'.",
        }
        classes[name] = type(name, (TieMetric,), members)
    return classes


def __getattr__(name: str) -> Any:
    if name in RECBOLE_METRICS:
        return _recbole_classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make TieRecall, TieHit, TieNDCG and TieMRR known to RecBole; later calls do nothing.

    RecBole's registers are filled in place, because Config and Evaluator hold the same
    dictionaries; its list of metrics of which smaller values are better stays as it is. The
    collector gathers 'rec.rank' (int64 [n, 3]: above, tied and n_candidates of each positive) only
    if a requested metric needs it, so that the values of other metrics stay as they were; `compat`
    clears it after each evaluation.
    """
    from recbole.evaluator import register as registers
    from recbole.evaluator.collector import Collector

    for name, metric in _recbole_classes().items():
        registers.metrics_dict[name.lower()] = metric
        registers.metric_information[name.lower()] = metric.metric_need
        registers.metric_types[name.lower()] = metric.metric_type
    if hasattr(Collector.eval_batch_collect, "__wrapped__"):
        return
    collect = Collector.eval_batch_collect

    @functools.wraps(collect)
    def eval_batch_collect(
        self: Any, scores_tensor: Any, interaction: Any, positive_u: Any, positive_i: Any
    ) -> None:
        collect(self, scores_tensor, interaction, positive_u, positive_i)
        if self.register.need("rec.rank"):
            device = scores_tensor.device
            ranks = scored_rows(scores_tensor, positive_u.to(device), positive_i.to(device))
            self.data_struct.update_tensor("rec.rank", ranks)

    Collector.eval_batch_collect = eval_batch_collect
