"""Finished runs of several models in one table, with paired tests of their differences.

Runs that do not measure the same thing are refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path

import numpy as np

from ..contracts.evaluation_mode import EvaluationMode
from ..data.sample import locate
from ..errors import UserError
from ..evaluation.metrics import case_values
from ..evaluation.ranks import RankTable
from ..evaluation.significance import (
    SAMPLES,
    holm,
    pair,
    same_measure,
    ttest_of_sums,
    user_bootstrap,
    user_sums,
)
from ..storage.files import write_text
from ..storage.screen import say
from .run import Run
from .tables import Table, make_table, to_screen, write

COLUMNS = ("recall@1", "recall@10", "ndcg@10", "ndcg@10_opt", "ndcg@10_pes", "mrr")
SIGNIFICANT = 0.05

Ranks = dict[str, list[RankTable]]  # name of a row -> the ranks of each of its seeds
Marks = dict[tuple[str, str], str]  # (row, column) -> mark of significance


def labelled(runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Name runs as a table shows them: a user's own class without its module.

    Parameters
    ----------
    runs : dict
        The setting `model` -> its runs.
    """
    names = {model: model.rpartition(":")[2] for model in runs}
    count = Counter(names.values())
    return {names[model] if count[names[model]] == 1 else model: runs[model] for model in runs}


def table_of(runs: dict[str, list[Run]], metrics: Sequence[str] = COLUMNS) -> Table:
    """Make the table of finished runs.

    Parameters
    ----------
    runs : dict
        Name of a row -> its runs, which differ in the seed.
    metrics : sequence of str
        The columns. One that some run has not measured is left out.

    Raises
    ------
    UserError
        For runs that do not measure the same: other data, split, evaluation, cases or number of
        candidates; and for a run that is given twice.
    """
    all_runs = list(chain.from_iterable(runs.values()))
    first = all_runs[0].row
    _check_same(all_runs)
    ranks = _paired_ranks(runs)  # of a single run too: its metrics are compared with its ranks
    results = {}
    for name, group in runs.items():
        results[name] = [run.values for run in group]
    measured = set.intersection(*(set(run.values) for run in all_runs))
    columns = [column for column in metrics if column in measured]
    grouped = bool((first.get("evaluation") or {}).get("group_by_user"))
    marks: Marks = {}
    notes: list[str] = []
    warning = locate.warning(first["dataset"])
    if warning:
        notes.append(warning)
    if len(runs) > 1:
        marks, tests = _significance(results, ranks, columns, grouped)
        notes += tests
    return make_table(
        _title(all_runs),
        results,
        columns,
        bounds=_bounds(all_runs[0]),
        marks=marks,
        notes=[*notes, *_answer_notes(runs)],
    )


def _title(runs: Sequence[Run]) -> str:
    first = runs[0].row
    mode = EvaluationMode.of_part(first["split"]["mode"], runs[0].part)
    shown = "full" if mode.is_full else f"uni{mode.candidates}"
    title = f"{first['dataset']}: {first['cases']} {runs[0].part} cases, {shown}"
    candidates = _candidates(runs)
    return f"{title}, candidates {candidates}" if candidates else title


def _bounds(run: Run) -> dict[str, dict[str, float]]:
    """The row of the best ranking there can be, on a synthetic sample."""
    bound = {
        key.removeprefix("bayes_"): value
        for key, value in run.values.items()
        if key.startswith("bayes_")
    }
    return {"Bayes (expected)": bound} if bound else {}


def _answer_notes(runs: dict[str, list[Run]]) -> list[str]:
    """What models say of their answers, and which of them know users as they were in training."""
    notes = []
    for name, group in runs.items():
        rates = group[0].row["rates"]
        if rates:
            shares = ", ".join(f"{key} {value:.3f}" for key, value in rates.items())
            notes.append(f"{name}: {shares}")
    trained = [name for name, group in runs.items() if group[0].row.get("users_as_trained")]
    if trained:
        notes.append(f"users as trained, without their events after training: {', '.join(trained)}")
    return notes


