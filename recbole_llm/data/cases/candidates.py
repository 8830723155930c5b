"""Negatives: of uniK evaluation, drawn once per case, the same for every model, run and vocabulary; and of training."""

import hashlib

import numpy as np

from ...contracts.cases import Cases
from ...errors import UserError
from ..reading.tables import Tables


def draw_candidates(
    tables: Tables, cases: Cases, count: int, seed: int, exclude: str = "user"
) -> np.ndarray:
    """K negatives per case, without replacement.

    Each case's draw is seeded by (seed, user token, target token, position), so it depends on no other case,
    and items are numbered by sorted token, so it does not depend on internal ids either.

    Parameters
    ----------
    exclude : "user" leaves out every item the user ever met; "target" leaves out only the target.

    Returns
    -------
    int64 [cases, count] item indices of the Tables.

    Raises
    ------
    UserError : if the catalogue has too few other items for some user.
    """
    if exclude not in ("user", "target"):
        raise UserError(f"candidates_exclude: expected user or target, found {exclude!r}")
    by_token = np.argsort(tables.items.astype(str), kind="stable")
    rank = np.empty_like(by_token)
    rank[by_token] = np.arange(len(by_token))
    result = np.empty((len(cases), count), dtype=np.int64)
    for row in range(len(cases)):
        user, end = cases.user[row], cases.end[row]
        met = (
            tables.item[tables.start[user] : tables.start[user + 1]]
            if exclude == "user"
            else tables.item[end : end + 1]
        )
        banned = np.unique(rank[met])
        free = len(by_token) - len(banned)
        if free < count:
            raise UserError(
                f"uni{count}: user {tables.users[user]} leaves only {free} items to draw from; use a smaller uniK or candidates_exclude: target"
            )
        key = f"{seed}\0{tables.users[user]}\0{tables.items[tables.item[end]]}\0{end - tables.start[user]}"
        stream = np.random.Generator(
            np.random.Philox(
                key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
            )
        )
        result[row] = by_token[_draw(len(by_token), banned, count, stream)]
    return result


def draw_unmet(
    tables: Tables, user: int, end: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """int64 [count]: different items that a user had not met when event `end` was over."""
    return _draw(
        len(tables.items), np.unique(tables.item[tables.start[user] : end + 1]), count, rng
    )


def _draw(size: int, banned: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different numbers below `size` that are not banned; banned : int [n], sorted."""
    drawn = rng.choice(size - len(banned), size=count, replace=False)
    return drawn + np.searchsorted(
        banned - np.arange(len(banned)), drawn, side="right"
    )  # the k-th free one = k + how many banned ones lie at or below it


def fingerprint(tables: Tables, cases: Cases, candidates: np.ndarray) -> str:
    """16 hex digits over who is to be ranked among what, by tokens: equal draws, equal fingerprint.

    candidates : int64 [cases, K] as `draw_candidates` gives them.
    """
    position = cases.end - tables.start[cases.user]
    columns = (
        tables.users[cases.user],
        position.astype(str),
        tables.items[tables.item[cases.end]],
        *tables.items[candidates].T,
    )
    lines = sorted("\0".join(map(str, line)) for line in zip(*columns, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
