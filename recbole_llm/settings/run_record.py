"""run.json: what the record of a run holds, checked before any of it is used."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import files, run_folders
from . import registry
from .consistency import check_whole
from .defaults import default_settings, rules_of
from .reading import Settings
from .recbole_keys import REPLACED
from .rules import Rule, check_name, checked
from .stages import WHOLE

Record = dict[str, Any]
# A type; a tuple of them, where None is null; [kind] for a list of it; {type: kind} for a group of
# any names; {name: kind} for a group with these names at least. None inside a group is anything.
Kind = Any
NUMBER = (int, float)
# Of a finished run, see runs/runner.py. Its metrics are under the name of a part.
ROW = {
    "run": str,
    "model": str,
    "dataset": str,
    "hash": str,
    "fingerprint": str,
    "split": dict,
    "rates": {str: NUMBER},
    "versions": {str: str},
    "cases": int,
}
PART = {
    "values": {str: NUMBER},
    "rates": {str: NUMBER},
    "seconds": NUMBER,
    "candidates": (str, None),
}
ROUTES = {
    "base": str,
    "everybody": str,
    "cohorts": {str: [str]},
    "cohorts_of": (str, None),
    "users": {str: str},
}
# running: also of a process that was killed. failed: in a UserError, and with something to go on
# with.
STATUSES = ("running", "failed", "finished")
# Of settings that a user can set to nothing but what RecBole has.
RULES = {"transform": Rule("str", nullable=True)}
# Texts by default that may be something else: a name that looks like a number, the two ends of an
# interval.
FREE = ("wandb_project", "user_inter_num_interval", "item_inter_num_interval")
# Settings that came after runs had been stored, with what those runs did.
LATER = {
    "overwrite": False,
    "history_at_test": "training",
    "trust_remote_code": False,
    "summaries": "stored",
    "summary_items": 10**6,
    "summarizer_extra": None,
    "summarizer_retries": 8,
    "summarizer_timeout": 600.0,
    "weights": "float32",
    "quantize": "none",
    "checkpoint": "false",
    "schedule": "cosine",
    "max_steps": None,
    "valid_every": None,
    "keep_checkpoints": None,
    "contrast_batch": None,
    "mixture_exponent": 0.3,
}
KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "a group",
    list: "a list",
    None: "null",
}


class GuestChangedError(UserError):
    """The class of a user's own that a run was trained by is not there, or is another one now."""


def read_run(folder: Path) -> Record | None:
    """Return what run.json of a folder holds, or None if there is no such file.

    Raises
    ------
    UserError
        If it is something else.
    """
    path = folder / run_folders.RUN
    if not path.is_file():
        return None
    try:
        record: Record | None = files.parse(path.read_bytes())
        if record is None:
            raise UserError("not JSON")
        check_record(record)
    except GuestChangedError as error:
        raise UserError(f"{path}: {error}") from None
    except UserError as error:
        raise UserError(
            f"{path}: expected the record of a run, found another or a damaged file "
            f"({str(error)[:200]}); remove {folder} and run again"
        ) from None
    return record


def backbone_of(run: Path) -> str:
    """Return the language model that a finished run began with.

    Raises
    ------
    UserError
        If its model has none.
    """
    stored = finished_run(run)["settings"]
    if "backbone" not in stored:
        raise UserError(
            f"init_from: {run.name} is a run of {stored['model']}, which has no "
            "backbone; give a run of a model that has one"
        )
    backbone: str = stored["backbone"]
    return backbone


def finished_run(folder: Path) -> Record:
    """Return run.json of a run that has come to its end.

    Raises
    ------
    UserError
        For any other.
    """
    record = read_run(folder)
    if record is None or record["status"] != "finished":
        raise UserError(f"{folder} is not a finished run; go on with it by --resume={folder.name}")
    return record


def check_record(record: Any) -> None:
    """Raise UserError, without the file's name, unless this is what a run stores.

    Settings that came after the run was stored are added, see LATER.
    """
    _check("", record, {"status": str, "settings": {str: None}, "data": str})
    _check_scalars("", record)
    status, settings = record["status"], record["settings"]
    if status not in STATUSES:
        raise UserError(f"status: expected {', '.join(STATUSES)}, found {_shown(status)}")
    _check_settings("settings", settings)
    for number, other in enumerate(_optional(record, "joint", list, [])):
        _check(f"joint.{number}", other, {"settings": {str: None}, "data": str})
        _check_settings(f"joint.{number}.settings", other["settings"])
    for part, outcome in _optional(record, "parts", dict, {}).items():
        _check(f"parts.{part}", outcome, PART)
    costs = {str: {str: {str: NUMBER}}}  # forecast and bill: part, what is counted
    _check("summaries", _optional(record, "summaries", dict, {}), costs)
    if "versions" in record:
        _check("versions", record["versions"], {str: str})
    if "routes" in record:
        _check("routes", record["routes"], ROUTES)
        _optional(record["routes"], "weights", str, None, "routes.")  # an earlier version has none
        for user, served_by in record["routes"]["cohorts"].items():
            if len(served_by) != 2:
                raise UserError(f"routes.cohorts.{user}: expected a cohort and its adapter")
    if status == "finished":
        _check_row(record)


