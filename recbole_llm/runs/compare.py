"""Finished runs of several models in one table: only what measures the same thing, with paired tests."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from ..data.sample import locate
from ..errors import UserError
from ..evaluation.metrics import case_values
from ..evaluation.significance import (
    SAMPLES,
    holm,
    pair,
    same_measure,
    ttest_of_sums,
    user_bootstrap,
    user_sums,
)
from ..storage.screen import say
from .run import Run
from .tables import Table, make_table, to_screen, write, write_text

COLUMNS = ("recall@1", "recall@10", "ndcg@10", "ndcg@10_opt", "ndcg@10_pes", "mrr")
SIGNIFICANT = 0.05


def labelled(runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Runs by model, under the names that stand in a table: a user's own class by its name alone."""
    names = {model: model.rpartition(":")[2] for model in runs}
    count = Counter(names.values())
    return {names[model] if count[names[model]] == 1 else model: runs[model] for model in runs}


def table_of(runs: dict[str, list[Run]], metrics: Sequence[str] = COLUMNS) -> Table:
    """The table of finished runs: one row per key, its runs are seeds of one model.

    Columns are those of `metrics` that every run has. Raises UserError for runs that do not measure the same: other data, split,
    evaluation, cases or number of candidates; and for a run that is given twice.
    """
    every = [run for group in runs.values() for run in group]
    first = every[0].row
    _check_same(every)
    tables = _paired_ranks(runs)  # of a single run too: its metrics are compared with its ranks
    results = {name: [run.values for run in group] for name, group in runs.items()}
    columns = [column for column in metrics if all(column in run.values for run in every)]
    bounds = {
        "Bayes (expected)": {
            key.removeprefix("bayes_"): value
            for key, value in every[0].values.items()
            if key.startswith("bayes_")
        }
    }
    mode = first["split"]["mode"]
    if isinstance(mode, dict):
        mode = mode.get(every[0].part, next(iter(mode.values())))
    title = f"{first['dataset']}: {first['cases']} {every[0].part} cases, {mode}"
    if drawn := _candidates(every):
        title += f", candidates {drawn}"
    grouped = bool((first.get("evaluation") or {}).get("group_by_user"))
    marks, notes = _significance(results, tables, columns, grouped) if len(runs) > 1 else ({}, [])
    for name, group in runs.items():
        rates = {key: value for key, value in group[0].row["rates"].items()}
        if rates:
            notes.append(
                f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in rates.items())
            )
    trained = [name for name, group in runs.items() if group[0].row.get("users_as_trained")]
    if trained:
        notes.append(f"users as trained, without their events after training: {', '.join(trained)}")
    loud = locate.warning(first["dataset"])
    return make_table(
        title,
        results,
        columns,
        bounds={name: values for name, values in bounds.items() if values},
        marks=marks,
        notes=[*([loud] if loud else []), *notes],
    )


def _check_same(runs: Sequence[Run]) -> None:
    """Raise UserError if two runs are one, or their rows tell that they measure something else."""
    (folder, count), *_ = Counter(run.folder.resolve() for run in runs).most_common(1)
    if count > 1:
        raise UserError(f"run {folder.name} is given {count} times; a table takes each run once")
    first = runs[0].row
    for run in runs[1:]:
        if found := same_measure(first, run.row):
            key, *values = found
            raise UserError(
                f"one table needs one {key}: {first['run']} has {values[0]}, {run.row['run']} has "
                f"{values[1]}; evaluate both alike"
            )


def _candidates(runs: Sequence[Run]) -> str | None:
    """The fingerprint of the candidates that all of them ranked; None where that is the catalogue. Raises UserError if they are not the same."""
    drawn = {run.row["run"]: (run.row.get("candidates") or {}).get(run.part) for run in runs}
    first, *_ = drawn
    for run, other in drawn.items():
        if other != drawn[first]:
            raise UserError(
                f"one table needs the same candidates: {first} has {drawn[first]}, {run} has "
                f"{other}; evaluate both again by this version"
            )
    return drawn[first]


