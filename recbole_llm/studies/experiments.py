"""Experiments: a paper's tables and figures, each reproduced by one command over ordinary runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contracts.cases import Cases
from ..contracts.interactions import Interactions
from ..errors import UserError, require_packages
from ..runs.checks import check
from ..runs.commands import evaluate_run, run_settings, stages_of
from ..runs.compare import COLUMNS, show, table_of, write_table
from ..runs.run import Run
from ..runs.runner import Runner
from ..runs.spec import describe, moved
from ..runs.tables import Table, make_table
from ..settings import layers, registry, run_record
from ..settings.files import properties

if TYPE_CHECKING:
    from ..evaluation.rating import Ratings

# dataset -> row -> settings of its run
RunSettings = dict[str, dict[str, dict]]


@dataclass(frozen=True)
class Experiment:
    """The content of properties/experiment/<name>.yaml.

    Attributes
    ----------
    name : str
        Name of the experiment.
    kind : {"table", "history_length", "rating", "projection"}
        What it shows.
    datasets : list of str
        The datasets, each with a table of its own.
    rows : dict of str to dict
        Row of the table -> settings of its run. `model` is the name of the model. `trained_on` is
        another dataset, on which the run is trained; it is then only evaluated on this one.
    settings : dict
        Settings of all rows. Those of a row's model and of the row itself lie over them.
    models : dict of str to dict
        Model -> its settings in this experiment.
    columns : tuple of str
        Metrics of the table.
    lengths : tuple of int
        history_length: the shortest history of each column, ascending.
    cases_per_user : int
        rating: most training cases of a user.
    points : int
        projection: most points of a dataset.
    """

    name: str
    kind: str
    datasets: list[str]
    rows: dict[str, dict]
    settings: dict = field(default_factory=dict)
    models: dict[str, dict] = field(default_factory=dict)
    columns: tuple[str, ...] = COLUMNS
    lengths: tuple[int, ...] = ()
    cases_per_user: int = 0
    points: int = 0

    def resolved(
        self, row: str, dataset: str, files: list[str], shared: dict, of_models: dict[str, dict]
    ) -> dict:
        """Resolve the settings of one row's run on a dataset.

        Parameters
        ----------
        row : str
            Name of the row.
        dataset : str
            Name of the dataset.
        files : list of str
            The user's settings files.
        shared : dict
            The user's settings for all rows.
        of_models : dict of str to dict
            Model -> the user's settings for its rows.

        Returns
        -------
        dict
            All settings of the run.
        """
        settings = dict(self.rows[row])
        model = registry.canonical(settings.pop("model"))
        dataset = settings.pop("trained_on", dataset)
        overrides = self.settings | self.models.get(model, {}) | settings | shared
        return layers.resolve(model, dataset, files, overrides | of_models.get(model, {}))


def folder_of_experiments() -> Path:
    """Return the folder with a file for each experiment."""
    return properties() / "experiment"


def listed() -> list[str]:
    """Return one line for each experiment: its name, and what it shows."""
    lines = []
    for path in sorted(folder_of_experiments().glob("*.yaml")):
        description = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
        lines.append(f"{path.stem:16s} {description}")
    return lines


def read(name: str, paper: bool = False) -> Experiment:
    """Read an experiment.

    Parameters
    ----------
    name : str
        Name of the experiment.
    paper : bool
        Whether it has the paper's size, and not the size that runs on any machine.

    Returns
    -------
    Experiment
        The experiment.

    Raises
    ------
    UserError
        If there is no experiment of this name, or its file has unknown keys.
    """
    path = folder_of_experiments() / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        raise UserError(
            f"unknown experiment {name!r}: expected one of "
            f"{', '.join(line.split()[0] for line in listed())}"
        )
    content = layers.read_yaml(path)
    large = content.pop("paper", {})
    if paper:
        content = _enlarged(content, large)
    known = [part.name for part in fields(Experiment)]
    unknown = sorted(content.keys() - set(known))
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; expected some of {', '.join(known)}")
    return Experiment(name, **content)


def _enlarged(content: dict, large: dict) -> dict:
    """The content of an experiment's file with its group `paper` over it."""
    rows = dict(content["rows"])
    for row, settings in large.get("rows", {}).items():
        # ~ leaves a row out
        rows[row] = settings and rows.get(row, {}) | settings
    models = dict(content.get("models", {}))
    for model, settings in large.get("models", {}).items():
        models[model] = models.get(model, {}) | settings
    merged = {
        "settings": content.get("settings", {}) | large.get("settings", {}),
        "rows": {row: settings for row, settings in rows.items() if settings},
        "models": models,
    }
    return content | large | merged


