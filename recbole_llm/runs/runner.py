"""One run: settings and data in; a folder, a result row and a rank table out."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..settings import layers as settings_module
from ..settings import run_record
from ..storage import run_folders
from ..storage.run_log import RunLog
from ..storage.screen import say
from .spec import Prepared


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    row: dict  # as in results.jsonl

    @property
    def part(self) -> str:
        """ "test", or "valid" for an evaluation on validation cases alone."""
        return self.row.get("part", "test")

    @property
    def values(self) -> dict[str, float]:
        """Its metrics."""
        return self.row[self.part]

    def ranks(self, part: str | None = None):
        """The RankTable of a part of the cases, "test" or "valid"; of `self.part` by default.

        Raises
        ------
        UserError : if the table is missing or damaged, or if the metrics of the row are not those of
            its ranks.
        """
        from ..evaluation.metrics import differing
        from ..evaluation.ranks import RankTable

        part = part or self.part
        path = self.folder / run_folders.RANKS.format(part=part)
        table = RankTable.load(path)
        wrong = {}
        if part == self.part and self.row["cases"] != len(table):
            wrong = {"cases": (self.row["cases"], len(table))}
        elif len(table):
            grouped = bool((self.row.get("evaluation") or {}).get("group_by_user"))
            wrong = differing(self.row[part], table, grouped)
        for name, (stored, found) in wrong.items():
            raise UserError(
                f"{self.folder / run_folders.RUN}: {part} {name} is {stored:.10g}, and by the "
                f"ranks in {path.name} it is {found:.10g}: "
                f"one of the two files is damaged or another run's; remove {path}, and "
                f"{run_folders.ranked_again(self.folder)}"
            )
        return table


def run_model(
    model: str, dataset: str, files: list[str] = (), overrides: dict | None = None
) -> Run:
    """Train, evaluate and store one model; a run of the same settings and data that is there is taken as it is.

    An unfinished run of the same settings is resumed. With `stages`, each stage is a run of its own that starts
    from the one before, and the last is returned.
    """
    return run_settings(settings_module.resolve(model, dataset, files, overrides))


def run_all(planned: dict[str, list[dict]], beside: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Runs of resolved settings by model; a mistake in any is told before the first is trained.

    Parameters
    ----------
    beside : models that nobody asked for: one that cannot run is left out, and that is said.
    """
    from ..evaluation.significance import same_measure

    measures = {}
    for model in sorted(planned, key=lambda model: model in beside):  # what was asked for first
        try:
            for number, stage in enumerate(
                stages_of(planned[model][0])
            ):  # the group differs in its seeds
                prepared = Prepared(stage)
                prepared.check(first=number == 0)
            measures[model] = prepared.measure
        except UserError as error:
            if model not in beside:
                raise
            say(f"left out beside it, {model}: {error}", sys.stderr)
    for model, measure in measures.items():
        first = next(iter(measures))
        if differs := same_measure(measures[first], measure):
            key, one, other = differs
            raise UserError(
                f"the models of a table are measured alike: {key} is {one} for {first} and {other} "
                f"for {model}"
            )
    return {
        model: [run_settings(settings) for settings in group]
        for model, group in planned.items()
        if model in measures
    }


def stages_of(settings: dict) -> list[dict]:
    """The settings of each run that a run with `stages` consists of; one that trains on `datasets` is a run on `select_on`."""
    if not settings["stages"]:
        if settings.get("select_on") not in (None, settings["dataset"]):
            raise UserError(
                "select_on is of a stage; a run without stages is chosen and tested on its own "
                f"dataset: --dataset={settings['select_on']}"
            )
        return [settings]
    found = []
    for name in settings["stages"]:
        whole = {"stages": None, "stage_settings": None, "stage": name} | (
            {"variant": None} if "variant" in settings else {}
        )
        stage = (
            settings | whole | settings["stage_settings"][name]
        )  # so that a stage which two variants share is one run
        if name == "joint" and not stage["datasets"]:
            raise UserError(
                "stages: joint trains on several datasets together, and found none; name them by "
                "--datasets=[…]"
            )
        if chosen := stage.get("select_on"):
            if not stage["datasets"]:
                raise UserError(
                    f"select_on: {chosen} is to be one of --datasets=[…], and found none; name "
                    "them, or leave it out"
                )
            stage = settings_module.moved(stage, chosen) | {"dataset": chosen}
        found.append(stage)
    return found


def run_settings(settings: dict, watch: Callable[[int, float], None] | None = None) -> Run:
    """`run_model` for settings that are resolved. watch : told of each validation of the last stage, with its epoch and score."""
    result, stages = None, stages_of(settings)
    for stage in stages:
        result = _run(
            stage if result is None else stage | {"init_from": str(result.folder)},
            watch if stage is stages[-1] else None,
        )
    return result