def _paired_ranks(runs: dict[str, list[Run]]) -> dict[str, list]:
    """The rank tables with their cases in one order. Raises UserError for other cases, or other numbers of candidates."""
    first, *_ = (run for group in runs.values() for run in group)
    reference = first.ranks()
    tables = {
        name: [pair(reference, run.ranks())[1] for run in group] for name, group in runs.items()
    }
    for name, group in runs.items():
        for run, table in zip(group, tables[name], strict=True):
            other = np.flatnonzero(table.n_candidates != reference.n_candidates)
            if len(other):
                at = other[0]
                raise UserError(
                    f"one table needs the same n_candidates per case: of user {table.user[at]} "
                    f"{first.row['run']} has {reference.n_candidates[at]}, "
                    f"{run.row['run']} has {table.n_candidates[at]} ({len(other)} of {len(table)} "
                    "cases differ); evaluate both alike"
                )
    return tables


def _significance(
    results: dict[str, list[dict]], tables: dict[str, list], columns: Sequence[str], grouped: bool
) -> tuple[dict, list[str]]:
    """Marks and notes: † where the best of a column beats the second, and intervals against the best.

    The best and the second are chosen by the same data that tests them, so the tests of all pairs of rows in all columns are
    one family for Holm's correction. Two rows have intervals of every column, more rows of one, NDCG@10 where there is that.

    Parameters
    ----------
    results : metrics per row and seed. tables : paired rank tables alike.
    grouped : means are over users' means.
    """
    users = np.unique(next(iter(tables.values()))[0].user, return_inverse=True)[1]
    n_users = int(users.max(initial=-1)) + 1
    if not columns or n_users < 2:
        return {}, []  # nothing varies
    values = {
        (name, column): np.stack([case_values(table, column) for table in group])
        for name, group in tables.items()
        for column in columns
    }
    tests = _tests(users, values, list(results), columns, grouped)
    shown = "ndcg@10" if "ndcg@10" in columns else columns[0]
    marks, intervals = {}, []
    for column in columns:
        best, second = sorted(
            results, key=lambda name: -np.mean([run[column] for run in results[name]])
        )[:2]
        if tests[frozenset((best, second)), column] < SIGNIFICANT:
            marks[best, column] = "†"
        if column == shown or len(results) == 2:
            for name in [name for name in results if name != best]:
                gap = user_bootstrap(users, values[best, column], values[name, column], grouped)
                intervals.append(
                    f"{column}: {best} - {name} = {gap.difference:+.4f}, 95 % interval "
                    f"[{gap.low:+.4f}, {gap.high:+.4f}]"
                )
    over = _over(n_users, {name: len(group) for name, group in tables.items()})
    pairs = len(tests) // len(columns)
    how = (
        f"paired t-tests over {over}, Holm's correction for {len(tests)} tests "
        f"({_count(pairs, 'pair')} of rows x {_count(len(columns), 'column')})"
    )
    found = (
        f"† better than the second of its column: p < {SIGNIFICANT}"
        if marks
        else f"no best row is better than the second of its column: p >= {SIGNIFICANT}"
    )
    return marks, [
        f"{found}; {how}",
        *intervals,
        f"intervals: {SAMPLES} bootstrap samples of {over}, each interval by itself",
    ]


def _tests(
    users: np.ndarray,
    values: dict[tuple[str, str], np.ndarray],
    names: Sequence[str],
    columns: Sequence[str],
    grouped: bool,
) -> dict[tuple[frozenset, str], float]:
    """(pair of rows, column) -> p, corrected for all of them.

    Parameters
    ----------
    users : int64 [n], the user of each case. values : (row, column) -> float [seeds, n].
    """
    sums = {key: user_sums(users, own, grouped)[0] for key, own in values.items()}
    keys = [(one, other, column) for one, other in combinations(names, 2) for column in columns]
    p = holm(
        [ttest_of_sums(sums[one, column], sums[other, column]).p for one, other, column in keys]
    )
    return {
        (frozenset((one, other)), column): float(value)
        for (one, other, column), value in zip(keys, p, strict=True)
    }


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
    """Markdown, LaTeX, CSV and the runs' ids, in a folder of saved/tables that is these runs' own. name : what it begins with, in place of theirs."""
    ids = [run.row["run"] for group in runs.values() for run in group]
    first = next(iter(runs.values()))[0].row
    name = (name or f"{first['dataset']}-{'-'.join(runs)}").replace("/", "-")[:111]
    folder = saved / "tables" / f"{name}-{hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]}"
    write(table, folder)
    write_text(folder / "runs.json", json.dumps(ids, indent=1))
    return folder


def show(table: Table) -> None:
    say("\n" + to_screen(table))