def run(
    experiment: Experiment,
    datasets: list[str] | None,
    files: list[str],
    shared: dict,
    of_models: dict[str, dict],
) -> list[str]:
    """Run an experiment: train the missing runs, print tables and write files.

    All rows are checked before the first run is trained.

    Parameters
    ----------
    experiment : Experiment
        The experiment.
    datasets : list of str or None
        The datasets; None takes those of the experiment.
    files, shared, of_models
        The user's settings, see `Experiment.resolved`.

    Returns
    -------
    list of str
        Lines that say where the files are.

    Raises
    ------
    UserError
        If a row cannot be run.
    """
    datasets = datasets or experiment.datasets
    if experiment.kind == "projection":
        require_packages(f"experiment {experiment.name}", "plots", "matplotlib", "plotly")
    by_dataset: RunSettings = {dataset: {} for dataset in datasets}
    for dataset, rows in by_dataset.items():
        for row in experiment.rows:
            rows[row] = experiment.resolved(row, dataset, files, shared, of_models)
    for dataset, rows in by_dataset.items():
        read = {row: _check(experiment, dataset, row, settings) for row, settings in rows.items()}
        if experiment.kind == "projection":
            _check_alike(dataset, read)
    first_rows = next(iter(by_dataset.values()))
    saved = Path(next(iter(first_rows.values()))["checkpoint_dir"])
    if experiment.kind == "projection":
        return _projection(experiment, by_dataset, saved)
    lines = []
    for dataset, rows in by_dataset.items():
        if experiment.kind == "rating":
            runs = {row: [run_settings(settings)] for row, settings in rows.items()}
            lines.append(_rating(experiment, dataset, runs, saved))
            continue
        runs = {row: _run(settings, dataset) for row, settings in rows.items()}
        table = table_of(runs, experiment.columns)
        lines.append(f"table: {write_table(table, runs, saved)}")
        show(table)
        if experiment.kind == "history_length":
            lines += _by_length(experiment, dataset, runs, saved)
    return lines


def _check(experiment: Experiment, dataset: str, row: str, settings: dict) -> Interactions:
    """The data that a row is evaluated on. Raises UserError if the row cannot be run."""
    from ..models.base.vector_model import VectorModel

    model: Any = registry.model_class(settings["model"])
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
        spec = describe(stage)
        check(spec, first=number == 0)
    if experiment.kind == "rating" and settings["RATING_FIELD"] not in spec.interactions.columns:
        raise UserError(
            f"{dataset} has no column {settings['RATING_FIELD']}; set --RATING_FIELD to the one of "
            "its .inter file that holds ratings"
        )
    if elsewhere:
        spec = describe(moved(settings, dataset) | {"stages": None})
        # not a first stage: the weights are those of another run
        check(spec, first=False)
    return spec.interactions


def _check_alike(dataset: str, of_rows: dict[str, Interactions]) -> None:
    """Raise UserError if a row has other items or events than the first row."""
    (first_row, first), *others = of_rows.items()
    for row, other in others:
        for column in ("items", "users", "item", "start"):
            if not np.array_equal(getattr(first, column), getattr(other, column)):
                raise UserError(
                    f"{row}: expected the items and events of {dataset} that {first_row} has, "
                    "since a projection shows the same points in every row; give all rows the "
                    "same filters, catalogue and dedup"
                )


def _run(settings: dict, dataset: str) -> list[Run]:
    """Run a row; if it is trained on another dataset, evaluate it on this one."""
    run = run_settings(settings)
    if settings["dataset"] == dataset:
        return [run]
    return [evaluate_run(run.folder, moved(_stored(run), dataset))]


def _stored(run: Run) -> dict:
    """The settings of a run; those of its last stage if it has stages."""
    return run_record.finished_run(run.folder)["settings"]


def _write(name: str, table: Table, runs: dict[str, list[Run]], saved: Path) -> str:
    """Print a table and write its files."""
    show(table)
    return f"table: {write_table(table, runs, saved, name)}"


