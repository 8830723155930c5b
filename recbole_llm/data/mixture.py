"""Several datasets as training data of one model (CALRec's Stage I)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import UserError
from .splits import Cases, make_split
from .tables import Tables
from .text import ItemText

POWER = 0.3  # CALRec, section 4.2: a category is drawn with probability proportional to |U|^0.3


@dataclass(frozen=True)
class Corpus:
    """One dataset as a text model trains on it: its events, its item texts and its training cases."""

    tables: Tables
    text: ItemText
    cases: Cases

    @cached_property
    def sentences(self) -> list[str]:
        return [self.text.sentence(item) for item in range(len(self.text))]

    @cached_property
    def by_user(self) -> list[np.ndarray]:
        """Every user's cases by time: row numbers of `cases`."""
        order = np.lexsort([self.cases.end, self.cases.user])
        return np.split(order, np.flatnonzero(np.diff(self.cases.user[order])) + 1)


def load_corpora(config, own: Corpus) -> list[Corpus]:
    """The run's own dataset and, by `datasets`, others with their own default settings.

    Only training parts are read, so that a dataset's test stays unseen whatever is trained on it. Raises UserError
    if the own dataset is not among them.
    """
    from .. import config as settings_module
    from . import samples
    from .dataset import load_tables

    names = config["datasets"]
    if not names:
        return [own]
    if config["dataset"] not in names and samples.SAMPLES.get(config["dataset"]) not in names:
        raise UserError(f"datasets: {config['dataset']} chooses the checkpoint (select_on), so it belongs to the datasets, found {', '.join(names)}")
    corpora = []
    for name in names:
        if samples.SAMPLES.get(name, name) == own.tables.name or name == own.tables.name:
            corpora.append(own)
            continue
        settings = settings_module.moved(dict(config.final_config_dict) | {"data_name": None}, name)
        found, folder = samples.locate(name, config["data_root"])
        other = settings_module.recbole_config(settings | {"dataset": found}, folder.resolve())
        tables = load_tables(other)
        text = ItemText.from_tables(tables, other["text_fields"], other["text_words"])
        args = other["eval_args"]
        corpora.append(Corpus(tables, text, make_split(tables, args["split"], args["part"]).train))
    return corpora


def draw_users(sizes: Sequence[int], seed: int, epoch: int) -> list[np.ndarray]:
    """Users of each corpus for one epoch: as many in all as there are users, shared out by size^POWER.

    A corpus whose share is larger than it is gives every user as often as any other, up to one.
    """
    if len(sizes) == 1:
        return [np.arange(sizes[0])]
    weight = np.asarray(sizes, dtype=float) ** POWER
    shares = np.round(sum(sizes) * weight / weight.sum()).astype(int)
    drawn = []
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        rng = np.random.default_rng([seed, epoch, number, 2])
        drawn.append(np.concatenate([rng.permutation(size) for _ in range(-(-share // size))])[:share] if share else np.zeros(0, dtype=int))
    return drawn