def resume_run(folder: Path, settings: dict) -> Run:
    """Go on with an unfinished run. Raises UserError if settings, data or version make it another run."""
    stored = run_record.read_run(folder)["settings"]
    prepared = Prepared(settings | {"checkpoint_dir": str(folder.absolute().parent)})
    if prepared.run_id != folder.name:
        changed = [
            key
            for key in settings
            if settings[key] != stored.get(key) and key not in settings_module.NOT_IN_HASH
        ]
        reason = (
            f"{', '.join(changed)} would make it another one"
            if changed
            else "its data or the version of recbole_llm has changed since"
        )
        raise UserError(
            f"--resume={folder.name} goes on with a run as it is, but {reason}; start "
            f"{prepared.run_id} by --model and --dataset"
        )
    return _run(prepared.settings)


def _run(settings: dict, watch: Callable[[int, float], None] | None = None) -> Run:
    from ..evaluation.rerank_lists import unranked

    prepared = Prepared(settings)
    with RunLog() as log:
        done = run_record.read_run(prepared.run_folder)
        finished = done and done["status"] == "finished"
        again = settings.get("overwrite")
        if finished and not again and not unranked(prepared.run_folder, done["row"]):
            return _already(log, prepared.run_folder, done)
        return Run(prepared.run_folder, prepared.train(log, watch))


def _already(log: RunLog, folder: Path, done: dict) -> Run:
    run = Run(folder, done["row"])
    for part in ("valid", "test"):
        if part in done["row"]:
            run.ranks(part)  # which compares its metrics
    log.start()
    other = (
        ""
        if done["row"]["versions"].get("code") == run_folders.code()
        else ", by other code than today's"
    )
    log.info(f"already there{other}: {folder} (--overwrite runs it again)")
    return run


def _evaluated(folder: Path) -> dict | None:
    """The record of an evaluation that is whole, else None."""
    from ..evaluation.rerank_lists import unranked

    known = run_record.read_run(folder)
    whole = known and known["status"] == "finished" and not unranked(folder, known["row"])
    return known if whole else None


def evaluate_run(folder: Path, settings: dict, part: str = "test") -> Run:
    """Evaluate a finished run with other evaluation settings, or a text model on another dataset.

    part : "test", or "valid", by which settings of answering are chosen: the cases that the run's own validation has.

    The result is stored in a folder of its own below the run. Raises UserError if the weights belong to other data
    or have seen the targets, or for a setting that only training reads.
    """
    from ..evaluation.histories import users_as_trained
    from ..evaluation.resumable import forget

    done = run_record.finished_run(folder)
    prepared = Prepared(settings | {"stages": None}, restored=folder)
    prepared.check_answering(done)
    target = folder / (
        f"evaluate-{prepared.hash}" if part == "test" else f"evaluate-{part}-{prepared.hash}"
    )
    with RunLog() as log:
        if prepared.hash == done["row"]["hash"] and part == "test":
            return _already(log, folder, done)
        again = settings.get("overwrite")
        if not again and (known := _evaluated(target)):
            return _already(log, target, known)
        prepared.check()
        model, (_, valid_data, test_data) = prepared.restore(done, part)
        data = {"valid": valid_data, "test": test_data}[part]
        if not len(data._dataset.cases):
            raise UserError(f"the split {prepared.config['eval_args']['split']} has no {part} case")
        prepared.config["run_folder"] = str(target)
        with run_folders.locked(target, log.info):
            if again:
                run_folders.clear(target)
            elif known := _evaluated(target):  # by another process, in the meantime
                return _already(log, target, known)
            log.start(target)
            trainer = prepared.make_trainer(model)
            texts: dict = {}
            prepared.prepare_texts(model, {part: trainer.ranked(data).cases}, texts)
            values, seconds = prepared.evaluate(trainer, data, target, part)
            row = done["row"] | prepared.measure | {
                "run": f"{folder.name}/{target.name}", "dataset": prepared.name, "hash": prepared.hash,
                "seed": prepared.settings["seed"], "device": str(prepared.config["device"]),
                "cases": len(trainer.ranked(data).cases), "versions": run_folders.versions(),
                "seconds": {part: seconds}, "memory_mib": {part: run_folders.peak_memory()}, "rates": prepared.rates(model, part),
                "candidates": {part: trainer.drawn}, "users_as_trained": users_as_trained(model, data._dataset),
            }  # fmt: skip
            row = (
                {
                    key: value
                    for key, value in row.items()
                    if key not in ("valid", "test", "summaries")
                }
                | {part: values}
                | texts
                | ({"part": part} if part == "valid" else {})
            )
            record = {
                "status": "finished",
                "settings": settings,
                "versions": row["versions"],
                "data": prepared.tables.fingerprint,
                "row": row,
            }
            run_folders.write_json(target / run_folders.RUN, record)
            run_folders.append_result(folder.parent, row)
            forget(target, part)
        return Run(target, row)
