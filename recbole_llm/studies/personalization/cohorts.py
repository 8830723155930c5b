"""Cohorts of users: from texts, actions, attributes, at random, or from a file.

Only events of Continue Train are read, so that no test case can influence the cohorts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...contracts.interactions import Interactions
from ...errors import UserError

LOW = "low activity"
VALUES = 20  # number of a column's most frequent values that are distinguished


@dataclass(frozen=True)
class Cohorts:
    """Disjoint groups of users.

    Attributes
    ----------
    names : tuple of str
        Names of the cohorts.
    of : ndarray of int64 [n_users]
        Cohort of each user, -1 for none.
    space : ndarray of float64 [n_users, features], or None
        The points that were clustered, nan for other users; None if nothing was clustered.
    """

    names: tuple[str, ...]
    of: np.ndarray
    space: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """Number of users in each cohort, int64 [cohorts]."""
        return np.bincount(self.of[self.of >= 0], minlength=len(self.names))

    def silhouettes(self) -> dict[str, float]:
        """Compute the mean silhouette of each cohort that was clustered.

        Returns
        -------
        dict of str to float
            Cohort -> its mean silhouette, and `all` -> the mean over all users. Empty if there are
            fewer than two cohorts.
        """
        from sklearn.metrics import silhouette_samples

        if self.space is None:
            return {}
        clustered = (self.of >= 0) & ~np.isnan(self.space).any(axis=1)
        cohort = self.of[clustered]
        present = np.unique(cohort)
        if len(present) < 2 or len(present) >= len(cohort):
            return {}
        values = silhouette_samples(self.space[clustered], cohort)
        result = {self.names[one]: float(values[cohort == one].mean()) for one in present}
        return result | {"all": float(values.mean())}

    def with_low_activity(self, low: np.ndarray) -> "Cohorts":
        """Put some users into a cohort of low activity, before the others.

        Parameters
        ----------
        low : ndarray of bool [n_users]
            These users.

        Returns
        -------
        Cohorts
            The new cohorts.
        """
        shifted = np.where(self.of < 0, -1, self.of + 1)
        return replace(self, names=(LOW, *self.names), of=np.where(low, 0, shifted))


def kmeans(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Cluster points by k-means.

    Parameters
    ----------
    points : ndarray of float [n, features]
        The points.
    count : int
        Number of clusters.
    seed : int
        Seed of the initial centres.

    Returns
    -------
    ndarray of int64 [n]
        Cluster of each point, numbered by size, the largest first.

    Raises
    ------
    UserError
        If there are fewer distinct points than clusters.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(points, axis=0))
    if distinct < count:
        raise UserError(
            f"cohorts: expected at least {count} different users or items to cluster, found "
            f"{distinct}; ask for fewer cohorts"
        )
    labels = KMeans(count, n_init=10, random_state=seed).fit_predict(points)
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    return np.argsort(order)[labels]


def _cohorts_of_clusters(
    users: np.ndarray, clusters: np.ndarray, points: np.ndarray, count: int, name: str
) -> Cohorts:
    """Cohorts of the clusters of some users.

    Parameters
    ----------
    users : ndarray of bool [n_users]
        The users who were clustered.
    clusters : ndarray of int64 [clustered users]
        Their clusters.
    points : ndarray of float [clustered users, features]
        Their points.
    count : int
        Number of clusters.
    name : str
        First word of the names of the cohorts.
    """
    of, space = np.full(len(users), -1), np.full((len(users), points.shape[1]), np.nan)
    of[users], space[users] = clusters, points
    return Cohorts(tuple(f"{name} {number + 1}" for number in range(count)), of, space)


def activity(interactions: Interactions, rows: np.ndarray) -> np.ndarray:
    """Count the events of each user.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    rows : ndarray of int64
        The events to be counted.

    Returns
    -------
    ndarray of int64 [n_users]
        Number of these events.
    """
    return np.bincount(interactions.user[rows], minlength=len(interactions.users))


def by_text(
    interactions: Interactions,
    rows: np.ndarray,
    users: np.ndarray,
    vectors: np.ndarray,
    count: int,
    item_clusters: int,
    seed: int,
) -> Cohorts:
    """Cluster users by the texts of their items (Text Embed).

    Items are clustered by the vectors of their texts, and users by their counts of events in each
    cluster of items.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    rows : ndarray of int64
        Events of Continue Train.
    users : ndarray of bool [n_users]
        The users to be clustered.
    vectors : ndarray of float [n_items, width]
        Vectors of the items' texts.
    count : int
        Number of cohorts.
    item_clusters : int
        Number of clusters of items.
    seed : int
        Seed of k-means.

    Returns
    -------
    Cohorts
        Named `text 1`, `text 2`, …
    """
    met = np.unique(interactions.item[rows])
    # items are numbered by their first events, which may be test cases; tokens are independent
    met = met[np.argsort(interactions.items[met].astype(str))]
    distinct = len(np.unique(vectors[met], axis=0))
    cluster = np.full(len(interactions.items), -1)
    cluster[met] = kmeans(vectors[met], min(item_clusters, distinct), seed)
    counts = np.zeros((len(interactions.users), cluster.max() + 1))
    np.add.at(counts, (interactions.user[rows], cluster[interactions.item[rows]]), 1)
    points = counts[users]
    return _cohorts_of_clusters(users, kmeans(points, count, seed), points, count, "text")


def by_features(
    interactions: Interactions,
    rows: np.ndarray,
    users: np.ndarray,
    columns: Sequence[str],
    rating: str | None,
    count: int,
    seed: int,
) -> Cohorts:
    """Cluster users by the features of their events (Features).

    Events are clustered by the number of events and the mean rating of the user, the number of
    events of the item, and the user's most frequent value of each column. A user belongs to the
    cluster of most of the user's events.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    rows : ndarray of int64
        Events of Continue Train.
    users : ndarray of bool [n_users]
        The users to be clustered.
    columns : sequence of str
        Columns of the .item file, such as category and brand.
    rating : str or None
        Column of the .inter file with ratings. It is ignored if the file does not have it.
    count : int
        Number of cohorts.
    seed : int
        Seed of k-means.

    Returns
    -------
    Cohorts
        Named `feature 1`, `feature 2`, …
    """
    clustered = rows[users[interactions.user[rows]]]
    user, item = interactions.user[clustered], interactions.item[clustered]
    user_count = activity(interactions, rows)
    item_count = np.bincount(interactions.item[rows], minlength=len(interactions.items))
    parts = [user_count[user][:, None], item_count[item][:, None]]
    if rating in interactions.columns and interactions.columns[rating].dtype.kind == "f":
        rating_sum = np.bincount(
            interactions.user[rows], interactions.columns[rating][rows], len(interactions.users)
        )
        parts.append((rating_sum / np.maximum(user_count, 1))[user][:, None])
    for column in columns:
        parts.append(
            _most_frequent(interactions, rows, interactions.item_table[column].to_numpy())[user]
        )
    points = np.concatenate([_scaled(part.astype(np.float64)) for part in parts], axis=1)
    votes = np.zeros((len(interactions.users), count))
    np.add.at(votes, (user, kmeans(points, count, seed)), 1)
    sums = np.zeros((len(interactions.users), points.shape[1]))
    np.add.at(sums, user, points)
    means = sums[users] / user_count[users][:, None]
    return _cohorts_of_clusters(users, votes[users].argmax(axis=1), means, count, "feature")


def by_attributes(
    interactions: Interactions, users: np.ndarray, columns: Sequence[str], count: int, seed: int
) -> Cohorts:
    """Cluster users by columns of the .user file.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    users : ndarray of bool [n_users]
        The users to be clustered.
    columns : sequence of str
        Columns of numbers or tokens.
    count : int
        Number of cohorts.
    seed : int
        Seed of k-means.

    Returns
    -------
    Cohorts
        Named `attribute 1`, `attribute 2`, …

    Raises
    ------
    UserError
        If a column is missing.
    """
    if interactions.user_table is None or not set(columns) <= set(interactions.user_types):
        present = "no .user file"
        if interactions.user_table is not None:
            present = f"the columns {', '.join(interactions.user_types)}"
        raise UserError(
            f"cohorts: expected the columns {', '.join(columns)} of users, found {present}; set "
            "--user_columns, or leave attributes out of --cohorts"
        )
    parts = []
    for name in columns:
        cells = interactions.user_table[name].to_numpy()
        if interactions.user_types[name] == "float":
            values = np.array([float(cell or "nan") for cell in cells])[users, None]
            parts.append(_scaled(np.nan_to_num(values, nan=np.nanmean(values))))
        else:
            parts.append(_scaled(_one_hot(cells)[users]))
    points = np.concatenate(parts, axis=1)
    return _cohorts_of_clusters(users, kmeans(points, count, seed), points, count, "attribute")


def at_random(like: Cohorts, seed: int) -> Cohorts:
    """Sample random cohorts of the same sizes, as a control.

    Parameters
    ----------
    like : Cohorts
        Cohorts to be imitated. Their cohort of low activity is taken as it is.
    seed : int
        Seed of the sample.

    Returns
    -------
    Cohorts
        The random cohorts; the others' names with `random` before them.
    """
    shuffled = like.of >= 0
    if LOW in like.names:
        shuffled &= like.of != like.names.index(LOW)
    of = like.of.copy()
    of[shuffled] = np.random.default_rng([seed, 4]).permutation(of[shuffled])
    names = tuple(name if name == LOW else f"random {name}" for name in like.names)
    return Cohorts(names, of)


def from_file(interactions: Interactions, path: Path) -> Cohorts:
    """Read cohorts from a file with lines `user<TAB>cohort`.

    Users of the dataset that are missing in the file are in no cohort. Unknown users are ignored.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    path : Path
        The file.

    Returns
    -------
    Cohorts
        The cohorts with users of the dataset, by name.

    Raises
    ------
    UserError
        If the file cannot be read, has a user twice, or has no user of the dataset.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cohorts: {path} cannot be read: {error}") from None
    entries = [line.split("\t") for line in text.splitlines() if line.strip()]
    cohort_of: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        if len(entry) != 2:
            raise UserError(
                f"cohorts: {path}, entry {number}: expected a user, a tab and the name of a cohort"
            )
    for user, cohort in entries:
        if user in cohort_of:
            raise UserError(
                f"cohorts: {path} names user {user} more than once; a user belongs to one cohort"
            )
        cohort_of[user] = cohort
    names = tuple(sorted({cohort_of[user] for user in interactions.users if user in cohort_of}))
    of = np.full(len(interactions.users), -1)
    for number, user in enumerate(interactions.users):
        if user in cohort_of:
            of[number] = names.index(cohort_of[user])
    if not names:
        raise UserError(
            f"cohorts: {path} names no user of {interactions.name}, whose users are such as "
            f"{', '.join(map(str, interactions.users[:3]))}"
        )
    return Cohorts(names, of)


def _one_hot(values: np.ndarray) -> np.ndarray:
    """A column for each of the most frequent values, bool [values, at most VALUES]."""
    _, number, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    most_frequent = np.argsort(-counts, kind="stable")[:VALUES]
    return np.asarray(number[:, None] == most_frequent)


def _most_frequent(interactions: Interactions, rows: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The value of an item column that is most frequent in each user's events.

    Returns
    -------
    ndarray of bool [n_users, at most VALUES]
        One column per value.
    """
    hot = _one_hot(cells[interactions.item[rows]])
    counts = np.zeros((len(interactions.users), hot.shape[1]))
    np.add.at(counts, interactions.user[rows], hot.astype(np.float64))
    is_best = np.arange(hot.shape[1]) == counts.argmax(axis=1)[:, None]
    return is_best & (counts.max(axis=1, keepdims=True) > 0)


def _scaled(part: np.ndarray) -> np.ndarray:
    """Centre the columns of one feature, and scale their total variance to 1.

    A feature with many columns then weighs as much as a number.
    """
    part = part.astype(np.float64) - part.mean(axis=0)
    return part / np.sqrt(max(part.var(axis=0).sum(), 1e-12))
