"""What is asked of `personalize`: which models, and which groupings of users into cohorts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data.cases.splits import Split
from ...data.reading.tables import Tables
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
HIGH = "low+high"
QUARTILES = "quartiles"


def name_of(model: str) -> str:
    """As the paper calls a model."""
    number, _, kind = model.partition(".")
    return (
        NAMES.get(model)
        or f"{number}. {'Cohorts' if number == '4' else 'Random cohorts'}, {KINDS[kind]}"
    )


def models_of(asked: Sequence) -> list[str]:
    """Models by number, in order, with 2 and 3, which the others are compared with. Raises UserError for one that is not there."""
    known = ["1", "2", "3", *(f"{number}.{kind}" for kind in KINDS for number in (4, 6)), "5", "7"]
    found = {
        {"4": "4.text", "6": "6.text"}.get(str(one).strip(), str(one).strip()) for one in asked
    } | {"2", "3"}
    if wrong := sorted(found - set(known)):
        raise UserError(f"models: expected some of {', '.join(known)}, found {wrong[0]!r}")
    return [one for one in known if one in found]


def groupings_of(asked: Sequence) -> list[str]:
    """Raises UserError for what is no grouping."""
    found = list(dict.fromkeys(str(one).strip() for one in asked))
    wrong = [
        one
        for one in found
        if one != HIGH
        and not (one.removeprefix("low+").isdecimal() and int(one.removeprefix("low+")) > 0)
    ]
    if wrong or not found:
        raise UserError(
            f"cohorts: expected numbers of cohorts such as 5, low+5 or {HIGH}, found "
            f"{(wrong or ['none'])[0]!r}"
        )
    return found


def borders_of(asked: Sequence) -> tuple[int, ...] | None:
    """Borders of the groups by activity; None for quartiles. Raises UserError for what is neither."""
    if [str(one).strip().lower() for one in asked] == [QUARTILES]:
        return None
    whole = all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in asked)
    if not asked or not whole or sorted(set(asked)) != list(asked):
        raise UserError(
            "activity_borders: expected ascending numbers of Future-Test cases such as [5, 10, "
            f"20], or {QUARTILES}, found {asked}"
        )
    return tuple(asked)


def check_low(
    low: np.ndarray, amount: np.ndarray, groupings: Sequence[str], threshold: int
) -> None:
    """Raise UserError where a cohort of low activity would hold everybody, or nobody.

    low : bool [users]. amount : int64 [users], interactions in Continue Train.
    """
    if any(one.startswith("low+") for one in groupings) and (low.all() or not low.any()):
        told = "every user" if low.all() else "no user"
        raise UserError(f"low_activity: {told} has fewer than {threshold} interactions in Continue Train, where the median is "
                        f"{np.median(amount):.0f}; set --low_activity, or leave low+… out of --cohorts")  # fmt: skip


class Grouper:
    """Groups the users of a dataset by what they did in Continue Train.

    part : of the split, with Continue Train's cases. own : the settings of personalize. vectors : of items by their texts, asked for once if at all.
    """

    def __init__(self, tables: Tables, part: Split, own: dict, rating: str, seed: int, vectors):
        self.tables, self.own, self.rating, self.seed, self.make_vectors = (
            tables,
            own,
            rating,
            seed,
            vectors,
        )
        self.rows = np.concatenate([part.train.end, part.valid.end])
        self.amount = activity(tables, self.rows)
        self.low, self.vectors = self.amount < own["low_activity"], None

    def cohorts(self, kind: str, grouping: str) -> Cohorts:
        """Of one kind; a file says itself how many there are."""
        if kind == "file":
            return cohorts.from_file(self.tables, Path(self.own["cohort_file"]))
        if grouping == HIGH:
            return Cohorts(("high activity",), np.where(self.low, -1, 0)).with_low_activity(
                self.low
            )
        count, apart = int(grouping.removeprefix("low+")), grouping.startswith("low+")
        found = self._clustered(
            kind, (self.amount > 0) & ~self.low if apart else self.amount > 0, count
        )
        return found.with_low_activity(self.low) if apart else found

    def _clustered(self, kind: str, users: np.ndarray, count: int) -> Cohorts:
        if kind == "attr":
            return cohorts.by_attributes(
                self.tables, users, self.own["user_columns"], count, self.seed
            )
        if kind == "feat":
            columns, rated = (
                [name for name in self.own["feature_columns"] if name in self.tables.item_table],
                self.rating in self.tables.columns,
            )
            say(
                f"feature cohorts: by columns {', '.join(columns) or '(none)'} of "
                f".item{f' and {self.rating}' if rated else ''}"
            )
            return cohorts.by_features(
                self.tables, self.rows, users, columns, self.rating, count, self.seed
            )
        if self.vectors is None:
            self.vectors = self.make_vectors()
        return cohorts.by_text(
            self.tables, self.rows, users, self.vectors, count, self.own["item_clusters"], self.seed
        )


def able(part: Split, count: int) -> np.ndarray:
    """int64: which of so many users can have an adapter of their own, the most active in Continue Train first."""
    train, valid, test = (
        np.bincount(cases.user, minlength=count) for cases in (part.train, part.valid, part.test)
    )
    users = np.flatnonzero((train > 0) & (valid > 0) & (test > 0))
    return users[np.argsort(-train[users], kind="stable")]


def drawn(
    users: np.ndarray, tests: np.ndarray, most: int, seed: int, borders: Sequence[int] | None
) -> np.ndarray:
    """At most so many of these users (0: all), at most as many of each group by activity, in their order.

    A group that has fewer users than its share is not filled from the others, or the most active groups, which are the
    smallest, would be drowned by the least active one.

    Parameters
    ----------
    users : int64 [n]. tests : int64 [n], Future-Test cases of each of them.
    borders : see `by_activity`.
    """
    if not most or not len(users):
        return users
    groups, order = by_activity(tests, borders), np.random.default_rng([seed, 5])
    order = order.permutation(len(users))
    share, rest = divmod(most, len(groups.names))
    chosen = []
    # what the groups' number does not divide goes to those that have users
    for number in np.unique(groups.of):
        chosen.append(order[groups.of[order] == number][: share + (rest > 0)])
        rest -= 1
    return users[np.sort(np.concatenate(chosen))]
