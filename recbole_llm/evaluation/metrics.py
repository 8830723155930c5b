"""Metrics from (above, tied): exact expectations over the orders of tied items, with both extremes beside them.

A target with `above` better and `tied` equal candidates has, over all orders of the tied ones, a rank that is uniform on
above + 1 .. above + 1 + tied. A metric is a gain g(rank), cut off at k, so its expectation is a difference of prefix sums
of g divided by tied + 1 (McSherry and Najork, "Computing information retrieval performance measures efficiently in the
presence of tied scores", ECIR 2008). The suffixes _opt and _pes put the target first and last among its ties.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..contracts.metrics import LIST_METRICS
from ..errors import UserError
from .ranks import RankTable, scored_rows

# One relevant item per case: the ideal DCG is 1 and recall is hit. Gains take float64 ranks that start at 1.
GAINS = {
    "recall": np.ones_like,
    "hit": np.ones_like,
    "ndcg": lambda rank: 1 / np.log2(1 + rank),
    "mrr": lambda rank: 1 / rank,
    "precision": np.ones_like,  # and one item of k is right at most
    "map": lambda rank: 1 / rank,  # of one relevant item
}
ORDERS = ("", "_opt", "_pes")
ROUNDING = (
    1e-9  # what the mean of one metric may differ by on two machines: they add in other orders
)
_NAME = re.compile(rf"({'|'.join(GAINS)})(?:@([1-9]\d*))?(_opt|_pes)?")


def rank_values(
    base: str, k: int | None, order: str, above: np.ndarray, tied: np.ndarray
) -> np.ndarray:
    """Value of one metric per case, float64 [n].

    base: a key of GAINS. k: cut-off, None for none. order: '' expectation, '_opt' target first, '_pes' target last among
    its ties. above, tied: int [n]. Without ties the three orders agree to the last bit.
    """
    gain = GAINS[base]
    above, tied = np.asarray(above, dtype=np.int64), np.asarray(tied, dtype=np.int64)
    first, last = above + 1, above + 1 + tied
    top = int(last.max(initial=0)) if k is None else min(k, int(last.max(initial=0)))
    gains = np.concatenate(
        ([0.0], gain(np.arange(1.0, top + 1)), [0.0])
    )  # by rank; index 0 and top + 1 gain nothing
    if base == "precision":
        gains = gains / k
    if order:
        return gains[np.minimum(first if order == "_opt" else last, top + 1)]
    # Extended precision where the platform has it: the difference of two long harmonic sums cancels digits.
    prefix = np.cumsum(gains, dtype=np.longdouble)
    mean = (prefix[np.minimum(last, top)] - prefix[np.minimum(above, top)]).astype(np.float64) / (
        tied + 1
    )
    return np.where(tied == 0, gains[np.minimum(first, top + 1)], mean)


def _is_metric(name: str) -> bool:
    """Whether ranks alone determine it; only the reciprocal rank needs no cut-off."""
    match = _NAME.fullmatch(name.lower())
    return match is not None and (match[2] is not None or match[1] == "mrr")


def _parse(metric):
    """(base, k, order) of a name such as 'ndcg@10_opt'; UserError for a name that is no metric."""
    match = _NAME.fullmatch(metric.lower())
    if not _is_metric(metric):
        known = ", ".join(f"{base}@K" for base in GAINS)
        raise UserError(
            f"expected a metric among {known}, mrr, each also with _opt or _pes; found {metric!r}; "
            "change `metrics`"
        )
    return match[1], match[2] and int(match[2]), match[3] or ""


def case_values(table: RankTable, metric: str) -> np.ndarray:
    """Value of `metric` per case, float64 [n]; names such as 'ndcg@10', 'ndcg@10_opt', 'mrr', 'mrr_pes', in any case.

    Raises UserError for an unknown name.
    """
    return rank_values(*_parse(metric), table.above, table.tied)


def evaluate(
    table: RankTable, metrics: Sequence[str], topk: Sequence[int], group_by_user: bool = False
) -> dict[str, float]:
    """Expectation, _opt and _pes of each metric: means over cases, or over users of the means over their cases.

    metrics: names without a cut-off ('ndcg') stand for one key per k in topk ('ndcg@10'), 'mrr' for itself as well; a name
    with its own cut-off ('ndcg@3') for itself only. Raises UserError for an unknown name or an empty table.
    """
    if len(table) == 0:
        raise UserError(
            "expected at least one case to evaluate, found none; check the split and the filters"
        )
    asked = [
        metric.lower().removesuffix("_opt").removesuffix("_pes")
        for metric in metrics
        if metric.lower() not in LIST_METRICS
    ]
    names = dict.fromkeys(
        name for metric in asked for name in ([metric] if "@" in metric else _expand(metric, topk))
    )
    return _means(table, [name + order for name in names for order in ORDERS], group_by_user)


def differing(
    stored: Mapping[str, float], table: RankTable, group_by_user: bool = False
) -> dict[str, tuple[float, float]]:
    """Metrics that were stored with a rank table and are not the metrics of its ranks.

    Metrics that ranks alone do not determine, such as the coverage of the catalogue, are not looked at.

    Parameters
    ----------
    stored : name of a metric -> value.
    table : at least one case.
    group_by_user : means are over users of the means over their cases.

    Returns
    -------
    Name -> (stored value, value of the ranks), which differ by more than `ROUNDING`.
    """
    found = _means(table, [name for name in stored if _is_metric(name)], group_by_user)
    return {
        name: (stored[name], value)
        for name, value in found.items()
        if not abs(stored[name] - value) <= ROUNDING
    }


def _means(table: RankTable, names: Sequence[str], group_by_user: bool) -> dict[str, float]:
    if group_by_user:
        users, sizes = np.unique(table.user, return_inverse=True, return_counts=True)[1:]
        weights = 1 / (len(sizes) * sizes[users])
    else:
        weights = np.full(len(table), 1 / len(table))
    return {name: float(weights @ case_values(table, name)) for name in names}


def _expand(base, topk):
    return [f"{base}@{k}" for k in topk] + (["mrr"] if base == "mrr" else [])


def list_metrics(
    items: np.ndarray, train_counts: np.ndarray, topk: Sequence[int], tail: float = 0.1
) -> dict[str, float]:
    """What top-k lists recommend, whoever is right: coverage, popularity, inequality, long tail.

    items: int [cases, K], internal item ids in rank order, 0 for no item; a case without any is left out.
    train_counts: int [n_items], training events by internal id, 0 being padding. tail: the tail's share of the catalogue.
    For each k:

    item_coverage@k: share of the catalogue that is recommended to anybody.
    average_popularity@k: mean training count, over the items of a case, then over the cases with an item.
    gini@k: Gini index of how often each item of the catalogue is recommended, never recommended ones included.
    tail_share@k: share of tail items in a list, averaged likewise; the tail is the max(int(tail * catalogue), 1) items of
    fewest training events, ties broken by id.

    These are RecBole's ItemCoverage, AveragePopularity, GiniIndex and TailPercentage (tail_ratio, default 0.1), with two
    corrections: padding is no part of the catalogue, and an item without training events belongs to the tail (RecBole
    knows only items that it has counted, so an unseen one passes for popular). Raises UserError for lists that are shorter
    than k and for ids outside the catalogue. Empty where no case has an item, as when no answer could be parsed.
    """
    items, train_counts = np.asarray(items), np.asarray(train_counts)
    n_items = len(train_counts) - 1
    if items.ndim != 2 or items.shape[1] < max(topk):
        raise UserError(
            f"expected lists of at least {max(topk)} items, found shape {items.shape}; store "
            "longer lists"
        )
    if not items.size or items.min() < 0 or items.max() > n_items:
        found = f"{items.min()} to {items.max()}" if items.size else "no list"
        raise UserError(
            f"expected item ids 1 to {n_items}, 0 for none, found {found}; use the ids of this "
            "data set"
        )
    if not items.any():
        return {}
    popularity = train_counts.astype(np.float64)
    popularity[0] = 0
    in_tail = np.zeros(n_items + 1)
    in_tail[1 + np.argsort(train_counts[1:], kind="stable")[: max(int(n_items * tail), 1)]] = 1
    results = {}
    for k in topk:
        top = items[:, :k]
        frequency = np.sort(np.bincount(top.ravel(), minlength=n_items + 1)[1:])
        order = 2 * np.arange(1, n_items + 1) - n_items - 1
        results[f"item_coverage@{k}"] = np.count_nonzero(frequency) / n_items
        results[f"average_popularity@{k}"] = _mean_of_lists(popularity, top)
        results[f"gini@{k}"] = float(order @ frequency / (n_items * frequency.sum()))
        results[f"tail_share@{k}"] = _mean_of_lists(in_tail, top)
    return results


def _mean_of_lists(values, items):
    """Mean over the cases with an item of the mean of values [n_items] over their items; values[0] is 0."""
    lengths = (items > 0).sum(1)
    some = lengths > 0
    return float((values[items[some]].sum(1) / lengths[some]).mean())


RECBOLE_METRICS = {"TieRecall": "recall", "TieHit": "hit", "TieNDCG": "ndcg", "TieMRR": "mrr"}


@functools.cache
def _recbole_classes():
    """The RecBole metric classes by name, built at first use because their base class is RecBole's."""
    from recbole.evaluator.base_metric import AbstractMetric
    from recbole.utils import EvaluatorType

    class TieMetric(AbstractMetric):
        metric_type = EvaluatorType.RANKING
        metric_need = ("rec.rank",)

        def __init__(self, config):
            super().__init__(config)
            self.topk = config["topk"]

        def calculate_metric(self, dataobject):
            above, tied, _ = dataobject.get("rec.rank").numpy().T
            results = {}
            for name in _expand(self.base, self.topk):
                for order in ORDERS:
                    values = rank_values(*_parse(name + order), above, tied)
                    results[f"tie{name}{order}"] = round(float(values.mean()), self.decimal_place)
            return results

    return {
        name: type(
            name,
            (TieMetric,),
            {
                "base": base,
                "__module__": __name__,
                "__doc__": f"RecBole metric: `{base}` of this module, keys 'tie{base}...'.",
            },
        )
        for name, base in RECBOLE_METRICS.items()
    }