def _by_length(
    experiment: Experiment, dataset: str, runs: dict[str, list[Run]], saved: Path
) -> list[str]:
    """Write tables of NDCG@10 and Recall@10, a column for each range of history lengths."""
    from ..evaluation.metrics import case_values

    lines, edges = [], experiment.lengths
    for metric in ("ndcg@10", "recall@10"):
        results: dict[str, Sequence[dict]] = {}
        counts: dict[str, int] = {}
        for row, (run,) in runs.items():
            ranks = run.ranks()
            values = case_values(ranks, metric)
            bucket_of_case = np.searchsorted(edges, ranks.position, side="right") - 1
            means, counts = {}, {}
            for bucket in range(len(edges)):
                inside = bucket_of_case == bucket
                if inside.any():
                    name = _bucket(edges, bucket)
                    means[name], counts[name] = float(values[inside].mean()), int(inside.sum())
            results[row] = [means]
        sizes = ", ".join(f"{name}: {count}" for name, count in counts.items())
        title, notes = f"{dataset}: {metric} by items met before", [f"cases: {sizes}"]
        table = make_table(title, results, list(counts), notes=notes)
        lines.append(_write(f"{experiment.name}-{dataset}-{metric}", table, runs, saved))
    return lines


def _bucket(edges: tuple[int, ...], number: int) -> str:
    """The name of a range of history lengths, such as `5-6` or `10+`."""
    if number == len(edges) - 1:
        return f"{edges[number]}+"
    last = edges[number + 1] - 1
    return str(last) if last == edges[number] else f"{edges[number]}-{last}"


def _restored(run: Run, dataset: str) -> tuple[Any, list[Any]]:
    """The model of a finished run on a dataset, which may be another than the run's.

    Returns
    -------
    model : recommender
        With the weights of the run.
    datasets : list of TableMixin
        The datasets of the train, valid and test cases.
    """
    stored = _stored(run)
    spec = describe(
        (stored if stored["dataset"] == dataset else moved(stored, dataset)) | {"stages": None},
        restored=run.folder,
    )
    model, loaders = Runner(spec).restore(run_record.finished_run(run.folder))
    # where the model looks for stored item vectors
    model.weights = run.folder
    return model.eval(), [loader._dataset for loader in loaders]


@dataclass(frozen=True)
class _RatedCases:
    """The cases of a dataset with the ratings of their targets.

    Attributes
    ----------
    cases : dict of str to Cases
        "train", "valid" and "test" -> its cases.
    ratings : dict of str to Ratings
        "train", "valid" and "test" -> the ratings of the targets.
    all_training : Ratings
        The ratings of every training event.
    """

    cases: dict[str, Cases]
    ratings: "dict[str, Ratings]"
    all_training: "Ratings"

    @classmethod
    def of_run(
        cls, experiment: Experiment, model: Any, name: str, datasets: Sequence[Any]
    ) -> "_RatedCases":
        """Sample the training cases. Raises UserError if a part has no cases."""
        from ..evaluation.rating import Ratings

        train, valid, test = datasets
        interactions, column = train.interactions, model.config["RATING_FIELD"]
        sample = _at_most(train.cases, experiment.cases_per_user, model.config["seed"])
        cases = {"train": sample, "valid": valid.cases, "test": test.cases}
        ratings = {}
        for part, part_cases in cases.items():
            if not len(part_cases):
                raise UserError(
                    f"experiment rating needs cases to train, validate and test on, and {name} has "
                    f"no {part} case; set eval_args.split"
                )
            ratings[part] = Ratings.of_rows(interactions, part_cases.end, column)
        training_rows = np.flatnonzero(train.split.train_events)
        return cls(cases, ratings, Ratings.of_rows(interactions, training_rows, column))

    def errors(self, predictions: np.ndarray) -> dict[str, float]:
        """Errors of predicted ratings of the test cases."""
        from ..evaluation import rating

        return rating.errors(predictions, self.ratings["test"].value)

    def baselines(self, seed: int) -> dict[str, Sequence[dict]]:
        """Errors of baselines, which learn from the ratings of all training events."""
        from ..evaluation import rating

        valid, test = self.ratings["valid"], self.ratings["test"]
        by_mean = rating.item_mean(self.all_training, test)
        by_factors = rating.pmf(self.all_training, valid, test, seed)
        return {"item mean": [self.errors(by_mean)], "PMF": [self.errors(by_factors)]}

    def vectors(self, model: Any) -> dict[str, np.ndarray]:
        """For each case, the vector of its user followed by that of its target, by part."""
        import torch

        from ..models.base.text_model import as_array

        with torch.no_grad(), model.autocast():
            items = as_array(model.encode_items(model.first))[model.same]
            vectors = {}
            for part, cases in self.cases.items():
                targets = items[model.interactions.item[cases.end]]
                vectors[part] = np.concatenate(
                    [as_array(model.encode_users(cases)), targets], axis=1
                )
        return vectors


