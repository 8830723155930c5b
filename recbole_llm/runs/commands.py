"""From settings to finished runs: one model, several that stand in a table, an evaluation."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings import layers, registry, run_record
from ..storage import run_folders
from ..storage.run_log import RunLog
from ..storage.screen import say
from . import checks
from .result_row import row_of_evaluation
from .run import Run
from .runner import Runner, Watch
from .spec import Datasets, RunSpec, Settings, describe


def run_model(
    model: str | type,
    dataset: str,
    files: Sequence[str | dict[str, Any]] = (),
    overrides: dict[str, Any] | None = None,
) -> Run:
    """Train, evaluate and store one model.

    A finished run of the same settings and data is taken as it is, an unfinished one is gone on
    with. With `stages`, each stage is a run of its own that starts from the one before, and the
    last is returned.

    Parameters
    ----------
    model : str or type
        Name, "module:Class" or class, see :func:`recbole_llm.settings.registry.find`.
    dataset : str
        Name of the dataset.
    files : sequence of str or dict
        YAML files, or what they would hold; the last of equal keys holds.
    overrides : dict, optional
        Settings over those of the files.

    Raises
    ------
    UserError
        For settings or data that cannot be taken.
    """
    key = registry.find(model).key
    return run_settings(layers.resolve(key, dataset, files, overrides))


def run_all(planned: dict[str, list[Settings]], beside: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Carry out the runs of one table; a mistake in any is told before the first is trained.

    Parameters
    ----------
    planned : dict
        Model -> its resolved settings, which differ in the seed alone.
    beside : sequence of str
        Models that nobody asked for: one that cannot run is left out, and that is said.

    Returns
    -------
    dict
        Model -> its finished runs.

    Raises
    ------
    UserError
        For settings or data that cannot be taken, or rows that would not measure the same.
    """
    datasets = Datasets()
    described: dict[str, list[RunSpec]] = {}
    for model in sorted(planned, key=lambda model: model in beside):  # what was asked for first
        try:
            described[model] = _check_stages(planned[model][0], datasets)
        except UserError as error:
            if model not in beside:
                raise
            say(f"left out beside it, {model}: {error}", sys.stderr)
    _check_measured_alike({model: specs[-1] for model, specs in described.items()})
    finished: dict[str, list[Run]] = {}
    for model, (first, *others) in planned.items():
        if model in described:
            runs = [run_settings(first, datasets=datasets, checked=described[model][0])]
            runs += [run_settings(settings, datasets=datasets) for settings in others]
            finished[model] = runs
    return finished


def _check_stages(settings: Settings, datasets: Datasets) -> list[RunSpec]:
    """Describe and check each stage of a run, as far as that goes before any is trained."""
    specs = []
    for number, stage in enumerate(stages_of(settings)):
        spec = describe(stage, datasets=datasets)
        checks.check(spec, first=number == 0)
        specs.append(spec)
    return specs


def _check_measured_alike(specs: dict[str, RunSpec]) -> None:
    from ..evaluation.significance import same_measure

    first, *others = specs
    for model in others:
        difference = same_measure(specs[first].measure, specs[model].measure)
        if difference:
            key, one, other = difference
            raise UserError(
                f"the models of a table are measured alike: {key} is {one} for {first} and {other} "
                f"for {model}"
            )


def stages_of(settings: Settings) -> list[Settings]:
    """Make the settings of each run that a run with `stages` consists of.

    A stage that trains on several `datasets` is a run on `select_on`.

    Raises
    ------
    UserError
        If `datasets` or `select_on` contradict the stages.
    """
    if not settings["stages"]:
        if settings.get("select_on") not in (None, settings["dataset"]):
            raise UserError(
                "select_on is of a stage; a run without stages is chosen and tested on its own "
                f"dataset: --dataset={settings['select_on']}"
            )
        return [settings]
    of_whole_run: Settings = {"stages": None, "stage_settings": None}
    if "variant" in settings:  # so that a stage which two variants share is one run
        of_whole_run["variant"] = None
    return [_stage(settings | of_whole_run, settings, name) for name in settings["stages"]]


def _stage(plain: Settings, settings: Settings, name: str) -> Settings:
    """The settings of one stage. plain : those of the run without its stages."""
    stage: Settings = plain | {"stage": name} | settings["stage_settings"][name]
    if name == "joint" and not stage["datasets"]:
        raise UserError(
            "stages: joint trains on several datasets together, and found none; name them by "
            "--datasets=[…]"
        )
    selected_on = stage.get("select_on")
    if not selected_on:
        return stage
    if not stage["datasets"]:
        raise UserError(
            f"select_on: {selected_on} is to be one of --datasets=[…], and found none; name "
            "them, or leave it out"
        )
    there: Settings = layers.moved(stage, selected_on)
    return there | {"dataset": selected_on}


def run_settings(
    settings: Settings,
    watch: Watch | None = None,
    datasets: Datasets | None = None,
    checked: RunSpec | None = None,
) -> Run:
    """Carry out a run of resolved settings, stage by stage.

    Parameters
    ----------
    settings : dict
        As :func:`recbole_llm.settings.layers.resolve` gives them.
    watch : callable, optional
        Called after each validation of the last stage with its epoch and score.
    datasets : Datasets, optional
        Of the command, where it has several runs.
    checked : RunSpec, optional
        The run of the first stage, where it is described and checked already.

    Returns
    -------
    Run
        The run of the last stage.
    """
    datasets = datasets or Datasets()
    *stages, last = stages_of(settings)
    start: Settings = {}
    for stage in stages:
        spec = checked or describe(stage | start, datasets=datasets)
        start = {"init_from": str(_run(spec, is_checked=bool(checked)).folder)}
        checked = None
    spec = checked or describe(last | start, datasets=datasets)
    return _run(spec, watch, is_checked=bool(checked))


