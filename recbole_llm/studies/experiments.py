"""Experiments: a paper's tables and figures, each one command over runs that are stored like any other."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from ..contracts.cases import Cases
from ..data.reading.tables import Tables
from ..errors import UserError, require_packages
from ..runs.checks import check
from ..runs.commands import evaluate_run, run_settings, stages_of
from ..runs.compare import COLUMNS, show, table_of, write_table
from ..runs.run import Run
from ..runs.runner import Runner
from ..runs.spec import describe, moved
from ..runs.tables import make_table
from ..settings import files as resources
from ..settings import layers, registry, run_record


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
    columns: tuple[str, ...] = COLUMNS  # metrics of its table
    lengths: tuple[int, ...] = ()  # history_length: the shortest history of each column
    cases_per_user: int = 0  # rating: most training cases of a user
    points: int = 0  # projection: most points of a dataset

    def resolved(
        self, row: str, dataset: str, files: list[str], shared: dict, own: dict[str, dict]
    ) -> dict:
        """The settings of one row's run on a dataset.

        shared, own : the user's, for all rows and by model.
        """
        settings = dict(self.rows[row])
        model = registry.canonical(settings.pop("model"))
        dataset = settings.pop("trained_on", dataset)
        return layers.resolve(
            model,
            dataset,
            files,
            self.settings | self.models.get(model, {}) | settings | shared | own.get(model, {}),
        )


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
        raise UserError(
            f"unknown experiment {name!r}: expected one of "
            f"{', '.join(line.split()[0] for line in listed())}"
        )
    content = layers.read_yaml(path)
    large = content.pop("paper", {})
    if paper:
        rows, models = content["rows"], content.get("models", {})
        for row, settings in large.pop("rows", {}).items():  # ~ leaves a row out
            rows[row] = settings and rows.get(row, {}) | settings
        for model, settings in large.pop("models", {}).items():
            models[model] = models.get(model, {}) | settings
        settings = content.get("settings", {}) | large.pop("settings", {})
        content |= large | {
            "settings": settings,
            "rows": {row: settings for row, settings in rows.items() if settings},
            "models": models,
        }
    if wrong := content.keys() - {part.name for part in fields(Experiment)}:
        raise UserError(
            f"{path}: unknown key {sorted(wrong)[0]!r}; expected some of "
            f"{', '.join(part.name for part in fields(Experiment))}"
        )
    return Experiment(name, **content)


def run(
    experiment: Experiment,
    datasets: list[str] | None,
    files: list[str],
    shared: dict,
    own: dict[str, dict],
) -> list[str]:
    """Run what is not there yet, print tables, write files. Returns lines that say where they are. Mistakes are told before anything is trained."""
    datasets = datasets or experiment.datasets
    if experiment.kind == "projection":
        require_packages(f"experiment {experiment.name}", "plots", "matplotlib", "plotly")
    planned = {
        dataset: {
            row: experiment.resolved(row, dataset, files, shared, own) for row in experiment.rows
        }
        for dataset in datasets
    }
    saved = Path(next(iter(next(iter(planned.values())).values()))["checkpoint_dir"])
    for dataset, rows in planned.items():
        tables = {row: _check(experiment, dataset, row, settings) for row, settings in rows.items()}
        if experiment.kind == "projection":
            _check_alike(dataset, tables)
    if experiment.kind == "projection":
        return _projection(experiment, planned, saved)
    told = []
    for dataset, rows in planned.items():
        if experiment.kind == "rating":
            runs = {row: [run_settings(settings)] for row, settings in rows.items()}
            told.append(_rating(experiment, dataset, runs, saved))
            continue
        runs = {row: _run(settings, dataset) for row, settings in rows.items()}
        table = table_of(runs, experiment.columns)
        told.append(f"table: {write_table(table, runs, saved)}")
        show(table)
        if experiment.kind == "history_length":
            told += _by_length(experiment, dataset, runs, saved)
    return told


def _check(experiment: Experiment, dataset: str, row: str, settings: dict) -> Tables:
    """The data that a row is evaluated on. Raises UserError for a row that cannot be."""
    from ..models.base.vector_model import VectorModel

    model = registry.model_class(settings["model"])
    if settings["seeds"]:
        raise UserError(
            f"experiment {experiment.name} runs one seed at a time; set --seed in place of --seeds"
        )
    if experiment.kind in ("rating", "projection") and not issubclass(model, VectorModel):
        raise UserError(
            f"{row}: {settings['model']} has no vectors of users and items, which experiment "
            f"{experiment.name} reads; take another model"
        )
    elsewhere = settings["dataset"] != dataset or experiment.kind == "projection"
    if elsewhere and not (
        registry.find(settings["model"]).is_text and model.transferable(settings)
    ):
        raise UserError(
            f"{row}: {settings['model']} knows items by number and cannot change data; leave its "
            "trained_on out, or take another model"
        )
    for number, stage in enumerate(stages_of(settings)):
        prepared = describe(stage)
        check(prepared, first=number == 0)
    if (
        experiment.kind == "rating"
        and settings["RATING_FIELD"] not in prepared.interactions.columns
    ):
        raise UserError(
            f"{dataset} has no column {settings['RATING_FIELD']}; set --RATING_FIELD to the one of "
            "its .inter file that holds ratings"
        )
    if elsewhere:
        prepared = describe(moved(settings, dataset) | {"stages": None})
        check(prepared, first=False)  # ranked there, by weights that another run has
    return prepared.interactions


def _check_alike(dataset: str, tables: dict[str, Tables]) -> None:
    """Raise UserError if not all rows have the items and the events of the first."""
    (first, one), *others = tables.items()
    for row, other in others:
        if not all(
            np.array_equal(getattr(one, part), getattr(other, part))
            for part in ("items", "users", "item", "start")
        ):
            raise UserError(
                f"{row}: expected the items and events of {dataset} that {first} has, since a "
                "projection shows the same points in every "
                "row; give all rows the same filters, catalogue and dedup"
            )


def _run(settings: dict, dataset: str) -> list[Run]:
    """The run of a row, evaluated on the dataset if it was trained on another."""
    run = run_settings(settings)
    return [
        run
        if settings["dataset"] == dataset
        else evaluate_run(run.folder, moved(_stored(run), dataset))
    ]


def _stored(run: Run) -> dict:
    """The settings of a run, of its last stage if it has stages."""
    return run_record.finished_run(run.folder)["settings"]


def _write(name: str, table, runs: dict[str, list[Run]], saved: Path) -> str:
    show(table)
    return f"table: {write_table(table, runs, saved, name)}"


def _by_length(
    experiment: Experiment, dataset: str, runs: dict[str, list[Run]], saved: Path
) -> list[str]:
    """NDCG@10 and Recall@10 of the cases whose users have met so many items before."""
    from ..evaluation.metrics import case_values

    told, edges = [], experiment.lengths
    for metric in ("ndcg@10", "recall@10"):
        results, columns, counts = {}, [], []
        for row, (run,) in runs.items():
            ranks = run.ranks()
            which = np.searchsorted(edges, ranks.position, side="right") - 1
            values = case_values(ranks, metric)
            sizes = {
                _bucket(edges, number): which == number
                for number in range(len(edges))
                if (which == number).any()
            }
            columns, counts = list(sizes), [int(chosen.sum()) for chosen in sizes.values()]
            results[row] = [{name: float(values[chosen].mean()) for name, chosen in sizes.items()}]
        notes = [
            "cases: "
            + ", ".join(f"{name}: {count}" for name, count in zip(columns, counts, strict=True))
        ]
        table = make_table(
            f"{dataset}: {metric} by items met before", results, columns, notes=notes
        )
        told.append(_write(f"{experiment.name}-{dataset}-{metric}", table, runs, saved))
    return told


def _bucket(edges: tuple[int, ...], number: int) -> str:
    if number == len(edges) - 1:
        return f"{edges[number]}+"
    last = edges[number + 1] - 1
    return str(last) if last == edges[number] else f"{edges[number]}-{last}"


def _restored(run: Run, dataset: str):
    """(model, [train, valid and test dataset]) of a finished run, on a dataset that need not be its own."""
    stored = _stored(run)
    prepared = describe(
        (stored if stored["dataset"] == dataset else moved(stored, dataset)) | {"stages": None},
        restored=run.folder,
    )
    model, loaders = Runner(prepared).restore(run_record.finished_run(run.folder))
    model.weights = run.folder  # whose stored item vectors are taken
    return model.eval(), [loader._dataset for loader in loaders]


def _rating(experiment: Experiment, dataset: str, runs: dict[str, list[Run]], saved: Path) -> str:
    """Root mean squared and mean absolute error on the test cases, by a network over each row's vectors and by baselines."""
    import torch

    from ..evaluation import rating
    from ..models.base.text_model import as_array

    results = {}
    for row, (run,) in runs.items():
        model, (train, valid, test) = _restored(run, dataset)
        tables, seed, column = train.tables, model.config["seed"], model.config["RATING_FIELD"]
        drawn = _at_most(train.cases, experiment.cases_per_user, seed)
        cases: dict[str, Cases] = {"train": drawn, "valid": valid.cases, "test": test.cases}
        if empty := [part for part, own in cases.items() if not len(own)]:
            raise UserError(
                f"experiment rating needs cases to train, validate and test on, and {dataset} has "
                f"no {empty[0]} case; set eval_args.split"
            )
        ratings = {
            part: rating.Ratings.of_rows(tables, own.end, column) for part, own in cases.items()
        }
        if not results:  # the baselines learn from every training event
            known = rating.Ratings.of_rows(tables, np.flatnonzero(train.split.train_events), column)
            results["item mean"] = [
                rating.errors(rating.item_mean(known, ratings["test"]), ratings["test"].value)
            ]
            results["PMF"] = [
                rating.errors(
                    rating.pmf(known, ratings["valid"], ratings["test"], seed),
                    ratings["test"].value,
                )
            ]
        with torch.no_grad(), model.autocast():
            items = as_array(model.encode_items(model.first))[model.same]
            vectors = {
                part: np.concatenate(
                    [as_array(model.encode_users(own)), items[tables.item[own.end]]], axis=1
                )
                for part, own in cases.items()
            }
        predicted = rating.by_vectors(vectors, ratings["train"], ratings["valid"], seed)
        results[row] = [rating.errors(predicted, ratings["test"].value)]
    notes = [
        f"{len(drawn)} training cases, at most {experiment.cases_per_user} of a user; the "
        f"baselines learn from all {len(known)} training ratings"
    ]
    table = make_table(
        f"{dataset}: {len(ratings['test'])} test ratings, lower is better",
        results,
        ["rmse", "mae"],
        notes=notes,
        lower=True,
    )
    return _write(f"{experiment.name}-{dataset}", table, runs, saved)


