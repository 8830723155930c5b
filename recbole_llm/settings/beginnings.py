"""What a language model begins with, and the settings that hold where it begins so."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import run_folders
from .reading import Settings

# Groups of settings: for a language model that begins with random weights, and for one that is
# pretrained.
BEGINNINGS = ("scratch", "pretrained")


def fitting(layers: Sequence[Mapping[str, Any]], begins: str | None) -> list[Settings]:
    """Take the groups of BEGINNINGS out of layers.

    Parameters
    ----------
    layers : sequence of mapping
    begins : str or None
        What the language model begins with; None where there is none.

    Returns
    -------
    list of dict
        Each layer, and behind it its group for a language model that begins so.
    """
    fitted: list[Settings] = []
    for layer in layers:
        fitted.append({key: value for key, value in layer.items() if key not in BEGINNINGS})
        group = layer.get(begins) if begins else None
        fitted.append(copy.deepcopy(group or {}))
    return fitted


def beginning(layers: Sequence[Mapping[str, Any]], later: Sequence[Path] = ()) -> str | None:
    """Say what the language model begins with that the last of some layers name.

    It is that of another run where they start from its weights (`init_from`, `run:<id>`).

    Parameters
    ----------
    layers : sequence of mapping
    later : sequence of Path
        Folders of runs that begin with this one.

    Returns
    -------
    str or None
        One of BEGINNINGS; None where the layers name no language model.

    Raises
    ------
    UserError
        For a run that begins with itself.
    """
    settings: Settings = {}
    for layer in layers:
        settings |= layer
    backbone, init_from = settings.get("backbone"), settings.get("init_from")
    if backbone is None:
        return None
    from .run_record import read_run  # which checks a record by the layers of its model

    saved = Path(str(settings.get("checkpoint_dir") or "saved"))
    run = record = None
    try:
        if init_from:
            run = run_folders.find_run(str(init_from), saved)
        else:
            run = run_folders.backbone_run(str(backbone), saved)
        record = read_run(run) if run else None
    except UserError:  # a run that is not there: who needs it says so
        pass
    if run and record:
        if run.resolve() in later:
            raise UserError(f"{run}/run.json: this run begins with itself; name another one")
        started = {"checkpoint_dir": run.absolute().parent}
        return beginning([record["settings"], started], [*later, run.resolve()])
    return "scratch" if str(backbone).startswith("scratch:") else "pretrained"
