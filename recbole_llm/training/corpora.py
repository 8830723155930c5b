"""Several datasets as training data of one model (CALRec's Stage I)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..contracts.cases import Cases
from ..contracts.interactions import Interactions
from ..contracts.model_inputs import ModelInputs
from ..data.cases.splits import every_case, make_split
from ..data.sample import locate
from ..data.texts.text import ItemText
from ..errors import UserError
from ..settings.layers import moved
from ..storage.arrays import GrowingArray, index_type, ranges


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
    def by_user(self) -> "CasesByUser":
        """The rows of `cases` of each user that has any, by time."""
        return CasesByUser(self.cases)

    @cached_property
    def spans(self) -> np.ndarray:
        """First and last event of all training cases of each user, int64 [users, 2].

        Users are those of `by_user`. Last events ascend, since events are sorted by user.
        """
        everybody = np.arange(len(self.by_user))
        begin = self.cases.begin[self.by_user.rows(everybody)]
        first = np.minimum.reduceat(begin, self.by_user.bounds[:-1]) if len(begin) else begin
        return np.stack([first, self.cases.end[self.by_user.last(everybody)]], axis=1)

    @cached_property
    def learned(self) -> np.ndarray:
        """Whether each event is the target of a training case, bool [events]."""
        learned = np.zeros(len(self.interactions.item), dtype=bool)
        learned[self.cases.end] = True
        return learned

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
        return self.cases[self.newest_rows(targets)]

    def newest_rows(self, targets: str) -> np.ndarray:
        """Select the rows of training cases, int64, see `newest`."""
        everybody = np.arange(len(self.by_user))
        return self.by_user.rows(everybody) if targets == "all" else self.by_user.last(everybody)


class CasesByUser(Sequence):
    """The rows of some cases, grouped by user.

    Users are numbered from 0 in the order of the dataset; those without a case have no number.

    Parameters
    ----------
    cases : Cases
        The cases, in any order.

    Attributes
    ----------
    bounds : ndarray of int64 [users + 1]
        User u has the places bounds[u] : bounds[u + 1] in the order of users and times.
    """

    def __init__(self, cases: Cases):
        # events are sorted by user, so that the order of targets is that of users and times
        end = cases.end
        sorted_already = bool((end[1:] >= end[:-1]).all())
        self._order = None if sorted_already else np.argsort(end, kind="stable")
        user = cases.user if self._order is None else cases.user[self._order]
        changes = np.flatnonzero(user[1:] != user[:-1]) + 1
        self.bounds = np.concatenate([[0], changes, [len(end)]] if len(end) else [[0]])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, user):
        user = range(len(self))[user]  # which raises IndexError behind the end
        return self.at(np.arange(self.bounds[user], self.bounds[user + 1]))

    def at(self, places: np.ndarray) -> np.ndarray:
        """Look up the rows at places in the order of users and times, int64."""
        return places if self._order is None else self._order[places]

    def rows(self, users: np.ndarray) -> np.ndarray:
        """List all rows of some users, user after user, int64."""
        return self.at(ranges(self.bounds[users], self.bounds[users + 1]))

    def last(self, users: np.ndarray) -> np.ndarray:
        """List the last row of each of some users, int64."""
        return self.at(self.bounds[users + 1] - 1)

    def one_of_each(
        self, users: np.ndarray, rng: np.random.Generator, newest: int | None = None
    ) -> np.ndarray:
        """Draw a row of each of some users.

        Parameters
        ----------
        users : ndarray of int
            The users; one that occurs twice is drawn for twice.
        rng : Generator
            Source of randomness.
        newest : int, optional
            Draw from so many last rows of a user; from all of them where None.

        Returns
        -------
        ndarray of int64 [users]
            The rows.
        """
        counts = self.bounds[users + 1] - self.bounds[users]
        if newest is not None:
            counts = np.minimum(counts, newest)
        back = rng.integers(counts) if len(counts) else counts
        return self.at(self.bounds[users + 1] - 1 - back)


class LazyExamples(Sequence):
    """The examples of an epoch, each made when it is read.

    An example has random numbers of its own, so that it does not depend on those read before.

    Parameters
    ----------
    rows : sequence of ndarray of int64
        For each corpus what its examples are made from: rows of cases, or items.
    make : callable
        (number of the corpus, row, source of randomness) -> example.
    seed : sequence of int
        Numbers that decide the randomness: the seed of the run, and the number of the epoch.
    """

    def __init__(
        self,
        rows: Sequence[np.ndarray],
        make: Callable[[int, int, np.random.Generator], Any],
        seed: Sequence[int],
    ):
        self.rows, self.make, self.seed = rows, make, seed
        self.bounds = np.cumsum([0, *map(len, rows)])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # which raises IndexError behind the end
        number = int(np.searchsorted(self.bounds, place, side="right")) - 1
        within = int(place - self.bounds[number])
        rng = np.random.default_rng([*self.seed, number, within])
        return self.make(number, int(self.rows[number][within]), rng)


USERS_AT_ONCE = 2**17  # users whose windows are planned together, in arrays of their events


class Windows:
    """Windows of the users' interactions that cover each training case once.

    A window is a case with as many items of its history as fit. Its first item is not learned,
    because nothing precedes it.

    Parameters
    ----------
    corpus : Corpus
        The dataset.
    sizes : ndarray of int [items]
        What each item takes of a window.
    room : callable
        Targets, as item numbers int [n] -> what the histories before them may take, int [n]. A
        window holds at least one item.

    Attributes
    ----------
    rows : ndarray of int [windows]
        The cases that the windows are made from, user after user, each user's newest first.
    bounds : ndarray of int64 [users + 1]
        The windows of user u are rows[bounds[u] : bounds[u + 1]].
    """

    def __init__(self, corpus: Corpus, sizes: np.ndarray, room: Callable[[np.ndarray], np.ndarray]):
        self.corpus, self.sizes, self.room = corpus, np.asarray(sizes, dtype=np.int64), room
        counts = [np.zeros(1, dtype=np.int64)]
        planned = GrowingArray(index_type(len(corpus.cases)), corpus.interactions.folder)
        for first in range(0, len(corpus.by_user), USERS_AT_ONCE):
            rows, count = self._plan(np.arange(len(corpus.by_user))[first : first + USERS_AT_ONCE])
            planned.append(rows)
            counts.append(count)
        self.rows = planned.array()
        self.bounds = np.cumsum(np.concatenate(counts))

    def of(self, users: np.ndarray) -> np.ndarray:
        """List the windows of some users, as rows of cases."""
        return self.rows[ranges(self.bounds[users], self.bounds[users + 1])]

    def _plan(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Plan the windows of neighbouring users; their rows, and how many each user has."""
        by_user, cases = self.corpus.by_user, self.corpus.cases
        begin, end = by_user.bounds[users[0]], by_user.bounds[users[-1] + 1]
        order = by_user.at(np.arange(begin, end))
        targets, histories = cases.end[order], cases.begin[order]
        first, last = histories.min(), targets.max() + 1
        items = self.corpus.interactions.item[first:last]
        taken = np.concatenate([[0], np.cumsum(self.sizes[items])])  # by the events before each
        lowest = by_user.bounds[users] - begin
        place = by_user.bounds[users + 1] - begin - 1  # in `order`, of each user's current window
        active = np.arange(len(users))
        found, owners = [], []
        while len(active):
            found.append(place)
            owners.append(active)
            target, history = targets[place] - first, histories[place] - first
            least = taken[target] - self.room(items[target])
            oldest = np.searchsorted(taken, least)  # event of the history that fits
            oldest = np.maximum(np.minimum(oldest, target - 1), history)
            # targets up to the oldest event are still to be covered
            place = np.searchsorted(targets, oldest + first, side="right") - 1
            goes_on = place >= lowest[active]
            active, place = active[goes_on], place[goes_on]
        owner = np.concatenate(owners)
        by_owner = np.argsort(owner, kind="stable")
        return order[np.concatenate(found)[by_owner]], np.bincount(owner, minlength=len(users))


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


