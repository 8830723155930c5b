"""Experiments: a paper's tables and figures, each one command over runs that are stored like any other."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import config, registry, resources, store
from .compare import show, table_of, write_table
from .errors import UserError
from .prepared import Prepared, moved
from .report.table import make_table, to_csv, to_markdown
from .runs import Run, evaluate_run, run_all, run_settings


@dataclass(frozen=True)
class Experiment:
    """What properties/experiment/<name>.yaml says.

    rows : name of a row -> its settings over those of all rows (`settings`) and of its model (`models`); `model` names the model and
        `trained_on` another dataset, whose run is evaluated without training here.
    """

    name: str
    kind: str
    datasets: list[str]
    rows: dict[str, dict]
    settings: dict = field(default_factory=dict)
    models: dict[str, dict] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()  # history_length: the shortest history of each column
    cases_per_user: int = 0  # rating: most training cases of a user
    points: int = 0  # projection: most points of a dataset

    def resolved(self, row: str, dataset: str, files: list[str], shared: dict, own: dict[str, dict]) -> dict:
        """The settings of one row's run on a dataset.

        shared, own : the user's, for all rows and by model.
        """
        settings = dict(self.rows[row])
        model = registry.canonical(settings.pop("model"))
        dataset = settings.pop("trained_on", dataset)
        return config.resolve(model, dataset, files, self.settings | self.models.get(model, {}) | settings | shared | own.get(model, {}))


def folder_of_experiments() -> Path:
    return resources.properties() / "experiment"


def listed() -> list[str]:
    """One line for each experiment: its name and what it shows."""
    found = []
    for path in sorted(folder_of_experiments().glob("*.yaml")):
        told = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
        found.append(f"{path.stem:16s} {told}")
    return found


def read(name: str, paper: bool = False) -> Experiment:
    """An experiment by name, at the size that runs anywhere or at the paper's. Raises UserError if there is none of this name."""
    path = folder_of_experiments() / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        raise UserError(f"unknown experiment {name!r}: expected one of {', '.join(line.split()[0] for line in listed())}")
    content = config.read_yaml(path)
    large = content.pop("paper", {})
    if paper:
        rows, models = content["rows"], content.get("models", {})
        for row, settings in large.pop("rows", {}).items():  # ~ leaves a row out
            rows[row] = settings and rows.get(row, {}) | settings
        for model, settings in large.pop("models", {}).items():
            models[model] = models.get(model, {}) | settings
        content |= large | {"rows": {row: settings for row, settings in rows.items() if settings}, "models": models}
    return Experiment(name, **content)


def run(experiment: Experiment, datasets: list[str] | None, files: list[str], shared: dict, own: dict[str, dict]) -> list[str]:
    """Run what is not there yet, print tables, write files. Returns lines that say where they are."""
    datasets = datasets or experiment.datasets
    planned = {dataset: {row: experiment.resolved(row, dataset, files, shared, own) for row in experiment.rows} for dataset in datasets}
    saved = Path(next(iter(next(iter(planned.values())).values()))["checkpoint_dir"])
    if experiment.kind == "projection":
        return _projection(experiment, planned, saved)
    told = []
    for dataset, rows in planned.items():
        if experiment.kind == "rating":
            told += _rating(experiment, dataset, rows, saved)
            continue
        runs = _runs(dataset, rows)
        table = table_of(runs)
        told.append(f"table: {write_table(table, runs, saved)}")
        show(table)
        if experiment.kind == "history_length":
            told += _by_length(experiment, dataset, runs, saved)
    return told


def _runs(dataset: str, rows: dict[str, dict]) -> dict[str, list[Run]]:
    """A run for each row, evaluated on the dataset; mistakes in any are told before the first is trained."""
    at_home = run_all({row: [settings] for row, settings in rows.items() if settings["dataset"] == dataset})
    runs = {}
    for row, settings in rows.items():
        if row in at_home:
            runs[row] = at_home[row]
        else:
            elsewhere = run_settings(settings)
            stored = store.finished_run(elsewhere.folder)["settings"]
            runs[row] = [evaluate_run(elsewhere.folder, moved(stored, dataset))]
    return runs


def _write(folder: Path, table) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("table.md", to_markdown(table)), ("table.csv", to_csv(table))):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)
    show(table)
    return f"table: {folder}"


def _by_length(experiment: Experiment, dataset: str, runs: dict[str, list[Run]], saved: Path) -> list[str]:
    """NDCG@10 and Recall@10 of the cases whose users have met so many items before."""
    from .evaluation.metrics import case_values

    told, edges = [], experiment.lengths
    for metric in ("ndcg@10", "recall@10"):
        results, columns, counts = {}, [], []
        for row, (run,) in runs.items():
            ranks = run.ranks()
            which = np.searchsorted(edges, ranks.position, side="right") - 1
            values = case_values(ranks, metric)
            sizes = {_bucket(edges, number): which == number for number in range(len(edges)) if (which == number).any()}
            columns, counts = list(sizes), [int(chosen.sum()) for chosen in sizes.values()]
            results[row] = [{name: float(values[chosen].mean()) for name, chosen in sizes.items()}]
        notes = ["cases: " + ", ".join(f"{name}: {count}" for name, count in zip(columns, counts, strict=True))]
        table = make_table(f"{dataset}: {metric} by items met before", results, columns, notes=notes)
        told.append(_write(saved / "experiments" / f"{experiment.name}-{dataset}-{metric}", table))
    return told


