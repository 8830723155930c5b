"""What a spectrum shows: the paper's tables, and its six questions answered by paired intervals."""

from collections.abc import Sequence

import numpy as np

from ...data.sample import locate as samples
from ...evaluation.metrics import case_values
from ...evaluation.significance import Interval, user_bootstrap
from ...runs.tables import Cell, Table, make_table
from .groupings import HIGH, name_of
from .outcomes import METRICS, NOISE, OUTCOMES, Groups, by_activity, outcomes, user_values
from .spectrum import Spectrum

COLUMNS = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")
DRAWS = 2000  # of a bootstrap


class Findings:
    """The tables and answers of one spectrum.

    threshold : a user's difference up to it counts as none. borders : of the groups by activity, see `by_activity`.
    """

    def __init__(
        self, found: Spectrum, threshold: float = 0.0, borders: Sequence[int] | None = None
    ):
        self.found, self.threshold, self.borders = found, threshold, borders
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
        """All models over all Future-Test cases; one that lacks users says so, competes for nothing, and has a note with the others on the same users."""
        found, rows, covers, notes = self.found, {}, {}, []
        users, trained = len(np.unique(found.user)), int(found.samples.sum())
        for model in found.models:
            has = found.covered[model]
            if not has.any():
                notes.append(f"{name_of(model)} has no user")
                continue
            rows[name_of(model)] = [{metric: self.mean(model, metric, has) for metric in COLUMNS}]
            if has.all():
                continue
            covers[name_of(model)] = f"{len(np.unique(found.user[has]))} of {users} users"
            same = ", ".join(
                f"{name_of(other)} {self.mean(other, 'recall@10', has):.4f}"
                for other in found.models
                if (found.covered[other] >= has).all()
            )
            notes.append(
                f"{name_of(model)} has {covers[name_of(model)]}; Recall@10 of the same users: "
                f"{same}"
            )
        everybody = np.ones(len(found.user), dtype=bool)
        newer = self.gain("3", "2", everybody)
        gains = {
            model: self.gain(model, "3", found.covered[model])
            for model in found.models
            if model not in "123" and self.has(model)
        }
        told = ", ".join(
            f"{name_of(model)} {gain.mean:+.1f} %" for model, gain in gains.items() if gain
        )
        if told:
            notes.insert(0, f"Recall@10 against {name_of('3')} on the same users: {told}")
        if newer:
            notes.insert(
                0,
                f"newer data: Recall@10 of {name_of('3')} against {name_of('2')} {newer.mean:+.1f} "
                "%",
            )
        notes += [f"failed: {self._whose(unit)}: {error}" for unit, error in found.failed.items()]
        loud = samples.warning(found.tables.name)
        title = f"{found.tables.name}: {users} users, {trained} samples of Continue Train, {len(found.user)} Future-Test cases, full"
        return make_table(
            title, rows, COLUMNS, covers=covers, notes=[*([loud] if loud else []), *notes]
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
                f"{others} users are in no cohort with anything to train, validate and test on: "
                "Model 3 serves them, and the average has them"
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
                        self._numbered(label, grouping or found.first),
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

    @staticmethod
    def _numbered(label: str, grouping: str) -> str:
        """A model by its cohorts; those of low and high activity are the same of every kind."""
        return f"4. Cohorts, {HIGH}" if grouping == HIGH else f"{name_of(label)}, {grouping}"

    def own_users(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Groups]:
        """Of users with an own adapter: (cases of each [n], float64 [n, 4] by it, float64 [n, 4] by Model 3, groups by activity)."""
        has = self.found.covered["5"]
        _, cases, own = user_values(self.found.ranks["5"].take(has))
        other = user_values(self.found.ranks["3"].take(has))[2]
        return cases, own, other, by_activity(cases, self.borders)

    def outcomes(self) -> Table:
        """Users by how Model 5 does against Model 3, and by activity."""
        cases, own, other, groups = self.own_users()
        fare, rows, notes = outcomes(own, other, self.threshold), [], []
        for number, name in [*enumerate(groups.names), (None, "all")]:
            chosen = np.ones(len(cases), dtype=bool) if number is None else groups.of == number
            if not chosen.any():
                rows.append((name, (Cell(0, digits=0), *[None] * (2 + len(OUTCOMES)))))
                notes.append(f"{name}: no user with an adapter of their own")
                continue
            counts = [int((fare[chosen] == outcome).sum()) for outcome in OUTCOMES]
            numbers = (int(chosen.sum()), cases[chosen].min(), cases[chosen].max(), *counts)
            rows.append((name, tuple(Cell(value, digits=0) for value in numbers)))
        rules = "win: better in 2 or more of 4 metrics; loss: worse in 3 or more; draw: all equal, not all zero; inconclusive: all zero by both; mixed: others"
        title = f"{self.found.tables.name}: users by their own adapter against Model 3"
        return Table(
            title,
            ("users", "from", "to", *OUTCOMES),
            tuple(rows),
            ("from, to: Future-Test cases of a user", rules, *notes),
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
        """A question and the differences that answer it, line by line.

        Model 3 is what personalization has to beat: it has learned from the same events as the models that are personal, and
        serves everybody alike. Models that learned less data are compared under a heading of their own.
        """
        models = [model for model in self.found.models if self.has(model)]
        text, ranks = [model for model in models if model.startswith("4.")], self.found.ranks
        grouped = [model for model in self.found.groupings if self.has(model)]
        cohorts = [model for model in grouped if model[0] == "4"]
        random = [(model, f"6{model[1:]}") for model in cohorts]
        own = [model for model in ("5", "7") if model in models]
        pairs = [
            (
                "Newer data: Model 3, which has learned Continue Train too, against Model 2",
                [("3", "2")],
            ),
            (
                "1. Does personalization help at all, against Model 3?",
                [(model, "3") for model in [*text, *own]],
            ),
            (
                "2. Clustered against random cohorts",
                [pair for pair in random if pair[1] in ranks],
            ),
            (
                "3. Cohorts against Model 3, for each number of cohorts",
                [(model, "3") for model in cohorts],
            ),
            ("4. Users against Model 3", [(model, "3") for model in own]),
            ("5. Users against cohorts", [("5", model) for model in text if "5" in models]),
        ]
        lines = []
        for question, asked in pairs:
            lines.append(question)
            lines += [f"   {self.against(*pair)}" for pair in asked] or [
                "   (not among the models asked for)"
            ]
        lines.append("6. Does the gain of a user's own adapter grow with activity?")
        lines += self._by_activity() if "5" in models else ["   (not among the models asked for)"]
        lines.append("Does a cohort's gain follow its number of samples, or its silhouette?")
        lines += self._by_cohort() if text else ["   (not among the models asked for)"]
        return lines

    def _by_cohort(self) -> list[str]:
        """Spearman's correlation of the gains of Model 4's clustered cohorts with what is known of these cohorts."""
        gains, samples, shapes = self.cohort_gains()
        if len(gains) < 3:
            return [f"   {len(gains)} clustered cohorts with a gain: too few for a correlation"]
        if not np.ptp(gains):
            return [f"   all {len(gains)} clustered cohorts have the same gain"]
        lines = []
        for name, values in (("number of samples", samples), ("silhouette", shapes)):
            if not np.ptp(values):
                lines.append(
                    f"   gain % (Recall@10 over Model 2) and {name}: Spearman not defined, since "
                    f"all {len(gains)} cohorts have the same {name}"
                )
                continue
            found = correlation(values, gains)
            lines.append(
                f"   gain % (Recall@10 over Model 2) and {name}: Spearman {_interval(found)}, "
                f"p = {permutation_p(values, gains):.2f}, {len(gains)} cohorts"
            )
        lines.append(
            "   intervals and p (permutations) are over cohorts; kinds of cohorts group the same "
            "users, so they overstate what is known"
        )
        return lines

    def cohort_gains(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the clustered cohorts of the table's Model 4: gain in % of Recall@10 over Model 2, training cases, mean silhouette.

        Cohorts that were not clustered have no silhouette, and cohorts where Model 2 finds nothing no gain: both are left out.

        Returns
        -------
        Three float64 [cohorts].
        """
        found, rows = self.found, []
        for model in found.models:
            if model not in found.groupings or model[0] != "4":
                continue
            cohorts, has = found.groupings[model], found.covered[model]
            shapes = cohorts.silhouettes()
            of = cohorts.of[found.user]
            for number in self.trained(model):
                name, where = cohorts.names[number], has & (of == number)
                gain = self.gain(model, "2", where) if where.any() else None
                if gain and name in shapes:
                    users = np.unique(found.user[where])
                    rows.append((gain.mean, found.samples[users].sum(), shapes[name]))
        gains, samples, shapes = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return gains, samples, shapes

    def _by_activity(self) -> list[str]:
        """Mean differences per user in each group, and Spearman's correlation of the difference with the number of Future-Test cases."""
        cases, own, other, groups = self.own_users()
        lines = []
        for metric in ("recall@10", "ndcg@10"):
            gap = (own - other)[:, METRICS.index(metric)]
            parts = []
            for number, name in enumerate(groups.names):
                mine = gap[groups.of == number]
                if not len(mine):
                    parts.append(f"{name} no user")
                    continue
                found = user_bootstrap(np.arange(len(mine)), mine, np.zeros(len(mine)))
                parts.append(f"{name} {_interval(found)}")
            lines.append(f"   5 - 3, {metric}, mean over users: {', '.join(parts)}")
            if not np.ptp(gap):
                told = "not defined, since all users have the same difference"
            elif not np.ptp(cases):
                told = "not defined, since all users have the same activity"
            else:
                told = _interval(correlation(cases, gap))
            lines.append(f"   correlation of that difference with activity (Spearman): {told}")
        return lines


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two vectors; 0 where one of both is constant."""
    from scipy.stats import rankdata

    one, two = rankdata(x), rankdata(y)
    return float(np.corrcoef(one, two)[0, 1]) if np.ptp(one) and np.ptp(two) else 0.0


def correlation(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Spearman's, with a percentile bootstrap over the pairs."""
    rng, count = np.random.default_rng(seed), len(x)
    rows = (rng.integers(count, size=count) for _ in range(DRAWS))
    low, high = np.quantile([spearman(x[drawn], y[drawn]) for drawn in rows], [0.025, 0.975])
    return Interval(spearman(x, y), float(low), float(high), count)


def permutation_p(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of Spearman's correlation: the share of random orders of `y` that correlate as much."""
    from scipy.stats import rankdata

    one, two = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    orders = np.random.default_rng(seed).permuted(np.tile(two, (DRAWS - 1, 1)), axis=1)
    as_much = np.abs(orders @ one) >= abs(two @ one) - NOISE
    return float((1 + as_much.sum()) / DRAWS)


def _interval(gap: Interval) -> str:
    return f"{gap.difference:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