def _check_same(runs: Sequence[Run]) -> None:
    """Refuse a run that is given twice, and runs whose rows measure something else."""
    (folder, count), *_ = Counter(run.folder.resolve() for run in runs).most_common(1)
    if count > 1:
        raise UserError(f"run {folder.name} is given {count} times; a table takes each run once")
    first = runs[0].row
    for run in runs[1:]:
        difference = same_measure(first, run.row)
        if difference:
            key, one, other = difference
            if key == "part":  # which a row of test cases does not name
                one, other = one or "test", other or "test"
            raise UserError(
                f"one table needs one {key}: {first['run']} has {one}, {run.row['run']} has "
                f"{other}; evaluate both alike"
            )


def _candidates(runs: Sequence[Run]) -> str | None:
    """The fingerprint of the candidates that all runs ranked; None for the whole catalogue."""
    fingerprints = {run.row["run"]: (run.row.get("candidates") or {}).get(run.part) for run in runs}
    first, *_ = fingerprints
    for run, other in fingerprints.items():
        if other != fingerprints[first]:
            raise UserError(
                f"one table needs the same candidates: {first} has {fingerprints[first]}, {run} "
                f"has {other}; evaluate both again by this version"
            )
    return fingerprints[first]


def _paired_ranks(runs: dict[str, list[Run]]) -> Ranks:
    """The rank tables, with their cases in one order."""
    first = next(iter(runs.values()))[0]
    reference = first.ranks()
    tables = {}
    for name, group in runs.items():
        tables[name] = [pair(reference, run.ranks())[1] for run in group]
    for name, group in runs.items():
        for run, table in zip(group, tables[name], strict=True):
            differing = np.flatnonzero(table.n_candidates != reference.n_candidates)
            if len(differing):
                case = differing[0]
                raise UserError(
                    f"one table needs the same n_candidates per case: of user {table.user[case]} "
                    f"{first.row['run']} has {reference.n_candidates[case]}, "
                    f"{run.row['run']} has {table.n_candidates[case]} ({len(differing)} of "
                    f"{len(table)} cases differ); evaluate both alike"
                )
    return tables


def _significance(
    results: dict[str, list[dict[str, float]]],
    ranks: Ranks,
    columns: Sequence[str],
    grouped: bool,
) -> tuple[Marks, list[str]]:
    """Test the best of each column against the second, and give intervals against the best.

    The best and the second are chosen by the same data that tests them, so the tests of all pairs
    of rows in all columns are one family for Holm's correction. Two rows have intervals of every
    column, more rows of one: NDCG@10 where there is that.

    Parameters
    ----------
    results : dict
        Name of a row -> the metrics of each of its seeds.
    ranks : dict
        Name of a row -> the paired rank table of each of its seeds.
    columns : sequence of str
        Names of metrics.
    grouped : bool
        Whether a mean is one over users of their means.

    Returns
    -------
    marks : dict
        (row, column) -> a dagger where the best beats the second.
    notes : list of str
        The tests and the intervals in words.
    """
    users = np.unique(next(iter(ranks.values()))[0].user, return_inverse=True)[1]
    n_users = int(users.max(initial=-1)) + 1
    if not columns or n_users < 2:
        return {}, []  # nothing varies
    values: dict[tuple[str, str], np.ndarray] = {}
    for name, group in ranks.items():
        for column in columns:
            values[name, column] = np.stack([case_values(table, column) for table in group])
    tests = _tests(users, values, list(results), columns, grouped)
    shown = "ndcg@10" if "ndcg@10" in columns else columns[0]
    marks: Marks = {}
    intervals = []
    for column in columns:
        best, second = _best_two(results, column)
        if tests[frozenset((best, second)), column] < SIGNIFICANT:
            marks[best, column] = "†"
        if column == shown or len(results) == 2:
            others = [name for name in results if name != best]
            intervals += _intervals(users, values, column, best, others, grouped)
    over = _over(n_users, {name: len(group) for name, group in ranks.items()})
    outcome = f"no best row is better than the second of its column: p >= {SIGNIFICANT}"
    if marks:
        outcome = f"† better than the second of its column: p < {SIGNIFICANT}"
    pairs = len(tests) // len(columns)
    return marks, [
        f"{outcome}; paired t-tests over {over}, Holm's correction for {len(tests)} tests "
        f"({_count(pairs, 'pair')} of rows x {_count(len(columns), 'column')})",
        *intervals,
        f"intervals: {SAMPLES} bootstrap samples of {over}, each interval by itself",
    ]