def __getattr__(name):
    if name in RECBOLE_METRICS:
        return _recbole_classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make TieRecall, TieHit, TieNDCG and TieMRR known to RecBole; later calls do nothing.

    RecBole's registers are filled in place, because Config and Evaluator hold the same dictionaries; its list of metrics
    where smaller is better stays as it is. The collector gathers 'rec.rank' (int64 [n, 3]: above, tied, n_candidates per
    positive) only if a requested metric needs it, so the numbers of other metrics stay as they were; `compat` makes it
    forget them after each evaluation.
    """
    from recbole.evaluator import register as registers
    from recbole.evaluator.collector import Collector

    for name, cls in _recbole_classes().items():
        registers.metrics_dict[name.lower()] = cls
        registers.metric_information[name.lower()] = cls.metric_need
        registers.metric_types[name.lower()] = cls.metric_type
    if hasattr(Collector.eval_batch_collect, "__wrapped__"):
        return
    collect = Collector.eval_batch_collect

    @functools.wraps(collect)
    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        collect(self, scores_tensor, interaction, positive_u, positive_i)
        if self.register.need("rec.rank"):
            users, targets = (
                positive_u.to(scores_tensor.device),
                positive_i.to(scores_tensor.device),
            )
            self.data_struct.update_tensor("rec.rank", scored_rows(scores_tensor, users, targets))

    Collector.eval_batch_collect = eval_batch_collect
