"""The result row of a run, the one place where it is made."""

from typing import Any, TypedDict

from ..storage import run_folders
from .spec import RunSpec


class PartRecord(TypedDict):
    """What the ranking of one part of the cases gave, as `run.json` stores it."""

    values: dict[str, float]  # metric -> value
    rates: dict[str, float]  # what the model says of its answers
    seconds: float
    candidates: str | None  # fingerprint of the negatives; None for the whole catalogue


class ResultRow(TypedDict, total=False):
    """A line of `results.jsonl`, and `row` of a run's `run.json`."""

    run: str  # the run's id; of an evaluation, with its folder below the run's
    model: str
    dataset: str
    stage: str | None
    fingerprint: str  # of the interactions
    split: dict[str, Any]  # the setting eval_args
    evaluation: dict[str, Any]  # further settings that rows of one table share
    seed: int
    hash: str
    backbone: str | None
    valid: dict[str, float]
    test: dict[str, float]
    step: int  # of weights that a run has kept on its way
    part: str  # "valid" for an evaluation on validation cases; not there for "test"
    best_epoch: int
    seconds: dict[str, float]  # phase -> wall-clock seconds
    memory_mib: dict[str, float]  # phase -> peak memory of the process
    device: str
    rates: dict[str, float]
    cases: int
    candidates: dict[str, str | None]
    users_as_trained: bool
    summaries: dict[str, Any]
    versions: dict[str, str]


def row_of_training(
    spec: RunSpec, parts: dict[str, PartRecord], training: dict[str, Any], part: str = "test"
) -> ResultRow:
    """Make the row of a run that was trained.

    Parameters
    ----------
    spec : RunSpec
        The run.
    parts : dict
        Part -> what its ranking gave.
    training : dict
        `best_epoch`, `seconds`, `memory_mib`, `device`, `cases`, `users_as_trained`, `versions`
        and, where texts were written, `summaries`.
    part : str
        The cases that the row is about: "test", or "valid" before the test cases are ranked.
    """
    row = _of_run(spec)
    if part == "valid":
        row["part"] = part
    row |= _of_parts(parts, part) | training
    made: Any = row
    return ResultRow(**made)


def row_of_kept(spec: RunSpec, name: str, step: int, versions: dict[str, str]) -> ResultRow:
    """Make the row of weights that a run has kept of a step, and that nothing has measured.

    Parameters
    ----------
    spec : RunSpec
        The run.
    name : str
        Id of the kept weights.
    step : int
        The step after which they were stored.
    versions : dict of str to str
        Versions of what has computed them.
    """
    row: dict[str, Any] = {
        **_of_run(spec),
        "run": name,
        "step": step,
        "rates": {},
        "cases": len(spec.split.test),
        "versions": versions,
    }
    made: Any = row
    return ResultRow(**made)


def _of_run(spec: RunSpec) -> dict[str, Any]:
    """What a row says of its run."""
    return {
        "run": spec.run_id,
        "model": spec.settings["model"],
        "dataset": spec.dataset,
        "stage": spec.settings.get("stage"),
        **spec.measure,
        "seed": spec.settings["seed"],
        "hash": spec.hash,
        "backbone": spec.settings.get("backbone"),
    }


def row_ranked_again(row: ResultRow, parts: dict[str, PartRecord]) -> ResultRow:
    """Make the row of a finished run whose ranks were lost, and made again by its weights."""
    seconds = row.get("seconds", {}) | {part: one["seconds"] for part, one in parts.items()}
    again: Any = {**row, **_of_parts(parts), "seconds": seconds}
    return ResultRow(**again)


def row_of_evaluation(
    spec: RunSpec, trained: ResultRow, name: str, part: str, record: PartRecord, **further: Any
) -> ResultRow:
    """Make the row of a finished run that was evaluated by other settings.

    Parameters
    ----------
    spec : RunSpec
        The evaluation.
    trained : ResultRow
        Of the run whose weights it uses.
    name : str
        Id of the evaluation.
    part : str
        The cases that were ranked, "test" or "valid".
    record : PartRecord
        What their ranking gave.
    **further
        `device`, `cases`, `users_as_trained` and, where texts were written, `summaries`.
    """
    of_training = ("valid", "test", "part", "step", "summaries", "rates", "candidates")
    row = {key: value for key, value in trained.items() if key not in of_training}
    row |= {
        **spec.measure,
        "run": name,
        "dataset": spec.dataset,
        "hash": spec.hash,
        "seed": spec.settings["seed"],
        "versions": run_folders.versions(),
        "seconds": {part: record["seconds"]},
        "memory_mib": {part: run_folders.peak_memory(spec.config["device"])},
        "rates": record["rates"],
        "candidates": {part: record["candidates"]},
        part: record["values"],
    }
    if part == "valid":
        row["part"] = part
    return ResultRow(**{**row, **further})  # type: ignore[typeddict-item]


def _of_parts(parts: dict[str, PartRecord], part: str = "test") -> dict[str, Any]:
    values: dict[str, Any] = {name: record["values"] for name, record in parts.items()}
    return values | {
        "rates": parts[part]["rates"],
        "candidates": {name: record["candidates"] for name, record in parts.items()},
    }
