"""What a spectrum shows: the paper's tables, and its six questions answered by paired intervals."""

from collections.abc import Sequence

import numpy as np

from ..data import samples
from ..evaluation.metrics import case_values
from ..evaluation.significance import Interval, user_bootstrap
from ..report.table import Cell, Table, make_table
from .outcomes import BUCKETS, METRICS, OUTCOMES, by_activity, outcomes, user_values
from .plan import HIGH, name_of
from .spectrum import Spectrum

COLUMNS = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")
DRAWS = 2000  # of a bootstrap


class Findings:
    """The tables and answers of one spectrum.

    threshold : a user's difference up to it counts as none.
    """

    def __init__(self, found: Spectrum, threshold: float = 0.0):
        self.found, self.threshold = found, threshold
        self.values = {
            model: {metric: case_values(table, metric) for metric in COLUMNS}
            for model, table in found.ranks.items()
        }

    def tables(self) -> dict[str, Table]:
        """File name -> table."""
        found = {"models": self.spectrum()}
        found |= {
            f"cohorts-{model}": self.cohorts(model)
            for model in self.found.groupings
            if " " not in model
        }
        if any(" " in model for model in self.found.groupings):
            found["number"] = self.number()
        if self.has("5"):
            found["outcomes"] = self.outcomes()
        return found

    def has(self, model: str) -> bool:
        """Whether there is such a model, with a case at least."""
        return model in self.found.ranks and bool(self.found.covered[model].any())

    def mean(self, model: str, metric: str, where: np.ndarray) -> float:
        return float(self.values[model][metric][where].mean())

    def spectrum(self) -> Table:
        """All models over all Future-Test cases; one that lacks users has a note with the others on the same users."""
        found, rows, apart, notes = self.found, {}, {}, []
        users, trained = len(np.unique(found.user)), int(found.samples.sum())
        for model in found.models:
            has = found.covered[model]
            if not has.any():
                notes.append(f"{name_of(model)} has no user")
                continue
            own = {metric: self.mean(model, metric, has) for metric in COLUMNS}
            if has.all():
                rows[name_of(model)] = [own]
                continue
            apart[name_of(model)] = own
            same = ", ".join(
                f"{name_of(other)} {self.mean(other, 'recall@10', has):.4f}"
                for other in found.models
                if (found.covered[other] >= has).all()
            )
            notes.append(
                f"{name_of(model)} has {len(np.unique(found.user[has]))} of {users} users; Recall@10 of the same users: {same}"
            )
        gains = {
            model: self.gain(model, "2", found.covered[model])
            for model in found.models
            if model not in "12" and self.has(model)
        }
        told = ", ".join(
            f"{name_of(model)} {gain.mean:+.1f} %" for model, gain in gains.items() if gain
        )
        notes = [*([f"Recall@10 against {name_of('2')}: {told}"] if told else []), *notes]
        notes += [f"failed: {self._whose(unit)}: {error}" for unit, error in found.failed.items()]
        loud = samples.warning(found.tables.name)
        title = f"{found.tables.name}: {users} users, {trained} samples of Continue Train, {len(found.user)} Future-Test cases, full"
        return make_table(
            title, rows, COLUMNS, bounds=apart, notes=[*([loud] if loud else []), *notes]
        )

    def _whose(self, unit: str) -> str:
        """A unit by the models and cohorts that it is for."""
        found = self.found
        models = [model for model, served in found.served.items() if unit in served.units]
        names = {
            found.groupings[model].names[
                found.groupings[model].of[found.served[model].units[unit][0]]
            ]
            for model in models
            if model in found.groupings
        }
        return f"{unit}, of {', '.join([*models, *sorted(names)])}"

    def trained(self, model: str) -> list[int]:
        """Cohorts of a model, by number, that have an adapter, or were to have one."""
        cohorts = self.found.groupings[model]
        return [
            number
            for number in range(len(cohorts.names))
            if np.isin(np.flatnonzero(cohorts.of == number), self.found.served[model].users).any()
        ]

    def gain(self, model: str, other: str, where: np.ndarray) -> Cell | None:
        """% of Recall@10; None where the other has none."""
        base = self.mean(other, "recall@10", where)
        return (
            Cell(100 * (self.mean(model, "recall@10", where) / base - 1), digits=1)
            if base
            else None
        )

    def _row(
        self, model: str, where: np.ndarray, columns: Sequence[str], *more: Cell | None
    ) -> tuple[Cell | None, ...]:
        users = np.unique(self.found.user[where])
        counts = [Cell(len(users), digits=0), Cell(self.found.samples[users].sum(), digits=0)]
        return (*counts, *(Cell(self.mean(model, metric, where)) for metric in columns), *more)

    def cohorts(self, model: str) -> Table:
        """Each cohort's users by the cohort's adapter, and the average with the numbers of their Future-Test cases as weights."""
        found, cohorts = self.found, self.found.groupings[model]
        values, rows, notes = cohorts.silhouettes(), [], []
        of, has = cohorts.of[found.user], found.covered[model]
        everybody = np.ones(len(of), dtype=bool)
        rows.append(
            (name_of("3"), self._row("3", everybody, METRICS, self.gain("3", "2", everybody), None))
        )
        for number in self.trained(model):
            name = cohorts.names[number]
            if (where := has & (of == number)).any():
                shape = Cell(values[name], digits=2) if name in values else None
                rows.append(
                    (
                        f"{model[0]}. {name}",
                        self._row(model, where, METRICS, self.gain(model, "2", where), shape),
                    )
                )
        shape = Cell(values["all"], digits=2) if "all" in values else None
        rows.append(
            (
                f"{model[0]}. weighted average",
                self._row(model, has, METRICS, self.gain(model, "2", has), shape),
            )
        )
        if others := len(np.unique(found.user[~np.isin(found.user, found.served[model].users)])):
            notes.append(
                f"{others} users are in no cohort with anything to train, validate and test on: Model 3 serves them, and the average has them"
            )
        columns = ("users", "samples", *METRICS, "gain %", "silhouette")
        notes.append("gain %: of Recall@10 over Model 2 on the same users")
        return Table(
            f"{found.tables.name}: {name_of(model)}, {len(self.trained(model))} cohorts",
            columns,
            tuple(rows),
            tuple(notes),
        )

    def number(self) -> Table:
        """The weighted average of each number of cohorts, and its difference to Model 3."""
        found, rows = self.found, []
        everybody = np.ones(len(found.user), dtype=bool)
        users = Cell(len(np.unique(found.user)), digits=0)
        rows.append(
            (
                name_of("3"),
                (
                    None,
                    users,
                    *(Cell(self.mean("3", metric, everybody)) for metric in METRICS),
                    None,
                ),
            )
        )
        first = (
            next(model for model in found.groupings if " " in model)
            .partition(" ")[0]
            .partition(".")[2]
        )
        for model in found.groupings:
            label, _, grouping = model.partition(" ")
            has = found.covered[model]
            if label.partition(".")[2] == first and has.any():
                counts = [
                    Cell(len(self.trained(model)), digits=0),
                    Cell(len(np.unique(found.user[has])), digits=0),
                ]
                cells = (*counts, *(Cell(self.mean(model, metric, has)) for metric in METRICS))
                rows.append(
                    (
                        f"{name_of(label)}, {grouping or found.first}",
                        (*cells, self.gain(model, "3", has)),
                    )
                )
        notes = ["against 3 %: of Recall@10 to Model 3 on the same users"]
        if any(model.endswith(f" {HIGH}") for model in found.groupings):
            notes.append(f"{HIGH} has nobody to draw at random: it is in Model 4 alone")
        return Table(
            f"{found.tables.name}: by number of cohorts",
            ("cohorts", "users", *METRICS, "against 3 %"),
            tuple(rows),
            tuple(notes),
        )

    def own_users(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of users with an own adapter: (cases of each [n], float64 [n, 4] by it, float64 [n, 4] by Model 3, bucket by activity [n])."""
        has = self.found.covered["5"]
        _, cases, own = user_values(self.found.ranks["5"].take(has))
        other = user_values(self.found.ranks["3"].take(has))[2]
        return cases, own, other, by_activity(cases)

    def outcomes(self) -> Table:
        """Users by how Model 5 does against Model 3, and by activity."""
        cases, own, other, bucket = self.own_users()
        fare, rows = outcomes(own, other, self.threshold), []
        for number, name in [*enumerate(BUCKETS), (None, "all")]:
            chosen = np.ones(len(cases), dtype=bool) if number is None else bucket == number
            if chosen.any():
                counts = [int((fare[chosen] == outcome).sum()) for outcome in OUTCOMES]
                cells = [
                    Cell(value, digits=0)
                    for value in (
                        int(chosen.sum()),
                        cases[chosen].min(),
                        cases[chosen].max(),
                        *counts,
                    )
                ]
                rows.append((name, tuple(cells)))
        rules = "win: better in 2 or more of 4 metrics; loss: worse in 3 or more; draw: all equal, not all zero; inconclusive: all zero by both; mixed: others"
        title = f"{self.found.tables.name}: users by their own adapter against Model 3"
        return Table(
            title,
            ("users", "from", "to", *OUTCOMES),
            tuple(rows),
            ("from, to: Future-Test cases of a user", rules),
        )

    def against(self, one: str, other: str) -> str:
        """Mean differences of Recall@10 and NDCG@10 over the cases that both have, with 95 % intervals over users."""
        has = self.found.covered[one] & self.found.covered[other]
        if not has.any():
            return f"{one} - {other}: no user has both"
        told = []
        for metric in ("recall@10", "ndcg@10"):
            gap = user_bootstrap(
                self.found.user[has], self.values[one][metric][has], self.values[other][metric][has]
            )
            told.append(f"{metric} {_interval(gap)}")
        return f"{one} - {other}: {', '.join(told)}, {gap.n_users} users"

    def answers(self) -> list[str]:
        """A question and the differences that answer it, line by line."""
        models = [model for model in self.found.models if self.has(model)]
        text, ranks = [model for model in models if model.startswith("4.")], self.found.ranks
        random = [(model, f"6{model[1:]}") for model in ranks if model[0] == "4"]
        pairs = [
            (
                "Does personalization help at all?",
                [(model, "2") for model in models if model not in ("1", "2")],
            ),
            ("Clustered against random cohorts", [pair for pair in random if pair[1] in ranks]),
            ("Cohorts against Model 3", [(model, "3") for model in text]),
            ("Users against Model 3", [(model, "3") for model in ("5", "7") if model in models]),
            ("Users against cohorts", [("5", model) for model in text if "5" in models]),
        ]
        lines = []
        for number, (question, asked) in enumerate(pairs, start=1):
            lines.append(f"{number}. {question}")
            lines += [f"   {self.against(*pair)}" for pair in asked] or [
                "   (not among the models asked for)"
            ]
        lines.append("6. Does the gain of a user's own adapter grow with activity?")
        return [
            *lines,
            *(self._by_activity() if "5" in models else ["   (not among the models asked for)"]),
        ]

    def _by_activity(self) -> list[str]:
        """Mean differences per user in each quarter, and Spearman's correlation of the difference with the number of Future-Test cases."""
        cases, own, other, bucket = self.own_users()
        lines = []
        for metric in ("recall@10", "ndcg@10"):
            gap = (own - other)[:, METRICS.index(metric)]
            parts = []
            for number in np.unique(bucket):
                mine = gap[bucket == number]
                found = user_bootstrap(np.arange(len(mine)), mine, np.zeros(len(mine)))
                parts.append(f"{BUCKETS[number]} {_interval(found)}")
            lines.append(f"   5 - 3, {metric}, mean over users: {', '.join(parts)}")
            lines.append(
                f"   correlation of that difference with activity (Spearman): {_interval(correlation(cases, gap))}"
            )
        return lines


def correlation(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Spearman's, with a percentile bootstrap over users; 0 where one of both is constant."""
    from scipy.stats import rankdata

    def of(rows: np.ndarray) -> float:
        one, two = (rankdata(values[rows]) for values in (x, y))
        return float(np.corrcoef(one, two)[0, 1]) if np.ptp(one) and np.ptp(two) else 0.0

    rng, count = np.random.default_rng(seed), len(x)
    low, high = np.quantile(
        [of(rng.integers(count, size=count)) for _ in range(DRAWS)], [0.025, 0.975]
    )
    return Interval(of(np.arange(count)), float(low), float(high), count)


def _interval(gap: Interval) -> str:
    return f"{gap.difference:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
