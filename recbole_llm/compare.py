"""Several models on one dataset: one table, with intervals."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .config import plan
from .report.table import Table, make_table, to_csv, to_latex, to_markdown, to_screen
from .runs import Run, run_all

COLUMNS = ("recall@1", "recall@10", "ndcg@10", "ndcg@10_opt", "ndcg@10_pes", "mrr")
SIGNIFICANT = 0.05


def compare(models: Sequence[str], dataset: str, files: list[str] = (), overrides: dict | None = None,
            own: dict[str, dict] | None = None, seeds: Sequence[int] | None = None) -> tuple[Table, dict[str, list[Run]]]:  # fmt: skip
    """Run every model with every seed (finished runs are taken as they are) and put them in one table.

    Parameters
    ----------
    own : model -> settings of that model alone.
    """
    runs = run_all(plan(models, dataset, files, overrides, own, seeds))
    return table_of(runs), runs


def table_of(runs: dict[str, list[Run]]) -> Table:
    """The table of finished runs over the same cases."""
    first = next(iter(runs.values()))[0].row
    results = {name: [run.row["test"] for run in group] for name, group in runs.items()}
    columns = [column for column in COLUMNS if column in first["test"]]
    bounds = {"Bayes (expected)": {key.removeprefix("bayes_"): value for key, value in first["test"].items() if key.startswith("bayes_")}}
    mode = first["split"]["mode"]
    title = f"{first['dataset']}: {first['cases']} test cases, {mode.get('test', mode.get('valid')) if isinstance(mode, dict) else mode}"
    marks, notes = _significance(runs, columns) if len(runs) > 1 else ({}, [])
    for name, group in runs.items():
        rates = {key: value for key, value in group[0].row["rates"].items()}
        if rates:
            notes.append(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in rates.items()))
    return make_table(title, results, columns, bounds={name: values for name, values in bounds.items() if values}, marks=marks, notes=notes)


def _significance(runs: dict[str, list[Run]], columns: Sequence[str]) -> tuple[dict, list[str]]:
    """† where the best of a column beats the second (paired t-test over cases), and intervals against the best."""
    from .evaluation.metrics import case_values
    from .evaluation.ranks import RankTable
    from .evaluation.significance import pair, paired_ttest, user_bootstrap

    tables = {name: [run.ranks() for run in group] for name, group in runs.items()}
    reference = next(iter(tables.values()))[0]
    tables = {name: [pair(reference, table)[1] for table in group] for name, group in tables.items()}
    marks = {}
    for column in columns:
        values = {name: np.mean([case_values(table, column) for table in group], axis=0) for name, group in tables.items()}
        best, second = sorted(values, key=lambda name: -values[name].mean())[:2]
        if paired_ttest(values[best], values[second]).p < SIGNIFICANT:
            marks[best, column] = "†"
    column = "ndcg@10" if "ndcg@10" in columns else columns[0]
    best = max(tables, key=lambda name: np.mean([case_values(table, column).mean() for table in tables[name]]))
    notes = [f"† better than the second: p < {SIGNIFICANT}, paired t-test over cases"]
    for name, group in tables.items():
        if name != best:
            rounds = math.lcm(len(tables[best]), len(group))  # every seed of both counts
            gap = user_bootstrap(*(RankTable.concat(seeds * (rounds // len(seeds))) for seeds in (tables[best], group)), column)
            notes.append(f"{column}: {best} - {name} = {gap.difference:+.4f}, 95 % interval over users [{gap.low:+.4f}, {gap.high:+.4f}]")
    return marks, notes


def write_table(table: Table, runs: dict[str, list[Run]], saved: Path) -> Path:
    """Markdown, LaTeX, CSV and the runs' names, in a folder of saved/tables."""
    names = [run.folder.name for group in runs.values() for run in group]
    first = next(iter(runs.values()))[0].row
    folder = saved / "tables" / f"{first['dataset']}-{'-'.join(runs)}"[:120]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"table.md": to_markdown(table), "table.tex": to_latex(table), "table.csv": to_csv(table), "runs.json": json.dumps(names, indent=1)}
    for name, text in content.items():
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)
    return folder


def show(table: Table) -> None:
    print("\n" + to_screen(table))
