"""Cohorts of users: by activity, by what they met, by the features of their actions, by attributes, at random, or from a file.

Of the events only those of Continue Train are read, so that no test can decide who belongs where.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...data.reading.tables import Tables
from ...errors import UserError

LOW = "low activity"
VALUES = 20  # of a column, the most frequent ones that are told apart


@dataclass(frozen=True)
class Cohorts:
    """Disjoint groups of users.

    names : of the cohorts. of : int64 [n_users], whose cohort is which, -1 for none. space : float64 [n_users, features], what was clustered, and nan
        for users that were not; None where nothing was.
    """

    names: tuple[str, ...]
    of: np.ndarray
    space: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """int64 [cohorts]"""
        return np.bincount(self.of[self.of >= 0], minlength=len(self.names))

    def silhouettes(self) -> dict[str, float]:
        """Mean silhouette of each cohort that was clustered, and over all of them as `all`. Empty where there are fewer than two."""
        from sklearn.metrics import silhouette_samples

        if self.space is None:
            return {}
        clustered = (self.of >= 0) & ~np.isnan(self.space).any(axis=1)
        found = np.unique(self.of[clustered])
        if len(found) < 2 or len(found) >= clustered.sum():
            return {}
        values = silhouette_samples(self.space[clustered], self.of[clustered])
        return {
            self.names[one]: float(values[self.of[clustered] == one].mean()) for one in found
        } | {"all": float(values.mean())}

    def with_low_activity(self, low: np.ndarray) -> "Cohorts":
        """With the users of a mask, bool [n_users], in a first cohort of their own."""
        return replace(
            self,
            names=(LOW, *self.names),
            of=np.where(low, 0, np.where(self.of < 0, -1, self.of + 1)),
        )


def kmeans(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """int64 [points]: clusters, numbered from the largest on."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(points, axis=0))
    if distinct < count:
        raise UserError(
            f"cohorts: expected at least {count} different users or items to cluster, found "
            f"{distinct}; ask for fewer cohorts"
        )
    found = KMeans(count, n_init=10, random_state=seed).fit_predict(points)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    return np.argsort(order)[found]


def _over(
    users: np.ndarray, found: np.ndarray, points: np.ndarray, count: int, name: str
) -> Cohorts:
    """Cohorts from clusters of some users, bool [n_users], and the points that were clustered."""
    of, space = np.full(len(users), -1), np.full((len(users), points.shape[1]), np.nan)
    of[users], space[users] = found, points
    return Cohorts(tuple(f"{name} {number + 1}" for number in range(count)), of, space)


def activity(tables: Tables, rows: np.ndarray) -> np.ndarray:
    """int64 [n_users]: how many of these events are each user's."""
    return np.bincount(tables.user[rows], minlength=len(tables.users))


def by_text(
    tables: Tables,
    rows: np.ndarray,
    users: np.ndarray,
    vectors: np.ndarray,
    count: int,
    item_clusters: int,
    seed: int,
) -> Cohorts:
    """Text Embed: clusters of items by their texts, and of users by how often they met each of those.

    Parameters
    ----------
    rows : events of Continue Train. users : bool [n_users], who is clustered. vectors : float [n_items, width], of the items' texts.
    """
    met = np.unique(tables.item[rows])
    met = met[
        np.argsort(tables.items[met].astype(str))
    ]  # items are numbered by when they are first met, which may be in a test
    cluster = np.full(len(tables.items), -1)
    cluster[met] = kmeans(
        vectors[met], min(item_clusters, len(np.unique(vectors[met], axis=0))), seed
    )
    counts = np.zeros((len(tables.users), cluster.max() + 1))
    np.add.at(counts, (tables.user[rows], cluster[tables.item[rows]]), 1)
    return _over(users, kmeans(counts[users], count, seed), counts[users], count, "text")


def by_features(
    tables: Tables,
    rows: np.ndarray,
    users: np.ndarray,
    columns: Sequence[str],
    rating: str | None,
    count: int,
    seed: int,
) -> Cohorts:
    """Features: clusters of actions, and for each user the cluster of most of its actions.

    An action is known by how often its user acts, the user's mean rating, how often its item is met, and for each of `columns` of .item (category,
    brand) the value that its user meets most often. rating : a column of .inter, if there is one.
    """
    own = rows[users[tables.user[rows]]]
    user, item = tables.user[own], tables.item[own]
    amount = activity(tables, rows)
    parts = [
        amount[user][:, None],
        np.bincount(tables.item[rows], minlength=len(tables.items))[item][:, None],
    ]
    if rating in tables.columns and tables.columns[rating].dtype.kind == "f":
        sums = np.bincount(tables.user[rows], tables.columns[rating][rows], len(tables.users))
        parts.append((sums / np.maximum(amount, 1))[user][:, None])
    for column in columns:
        parts.append(_most_frequent(tables, rows, tables.item_table[column].to_numpy())[user])
    points = np.concatenate([_scaled(part.astype(np.float64)) for part in parts], axis=1)
    found, votes = kmeans(points, count, seed), np.zeros((len(tables.users), count))
    np.add.at(votes, (user, found), 1)
    sums = np.zeros((len(tables.users), points.shape[1]))
    np.add.at(sums, user, points)
    means = sums[users] / amount[users][:, None]
    return _over(users, votes[users].argmax(axis=1), means, count, "feature")


