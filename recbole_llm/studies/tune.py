"""A search for settings by validation: trials are runs, in parallel by Ray Tune."""

import json
import logging
from itertools import product
from pathlib import Path

import numpy as np
import yaml

from .. import __version__
from ..errors import UserError
from ..runs.checks import check as check_run
from ..runs.commands import run_settings, stages_of
from ..runs.run import Run
from ..runs.spec import describe
from ..settings import layers as config
from ..settings import registry, run_record
from ..storage import run_folders
from ..storage.content_cache import keep_aside, sealed, unsealed
from ..storage.files import write_text
from ..storage.screen import say
from .ray_cluster import Cluster, asked, check, connected, need_ray, teller, trials

TRIALS, BEST = "trials.jsonl", "best.yaml"
RECORD = {"point", "status", "score", "epochs", "run", "error"}  # names of a trial's record
RANGES = {
    "uniform": lambda rng, low, high: float(rng.uniform(low, high)),
    "log": lambda rng, low, high: float(np.exp(rng.uniform(np.log(low), np.log(high)))),
    "int": lambda rng, low, high: int(rng.integers(low, high + 1)),
}


def points(space: dict, search: str, count: int, seed: int) -> list[dict]:
    """The settings of each trial, all different: a whole grid, or so many drawn.

    Raises
    ------
    UserError : for a space that is none.
    """
    if not space:
        raise UserError(
            "space: expected settings with their values, such as --space.learning_rate='{log: "
            "[1e-4, 1e-2]}', found none"
        )
    for key, values in space.items():
        if isinstance(values, dict):
            ((kind, bounds),) = values.items() if len(values) == 1 else [(None, None)]
            numbers = (
                isinstance(bounds, list)
                and len(bounds) == 2
                and all(isinstance(one, int | float) for one in bounds)
            )
            if (
                kind not in RANGES
                or not numbers
                or bounds[0] > bounds[1]
                or kind == "log"
                and bounds[0] <= 0
            ):
                raise UserError(
                    f"space.{key}: expected a list of values, or uniform, log or int with [low, "
                    f"high], found {values!r}"
                )
            if search == "grid":
                raise UserError(
                    f"space.{key}: a grid needs values, found the range {values!r}; give a list, "
                    "or --search=random"
                )
        elif not isinstance(values, list) or not values:
            raise UserError(
                f"space.{key}: expected a list of values or a range such as {{log: [1e-4, 1e-2]}}, "
                f"found {values!r}"
            )
    if search == "grid":
        return [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    rng, found = np.random.default_rng(seed), {}
    for _ in range(100 * count):  # few values have few different settings
        drawn = {
            key: values[rng.integers(len(values))]
            if isinstance(values, list)
            else _drawn(rng, values)
            for key, values in space.items()
        }
        found.setdefault(json.dumps(drawn), drawn)
        if len(found) == count:
            break
    return list(found.values())


def _drawn(rng: np.random.Generator, values: dict):
    ((kind, bounds),) = values.items()
    value = RANGES[kind](rng, *bounds)
    return value if kind == "int" else float(f"{value:.4g}")  # what a person would write


class Search:
    """Trials of one model on one dataset. Raises UserError for what could not be run before anything is.

    layers : the user's settings. own : those of properties/tune.yaml.
    """

    def __init__(self, model: str, dataset: str, layers: list[dict], own: dict):
        self.own = own
        self.points = points(own["space"], own["search"], own["trials"], own["search_seed"])
        plain = config.resolve(model, dataset, layers)
        places = {
            key: str(Path(plain[key]).absolute()) for key in ("data_path", "checkpoint_dir")
        }  # for processes elsewhere
        layers = [*layers, places]
        self.settings = [config.resolve(model, dataset, layers, point) for point in self.points]
        if plain["seeds"]:
            raise UserError(
                "seeds: a search runs one seed; leave it out, or search over --space.seed=[1, 2]"
            )
        need_ray("tune")
        self.cluster = Cluster(
            own["ray_address"],
            own["trial_cpus"],
            own["trial_gpus"],
            own["dashboard"],
            ("trial_cpus", "trial_gpus"),
        )
        check(self.cluster)
        for settings in self.settings:
            for number, stage in enumerate(stages_of(settings)):
                prepared = describe(stage)
                check_run(prepared, first=number == 0)
        if not len(prepared.split.valid):
            raise UserError(
                f"tune chooses by validation, and the split {plain['eval_args']['split']} has no valid case; set "
                "--eval_args.split"
            )
        self.metric = plain["valid_metric"].lower()
        saved = Path(plain["checkpoint_dir"])
        asha = [own["grace"], own["reduction"]] if own["search"] == "asha" else []
        key = [
            config.settings_hash(
                plain, data=prepared.interactions.fingerprint, version=__version__
            ),
            own["search"],
            own["space"],
            own["search_seed"],
            asha,
        ]
        self.folder = (
            saved
            / f"tune-{registry.find(plain['model']).name}-{prepared.dataset}-{config.digest(key)}"
        )

    def run(self, told=say) -> list[dict]:
        """Do the trials that have not ended yet; every trial's record, see TRIALS, in the order of the points."""
        with run_folders.locked(
            self.folder, told
        ):  # asha's comparisons start afresh in a search that goes on
            ended = self._ended()
            left = [
                number
                for number, point in enumerate(self.points)
                if ended.get(json.dumps(point), {"status": "failed"})["status"] == "failed"
            ]
            if len(left) < len(self.points):
                told(
                    f"trials: {len(self.points) - len(left)} of {len(self.points)} have ended "
                    "already"
                )
            if left:
                self._try(left, told)
            ended = self._ended()
        return [ended[json.dumps(point)] for point in self.points if json.dumps(point) in ended]

    def _ended(self) -> dict[str, dict]:
        path = self.folder / TRIALS
        if not path.is_file():
            return {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [line for line in lines if line.strip()]
        records = [unsealed(line) for line in lines]
        whole = [
            record for record in records if record and record.keys() == RECORD and _is_trial(record)
        ]
        if len(whole) < len(lines):
            aside = keep_aside(path)
            write_text(path, "\n".join(map(sealed, whole)))
            logging.getLogger().warning(
                f"{path} is damaged: {len(lines) - len(whole)} trials are done again; the damaged "
                f"file is kept as {aside.name}"
            )
        return {json.dumps(record["point"]): record for record in whole}

    def _try(self, numbers: list[int], told) -> None:
        own = self.own

        def ended(number, result, error) -> None:
            """The record of a trial is written when it ends, so that a killed search goes on with the others."""
            record = {
                "point": self.points[number],
                "status": "failed",
                "score": None,
                "epochs": 0,
                "run": None,
                "error": error,
            }
            if result:
                status = "finished" if result.get("run") else "stopped"
                record |= {
                    "status": status,
                    "score": result["score"],
                    "epochs": result["epochs"],
                    "run": result.get("run"),
                }
            known = self._ended() | {json.dumps(record["point"]): record}
            write_text(self.folder / TRIALS, "\n".join(map(sealed, known.values())))
            score = f": {error}" if error else f", valid {self.metric} {record['score']:.4f}"
            told(
                f"trial {number + 1} of {len(self.points)}: {record['status']}{score}: "
                f"{_told(self.points[number])}"
            )

        with connected(self.cluster) as resources:
            from ray import tune

            how = {}
            if own["search"] == "asha":
                last = [stages_of(settings)[-1] for settings in self.settings]
                most, grace = (
                    max(one["epochs"] for one in last),
                    own["grace"] * max(1, max(one["eval_step"] for one in last)),
                )
                how["scheduler"] = tune.schedulers.ASHAScheduler(
                    time_attr="epochs",
                    metric="score",
                    mode="max",
                    max_t=most + grace + 1,
                    grace_period=grace,
                    reduction_factor=own["reduction"],
                )
            trainable = tune.with_resources(
                tune.with_parameters(trial, settings=self.settings, metric=self.metric), resources
            )
            trials(trainable, "trial", numbers, teller(ended), **how)


def _is_trial(record: dict) -> bool:
    """Whether a line of TRIALS has what `ended` writes; any other is a trial that has not ended."""
    kinds = {"point": dict, "epochs": int}
    if record.get("status") != "failed":
        kinds["score"] = float
    if record.get("status") == "finished":
        kinds["run"] = str
    known = record.get("status") in ("failed", "stopped", "finished")
    return known and all(isinstance(record.get(key), kind) for key, kind in kinds.items())


def trial(space: dict, settings: list[dict], metric: str) -> None:
    """One run, in a process of Ray's, that reports each validation of its last stage, and at its end the run and its value over all validation cases."""
    import torch
    from ray import tune

    import recbole_llm  # noqa: F401  in a new process

    torch.set_num_threads(
        max(1, int(tune.get_context().get_trial_resources().required_resources.get("CPU", 1)))
    )
    done = 0

    def watch(epoch: int, score: float) -> None:
        nonlocal done
        done = epoch + 1
        tune.report({"score": score, "epochs": done})

    run = run_settings(settings[asked(space)], watch)
    tune.report({"score": run.row["valid"][metric], "epochs": done, "run": run.folder.name})


def tune(model: str, dataset: str, layers: list[dict], own: dict) -> list[str]:
    """Search, and write the best settings as a properties file. Returns lines to be shown."""
    search = Search(model, dataset, layers, own)
    records = search.run()
    finished = [record for record in records if record["status"] == "finished"]
    if not finished:
        raise UserError(f"tune: no trial came to its end; see {search.folder / TRIALS}")
    best = max(finished, key=lambda record: record["score"])
    path = search.folder / BEST
    command = (
        f"# python run_recbole_llm.py --model={model} --dataset={dataset} --config_files={path}"
    )
    best_settings = {key: value for layer in layers for key, value in layer.items()} | best["point"]
    tied = [record for record in finished if record["score"] == best["score"]]
    what = "best" if len(tied) == 1 else f"first of {len(tied)} trials that tie"
    why = f"# the {what} of {len(records)} by validation {search.metric} ({best['score']:.4f}), {own['search']}"
    write_text(path, "\n".join([command, why, yaml.safe_dump(best_settings, sort_keys=False)]))
    lines = [f"{'valid ' + search.metric:>16s}  {'epochs':>6s}  status    settings"]
    for record in sorted(
        records, key=lambda record: -(record["score"] if record["score"] is not None else -np.inf)
    ):
        score = "-" if record["score"] is None else f"{record['score']:.4f}"
        lines.append(
            f"{score:>16s}  {record['epochs']:6d}  {record['status']:9s} {_told(record['point'])}"
        )
    run = search.folder.parent / best["run"]
    row = run_record.finished_run(run)["row"]
    Run(run, row).ranks()  # which compares its metrics
    lines += [
        "",
        f"{what}: {_told(best['point'])}: validation {search.metric} {best['score']:.4f}, test "
        f"{row['test'][search.metric]:.4f}",
    ]
    if 1 < len(tied) == len(finished):
        lines.append(
            f"all finished trials have {best['score']:.4f}: this search shows no difference "
            "between them"
        )
    return [*lines, f"run: {run}   settings: {path}   trials: {search.folder / TRIALS}"]


def _told(point: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items())