def _at_most(cases, most: int, seed: int):
    """So many cases of each user, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(cases))
    users = cases.user[order]
    by_user = np.argsort(users, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(users[by_user])) + 1]
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return cases[np.sort(order[by_user[place < most]])]


def _projection(
    experiment: Experiment, planned: dict[str, dict[str, dict]], saved: Path
) -> list[str]:
    """Items and users of all datasets on one plane for each row, coloured by dataset.

    The items and users of a dataset are drawn once, so that all rows show the same.
    """
    import torch

    from ..models.base.text_model import as_array
    from .projection import draw, tsne

    kinds = ("items", "users")
    panels, names, texts = (
        {kind: {row: [] for row in experiment.rows} for kind in kinds} for _ in range(3)
    )
    runs = {row: run_settings(settings) for row, settings in next(iter(planned.values())).items()}
    for dataset in planned:
        items = None
        for row, run in runs.items():
            model, (_, _, test) = _restored(run, dataset)
            if items is None:  # one item of each text
                rng, different = np.random.default_rng(model.config["seed"]), model.text.unique[0]
                items = different[_drawn(len(different), experiment.points, rng)]
                drawn = test.cases[_drawn(len(test.cases), experiment.points, rng)]
            with torch.no_grad(), model.autocast():
                panels["items"][row].append(as_array(model.encode_items(items)))
                panels["users"][row].append(as_array(model.encode_users(drawn)))
            texts["items"][row] += [model.text.plain(item) for item in items]
            texts["users"][row] += [f"user {user}" for user in test.tables.users[drawn.user]]
            names["items"][row] += [dataset] * len(items)
            names["users"][row] += [dataset] * len(drawn)
    ids = [run.folder.name for run in runs.values()]
    told = []
    for kind, by_row in panels.items():
        points = {row: tsne(np.concatenate(parts), seed=0) for row, parts in by_row.items()}
        folder = (
            saved
            / "projections"
            / f"{experiment.name}-{kind}-{'-'.join(planned)}-{layers.digest(ids)}"
        )
        files = draw(
            points,
            names[kind],
            texts[kind],
            f"{kind} of {', '.join(planned)}",
            folder,
        )
        told += [f"{kind}: {file}" for file in files]
    return told


def _drawn(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.permutation(count)[:most])