def _rating(experiment: Experiment, dataset: str, runs: dict[str, list[Run]], saved: Path) -> str:
    """Write a table of RMSE and MAE of predicted ratings of the test cases.

    A row's ratings are predicted by a network over the vectors of its model. Baselines have rows of
    their own.
    """
    from ..evaluation import rating

    results: dict[str, Sequence[dict]] = {}
    for row, (run,) in runs.items():
        model, datasets = _restored(run, dataset)
        seed = model.config["seed"]
        rated = _RatedCases.of_run(experiment, model, dataset, datasets)
        if not results:
            results |= rated.baselines(seed)
        train, valid = rated.ratings["train"], rated.ratings["valid"]
        results[row] = [rated.errors(rating.by_vectors(rated.vectors(model), train, valid, seed))]
    notes = [
        f"{len(rated.cases['train'])} training cases, at most {experiment.cases_per_user} of a "
        f"user; the baselines learn from all {len(rated.all_training)} training ratings"
    ]
    title = f"{dataset}: {len(rated.ratings['test'])} test ratings, lower is better"
    table = make_table(title, results, ["rmse", "mae"], notes=notes, lower=True)
    return _write(f"{experiment.name}-{dataset}", table, runs, saved)


def _at_most(cases: Cases, most: int, seed: int) -> Cases:
    """Sample at most so many cases of each user."""
    order = np.random.default_rng(seed).permutation(len(cases))
    users = cases.user[order]
    by_user = np.argsort(users, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(users[by_user])) + 1]
    rank_in_user = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return cases[np.sort(order[by_user[rank_in_user < most]])]


@dataclass
class _Points:
    """The points of one panel of a projection.

    Attributes
    ----------
    vectors : list of ndarray of float32 [points, width]
        The vectors, an array for each dataset.
    datasets : list of str
        The dataset of each point.
    labels : list of str
        The label of each point.
    """

    vectors: list[np.ndarray] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def add(self, vectors: np.ndarray, dataset: str, labels: list[str]) -> None:
        """Add points of one dataset."""
        self.vectors.append(vectors)
        self.datasets += [dataset] * len(labels)
        self.labels += labels


def _projection(experiment: Experiment, by_dataset: RunSettings, saved: Path) -> list[str]:
    """Draw the items and the users of all datasets, coloured by dataset, with a panel for each row.

    The items and users of a dataset are sampled once, so that all rows show the same.
    """
    from .projection import draw, tsne

    runs = {
        row: run_settings(settings) for row, settings in next(iter(by_dataset.values())).items()
    }
    items_by_row = {row: _Points() for row in experiment.rows}
    users_by_row = {row: _Points() for row in experiment.rows}
    for dataset in by_dataset:
        sample: tuple[np.ndarray, Cases] | None = None
        for row, run in runs.items():
            model, (_, _, test) = _restored(run, dataset)
            if sample is None:
                sample = _sample(model, test.cases, experiment.points)
            _add_points(items_by_row[row], users_by_row[row], dataset, model, *sample)
    names = "-".join(by_dataset)
    key = layers.digest([run.folder.name for run in runs.values()])
    lines = []
    for kind, by_row in (("items", items_by_row), ("users", users_by_row)):
        files = draw(
            {row: tsne(np.concatenate(part.vectors), seed=0) for row, part in by_row.items()},
            {row: part.datasets for row, part in by_row.items()},
            {row: part.labels for row, part in by_row.items()},
            f"{kind} of {', '.join(by_dataset)}",
            saved / "projections" / f"{experiment.name}-{kind}-{names}-{key}",
        )
        lines += [f"{kind}: {file}" for file in files]
    return lines


def _sample(model: Any, cases: Cases, count: int) -> tuple[np.ndarray, Cases]:
    """At most so many items with different texts, and at most so many cases."""
    rng = np.random.default_rng(model.config["seed"])
    different, _ = model.text.unique
    items = different[np.sort(rng.permutation(len(different))[:count])]
    return items, cases[np.sort(rng.permutation(len(cases))[:count])]


def _add_points(
    item_points: _Points,
    user_points: _Points,
    dataset: str,
    model: Any,
    items: np.ndarray,
    cases: Cases,
) -> None:
    """Encode the sampled items and users by one model, and add them to its panels."""
    import torch

    from ..models.base.text_model import as_array

    with torch.no_grad(), model.autocast():
        item_vectors = as_array(model.encode_items(items))
        user_vectors = as_array(model.encode_users(cases))
    item_points.add(item_vectors, dataset, [model.text.plain(item) for item in items])
    users = model.interactions.users[cases.user]
    user_points.add(user_vectors, dataset, [f"user {user}" for user in users])