def _bucket(edges: tuple[int, ...], number: int) -> str:
    if number == len(edges) - 1:
        return f"{edges[number]}+"
    last = edges[number + 1] - 1
    return str(last) if last == edges[number] else f"{edges[number]}-{last}"


def _restored(run: Run, settings: dict):
    """(model, loaders) of a finished run, on the dataset of these settings."""
    prepared = Prepared(settings | {"stages": None}, restored=run.folder)
    model, loaders = prepared.restore(store.finished_run(run.folder))
    if not hasattr(model, "encode_items"):
        raise UserError(f"{settings['model']} has no vectors of users and items, which this experiment reads; take another model in its rows")
    return model.eval(), [loader._dataset for loader in loaders]


def _rating(experiment: Experiment, dataset: str, rows: dict[str, dict], saved: Path) -> list[str]:
    """Root mean squared and mean absolute error on the test cases, by a network over each row's vectors and by baselines."""
    from .data.splits import Cases
    from .evaluation import rating

    results, column = {}, None
    for row, settings in rows.items():
        run, column = run_settings(settings), settings["RATING_FIELD"]
        model, (train, valid, test) = _restored(run, settings)
        tables, seed = train.tables, settings["seed"]
        if column not in tables.columns:
            raise UserError(f"experiment rating: {dataset} has no column {column}; set --RATING_FIELD to one of its .inter file")
        drawn = _at_most(train.cases, experiment.cases_per_user, seed)
        cases: dict[str, Cases] = {"train": drawn, "valid": valid.cases, "test": test.cases}
        ratings = {part: rating.Ratings.of_rows(tables, own.end, column) for part, own in cases.items()}
        if not results:  # the baselines learn from every training event
            known = rating.Ratings.of_rows(tables, np.flatnonzero(train.split.train_events), column)
            results["item mean"] = [rating.errors(rating.item_mean(known, ratings["test"]), ratings["test"].value)]
            results["PMF"] = [rating.errors(rating.pmf(known, ratings["valid"], ratings["test"], seed), ratings["test"].value)]
        with model.autocast():
            items = model.encode_items()[model.same]
            vectors = {part: np.concatenate([model.encode_users(own), items[tables.item[own.end]]], axis=1) for part, own in cases.items()}
        predicted = rating.by_vectors(vectors, ratings["train"], ratings["valid"], seed)
        results[row] = [rating.errors(predicted, ratings["test"].value)]
    notes = [f"{len(drawn)} training cases, at most {experiment.cases_per_user} of a user; the baselines learn from all {len(known)} training ratings"]
    table = make_table(f"{dataset}: {len(ratings['test'])} test ratings, lower is better", results, ["rmse", "mae"], notes=notes, lower=True)
    return [_write(saved / "experiments" / f"{experiment.name}-{dataset}", table)]


def _at_most(cases, most: int, seed: int):
    """So many cases of each user, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(cases))
    users = cases.user[order]
    by_user = np.argsort(users, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(users[by_user])) + 1]
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return cases[np.sort(order[by_user[place < most]])]


def _projection(experiment: Experiment, planned: dict[str, dict[str, dict]], saved: Path) -> list[str]:
    """Items and users of all datasets on one plane for each row, coloured by dataset."""
    from .report.projection import draw, tsne

    first = next(iter(planned))
    panels: dict[str, dict[str, list]] = {kind: {row: [] for row in experiment.rows} for kind in ("items", "users")}
    names: dict[str, list[str]] = {kind: [] for kind in panels}
    texts: dict[str, list[str]] = {kind: [] for kind in panels}
    for row, settings in planned[first].items():
        run = run_settings(settings)
        stored, rng = store.finished_run(run.folder)["settings"], np.random.default_rng(settings["seed"])
        for dataset in planned:
            model, (_, _, test) = _restored(run, stored if dataset == stored["dataset"] else moved(stored, dataset))
            chosen = {"items": _drawn(len(model.first), experiment.points, rng), "users": _drawn(len(test.cases), experiment.points, rng)}
            with model.autocast():
                panels["items"][row].append(model.encode_items()[chosen["items"]])
                panels["users"][row].append(model.encode_users(test.cases[chosen["users"]]))
            if row == next(iter(planned[first])):
                for kind, rows in chosen.items():
                    names[kind] += [dataset] * len(rows)
                texts["items"] += [model.text.plain(item) for item in model.first[chosen["items"]]]
                texts["users"] += [f"user {user}" for user in test.tables.users[test.cases.user[chosen["users"]]]]
    told = []
    for kind, by_row in panels.items():
        points = {row: tsne(np.concatenate(parts), seed=0) for row, parts in by_row.items()}
        folder = saved / "experiments" / f"{experiment.name}-{kind}-{'-'.join(planned)}"
        files = draw(points, dict.fromkeys(points, names[kind]), dict.fromkeys(points, texts[kind]), f"{kind} of {', '.join(planned)}", folder)
        told += [f"{kind}: {file}" for file in files]
    return told


def _drawn(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.permutation(count)[:most])
