"""The models that `personalize` compares, and how it groups users into cohorts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...contracts.interactions import Interactions
from ...data.cases.splits import Split
from ...errors import UserError
from ...storage.screen import say
from . import cohorts
from .cohorts import Cohorts, activity
from .outcomes import by_activity

KINDS = {"text": "text embed", "feat": "features", "attr": "user attributes", "file": "own file"}
NAMES = {
    "1": "1. Very Low",
    "2": "2. Low",
    "3": "3. Low-Full",
    "5": "5. Users",
    "7": "7. Frequent users",
}
ALIASES = {"4": "4.text", "6": "6.text"}
BASELINES = ("2", "3")  # the other models are compared with these
HIGH = "low+high"
QUARTILES = "quartiles"


def name_of(model: str) -> str:
    """Return the paper's name of a model, such as `4. Cohorts, features` for `4.feat`."""
    if model in NAMES:
        return NAMES[model]
    number, _, kind = model.partition(".")
    return f"{number}. {'Cohorts' if number == '4' else 'Random cohorts'}, {KINDS[kind]}"


def models_of(values: Sequence) -> list[str]:
    """Parse the setting `models`.

    Parameters
    ----------
    values : sequence
        Numbers of models; 4 and 6 with their kind of cohorts, such as `4.feat`.

    Returns
    -------
    list of str
        The models in order, with `BASELINES`.

    Raises
    ------
    UserError
        If a model is unknown.
    """
    known = ["1", "2", "3"]
    for kind in KINDS:
        known += [f"4.{kind}", f"6.{kind}"]
    known += ["5", "7"]
    spellings = [str(model).strip() for model in values]
    chosen = {ALIASES.get(spelling, spelling) for spelling in spellings} | {*BASELINES}
    unknown = sorted(chosen - set(known))
    if unknown:
        raise UserError(f"models: expected some of {', '.join(known)}, found {unknown[0]!r}")
    return [model for model in known if model in chosen]


def groupings_of(values: Sequence) -> list[str]:
    """Parse the setting `cohorts`.

    Parameters
    ----------
    values : sequence
        Numbers of cohorts, such as `5`. `low+5` has users of low activity in a further cohort, and
        `low+high` has only the cohorts of low and of high activity.

    Returns
    -------
    list of str
        The groupings, each once.

    Raises
    ------
    UserError
        If there is none, or one is malformed.
    """
    groupings = list(dict.fromkeys(str(grouping).strip() for grouping in values))
    wrong = [grouping for grouping in groupings if not _is_grouping(grouping)]
    if wrong or not groupings:
        raise UserError(
            f"cohorts: expected numbers of cohorts such as 5, low+5 or {HIGH}, found "
            f"{(wrong or ['none'])[0]!r}"
        )
    return groupings


def _is_grouping(grouping: str) -> bool:
    count = grouping.removeprefix("low+")
    return grouping == HIGH or (count.isdecimal() and int(count) > 0)


def borders_of(values: Sequence) -> tuple[int, ...] | None:
    """Parse the setting `activity_borders`.

    Parameters
    ----------
    values : sequence
        The largest number of Future-Test cases in each group but the last, or `quartiles`.

    Returns
    -------
    tuple of int, or None
        The borders; None for quartiles.

    Raises
    ------
    UserError
        If it is neither.
    """
    if [str(border).strip().lower() for border in values] == [QUARTILES]:
        return None
    # True is an int, but no border
    numbers = all(isinstance(border, int) and not isinstance(border, bool) for border in values)
    positive = numbers and all(border > 0 for border in values)
    if not values or not positive or sorted(set(values)) != list(values):
        raise UserError(
            "activity_borders: expected ascending numbers of Future-Test cases such as [5, 10, "
            f"20], or {QUARTILES}, found {values}"
        )
    return tuple(values)


def check_low(
    low: np.ndarray, amount: np.ndarray, groupings: Sequence[str], threshold: int
) -> None:
    """Check that a cohort of low activity would have some users, but not all.

    Parameters
    ----------
    low : ndarray of bool [users]
        Users of low activity.
    amount : ndarray of int64 [users]
        Interactions in Continue Train.
    groupings : sequence of str
        The groupings.
    threshold : int
        The setting `low_activity`.

    Raises
    ------
    UserError
        If a grouping needs the cohort, and it would have no user or every user.
    """
    if any(grouping.startswith("low+") for grouping in groupings) and (low.all() or not low.any()):
        who = "every user" if low.all() else "no user"
        raise UserError(
            f"low_activity: {who} has fewer than {threshold} interactions in Continue Train, where "
            f"the median is {np.median(amount):.0f}; set --low_activity, or leave low+… out of "
            "--cohorts"
        )


