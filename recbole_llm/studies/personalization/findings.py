"""The paper's tables of a spectrum, and its six questions, answered with paired intervals."""

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
DRAWS = 2000  # samples of a bootstrap, and orders of a permutation test
MISSING = "   (not among the models asked for)"
RULES = (
    "win: better in 2 or more of 4 metrics; loss: worse in 3 or more; draw: all equal, not all "
    "zero; inconclusive: all zero by both; mixed: others"
)
Row = tuple[str, tuple[Cell | None, ...]]


class Findings:
    """The tables and answers of one spectrum.

    Parameters
    ----------
    results : Spectrum
        The results of all models.
    threshold : float
        A user's difference up to this counts as none.
    borders : sequence of int, or None
        Borders of the groups by activity, see `by_activity`.
    """

    def __init__(
        self, results: Spectrum, threshold: float = 0.0, borders: Sequence[int] | None = None
    ):
        self.results, self.threshold, self.borders = results, threshold, borders
        self.values: dict[str, dict[str, np.ndarray]] = {}
        for model, table in results.ranks.items():
            self.values[model] = {metric: case_values(table, metric) for metric in COLUMNS}

    def tables(self) -> dict[str, Table]:
        """Make all tables.

        Returns
        -------
        dict of str to Table
            File name -> table.
        """
        tables = {"models": self.spectrum()}
        numbered = False
        for model in self.results.groupings:
            if " " in model:
                numbered = True
            else:
                tables[f"cohorts-{model}"] = self.cohorts(model)
        if numbered:
            tables["number"] = self.number()
        if self.has("5"):
            tables["outcomes"] = self.outcomes()
        return tables

    def has(self, model: str) -> bool:
        """Whether a model was run and serves at least one case."""
        return model in self.results.ranks and bool(self.results.covered[model].any())

    def mean(self, model: str, metric: str, where: np.ndarray) -> float:
        """Average a metric.

        Parameters
        ----------
        model : str
            The model.
        metric : str
            One of `COLUMNS`.
        where : ndarray of bool [cases]
            The cases.

        Returns
        -------
        float
            The mean over these cases.
        """
        return float(self.values[model][metric][where].mean())

    def spectrum(self) -> Table:
        """Make the table of all models over all Future-Test cases.

        A model that does not serve all users says so in its row, and is not compared with the
        others in it. A note has all models over its users.

        Returns
        -------
        Table
            The table.
        """
        results = self.results
        rows: dict[str, Sequence[dict]] = {}
        covers: dict[str, str] = {}
        notes = []
        users, trained = len(np.unique(results.user)), int(results.samples.sum())
        for model in results.models:
            name, has = name_of(model), results.covered[model]
            if not has.any():
                notes.append(f"{name} has no user")
                continue
            rows[name] = [{metric: self.mean(model, metric, has) for metric in COLUMNS}]
            if has.all():
                continue
            covers[name] = f"{len(np.unique(results.user[has]))} of {users} users"
            others = [
                f"{name_of(other)} {self.mean(other, 'recall@10', has):.4f}"
                for other in results.models
                if (results.covered[other] >= has).all()
            ]
            notes.append(
                f"{name} has {covers[name]}; Recall@10 of the same users: {', '.join(others)}"
            )
        for unit, error in results.failed.items():
            notes.append(f"failed: {self._described(unit)}: {error}")
        warning = samples.warning(results.interactions.name)
        warnings = [warning] if warning else []
        title = (
            f"{results.interactions.name}: {users} users, {trained} samples of Continue Train, "
            f"{len(results.user)} Future-Test cases, full"
        )
        notes = [*warnings, *self._gain_notes(), *notes]
        return make_table(title, rows, COLUMNS, covers=covers, notes=notes)

    def _gain_notes(self) -> list[str]:
        """Notes with the gains of Model 3 over Model 2, and of the other models over Model 3."""
        results, notes = self.results, []
        newer = self.gain("3", "2", np.ones(len(results.user), dtype=bool))
        if newer:
            notes.append(
                f"newer data: Recall@10 of {name_of('3')} against {name_of('2')} "
                f"{newer.mean:+.1f} %"
            )
        gains = []
        for model in results.models:
            if model not in "123" and self.has(model):
                gain = self.gain(model, "3", results.covered[model])
                if gain:
                    gains.append(f"{name_of(model)} {gain.mean:+.1f} %")
        if gains:
            notes.append(f"Recall@10 against {name_of('3')} on the same users: {', '.join(gains)}")
        return notes

    def _described(self, unit: str) -> str:
        """A unit with the models and the cohorts that it was for."""
        results, models, names = self.results, [], set()
        for model, served in results.served.items():
            if unit in served.units:
                models.append(model)
                if model in results.groupings:
                    cohorts, first_user = results.groupings[model], served.units[unit][0]
                    names.add(cohorts.names[cohorts.of[first_user]])
        return f"{unit}, of {', '.join([*models, *sorted(names)])}"

    def trained(self, model: str) -> list[int]:
        """List the cohorts of a model that were to have an adapter.

        Parameters
        ----------
        model : str
            Model 4 or 6.

        Returns
        -------
        list of int
            Numbers of the cohorts.
        """
        cohorts, served = self.results.groupings[model], self.results.served[model]
        trained = np.unique(cohorts.of[served.users])
        return trained[trained >= 0].tolist()

    def gain(self, model: str, other: str, where: np.ndarray) -> Cell | None:
        """Compute the relative gain in Recall@10 over another model.

        Parameters
        ----------
        model, other : str
            The models.
        where : ndarray of bool [cases]
            The cases.

        Returns
        -------
        Cell or None
            The gain in %; None if the other model's Recall@10 is 0.
        """
        base = self.mean(other, "recall@10", where)
        if not base:
            return None
        return Cell(100 * (self.mean(model, "recall@10", where) / base - 1), digits=1)

    def _means(self, model: str, where: np.ndarray) -> list[Cell]:
        """METRICS of a model over some cases."""
        return [Cell(self.mean(model, metric, where)) for metric in METRICS]

    def _row(
        self, model: str, where: np.ndarray, gain: Cell | None, silhouette: Cell | None
    ) -> tuple[Cell | None, ...]:
        """A row of a table of cohorts: users, samples, METRICS, gain and silhouette."""
        users = np.unique(self.results.user[where])
        counts = [Cell(len(users), digits=0), Cell(self.results.samples[users].sum(), digits=0)]
        return (*counts, *self._means(model, where), gain, silhouette)

    def cohorts(self, model: str) -> Table:
        """Make the table of a model's cohorts, each served by its adapter.

        Parameters
        ----------
        model : str
            Model 4 or 6.

        Returns
        -------
        Table
            A row for each cohort, and their average, weighted by numbers of Future-Test cases.
        """
        results, cohorts = self.results, self.results.groupings[model]
        trained, has = self.trained(model), results.covered[model]
        shapes = {name: Cell(value, digits=2) for name, value in cohorts.silhouettes().items()}
        everybody = np.ones(len(results.user), dtype=bool)
        rows: list[Row] = [
            (name_of("3"), self._row("3", everybody, self.gain("3", "2", everybody), None))
        ]
        of = cohorts.of[results.user]
        parts = {cohorts.names[number]: has & (of == number) for number in trained}
        for name, where in parts.items():
            if where.any():
                gain = self.gain(model, "2", where)
                row = self._row(model, where, gain, shapes.get(name))
                rows.append((f"{model[0]}. {name}", row))
        average = self._row(model, has, self.gain(model, "2", has), shapes.get("all"))
        rows.append((f"{model[0]}. weighted average", average))
        notes = []
        unserved = ~np.isin(results.user, results.served[model].users)
        if unserved.any():
            notes.append(
                f"{len(np.unique(results.user[unserved]))} users are in no cohort with anything to "
                "train, validate and test on: Model 3 serves them, and the average has them"
            )
        notes.append("gain %: of Recall@10 over Model 2 on the same users")
        title = f"{results.interactions.name}: {name_of(model)}, {len(trained)} cohorts"
        columns = ("users", "samples", *METRICS, "gain %", "silhouette")
        return Table(title, columns, tuple(rows), tuple(notes))

    def number(self) -> Table:
        """Make the table of one kind of cohorts by the number of cohorts.

        Returns
        -------
        Table
            The weighted average of each grouping, and its gain over Model 3.
        """
        results = self.results
        everybody = np.ones(len(results.user), dtype=bool)
        users = Cell(len(np.unique(results.user)), digits=0)
        rows: list[Row] = [(name_of("3"), (None, users, *self._means("3", everybody), None))]
        numbered = next(model for model in results.groupings if " " in model)
        _, _, kind = numbered.partition(" ")[0].partition(".")
        for model in results.groupings:
            label, _, grouping = model.partition(" ")
            has = results.covered[model]
            if label.partition(".")[2] != kind or not has.any():
                continue
            counts = (
                Cell(len(self.trained(model)), digits=0),
                Cell(len(np.unique(results.user[has])), digits=0),
            )
            cells = (*counts, *self._means(model, has), self.gain(model, "3", has))
            rows.append((self._numbered(label, grouping or results.first), cells))
        notes = ["against 3 %: of Recall@10 to Model 3 on the same users"]
        if any(model.endswith(f" {HIGH}") for model in results.groupings):
            notes.append(f"{HIGH} has nobody to draw at random: it is in Model 4 alone")
        title = f"{results.interactions.name}: by number of cohorts"
        columns = ("cohorts", "users", *METRICS, "against 3 %")
        return Table(title, columns, tuple(rows), tuple(notes))

    @staticmethod
    def _numbered(label: str, grouping: str) -> str:
        """The name of a model with its grouping; that by activity is the same for all kinds."""
        return f"4. Cohorts, {HIGH}" if grouping == HIGH else f"{name_of(label)}, {grouping}"

    def own_users(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Groups]:
        """Compare Models 5 and 3 for the users with an adapter of their own.

        Returns
        -------
        cases : ndarray of int64 [n]
            Number of cases of each user.
        by_adapter : ndarray of float64 [n, 4]
            METRICS of each user by Model 5.
        other : ndarray of float64 [n, 4]
            METRICS of each user by Model 3.
        groups : Groups
            The users by activity.
        """
        has = self.results.covered["5"]
        _, cases, by_adapter = user_values(self.results.ranks["5"].take(has))
        _, _, other = user_values(self.results.ranks["3"].take(has))
        return cases, by_adapter, other, by_activity(cases, self.borders)

    def outcomes(self) -> Table:
        """Make the table of users by the outcome of Model 5 against Model 3.

        Returns
        -------
        Table
            Numbers of users, a row for each group by activity.
        """
        cases, by_adapter, other, groups = self.own_users()
        outcome_of = outcomes(by_adapter, other, self.threshold)
        members = {name: groups.of == number for number, name in enumerate(groups.names)}
        members["all"] = np.ones(len(cases), dtype=bool)
        rows: list[Row] = []
        notes = ["from, to: Future-Test cases of a user", RULES]
        for name, inside in members.items():
            if not inside.any():
                rows.append((name, (Cell(0, digits=0), *[None] * (2 + len(OUTCOMES)))))
                notes.append(f"{name}: no user with an adapter of their own")
                continue
            counts = [int((outcome_of[inside] == outcome).sum()) for outcome in OUTCOMES]
            numbers = (int(inside.sum()), cases[inside].min(), cases[inside].max(), *counts)
            rows.append((name, tuple(Cell(value, digits=0) for value in numbers)))
        title = f"{self.results.interactions.name}: users by their own adapter against Model 3"
        return Table(title, ("users", "from", "to", *OUTCOMES), tuple(rows), tuple(notes))

    def against(self, one: str, other: str) -> str:
        """Compare two models over the cases that both serve.

        Parameters
        ----------
        one, other : str
            The models.

        Returns
        -------
        str
            Mean differences of Recall@10 and NDCG@10, with 95 % bootstrap intervals over users.
        """
        has = self.results.covered[one] & self.results.covered[other]
        if not has.any():
            return f"{one} - {other}: no user has both"
        parts = []
        for metric in ("recall@10", "ndcg@10"):
            gap = user_bootstrap(
                self.results.user[has],
                self.values[one][metric][has],
                self.values[other][metric][has],
            )
            parts.append(f"{metric} {_interval(gap)}")
        return f"{one} - {other}: {', '.join(parts)}, {gap.n_users} users"

    def answers(self) -> list[str]:
        """Answer the questions.

        Personalization has to beat Model 3, which has learned from the same events as the personal
        models, and serves all users alike. Models that learned from fewer events are compared under
        a separate heading.

        Returns
        -------
        list of str
            Each question, followed by the differences that answer it.
        """
        models = [model for model in self.results.models if self.has(model)]
        lines = []
        for question, pairs in self._questions(models).items():
            lines.append(question)
            lines += [f"   {self.against(one, other)}" for one, other in pairs] or [MISSING]
        lines.append("6. Does the gain of a user's own adapter grow with activity?")
        lines += self._by_activity() if "5" in models else [MISSING]
        lines.append("Does a cohort's gain follow its number of samples, or its silhouette?")
        has_cohorts = any(model.startswith("4.") for model in models)
        lines += self._by_cohort() if has_cohorts else [MISSING]
        return lines

    def _questions(self, models: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Questions -> the pairs of models whose differences answer them."""
        personal = [model for model in models if model.startswith("4.")]
        of_users = [model for model in ("5", "7") if model in models]
        cohorts = [model for model in self.results.groupings if self.has(model)]
        cohorts = [model for model in cohorts if model[0] == "4"]
        random = [(model, f"6{model[1:]}") for model in cohorts]
        return {
            "Newer data: Model 3, which has learned Continue Train too, against Model 2": [
                ("3", "2")
            ],
            "1. Does personalization help at all, against Model 3?": [
                (model, "3") for model in [*personal, *of_users]
            ],
            "2. Clustered against random cohorts": [
                pair for pair in random if pair[1] in self.results.ranks
            ],
            "3. Cohorts against Model 3, for each number of cohorts": [
                (model, "3") for model in cohorts
            ],
            "4. Users against Model 3": [(model, "3") for model in of_users],
            "5. Users against cohorts": [("5", model) for model in personal if "5" in models],
        }

    def _by_cohort(self) -> list[str]:
        """Spearman's correlations of cohorts' gains with their samples and silhouettes."""
        gains, samples, shapes = self.cohort_gains()
        if len(gains) < 3:
            return [f"   {len(gains)} clustered cohorts with a gain: too few for a correlation"]
        if not np.ptp(gains):
            return [f"   all {len(gains)} clustered cohorts have the same gain"]
        lines = []
        for name, values in (("number of samples", samples), ("silhouette", shapes)):
            what = f"   gain % (Recall@10 over Model 2) and {name}: Spearman"
            if np.ptp(values):
                lines.append(
                    f"{what} {_interval(correlation(values, gains))}, "
                    f"p = {permutation_p(values, gains):.2f}, {len(gains)} cohorts"
                )
            else:
                lines.append(
                    f"{what} not defined, since all {len(gains)} cohorts have the same {name}"
                )
        lines.append(
            "   intervals and p (permutations) are over cohorts; kinds of cohorts group the same "
            "users, so they overstate what is known"
        )
        return lines

    def cohort_gains(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the gains of the clustered cohorts of Model 4 in the main table.

        Cohorts that were not clustered have no silhouette, and cohorts for which Model 2 has a
        Recall@10 of 0 have no gain; both are left out.

        Returns
        -------
        gains : ndarray of float64 [cohorts]
            Gain in Recall@10 over Model 2, in %.
        samples : ndarray of float64 [cohorts]
            Number of training cases.
        shapes : ndarray of float64 [cohorts]
            Mean silhouette.
        """
        results, rows = self.results, []
        for model in results.models:
            if model not in results.groupings or model[0] != "4":
                continue
            cohorts, has = results.groupings[model], results.covered[model]
            silhouettes = cohorts.silhouettes()
            of = cohorts.of[results.user]
            for number in self.trained(model):
                name, where = cohorts.names[number], has & (of == number)
                gain = self.gain(model, "2", where) if where.any() else None
                if gain and name in silhouettes:
                    users = np.unique(results.user[where])
                    rows.append((gain.mean, results.samples[users].sum(), silhouettes[name]))
        gains, samples, shapes = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return gains, samples, shapes

    def _by_activity(self) -> list[str]:
        """How the difference between Models 5 and 3 depends on a user's activity.

        Mean differences of each group by activity, and Spearman's correlation of a user's
        difference with the number of Future-Test cases.
        """
        cases, by_adapter, other, groups = self.own_users()
        lines = []
        for metric in ("recall@10", "ndcg@10"):
            gap = (by_adapter - other)[:, METRICS.index(metric)]
            parts = []
            for number, name in enumerate(groups.names):
                of_group = gap[groups.of == number]
                if len(of_group):
                    zeros = np.zeros(len(of_group))
                    interval = user_bootstrap(np.arange(len(of_group)), of_group, zeros)
                    parts.append(f"{name} {_interval(interval)}")
                else:
                    parts.append(f"{name} no user")
            lines.append(f"   5 - 3, {metric}, mean over users: {', '.join(parts)}")
            if not np.ptp(gap):
                result = "not defined, since all users have the same difference"
            elif not np.ptp(cases):
                result = "not defined, since all users have the same activity"
            else:
                result = _interval(correlation(cases, gap))
            lines.append(f"   correlation of that difference with activity (Spearman): {result}")
        return lines


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Compute Spearman's rank correlation.

    Parameters
    ----------
    x, y : ndarray of float [n]
        The values.

    Returns
    -------
    float
        The correlation; 0 if x or y is constant.
    """
    from scipy.stats import rankdata

    x_ranks, y_ranks = rankdata(x), rankdata(y)
    if not np.ptp(x_ranks) or not np.ptp(y_ranks):
        return 0.0
    return float(np.corrcoef(x_ranks, y_ranks)[0, 1])


def correlation(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Compute Spearman's correlation with a percentile bootstrap over the pairs.

    Parameters
    ----------
    x, y : ndarray of float [n]
        The values.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    Interval
        The correlation with its 95 % interval.
    """
    rng, count = np.random.default_rng(seed), len(x)
    values = []
    for _ in range(DRAWS):
        rows = rng.integers(count, size=count)
        values.append(spearman(x[rows], y[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(spearman(x, y), float(low), float(high), count)


def permutation_p(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Test Spearman's correlation by permutations.

    Parameters
    ----------
    x, y : ndarray of float [n]
        The values.
    seed : int
        Seed of the permutations.

    Returns
    -------
    float
        Two-sided p: the share of random orders of `y` whose correlation is at least as strong.
    """
    from scipy.stats import rankdata

    centred_x = rankdata(x) - (len(x) + 1) / 2
    centred_y = rankdata(y) - (len(y) + 1) / 2
    orders = np.random.default_rng(seed).permuted(np.tile(centred_y, (DRAWS - 1, 1)), axis=1)
    as_strong = np.abs(orders @ centred_x) >= abs(centred_y @ centred_x) - NOISE
    return float((1 + as_strong.sum()) / DRAWS)


def _interval(gap: Interval) -> str:
    return f"{gap.difference:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