def _best_two(results: dict[str, list[dict[str, float]]], column: str) -> tuple[str, str]:
    """The rows with the highest means over seeds; the first of equal ones."""

    def mean(name: str) -> float:
        return float(np.mean([run[column] for run in results[name]]))

    best, second, *_ = sorted(results, key=lambda name: -mean(name))
    return best, second


def _intervals(
    users: np.ndarray,
    values: dict[tuple[str, str], np.ndarray],
    column: str,
    best: str,
    others: Sequence[str],
    grouped: bool,
) -> list[str]:
    """A line for each other row: by how much the best one is better."""
    lines = []
    for name in others:
        gap = user_bootstrap(users, values[best, column], values[name, column], grouped)
        lines.append(
            f"{column}: {best} - {name} = {gap.difference:+.4f}, 95 % interval "
            f"[{gap.low:+.4f}, {gap.high:+.4f}]"
        )
    return lines


def _tests(
    users: np.ndarray,
    values: dict[tuple[str, str], np.ndarray],
    names: Sequence[str],
    columns: Sequence[str],
    grouped: bool,
) -> dict[tuple[frozenset[str], str], float]:
    """Probability of each pair of rows in each column, corrected for all of them.

    Parameters
    ----------
    users : ndarray of int64, [n_cases]
        The user of each case.
    values : dict
        (row, column) -> values of the metric, [n_seeds, n_cases].
    names : sequence of str
        The rows.
    columns : sequence of str
        Names of metrics.
    grouped : bool
        Whether a mean is one over users of their means.
    """
    sums = {key: user_sums(users, one, grouped)[0] for key, one in values.items()}
    keys: list[tuple[frozenset[str], str]] = []
    raw = []
    for one, other in combinations(names, 2):
        for column in columns:
            keys.append((frozenset((one, other)), column))
            raw.append(ttest_of_sums(sums[one, column], sums[other, column]).p)
    return {key: float(p) for key, p in zip(keys, holm(raw), strict=True)}


def _over(n_users: int, seeds: dict[str, int]) -> str:
    """What varies: `600 users`, `600 users and 3 seeds`, or with the seeds of each row."""
    users, counts = _count(n_users, "user"), set(seeds.values())
    if counts == {1}:
        return users
    if len(counts) == 1:
        return f"{users} and {_count(counts.pop(), 'seed')} of each row"
    each = ", ".join(f"{count} of {name}" for name, count in seeds.items())
    return f"{users} and seeds ({each}; a single seed is taken as it is)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def write_table(
    table: Table, runs: dict[str, list[Run]], saved: Path, name: str | None = None
) -> Path:
    """Write a table as Markdown, LaTeX and CSV, with the ids of its runs.

    Parameters
    ----------
    table : Table
        The table.
    runs : dict
        Name of a row -> its runs.
    saved : Path
        Folder of all runs.
    name : str, optional
        Beginning of the name of the table's folder; the dataset and the rows by default.

    Returns
    -------
    Path
        The table's folder, which is of these runs alone.
    """
    ids = [run.row["run"] for run in chain.from_iterable(runs.values())]
    first = next(iter(runs.values()))[0].row
    name = (name or f"{first['dataset']}-{'-'.join(runs)}").replace("/", "-")[:111]
    folder = saved / "tables" / f"{name}-{hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]}"
    write(table, folder)
    write_text(folder / "runs.json", json.dumps(ids, indent=1))
    return folder


def show(table: Table) -> None:
    """Print a table."""
    say("\n" + to_screen(table))