def resume_run(folder: Path, settings: Settings) -> Run:
    """Go on with an unfinished run.

    Parameters
    ----------
    folder : Path
        The run's folder.
    settings : dict
        Its settings, of which those that decide no result may have changed.

    Raises
    ------
    UserError
        If settings, data or the version make it another run.
    """
    record = run_record.read_run(folder)
    assert record is not None
    spec = describe(settings | {"checkpoint_dir": str(folder.absolute().parent)})
    if run_folders.kept_step(folder.name)[1] is not None:
        raise UserError(
            f"--resume={folder.name}: these are the weights that a training has kept of a step; "
            f"--init_from={folder.name} trains on from them, and evaluate "
            f"--checkpoint={folder.name} measures them"
        )
    if spec.run_id != folder.name and spec.hash == record.get("row", {}).get("hash"):
        raise UserError(
            f"--resume={folder.name}: RecBole's own code has trained it, to its end; "
            f"evaluate --checkpoint={folder.name} ranks the test cases"
        )
    if spec.run_id != folder.name:
        stored = record["settings"]
        changed = [
            key
            for key in settings
            if settings[key] != stored.get(key) and key not in layers.NOT_IN_HASH
        ]
        reason = "its data or the version of recbole_llm has changed since"
        if changed:
            reason = f"{', '.join(changed)} would make it another one"
        raise UserError(
            f"--resume={folder.name} goes on with a run as it is, but {reason}; start "
            f"{spec.run_id} by --model and --dataset"
        )
    return _run(spec)


def _run(spec: RunSpec, watch: Watch | None = None, is_checked: bool = False) -> Run:
    with RunLog() as log:
        done = _complete_record(spec.folder)
        if done and not spec.settings.get("overwrite"):
            return _already_there(log, spec.folder, done)
        return Run(spec.folder, Runner(spec).train(log, watch, is_checked))


def _complete_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run or an evaluation that is finished and has its ranks, else None."""
    from ..evaluation.rerank_lists import unranked

    record = run_record.read_run(folder)
    if not record or record["status"] != "finished" or unranked(folder, record["row"]):
        return None
    return record


def _already_there(log: RunLog, folder: Path, done: dict[str, Any]) -> Run:
    run = Run(folder, done["row"])
    for part in ("valid", "test"):
        if part in done["row"]:
            run.ranks(part)  # which compares its metrics
    log.start()
    by_other_code = done["row"]["versions"].get("code") != run_folders.code()
    other = ", by other code than today's" if by_other_code else ""
    log.info(f"already there{other}: {folder} (--overwrite runs it again)")
    return run


def evaluate_run(folder: Path, settings: Settings, part: str = "test") -> Run:
    """Evaluate a finished run by other evaluation settings, or a text model on another dataset.

    The result is stored in a folder of its own below the run.

    Parameters
    ----------
    folder : Path
        The run's folder.
    settings : dict
        Its settings with the changes.
    part : str
        "test"; or "valid", by which settings of answering are chosen: the cases of the run's own
        validation.

    Raises
    ------
    UserError
        If the weights belong to other data or have learned the targets, or for a setting that only
        training reads.
    """
    done = run_record.finished_run(folder)
    spec = describe(settings | {"stages": None}, restored=folder)
    checks.check_answering(spec, done)
    suffix = spec.hash if part == "test" else f"{part}-{spec.hash}"
    target = folder / f"evaluate-{suffix}"
    with RunLog() as log:
        is_measured = spec.hash == done["row"]["hash"] and part == "test" and "test" in done["row"]
        # of a training of RecBole's own code, ranks that are lost are made again below the run
        if is_measured and (spec.run_id == folder.name or _complete_record(folder)):
            return _already_there(log, folder, done)
        again = spec.settings.get("overwrite")
        known = _complete_record(target)
        if known and not again:
            return _already_there(log, target, known)
        checks.check(spec)
        runner = Runner(spec)
        model, (_, valid_data, test_data) = runner.restore(done, part)
        data = {"valid": valid_data, "test": test_data}[part]
        if not len(data._dataset.cases):
            raise UserError(f"the split {spec.settings['eval_args']['split']} has no {part} case")
        with run_folders.locked(target, log.info):
            known = _complete_record(target)
            if again:
                run_folders.clear(target)
            elif known:  # by another process, in the meantime
                return _already_there(log, target, known)
            log.start(target)
            edited = checks.edited_since(spec, done)
            if edited:
                log.info(edited)
            return _evaluate_in(target, runner, settings, model, data, part, done)


def _evaluate_in(
    target: Path,
    runner: Runner,
    settings: Settings,
    model: Any,
    data: Any,
    part: str,
    done: dict[str, Any],
) -> Run:
    """Rank the cases of a part into a folder below the run's, and store the row there."""
    from ..evaluation.histories import users_as_trained
    from ..evaluation.resumable import forget

    spec = runner.spec
    trainer = runner.make_trainer(model, target)
    cases = trainer.ranked(data).cases
    texts: dict[str, Any] = {}
    runner.prepare_texts(model, {part: cases}, texts)
    row = row_of_evaluation(
        spec,
        done["row"],
        f"{target.parent.name}/{target.name}",
        part,
        runner.evaluate(trainer, data, target, part),
        device=str(spec.config["device"]),
        cases=len(cases),
        users_as_trained=users_as_trained(model, data._dataset),
        **texts,
    )
    record = {
        "status": "finished",
        "settings": settings,
        "versions": row["versions"],
        "data": spec.interactions.fingerprint,
        "row": row,
    }
    run_folders.write_json(target / run_folders.RUN, record)
    run_folders.append_result(target.parent.parent, row)
    forget(target, part)
    return Run(target, row)
