"""Several datasets as training data of one model (CALRec's Stage I)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..contracts.cases import Cases
from ..contracts.model_inputs import ModelInputs
from ..data.cases.splits import every_case, make_split
from ..data.reading.tables import Tables
from ..data.sample import locate
from ..data.texts.text import ItemText
from ..errors import UserError
from ..settings.layers import moved

POWER = 0.3  # CALRec, section 3.3: a category is drawn with probability proportional to |U|^0.3


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

    def newest(self, targets: str) -> Cases:
        """Every user's last training case (`one`), or all (`all`), by user and time."""
        return self.cases[
            np.concatenate(self.by_user)
            if targets == "all"
            else np.array([rows[-1] for rows in self.by_user])
        ]


def every_case_once(
    corpus: Corpus, users: Sequence[int], encode: Callable[[int, np.ndarray], tuple[object, int]]
) -> list:
    """Examples by which each training case of some users is learned once, in windows of as many items as fit.

    encode : (row of a case, bool [events] which events are targets) -> (example with the case's target and all events before it that
        fit, how many were cut). Of what fits, the first is not learned: there is nothing to tell it from.
    """
    cases, examples = corpus.cases, []
    learned = np.zeros(len(corpus.tables.item), dtype=bool)
    learned[cases.end] = True
    for user in users:
        done = len(learned)  # every case whose target is at or behind this event is learned
        for row in corpus.by_user[user][::-1]:
            if cases.end[row] < done:
                example, cut = encode(row, learned)
                examples.append(example)
                done = cases.begin[row] + cut + 1
    return examples


def further_datasets(settings: dict, dataset: str) -> list[dict]:
    """Settings of the `datasets` that a run trains on beside its own: their own defaults, with what is set for all.

    Parameters
    ----------
    dataset : name of the run's dataset, or of the sample that replaces it.

    Raises UserError if the run's dataset, which chooses the checkpoint, is not among `datasets`, or is to be read whole.
    """
    own, names = (
        locate.alias(dataset),
        {locate.alias(name): name for name in settings.get("datasets") or []},
    )
    if names and own not in names:
        raise UserError(
            f"datasets: {dataset} chooses the checkpoint (select_on), so it is one of "
            f"the datasets; found {', '.join(names.values())}"
        )
    others = {alias: name for alias, name in names.items() if alias != own}
    if wrong := [name for name in settings.get("whole") or [] if locate.alias(name) not in others]:
        raise UserError(
            "whole: expected some of the datasets that are not tested on "
            f"({', '.join(others.values()) or 'there is none'}), found {wrong[0]}"
        )
    return [
        moved(settings | {"data_name": None}, name) | {"dataset": name} for name in others.values()
    ]


def load_corpora(inputs: ModelInputs, own: Corpus) -> list[Corpus]:
    """What a run trains on, its own dataset first. But of `whole` ones only training parts are read: a test stays unseen whatever learns from the dataset."""
    from ..data.recbole.datasets import load_tables

    corpora = [own]
    for settings in inputs.further_datasets:
        tables, args = load_tables(locate.located(settings)), settings["eval_args"]
        text = ItemText.from_tables(tables, settings["text_fields"], settings["text_words"])
        cases = (
            every_case(tables)
            if is_whole(inputs.settings, settings["dataset"])
            else make_split(tables, args["split"], args["part"]).train
        )
        corpora.append(Corpus(tables, text, cases))
    return corpora


def is_whole(settings: Mapping, dataset: str) -> bool:
    """Whether a run of these settings trains on all events of one of its `datasets`."""
    return locate.alias(dataset) in [locate.alias(name) for name in settings.get("whole") or []]


def draw_users(sizes: Sequence[int], seed: int, epoch: int) -> list[np.ndarray]:
    """Users of each corpus for one epoch: as many in all as there are users, shared out by size^POWER.

    Where a share is larger than its corpus, no user comes twice more often than another.
    """
    if len(sizes) == 1:
        return [np.arange(sizes[0])]
    weight = np.asarray(sizes, dtype=float) ** POWER
    shares = np.round(sum(sizes) * weight / weight.sum()).astype(int)
    drawn = []
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        rng = np.random.default_rng([seed, epoch, number, 2])
        drawn.append(
            np.concatenate([rng.permutation(size) for _ in range(-(-share // size))])[:share]
            if share
            else np.zeros(0, dtype=int)
        )
    return drawn