class Grouper:
    """Groups the users of a dataset by their events in Continue Train.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    part : Split
        The cases of Continue Train and Future-Test.
    options : dict
        The settings of properties/personalize.yaml.
    rating : str
        Column of the .inter file with ratings.
    seed : int
        Seed of k-means.
    vectors : callable
        Computes the vectors of the items' texts, float [n_items, width]. It is called once, and
        only for cohorts by text.

    Attributes
    ----------
    amount : ndarray of int64 [n_users]
        Interactions of each user in Continue Train.
    low : ndarray of bool [n_users]
        Users of low activity.
    """

    def __init__(
        self,
        interactions: Interactions,
        part: Split,
        options: dict,
        rating: str,
        seed: int,
        vectors: Callable[[], np.ndarray],
    ):
        self.interactions, self.options, self.rating, self.seed = (
            interactions,
            options,
            rating,
            seed,
        )
        self.make_vectors = vectors
        self.vectors: np.ndarray | None = None
        self.rows = np.concatenate([part.train.end, part.valid.end])
        self.amount = activity(interactions, self.rows)
        self.low = self.amount < options["low_activity"]

    def cohorts(self, kind: str, grouping: str) -> Cohorts:
        """Group the users.

        Parameters
        ----------
        kind : str
            One of `KINDS`.
        grouping : str
            As `groupings_of` returns it. It is ignored for cohorts from a file.

        Returns
        -------
        Cohorts
            The cohorts.
        """
        if kind == "file":
            return cohorts.from_file(self.interactions, Path(self.options["cohort_file"]))
        if grouping == HIGH:
            high = Cohorts(("high activity",), np.where(self.low, -1, 0))
            return high.with_low_activity(self.low)
        users = self.amount > 0
        if not grouping.startswith("low+"):
            return self._clustered(kind, users, int(grouping))
        count = int(grouping.removeprefix("low+"))
        return self._clustered(kind, users & ~self.low, count).with_low_activity(self.low)

    def _clustered(self, kind: str, users: np.ndarray, count: int) -> Cohorts:
        """Cluster some users, bool [n_users], into so many cohorts."""
        interactions, rows, seed = self.interactions, self.rows, self.seed
        if kind == "attr":
            return cohorts.by_attributes(
                interactions, users, self.options["user_columns"], count, seed
            )
        if kind == "feat":
            columns = [
                name for name in self.options["feature_columns"] if name in interactions.item_table
            ]
            rating = f" and {self.rating}" if self.rating in interactions.columns else ""
            listed = ", ".join(columns) or "(none)"
            say(f"feature cohorts: by columns {listed} of .item{rating}")
            return cohorts.by_features(interactions, rows, users, columns, self.rating, count, seed)
        if self.vectors is None:
            self.vectors = self.make_vectors()
        item_clusters = self.options["item_clusters"]
        return cohorts.by_text(interactions, rows, users, self.vectors, count, item_clusters, seed)


def eligible_users(part: Split, count: int) -> np.ndarray:
    """List the users who can have an adapter of their own.

    Parameters
    ----------
    part : Split
        The cases of Continue Train and Future-Test. An adapter needs a training, a validation and a
        test case.
    count : int
        Number of users.

    Returns
    -------
    ndarray of int64
        Users, those with the most training cases first.
    """
    train = np.bincount(part.train.user, minlength=count)
    valid = np.bincount(part.valid.user, minlength=count)
    test = np.bincount(part.test.user, minlength=count)
    users = np.flatnonzero((train > 0) & (valid > 0) & (test > 0))
    return users[np.argsort(-train[users], kind="stable")]


def sample_users(
    users: np.ndarray, tests: np.ndarray, most: int, seed: int, borders: Sequence[int] | None
) -> np.ndarray:
    """Sample users, equally many of each group by activity.

    A group with fewer users than its share is not filled up from the others. Otherwise the least
    active group, the largest, would outweigh the most active ones.

    Parameters
    ----------
    users : ndarray of int64 [n]
        The users.
    tests : ndarray of int64 [n]
        Their numbers of Future-Test cases.
    most : int
        Largest number of users; 0 means all.
    seed : int
        Seed of the sample.
    borders : sequence of int, or None
        Borders of the groups, see `by_activity`.

    Returns
    -------
    ndarray of int64
        The sample, in the order of `users`.
    """
    if not most or not len(users):
        return users
    groups = by_activity(tests, borders)
    order = np.random.default_rng([seed, 5]).permutation(len(users))
    share, rest = divmod(most, len(groups.names))
    sample = []
    # the remainder of the division goes to the first groups with users, one user each
    for number in np.unique(groups.of):
        of_group = order[groups.of[order] == number]
        sample.append(of_group[: share + (rest > 0)])
        rest -= 1
    return users[np.sort(np.concatenate(sample))]
