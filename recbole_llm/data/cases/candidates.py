"""Negative items: the candidates of uniK evaluation, and the negatives of training.

The candidates of a case are sampled once: they are the same for every model, run and vocabulary.
"""

import hashlib

import numpy as np

from ...contracts.cases import Cases
from ...contracts.interactions import Interactions
from ...errors import UserError


def draw_candidates(
    interactions: Interactions, cases: Cases, count: int, seed: int, exclude: str = "user"
) -> np.ndarray:
    """Sample negative items for each case, without replacement.

    The sample of a case is seeded by (seed, user token, target token, position), so that it depends
    on no other case. Items are numbered in the order of their tokens, so that it does not depend on
    internal ids either.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    cases : Cases
        The cases to be ranked.
    count : int
        Number of negatives per case, the K of uniK.
    seed : int
        Seed of all samples.
    exclude : {"user", "target"}
        "user" excludes every item in the user's interactions; "target" excludes only the target.

    Returns
    -------
    ndarray of int64, [n_cases, count]
        Item indices.

    Raises
    ------
    UserError
        If `exclude` has another value, or fewer than `count` items remain for some user.
    """
    if exclude not in ("user", "target"):
        raise UserError(f"candidates_exclude: expected user or target, found {exclude!r}")
    by_token = np.argsort(interactions.items.astype(str), kind="stable")
    rank = np.empty_like(by_token)
    rank[by_token] = np.arange(len(by_token))
    result = np.empty((len(cases), count), dtype=np.int64)
    for row in range(len(cases)):
        user, end = cases.user[row], cases.end[row]
        begin_excluded, end_excluded = end, end + 1
        if exclude == "user":
            begin_excluded, end_excluded = interactions.start[user], interactions.start[user + 1]
        excluded = np.unique(rank[interactions.item[begin_excluded:end_excluded]])
        remaining = len(by_token) - len(excluded)
        if remaining < count:
            raise UserError(
                f"uni{count}: user {interactions.users[user]} leaves only {remaining} items to "
                "draw from; use a smaller uniK or candidates_exclude: target"
            )
        rng = _case_generator(interactions, user, end, seed)
        result[row] = by_token[_sample(len(by_token), excluded, count, rng)]
    return result


def draw_unmet(
    interactions: Interactions, user: int, end: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Sample items that are not in a user's interactions up to and including row `end`.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    user : int
        Index of the user.
    end : int
        Row of the last interaction whose item is excluded.
    count : int
        Number of items.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray of int64, [count]
        Distinct item indices.
    """
    seen = np.unique(interactions.item[interactions.start[user] : end + 1])
    return _sample(len(interactions.items), seen, count, rng)


def fingerprint(interactions: Interactions, cases: Cases, candidates: np.ndarray) -> str:
    """Hash the targets and candidates of cases.

    Parameters
    ----------
    interactions : Interactions
        The dataset.
    cases : Cases
        The cases to be ranked.
    candidates : ndarray of int64, [n_cases, K]
        Item indices, as `draw_candidates` returns them.

    Returns
    -------
    str
        16 hex digits. Equal samples have equal fingerprints whatever the internal ids, because
        tokens are hashed.
    """
    position = cases.end - interactions.start[cases.user]
    columns = (
        interactions.users[cases.user],
        position.astype(str),
        interactions.items[interactions.item[cases.end]],
        *interactions.items[candidates].T,
    )
    lines = sorted("\0".join(map(str, line)) for line in zip(*columns, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _case_generator(
    interactions: Interactions, user: int, end: int, seed: int
) -> np.random.Generator:
    """The random generator of one case, seeded by its tokens and position."""
    target, position = interactions.items[interactions.item[end]], end - interactions.start[user]
    digest = hashlib.sha256(
        f"{seed}\0{interactions.users[user]}\0{target}\0{position}".encode()
    ).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _sample(size: int, excluded: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample `count` distinct numbers below `size`, without those in `excluded` (int [n], sorted).

    The k-th remaining number is k + the number of excluded ones at or below it.
    """
    sample = rng.choice(size - len(excluded), size=count, replace=False)
    return sample + np.searchsorted(excluded - np.arange(len(excluded)), sample, side="right")