def drawn_users(
    corpora: Sequence[Corpus], settings: Mapping[str, Any], epoch: int
) -> list[np.ndarray]:
    """Sample the users of each corpus by the settings of a run, see `draw_users`."""
    sizes = [len(corpus.by_user) for corpus in corpora]
    return draw_users(sizes, settings["seed"], epoch, settings["mixture_exponent"])


def chosen_cases(
    corpora: Sequence[Corpus],
    samples: Sequence[np.ndarray],
    settings: Mapping[str, Any],
    epoch: int,
) -> list[np.ndarray]:
    """Choose the training cases of an epoch.

    Parameters
    ----------
    corpora : sequence of Corpus
        The datasets.
    samples : sequence of ndarray of int
        The users of each, as numbers of its `by_user`.
    settings : mapping
        With `targets: all`, every case of each user is chosen, otherwise one.
    epoch : int
        Number of the epoch, which decides the sample.

    Returns
    -------
    list of ndarray of int64
        Rows of the cases of each corpus, user after user.
    """
    if settings["targets"] != "all":
        return one_case_each(corpora, samples, settings["seed"], epoch)
    return [corpus.by_user.rows(users) for corpus, users in zip(corpora, samples, strict=True)]


def one_case_each(
    corpora: Sequence[Corpus],
    samples: Sequence[np.ndarray],
    seed: int,
    epoch: int,
    newest: int | None = None,
) -> list[np.ndarray]:
    """Draw a training case of each sampled user of each corpus, see `CasesByUser.one_of_each`."""
    rows = []
    for number, (corpus, users) in enumerate(zip(corpora, samples, strict=True)):
        rng = np.random.default_rng([seed, epoch, number])
        rows.append(corpus.by_user.one_of_each(users, rng, newest))
    return rows


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
