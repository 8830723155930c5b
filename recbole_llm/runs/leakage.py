"""Whether weights have seen what they are to be tested on.

They may have in their own run, in the runs it started from, or in datasets learned beside its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..contracts.interactions import Interactions
from ..data.cases.splits import Split, make_split
from ..data.sample import locate
from ..errors import UserError
from ..settings import run_record
from ..settings.layers import language_models
from ..storage import run_folders
from ..training.corpora import is_whole

CHANCE = 0.2
"""Share of the targets that a dataset of another name may seem to hold: both number their users and
items."""


class Learned(NamedTuple):
    """A dataset that a run learns, or has learned.

    Attributes
    ----------
    run : str
        The run's id.
    settings : mapping
        How the dataset is read and split.
    is_whole : bool
        Whether all of its interactions are learned, and not the training part alone.
    """

    run: str
    settings: Mapping[str, Any]
    is_whole: bool


def of_run(
    run: str, settings: Mapping[str, Any], further: Sequence[Mapping[str, Any]]
) -> list[Learned]:
    """List what a run learns.

    Parameters
    ----------
    run : str
        The run's id.
    settings : mapping
        Its settings.
    further : sequence of mapping
        The datasets beside its own, as `joint` in run.json has them.
    """
    datasets = [settings, *(other["settings"] for other in further)]
    return [Learned(run, one, is_whole(settings, one["dataset"])) for one in datasets]


def of_starts(folders: Sequence[Path], later: Sequence[Path] = ()) -> list[Learned]:
    """List what runs have learned, and the runs that they started from.

    Parameters
    ----------
    folders : sequence of Path
        Folders of finished runs.
    later : sequence of Path
        Folders of the runs that started from these.

    Raises
    ------
    UserError
        For a run that starts from itself, also by way of others.
    """
    learned = []
    for folder in folders:
        if folder.resolve() in later:
            raise UserError(
                f"{folder / run_folders.RUN}: this run begins with itself; name another one"
            )
        done = run_record.finished_run(folder)
        learned += of_run(folder.name, done["settings"], done.get("joint", []))
        before = starts(done["settings"], folder.parent)
        learned += of_starts(before, [*later, folder.resolve()])
    return learned


def starts(settings: Mapping[str, Any], saved: Path) -> list[Path]:
    """List the runs whose weights a run begins with, or whose vectors or texts it reads.

    Parameters
    ----------
    settings : mapping
        The settings of the run.
    saved : Path
        Folder of all runs.
    """
    runs: list[Path] = []
    if settings["init_from"]:
        runs.append(run_folders.find_run(settings["init_from"], saved))
    for name in language_models(settings).values():
        run = run_folders.backbone_run(name, saved)
        if run:
            runs.append(run)
    return runs


def refuse(
    learned: Sequence[Learned],
    interactions: Interactions,
    split: Split,
    settings: Mapping[str, Any],
    parts: Sequence[str],
) -> None:
    """Refuse to test on what was learned.

    Parameters
    ----------
    learned : sequence of Learned
        What the weights have learned.
    interactions : Interactions
        The dataset that is tested on.
    split : Split
        Its cases.
    settings : mapping
        By which it was read and split.
    parts : sequence of str
        The parts, "valid" or "test", whose targets are tested on.

    Raises
    ------
    UserError
        If targets were learned; of a dataset of another name, if more were than by chance.
    """
    from ..data.recbole.datasets import load_interactions  # and torch with it

    for one in learned:
        is_same = _name(one.settings) == _name(settings)
        there = settings["data_path"]
        try:
            old = load_interactions(locate.located({**one.settings, "data_path": there}))
        except UserError:
            if is_same:
                raise
            continue  # a dataset of another name that is not here to be looked at
        if is_same and not one.is_whole and _is_split_alike(one, old, interactions, settings):
            continue
        has_times = (
            old.has_time
            and interactions.has_time
            and one.settings["TIME_FIELD"] == settings["TIME_FIELD"]
        )
        known = _identities(old, _learned_rows(one, old), has_times)
        for part in parts:
            targets = getattr(split, part).end
            seen = _identities(interactions, targets, has_times).isin(known)
            if seen.mean() > (0 if is_same else CHANCE):
                raise _seen(one, is_same, part, int(seen.sum()), len(seen))


def _is_split_alike(
    one: Learned, old: Interactions, interactions: Interactions, settings: Mapping[str, Any]
) -> bool:
    """Whether the training part that was learned is the one of the same split of the same data."""
    rule = one.settings["eval_args"]
    is_same_rule = all(rule[key] == settings["eval_args"][key] for key in ("split", "part"))
    return is_same_rule and old.fingerprint == interactions.fingerprint


def _learned_rows(one: Learned, old: Interactions) -> np.ndarray:
    """Rows of the interactions that were learned."""
    if one.is_whole:
        return np.arange(len(old.item))
    rule = one.settings["eval_args"]
    return make_split(old, rule["split"], rule["part"]).train_events.nonzero()[0]


def _seen(one: Learned, is_same: bool, part: str, seen: int, of: int) -> UserError:
    who = one.run if is_same else f"{one.run} learns {one.settings['dataset']}, and"
    way = f"the split {one.settings['eval_args']['split']}"
    if one.is_whole:
        way = "all of its events"
    return UserError(
        f"{who} was trained on {seen} of the {of} {part} targets, by "
        f"{way}; keep its split and filters, or train on the new one"
    )


def _name(settings: Mapping[str, Any]) -> str:
    name: str = settings["data_name"] or locate.alias(settings["dataset"])
    return name


def _identities(interactions: Interactions, rows: np.ndarray, has_times: bool) -> pd.MultiIndex:
    """User, item and time of interactions.

    Where a dataset has no times, how often the user had met the item before takes their place.
    """
    users = interactions.users[interactions.user[rows]]
    items = interactions.items[interactions.item[rows]]
    if has_times:
        return pd.MultiIndex.from_arrays([users, items, interactions.time[rows]])
    pairs = pd.DataFrame({"user": interactions.user, "item": interactions.item})
    repeats = pairs.groupby(["user", "item"]).cumcount().to_numpy()
    return pd.MultiIndex.from_arrays([users, items, repeats[rows]])
