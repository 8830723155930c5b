"""Several datasets as training data of one model (CALRec's Stage I)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from ..contracts.cases import Cases
from ..contracts.interactions import Interactions
from ..contracts.model_inputs import ModelInputs
from ..data.cases.splits import every_case, make_split
from ..data.sample import locate
from ..data.texts.text import ItemText
from ..errors import UserError
from ..settings.layers import moved

Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class Corpus:
    """One dataset as a text model trains on it.

    Attributes
    ----------
    interactions : Interactions
        The interactions.
    text : ItemText
        The texts of the items.
    cases : Cases
        The training cases.
    """

    interactions: Interactions
    text: ItemText
    cases: Cases

    @cached_property
    def sentences(self) -> list[str]:
        """The text of each item."""
        return [self.text.sentence(item) for item in range(len(self.text))]

    @cached_property
    def by_user(self) -> list[np.ndarray]:
        """The rows of `cases` of each user, int64, by time."""
        order = np.lexsort([self.cases.end, self.cases.user])
        return np.split(order, np.flatnonzero(np.diff(self.cases.user[order])) + 1)

    def newest(self, targets: str) -> Cases:
        """Select training cases, ordered by user and time.

        Parameters
        ----------
        targets : {"one", "all"}
            "one" selects the last case of each user, "all" selects every case.

        Returns
        -------
        Cases
            The selected cases.
        """
        if targets == "all":
            return self.cases[np.concatenate(self.by_user)]
        return self.cases[np.array([rows[-1] for rows in self.by_user])]


def every_case_once(
    corpus: Corpus,
    users: Sequence[int] | np.ndarray,
    encode: Callable[[int, np.ndarray], tuple[Encoded, int]],
) -> list[Encoded]:
    """Make examples that cover each training case of some users once.

    An example is a window of a user's interactions with as many items as fit. Its first item is not
    learned, because nothing precedes it.

    Parameters
    ----------
    corpus : Corpus
        The dataset.
    users : sequence of int
        Indices into `corpus.by_user`.
    encode : callable
        (row of a case, learned) -> (example, cut). `learned` is a bool array [events] that marks
        the targets of all training cases. The example holds the target of the case and the events
        before it that fit, and `cut` is the number of events that do not fit.

    Returns
    -------
    list
        The examples, each user's newest first.
    """
    cases = corpus.cases
    examples = []
    learned = np.zeros(len(corpus.interactions.item), dtype=bool)
    learned[cases.end] = True
    for user in users:
        covered_from = len(learned)  # cases whose target is at or behind this event are covered
        for row in corpus.by_user[user][::-1]:
            if cases.end[row] < covered_from:
                example, cut = encode(row, learned)
                examples.append(example)
                covered_from = cases.begin[row] + cut + 1
    return examples


def further_datasets(settings: Mapping[str, Any], dataset: str) -> list[dict[str, Any]]:
    """Resolve the settings of the other `datasets` that a run trains on.

    Each has the defaults of its dataset, and what the user has set for all datasets.

    Parameters
    ----------
    settings : mapping
        The settings of the run.
    dataset : str
        Name of the run's dataset, or of the sample that replaces it.

    Raises
    ------
    UserError
        If the run's dataset, which chooses the checkpoint, is not among `datasets`, or if it is
        among those of `whole`.
    """
    names = {locate.alias(name): name for name in settings.get("datasets") or []}
    if names and locate.alias(dataset) not in names:
        raise UserError(
            f"datasets: {dataset} chooses the checkpoint (select_on), so it is one of "
            f"the datasets; found {', '.join(names.values())}"
        )
    names.pop(locate.alias(dataset), None)
    for name in settings.get("whole") or []:
        if locate.alias(name) not in names:
            raise UserError(
                "whole: expected some of the datasets that are not tested on "
                f"({', '.join(names.values()) or 'there is none'}), found {name}"
            )
    plain = {**settings, "data_name": None}
    return [moved(plain, name) | {"dataset": name} for name in names.values()]


def load_corpora(inputs: ModelInputs, corpus: Corpus) -> list[Corpus]:
    """Read the datasets that a run trains on.

    Only the training part of a dataset is read, except for the datasets of `whole`: test cases stay
    unseen whatever learns from their dataset.

    Parameters
    ----------
    inputs : ModelInputs
        What the run gives its model.
    corpus : Corpus
        The run's own dataset.

    Returns
    -------
    list of Corpus
        Its own dataset, and then the others.
    """
    from ..data.recbole.datasets import load_interactions

    corpora = [corpus]
    for settings in inputs.further_datasets:
        interactions, args = (
            load_interactions(locate.located(dict(settings))),
            settings["eval_args"],
        )
        text = ItemText.from_interactions(
            interactions, settings["text_fields"], settings["text_words"]
        )
        if is_whole(inputs.settings, settings["dataset"]):
            cases = every_case(interactions)
        else:
            cases = make_split(interactions, args["split"], args["part"]).train
        corpora.append(Corpus(interactions, text, cases))
    return corpora


def is_whole(settings: Mapping, dataset: str) -> bool:
    """Return whether a run trains on all events of one of its `datasets`.

    Parameters
    ----------
    settings : mapping
        The settings of the run.
    dataset : str
        Name of the dataset.

    Returns
    -------
    bool
        Whether the setting `whole` names the dataset.
    """
    return locate.alias(dataset) in [locate.alias(name) for name in settings.get("whole") or []]


def draw_users(sizes: Sequence[int], seed: int, epoch: int, exponent: float) -> list[np.ndarray]:
    """Sample the users of each corpus that an epoch trains on.

    There are as many samples as users in all corpora together. A corpus gets a share of them
    proportional to its size to the power of `exponent`: CALRec's is 0.3 (section 3.3), and with 1
    each user occurs once. Where the share is larger than the corpus, the numbers of times that two
    users occur differ by one at most.

    Parameters
    ----------
    sizes : sequence of int
        Number of users of each corpus.
    seed : int
        Seed of the run.
    epoch : int
        Number of the epoch.
    exponent : float
        The setting `mixture_exponent`.

    Returns
    -------
    list of ndarray of int64
        Indices of users, for each corpus; all users in their order where there is one corpus.
    """
    if len(sizes) == 1:
        return [np.arange(sizes[0])]
    weight = np.asarray(sizes, dtype=float) ** exponent
    shares = np.round(sum(sizes) * weight / weight.sum()).astype(int)
    samples = []
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        rng = np.random.default_rng([seed, epoch, number, 2])
        rounds = [rng.permutation(size) for _ in range(-(-share // size))]
        samples.append(np.concatenate(rounds)[:share] if rounds else np.zeros(0, dtype=int))
    return samples
