"""Hyper-parameter search by validation. Each trial is a run; Ray Tune runs trials in parallel."""

import json
import logging
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import __version__
from ..errors import UserError
from ..runs.checks import check as check_run
from ..runs.commands import run_settings, stages_of
from ..runs.run import Run
from ..runs.spec import Datasets, describe
from ..settings import registry, run_record
from ..settings.layers import digest, resolve, settings_hash
from ..storage import run_folders
from ..storage.content_cache import keep_aside, sealed, unsealed
from ..storage.files import write_text
from ..storage.screen import say
from .ray_cluster import Cluster, check, connected, need_ray, reporter, trial_value, trials

TRIALS, BEST = "trials.jsonl", "best.yaml"
RECORD = {"point", "status", "score", "epochs", "run", "error"}  # keys of a trial's record
RANGES = {
    "uniform": lambda rng, low, high: float(rng.uniform(low, high)),
    "log": lambda rng, low, high: float(np.exp(rng.uniform(np.log(low), np.log(high)))),
    "int": lambda rng, low, high: int(rng.integers(low, high + 1)),
}
MOST_DRAWS = 100  # samples for each wanted point; a small space has fewer different points


def points(space: dict, search: str, count: int, seed: int) -> list[dict]:
    """List the settings of each trial, all different.

    Parameters
    ----------
    space : dict
        Setting -> list of values, or a range such as {"log": [1e-4, 1e-2]}.
    search : {"grid", "random", "asha"}
        "grid" takes every combination; the others sample.
    count : int
        Number of sampled points.
    seed : int
        Seed of the sample.

    Returns
    -------
    list of dict
        Setting -> value, one dict per trial.

    Raises
    ------
    UserError
        If the space is empty or malformed, or has a range in a grid.
    """
    if not space:
        raise UserError(
            "space: expected settings with their values, such as --space.learning_rate='{log: "
            "[1e-4, 1e-2]}', found none"
        )
    for key, values in space.items():
        _check_dimension(key, values, search)
    if search == "grid":
        return [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    rng = np.random.default_rng(seed)
    by_text: dict[str, dict] = {}
    for _ in range(MOST_DRAWS * count):
        point = {key: _sample(rng, values) for key, values in space.items()}
        by_text.setdefault(json.dumps(point), point)
        if len(by_text) == count:
            break
    return list(by_text.values())


def _check_dimension(key: str, values: Any, search: str) -> None:
    """Raise UserError if a setting of the space has neither a list of values nor a range."""
    if isinstance(values, dict):
        if not _is_range(values):
            raise UserError(
                f"space.{key}: expected a list of values, or uniform, log or int with [low, high], "
                f"found {values!r}"
            )
        if search == "grid":
            raise UserError(
                f"space.{key}: a grid needs values, found the range {values!r}; give a list, or "
                "--search=random"
            )
    elif not isinstance(values, list) or not values:
        raise UserError(
            f"space.{key}: expected a list of values or a range such as {{log: [1e-4, 1e-2]}}, "
            f"found {values!r}"
        )


def _is_range(values: dict) -> bool:
    """Whether a dict is one of RANGES with two bounds, such as {"log": [1e-4, 1e-2]}."""
    if len(values) != 1:
        return False
    ((kind, bounds),) = values.items()
    if kind not in RANGES or not isinstance(bounds, list) or len(bounds) != 2:
        return False
    if not all(isinstance(bound, int | float) for bound in bounds):
        return False
    low, high = bounds
    return low <= high and (kind != "log" or low > 0)


def _sample(rng: np.random.Generator, values: list | dict) -> Any:
    """Sample one value of a list or of a range."""
    if isinstance(values, list):
        return values[rng.integers(len(values))]
    ((kind, bounds),) = values.items()
    value = RANGES[kind](rng, *bounds)
    # as many digits as a person would write
    return value if kind == "int" else float(f"{value:.4g}")


class Search:
    """The trials of one model on one dataset.

    Parameters
    ----------
    model : str
        Name of the model.
    dataset : str
        Name of the dataset.
    layers : list of dict
        The user's settings, the last layer over the others.
    options : dict
        The settings of properties/tune.yaml.

    Attributes
    ----------
    points : list of dict
        The searched settings of each trial.
    settings : list of dict
        All settings of each trial.
    metric : str
        The validation metric that trials are compared by.
    folder : Path
        Folder of the records.

    Raises
    ------
    UserError
        For a mistake in the search or in any trial, before the first trial starts.
    """

    def __init__(self, model: str, dataset: str, layers: list[dict], options: dict):
        self.options = options
        self.points = points(
            options["space"], options["search"], options["trials"], options["search_seed"]
        )
        plain = resolve(model, dataset, layers)
        # trials run in other processes, which have other working directories
        places = {key: str(Path(plain[key]).absolute()) for key in ("data_path", "checkpoint_dir")}
        layers = [*layers, places]
        self.settings = [resolve(model, dataset, layers, point) for point in self.points]
        if plain["seeds"]:
            raise UserError(
                "seeds: a search runs one seed; leave it out, or search over --space.seed=[1, 2]"
            )
        need_ray("tune")
        self.cluster = Cluster(
            options["ray_address"],
            options["trial_cpus"],
            options["trial_gpus"],
            options["dashboard"],
            ("trial_cpus", "trial_gpus"),
        )
        check(self.cluster)
        dataset_name, fingerprint = self._check_trials()
        self.metric = plain["valid_metric"].lower()
        asha = [options["grace"], options["reduction"]] if options["search"] == "asha" else []
        key = digest(
            [
                settings_hash(plain, data=fingerprint, version=__version__),
                options["search"],
                options["space"],
                options["search_seed"],
                asha,
            ]
        )
        name = f"tune-{registry.find(plain['model']).name}-{dataset_name}-{key}"
        self.folder = Path(plain["checkpoint_dir"]) / name

    def _check_trials(self) -> tuple[str, str]:
        """Name and fingerprint of the dataset.

        Raises UserError if a trial could not be run, or there is no validation case.
        """
        datasets = Datasets()
        for settings in self.settings:
            for number, stage in enumerate(stages_of(settings)):
                spec = describe(stage, datasets=datasets)
                check_run(spec, first=number == 0)
        if not len(spec.split.valid):
            raise UserError(
                "tune chooses by validation, and the split "
                f"{spec.settings['eval_args']['split']} has no valid case; set --eval_args.split"
            )
        return spec.dataset, spec.interactions.fingerprint

    def run(self, say: Callable[[str], None] = say) -> list[dict]:
        """Run the trials that have not ended yet.

        Parameters
        ----------
        say : callable
            Prints a line.

        Returns
        -------
        list of dict
            The record of each trial, as in TRIALS, in the order of `points`.
        """
        keys = [json.dumps(point) for point in self.points]
        # asha compares a trial only with those of the same call
        with run_folders.locked(self.folder, say):
            records = self._ended()
            done = {key for key, record in records.items() if record["status"] != "failed"}
            missing = [number for number, key in enumerate(keys) if key not in done]
            if len(missing) < len(keys):
                say(f"trials: {len(keys) - len(missing)} of {len(keys)} have ended already")
            if missing:
                self._run_trials(missing, say)
            records = self._ended()
        return [records[key] for key in keys if key in records]

    def _ended(self) -> dict[str, dict]:
        """Read the records of trials, by the JSON text of their points.

        Damaged lines are left out of the file; a copy of the damaged file stays beside it.
        """
        path = self.folder / TRIALS
        if not path.is_file():
            return {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [line for line in lines if line.strip()]
        records = [record for record in map(unsealed, lines) if record and _is_trial(record)]
        if len(records) < len(lines):
            copy = keep_aside(path)
            write_text(path, "\n".join(map(sealed, records)))
            logging.getLogger().warning(
                f"{path} is damaged: {len(lines) - len(records)} trials are done again; the "
                f"damaged file is kept as {copy.name}"
            )
        return {json.dumps(record["point"]): record for record in records}

    def _store(self, record: dict) -> None:
        """Write a trial's record beside those of the others."""
        records = self._ended() | {json.dumps(record["point"]): record}
        write_text(self.folder / TRIALS, "\n".join(map(sealed, records.values())))

    def _run_trials(self, numbers: list[int], say: Callable[[str], None]) -> None:
        """Run the trials with these numbers by Ray Tune.

        Each record is written when its trial ends, so that a killed search can be continued.
        """

        def ended(number: Any, result: dict | None, error: str | None) -> None:
            record = _record(self.points[number], result, error)
            self._store(record)
            outcome = f": {error}" if error else f", valid {self.metric} {record['score']:.4f}"
            say(
                f"trial {number + 1} of {len(self.points)}: {record['status']}{outcome}: "
                f"{_described(self.points[number])}"
            )

        with connected(self.cluster) as resources:
            from ray import tune

            scheduler = {"scheduler": self._asha()} if self.options["search"] == "asha" else {}
            trainable = tune.with_resources(
                tune.with_parameters(trial, settings=self.settings, metric=self.metric), resources
            )
            trials(trainable, "trial", numbers, reporter(ended), **scheduler)

    def _asha(self) -> Any:
        """Ray's scheduler that stops the worse trials early (ASHA, Li et al., MLSys 2020)."""
        from ray import tune

        last_stages = [stages_of(settings)[-1] for settings in self.settings]
        most_epochs = max(stage["epochs"] for stage in last_stages)
        grace = self.options["grace"] * max(1, max(stage["eval_step"] for stage in last_stages))
        return tune.schedulers.ASHAScheduler(
            time_attr="epochs",
            metric="score",
            mode="max",
            max_t=most_epochs + grace + 1,
            grace_period=grace,
            reduction_factor=self.options["reduction"],
        )


def _record(point: dict, result: dict | None, error: str | None) -> dict:
    """The record of a trial that has ended, from Ray Tune's last result or its error."""
    if not result:
        return {
            "point": point,
            "status": "failed",
            "score": None,
            "epochs": 0,
            "run": None,
            "error": error,
        }
    return {
        "point": point,
        "status": "finished" if result.get("run") else "stopped",
        "score": result["score"],
        "epochs": result["epochs"],
        "run": result.get("run"),
        "error": error,
    }


def _is_trial(record: dict) -> bool:
    """Whether a line of TRIALS has the keys and types of `_record`."""
    if record.keys() != RECORD:
        return False
    status = record["status"]
    kinds = {"point": dict, "epochs": int}
    if status != "failed":
        kinds["score"] = float
    if status == "finished":
        kinds["run"] = str
    known = status in ("failed", "stopped", "finished")
    return known and all(isinstance(record[key], kind) for key, kind in kinds.items())


def trial(space: dict, settings: list[dict], metric: str) -> None:
    """Run one trial in a process of Ray's.

    It reports each validation of the last stage. Its last report has the run's id and the metric
    over all validation cases.

    Parameters
    ----------
    space : dict
        Has the number of the trial as its only value.
    settings : list of dict
        The settings of all trials.
    metric : str
        The validation metric.
    """
    import torch
    from ray import tune

    import recbole_llm  # noqa: F401  registers our models in this new process

    resources = tune.get_context().get_trial_resources().required_resources
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    epochs = 0

    def watch(epoch: int, score: float) -> None:
        nonlocal epochs
        epochs = epoch + 1
        tune.report({"score": score, "epochs": epochs})

    run = run_settings(settings[trial_value(space)], watch)
    tune.report({"score": run.row["valid"][metric], "epochs": epochs, "run": run.folder.name})


def tune(model: str, dataset: str, layers: list[dict], options: dict) -> list[str]:
    """Search, and write the best settings as a properties file.

    Parameters
    ----------
    model : str
        Name of the model.
    dataset : str
        Name of the dataset.
    layers : list of dict
        The user's settings.
    options : dict
        The settings of properties/tune.yaml.

    Returns
    -------
    list of str
        Lines to be printed: a table of all trials, and the best.

    Raises
    ------
    UserError
        For a mistake in the settings, or if no trial finishes.
    """
    search = Search(model, dataset, layers, options)
    records = search.run()
    finished = [record for record in records if record["status"] == "finished"]
    if not finished:
        raise UserError(f"tune: no trial came to its end; see {search.folder / TRIALS}")
    best = max(finished, key=lambda record: record["score"])
    tied = [record for record in finished if record["score"] == best["score"]]
    title = "best" if len(tied) == 1 else f"first of {len(tied)} trials that tie"
    path = search.folder / BEST
    command = f"python run_recbole_llm.py --model={model} --dataset={dataset} --config_files={path}"
    reason = (
        f"the {title} of {len(records)} by validation {search.metric} ({best['score']:.4f}), "
        f"{options['search']}"
    )
    settings: dict = {}
    for layer in (*layers, best["point"]):
        settings |= layer
    content = yaml.safe_dump(settings, sort_keys=False)
    write_text(path, f"# {command}\n# {reason}\n{content}")
    folder = search.folder.parent / best["run"]
    row = run_record.finished_run(folder)["row"]
    # reading the ranks compares them with the metrics of the row
    Run(folder, row).ranks()
    lines = [*_listing(records, search.metric), ""]
    lines.append(
        f"{title}: {_described(best['point'])}: validation {search.metric} {best['score']:.4f}, "
        f"test {row['test'][search.metric]:.4f}"
    )
    if 1 < len(tied) == len(finished):
        lines.append(
            f"all finished trials have {best['score']:.4f}: this search shows no difference "
            "between them"
        )
    return [*lines, f"run: {folder}   settings: {path}   trials: {search.folder / TRIALS}"]


def _listing(records: Sequence[dict], metric: str) -> list[str]:
    """All trials with their scores, the best first, line by line."""

    def by_score(record: dict) -> float:
        return -record["score"] if record["score"] is not None else np.inf

    lines = [f"{'valid ' + metric:>16s}  {'epochs':>6s}  status    settings"]
    for record in sorted(records, key=by_score):
        score = "-" if record["score"] is None else f"{record['score']:.4f}"
        lines.append(
            f"{score:>16s}  {record['epochs']:6d}  {record['status']:9s} "
            f"{_described(record['point'])}"
        )
    return lines


def _described(point: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items())