def by_attributes(
    tables: Tables, users: np.ndarray, columns: Sequence[str], count: int, seed: int
) -> Cohorts:
    """Clusters of users by columns of .user, numbers or tokens."""
    if tables.user_table is None or not set(columns) <= set(tables.user_types):
        there = (
            "no .user file"
            if tables.user_table is None
            else f"the columns {', '.join(tables.user_types)}"
        )
        raise UserError(
            f"cohorts: expected the columns {', '.join(columns)} of users, found {there}; set "
            "--user_columns, or leave attributes out of --cohorts"
        )
    parts = []
    for name in columns:
        cells = tables.user_table[name].to_numpy()
        numbers = tables.user_types[name] == "float"
        parts.append(
            np.array([float(cell or "nan") for cell in cells])[:, None]
            if numbers
            else _one_hot(cells)
        )
    points = np.concatenate(
        [_scaled(np.nan_to_num(part[users], nan=np.nanmean(part[users]))) for part in parts], axis=1
    )
    return _over(users, kmeans(points, count, seed), points, count, "attribute")


def at_random(like: Cohorts, seed: int) -> Cohorts:
    """The control: cohorts of the same names and sizes, the same Low Activity cohort, all other members drawn."""
    drawn = like.of >= 0
    if LOW in like.names:
        drawn &= like.of != like.names.index(LOW)
    of = like.of.copy()
    of[drawn] = np.random.default_rng([seed, 4]).permutation(of[drawn])
    names = tuple(name if name == LOW else f"random {name}" for name in like.names)
    return Cohorts(names, of)


def from_file(tables: Tables, path: Path) -> Cohorts:
    """Lines `user<TAB>cohort`. Users that are not named are in no cohort, and cohorts of strangers alone are none.

    Raises
    ------
    UserError : for a file without any user of the dataset, or with a user twice.
    """
    try:
        lines = [
            line.split("\t")
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cohorts: {path} cannot be read: {error}") from None
    if wrong := next(
        (number for number, line in enumerate(lines, start=1) if len(line) != 2), None
    ):
        raise UserError(
            f"cohorts: {path}, entry {wrong}: expected a user, a tab and the name of a cohort"
        )
    told = dict(lines)
    if len(told) < len(lines):
        twice = next(user for number, (user, _) in enumerate(lines) if user in dict(lines[:number]))
        raise UserError(
            f"cohorts: {path} names user {twice} more than once; a user belongs to one cohort"
        )
    names = tuple(sorted({told[user] for user in tables.users if user in told}))
    of = np.array([names.index(told[user]) if user in told else -1 for user in tables.users])
    if (of < 0).all():
        raise UserError(
            f"cohorts: {path} names no user of {tables.name}, whose users are such as "
            f"{', '.join(map(str, tables.users[:3]))}"
        )
    return Cohorts(names, of)


def _one_hot(values: np.ndarray) -> np.ndarray:
    """bool [values, at most VALUES]: one column for each of the most frequent ones."""
    known, number, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    often = np.argsort(-counts, kind="stable")[:VALUES]
    return number[:, None] == often


def _most_frequent(tables: Tables, rows: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """bool [n_users, at most VALUES]: the value of an item column that a user meets most often in these events."""
    hot = _one_hot(cells[tables.item[rows]])
    shares = np.zeros((len(tables.users), hot.shape[1]))
    np.add.at(shares, tables.user[rows], hot.astype(np.float64))
    return (np.arange(hot.shape[1]) == shares.argmax(axis=1)[:, None]) & shares.any(axis=1)[:, None]


def _scaled(part: np.ndarray) -> np.ndarray:
    """Columns centred, and their variances together 1, so that a column of many values weighs as much as a number."""
    part = part.astype(np.float64) - part.mean(axis=0)
    return part / np.sqrt(max(part.var(axis=0).sum(), 1e-12))
