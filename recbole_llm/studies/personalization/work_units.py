"""Units of work: some adapters trained, ranked and written, the same wherever it is done."""

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


@dataclass(frozen=True)
class Unit:
    """Adapters that are trained in one go.

    tests : the Future-Test cases of each learner. stack : most adapters in one pass, of which fewer are taken if their steps are long. base : how their frozen weights are found, see Stack.save.
    cost : beside that of other units.
    """

    name: str
    learners: Sequence[Learner]
    tests: Sequence[Cases]
    recipe: Recipe
    stack: int = 16
    base: str = ""
    mask_history: bool = False
    cost: float = 1.0


def work(frozen: Frozen, unit: Unit, told: Callable[[str], None] | None = None) -> dict[str, bytes]:
    """Do a unit: path -> content of its files, which are the adapters as PEFT has them, `ranks.npz` and `unit.json`.

    told : takes lines on how far it is, now and then.
    """
    started, tests = (
        time.perf_counter(),
        {learner.name: cases for learner, cases in zip(unit.learners, unit.tests, strict=True)},
    )
    tables, losses = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [step_tokens(frozen, learner, unit.recipe) for learner in unit.learners]
        batch, budget = unit.recipe.train_batch_size, unit.recipe.pass_tokens
        stacks = together(unit.learners, batch, unit.stack, sizes, budget)
        shown = LineProgress(
            desc=f"in unit {unit.name}", total=len(stacks) * unit.recipe.epochs, unit="epochs",
            write=told or (lambda line: None),
        )  # fmt: skip
        for place, own in enumerate(stacks, start=1):
            shown.set_postfix_str(f"stack {place} of {len(stacks)}")
            trained = train(frozen, own, unit.recipe, shown.update)
            shown.n = place * unit.recipe.epochs  # of which an early stop leaves some out
            tables += rank(
                frozen,
                trained.stack,
                [tests[learner.name] for learner in own],
                unit.recipe,
                unit.mask_history,
            )
            for number, learner in enumerate(own):
                trained.stack.save(number, folder / adapter_path(learner.name), unit.base)
            losses |= {
                learner.name: found for learner, found in zip(own, trained.losses, strict=True)
            }
        RankTable.concat(tables).save(folder / RANKS)
        sizes = {learner.name: len(learner.train) for learner in unit.learners}
        files = {
            path.relative_to(folder).as_posix(): file_digest(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        record = {
            "unit": unit.name,
            "files": files,
            "losses": losses,
            "samples": sizes,
            "seconds": time.perf_counter() - started,
            "memory_mib": run_folders.peak_memory(),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def adapter_path(name: str) -> str:
    """Where an adapter lies in its unit's folder."""
    return f"{ADAPTERS}/{quote(name, safe=' ')[:60]}-{digest(name)}"  # however long it is, and where a and A are one file


def _record(path: Path) -> dict | None:
    """What `work` has written of a unit, which is done again where this is None.

    That is where there is no such record, or no rank table beside it.
    """
    record = parse(path.read_bytes()) if path.is_file() else None
    kinds = {
        "files": dict,
        "unit": str,
        "losses": dict,
        "samples": dict,
        "seconds": float,
        "memory_mib": float,
    }
    if isinstance(record, dict) and all(
        isinstance(({"files": {}} | record).get(key), kind) for key, kind in kinds.items()
    ):
        try:
            RankTable.load(path.with_name(RANKS))
        except UserError:
            return None
        return record
    return None


def done(folder: Path, unit: str) -> bool:
    """Whether a unit's files are there, and as they were written."""
    record = _record(unit_folder(folder, unit) / RECORD)
    return record is not None and not _differing(unit_folder(folder, unit), record)


def _differing(folder: Path, record: dict, inside: str = "") -> list[str]:
    """The files of a unit's folder that are others than its record says, of those below `inside`.

    A record of an earlier version tells of none.
    """
    return [
        name
        for name, digest in record.get("files", {}).items()
        if name.startswith(inside)
        and not ((folder / name).is_file() and file_digest(folder / name) == digest)
    ]


def check_adapter(folder: Path) -> None:
    """Raise UserError for an adapter that is not what its unit has written."""
    unit = folder.parents[1]
    record = _record(unit / RECORD)
    wrong = [RECORD] if record is None else _differing(unit, record, f"{ADAPTERS}/{folder.name}/")
    if wrong:
        raise UserError(
            f"{unit / wrong[0]} is not what was trained and stored there; give the command of "
            "personalize again, which trains that unit anew"
        )


def finished(folder: Path, beginning: str) -> dict[str, list[str]]:
    """The units that are done and whose names begin with this word: name -> its learners."""
    found = {}
    for path in sorted(folder.glob(f"units/{beginning} */{RECORD}")):
        record = _record(path)
        if record and not _differing(path.parent, record):
            found[record["unit"]] = list(record["losses"])
    return found


def unit_folder(folder: Path, unit: str) -> Path:
    return folder / "units" / quote(unit, safe=" ")


def keep(folder: Path, unit: str, files: dict[str, bytes]) -> None:
    """Write a unit's files; a reader sees all of them or none."""
    target = unit_folder(folder, unit)
    with atomic_folder(target) as temporary:
        for path, content in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
