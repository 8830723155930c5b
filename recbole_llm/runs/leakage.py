"""Whether weights have seen what they are to be tested on: in their own run, in the runs it started from, or in datasets learned beside its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..data.cases.splits import Split, make_split
from ..data.reading.tables import Tables
from ..data.recbole.datasets import load_tables
from ..data.sample import locate
from ..errors import UserError
from ..settings import run_record
from ..settings.layers import language_models
from ..storage import run_folders
from ..training.corpora import is_whole

CHANCE = 0.2  # share of the targets that a dataset of another name may seem to hold, because both number their users and items


class Learned(NamedTuple):
    """A dataset that a run learns, or has learned: its settings, and whether by all of its events."""

    run: str
    settings: dict
    whole: bool


def of_run(run: str, settings: dict, joint: Sequence[dict]) -> list[Learned]:
    """What a run of these settings learns; joint: the datasets beside its own, as run.json has them."""
    return [
        Learned(run, one, is_whole(settings, one["dataset"]))
        for one in (settings, *(other["settings"] for other in joint))
    ]


def of_starts(folders: Sequence[Path], later: Sequence[Path] = ()) -> list[Learned]:
    """What these runs have learned, and those that they started from.

    Parameters
    ----------
    later : folders of the runs that started from these.

    Raises
    ------
    UserError : for a run that starts from itself, also by way of others.
    """
    found = []
    for folder in folders:
        if folder.resolve() in later:
            raise UserError(
                f"{folder / run_folders.RUN}: this run begins with itself; name another one"
            )
        done = run_record.finished_run(folder)
        found += of_run(folder.name, done["settings"], done.get("joint", []))
        before = starts(done["settings"], folder.parent)
        found += of_starts(before, [*later, folder.resolve()])
    return found


def starts(settings: dict, saved: Path) -> list[Path]:
    """The runs whose weights a run of these settings begins with, or whose vectors or texts it reads."""
    found = [run_folders.find_run(settings["init_from"], saved)] if settings["init_from"] else []
    return found + [
        run
        for name in language_models(settings).values()
        if (run := run_folders.backbone_run(name, saved))
    ]


def refuse(
    learned: Sequence[Learned], tables: Tables, split: Split, settings: dict, parts: Sequence[str]
) -> None:
    """Raise UserError if targets of these parts of a dataset, loaded and split by its settings, were learned."""
    for one in learned:
        same = _name(one.settings) == _name(settings)
        try:
            old = load_tables(locate.located(one.settings | {"data_path": settings["data_path"]}))
        except UserError:
            if same:
                raise
            continue  # a dataset of another name that is not here to be looked at
        rule = one.settings["eval_args"]
        if (
            same
            and not one.whole
            and old.fingerprint == tables.fingerprint
            and all(rule[key] == settings["eval_args"][key] for key in ("split", "part"))
        ):
            continue
        rows = (
            np.arange(len(old.item))
            if one.whole
            else make_split(old, rule["split"], rule["part"]).train_events.nonzero()[0]
        )
        timed = (
            old.has_time
            and tables.has_time
            and one.settings["TIME_FIELD"] == settings["TIME_FIELD"]
        )
        there = _events(old, rows, timed)
        who = one.run if same else f"{one.run} learns {one.settings['dataset']}, and"
        way = "all of its events" if one.whole else f"the split {rule['split']}"
        for part in parts:
            seen = _events(tables, getattr(split, part).end, timed).isin(there)
            if seen.mean() > (0 if same else CHANCE):
                raise UserError(
                    f"{who} was trained on {int(seen.sum())} of the {len(seen)} {part} targets, by "
                    f"{way}; keep its split and filters, or train on the new one"
                )


def _name(settings: dict) -> str:
    return settings["data_name"] or locate.alias(settings["dataset"])


def _events(tables: Tables, rows: np.ndarray, timed: bool) -> pd.MultiIndex:
    """Events by user, item and time; without times on both sides, by how often the user had met the item before."""
    users, items = tables.users[tables.user[rows]], tables.items[tables.item[rows]]
    met = (
        pd.DataFrame({"user": tables.user, "item": tables.item})
        .groupby(["user", "item"])
        .cumcount()
        .to_numpy()
    )
    return pd.MultiIndex.from_arrays([users, items, tables.time[rows] if timed else met[rows]])
