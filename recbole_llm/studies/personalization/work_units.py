"""Units of work: adapters that are trained, ranked and stored together, on any machine."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...contracts.cases import Cases
from ...errors import UserError
from ...evaluation.ranks import RankTable
from ...settings.layers import digest
from ...storage import run_folders
from ...storage.files import atomic_folder, parse
from ...storage.progress import LineProgress
from ...storage.readback import file_digest
from .adapter_training import Frozen, Learner, Recipe, step_tokens, together, train
from .ranking import rank

RECORD, RANKS, ADAPTERS = "unit.json", "ranks.npz", "adapters"
# keys of a unit's record; records of earlier versions have no `files`
KINDS = {"unit": str, "losses": dict, "samples": dict, "seconds": float, "memory_mib": float}


@dataclass(frozen=True)
class Unit:
    """Adapters that are trained in one go.

    Attributes
    ----------
    name : str
        Name of the unit.
    learners : sequence of Learner
        The adapters.
    tests : sequence of Cases
        Future-Test cases of each learner.
    recipe : Recipe
        How they are trained.
    stack : int
        Largest number of adapters in one pass. Adapters with long steps are fewer.
    base : str
        Where the frozen weights of the adapters are found, see AdapterStack.save.
    mask_history : bool
        Whether items of a case's history are excluded from its ranking.
    cost : float
        Cost relative to other units, in any unit of measure.
    """

    name: str
    learners: Sequence[Learner]
    tests: Sequence[Cases]
    recipe: Recipe
    stack: int = 16
    base: str = ""
    mask_history: bool = False
    cost: float = 1.0


def work(frozen: Frozen, unit: Unit, say: Callable[[str], None] | None = None) -> dict[str, bytes]:
    """Do a unit.

    Parameters
    ----------
    frozen : Frozen
        The frozen model and the texts.
    unit : Unit
        The unit.
    say : callable, optional
        Prints a line of progress.

    Returns
    -------
    dict of str to bytes
        Path -> content of the unit's files: the adapters in PEFT's format, `ranks.npz` and
        `unit.json`.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        losses = _train_and_rank(frozen, unit, folder, say or (lambda line: None))
        record = {
            "unit": unit.name,
            "files": {path: file_digest(folder / path) for path in _files(folder)},
            "losses": losses,
            "samples": {learner.name: len(learner.train) for learner in unit.learners},
            "seconds": time.perf_counter() - started,
            "memory_mib": run_folders.peak_memory(frozen.bundle.model.device),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return {path: (folder / path).read_bytes() for path in _files(folder)}


def _train_and_rank(
    frozen: Frozen, unit: Unit, folder: Path, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Write the adapters and ranks of a unit. Returns the validation losses of each learner."""
    tests = {learner.name: cases for learner, cases in zip(unit.learners, unit.tests, strict=True)}
    recipe = unit.recipe
    tokens = [step_tokens(frozen, learner, recipe) for learner in unit.learners]
    stacks = together(
        unit.learners, recipe.train_batch_size, unit.stack, tokens, recipe.pass_tokens
    )
    progress = LineProgress(
        desc=f"in unit {unit.name}",
        total=len(stacks) * recipe.epochs,
        unit="epochs",
        write=say,
    )
    tables: list[RankTable] = []
    losses: dict[str, list[float]] = {}
    for place, learners in enumerate(stacks, start=1):
        progress.set_postfix_str(f"stack {place} of {len(stacks)}")
        trained = train(frozen, learners, recipe, progress.update)
        # early stopping leaves some epochs out
        progress.n = place * recipe.epochs
        cases = [tests[learner.name] for learner in learners]
        tables += rank(frozen, trained.stack, cases, recipe, unit.mask_history)
        for number, learner in enumerate(learners):
            trained.stack.save(number, folder / adapter_path(learner.name), unit.base)
            losses[learner.name] = trained.losses[number]
    RankTable.concat(tables).save(folder / RANKS)
    return losses


def _files(folder: Path) -> list[str]:
    """Paths of all files in a folder, relative to it."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path.relative_to(folder).as_posix() for path in paths]


def adapter_path(name: str) -> str:
    """Return the path of an adapter in its unit's folder.

    The name is cut, because names may be longer than a file system allows. The digest keeps cut
    names apart, and names that differ in case only.
    """
    return f"{ADAPTERS}/{quote(name, safe=' ')[:60]}-{digest(name)}"


def _record(path: Path) -> dict | None:
    """Read the record of a unit; None if it or the rank table beside it is missing or damaged."""
    record = parse(path.read_bytes()) if path.is_file() else None
    if not isinstance(record, dict) or not isinstance(record.get("files", {}), dict):
        return None
    if not all(isinstance(record.get(key), kind) for key, kind in KINDS.items()):
        return None
    try:
        RankTable.load(path.with_name(RANKS))
    except UserError:
        return None
    return record


def done(folder: Path, unit: str) -> bool:
    """Whether a unit is done and its files are unchanged.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    unit : str
        Name of the unit.

    Returns
    -------
    bool
        Whether it is.
    """
    record = _record(unit_folder(folder, unit) / RECORD)
    return record is not None and not _changed(unit_folder(folder, unit), record)


def _changed(folder: Path, record: dict, inside: str = "") -> list[str]:
    """Files below `inside` in a unit's folder that differ from its record.

    A record of an earlier version has no digests; its files count as unchanged.
    """
    changed = []
    for name, expected in record.get("files", {}).items():
        path = folder / name
        if name.startswith(inside) and not (path.is_file() and file_digest(path) == expected):
            changed.append(name)
    return changed


def check_adapter(folder: Path) -> None:
    """Check the files of an adapter.

    Parameters
    ----------
    folder : Path
        Folder of the adapter, in the folder of its unit.

    Raises
    ------
    UserError
        If a file differs from what its unit has stored.
    """
    unit = folder.parents[1]
    record = _record(unit / RECORD)
    wrong = [RECORD] if record is None else _changed(unit, record, f"{ADAPTERS}/{folder.name}/")
    if wrong:
        raise UserError(
            f"{unit / wrong[0]} is not what was trained and stored there; give the command of "
            "personalize again, which trains that unit anew"
        )


def finished(folder: Path, beginning: str) -> dict[str, list[str]]:
    """List the units that are done.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    beginning : str
        First word of the units' names.

    Returns
    -------
    dict of str to list of str
        Name of a unit -> names of its learners.
    """
    result = {}
    for path in sorted(folder.glob(f"units/{beginning} */{RECORD}")):
        record = _record(path)
        if record and not _changed(path.parent, record):
            result[record["unit"]] = list(record["losses"])
    return result


def unit_folder(folder: Path, unit: str) -> Path:
    """Return the folder of a unit in the folder of its run."""
    return folder / "units" / quote(unit, safe=" ")


def keep(folder: Path, unit: str, files: dict[str, bytes]) -> None:
    """Store the files of a unit; a reader sees all of them or none.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    unit : str
        Name of the unit.
    files : dict of str to bytes
        Path -> content, as `work` returns them.
    """
    target = unit_folder(folder, unit)
    with atomic_folder(target) as temporary:
        for path, content in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