def _check_row(record: Record) -> None:
    _check("", record, {"row": dict})
    row = record["row"]
    if "routes" in record:  # of adapters, which are measured as runs of their own
        _check("row", row, {"run": str})
        return
    _check("row", row, ROW)
    if "step" in row:  # weights that were kept on the way, of which no part is measured
        _check("row", row, {"step": int, "split": {"mode": (str, dict)}})
        return
    part = row.get("part", "test")
    if part not in ("test", "valid"):
        raise UserError(f"row.part: expected test or valid, found {part!r}")
    measured = {one for one in ("test", "valid") if one in row} | {part}
    _check("row", row, dict.fromkeys(measured, {str: NUMBER}))
    _check("row.split", row["split"], {"mode": (str, dict)})
    for key in ("evaluation", "candidates"):
        _optional(row, key, dict, {}, "row.")


def _optional(
    content: Mapping[str, Any], key: str, kind: type, default: Any, where: str = ""
) -> Any:
    value = content.get(key)
    if value is None:
        return default
    _check(where + key, value, kind)
    return value


def _check(where: str, value: Any, kind: Kind) -> None:
    """Raise UserError unless a value is of a kind."""
    if isinstance(kind, list):
        _check(where, value, list)
        for number, one in enumerate(value):
            _check(f"{where}.{number}", one, kind[0])
    elif isinstance(kind, dict):
        _check(where, value, dict)
        kinds = dict.fromkeys(value, kind[str]) if str in kind else kind
        for name, inner in kinds.items():
            path = f"{where}.{name}" if where else name
            if name not in value:
                raise UserError(f"{path} is missing")
            if inner is not None:
                _check(path, value[name], inner)
    else:
        alternatives = kind if isinstance(kind, tuple) else (kind,)
        if not any(_is(value, one) for one in alternatives):
            expected = " or ".join(KINDS[one] for one in alternatives)
            raise UserError(f"{where or 'all of it'}: expected {expected}, found {_shown(value)}")


def _is(value: object, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _check_scalars(where: str, content: object) -> None:
    """Raise UserError for what JSON can say and neither a file system nor an array can hold."""
    stack: list[tuple[str, Any]] = [(where, content)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{where}.{key}".lstrip("."), one) for key, one in value.items()]
            stack += [(where, key) for key in value]
        elif isinstance(value, list):
            stack += [(f"{where}.{number}", one) for number, one in enumerate(value)]
        elif isinstance(value, str) and ("\0" in value or not _encodes(value)):
            raise UserError(f"{where}: expected a text, found {_shown(value)}")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{where}: expected a number of 64 bits, found {_shown(value)}")


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_settings(where: str, settings: Settings) -> None:
    """Raise UserError unless these are settings of a run, as `resolve` gives them."""
    _check(where, settings, {"model": str, "dataset": str})
    _check_guest(settings)
    try:
        model = settings["model"]
        if registry.find(model).key != model:
            raise UserError(f"unknown model {model!r}")
        check_name(settings["dataset"])
        default = default_settings(model, settings["dataset"])
        missing = default.keys() - settings.keys()
        settings |= {key: LATER[key] for key in missing & LATER.keys()}
        if others := sorted(default.keys() - settings.keys()):
            raise UserError(f"{', '.join(others[:3])} missing; is it of another version?")
        _check("eval_args", settings["eval_args"], dict.fromkeys(default["eval_args"]))
        _check_values(settings, default)
        check_whole(copy.deepcopy(settings), default)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _check_guest(settings: Settings) -> None:
    """Raise GuestChangedError where a user's own class is not there, or has other settings now."""
    model, dataset = settings["model"], settings["dataset"]
    if ":" not in model:
        return
    try:
        known = default_settings(registry.find(model).key, dataset).keys()
    except UserError as error:
        raise GuestChangedError(f"the class of this run cannot be used: {error}") from None
    missing = sorted(known - settings.keys() - LATER.keys())
    if missing:
        raise GuestChangedError(
            f"{model} has been edited since: it has the settings {', '.join(missing[:3])} now, "
            "which this run has not; put back the class that it was trained by, or train again"
        )


def _check_values(settings: Settings, default: Settings) -> None:
    """Raise UserError for a setting that cannot have its value."""
    for key in REPLACED.keys() & default.keys():  # which nobody can set
        if settings[key] != default[key]:
            raise UserError(f"{key}: expected {default[key]!r}, found {_shown(settings[key])}")
    rules = RULES | rules_of(registry.find(settings["model"]))
    for key, value in settings.items():
        if settings.get("stage") is not None and key in WHOLE:
            continue  # of the run that the stage belongs to, and empty here
        checked(key, value, rules, default.get(key))
        if key not in rules:
            _check_kind(key, value, default.get(key))


def _check_kind(key: str, value: object, default: object) -> None:
    """Raise UserError for a setting without a rule that is nothing like its default."""
    if value is None:
        return
    if default is None:
        fits = True
    elif key in FREE:
        fits = not isinstance(value, dict)
    elif isinstance(default, str) and default:
        fits = isinstance(value, str)
    else:
        fits = all(isinstance(value, kind) == isinstance(default, kind) for kind in (dict, list))
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{key}: expected a value such as {_shown(default)}, found {_shown(value)}")
