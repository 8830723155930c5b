"""The interactions of a dataset as plain arrays.

Every model of the harness, RecBole's included, sees the users, items and order of one
`Interactions`.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


HASHED = 2**20  # numbers or tokens that are hashed at once


@dataclass(frozen=True)
class Interactions:
    """The interactions of all users, sorted by (user, time, file order), and their side tables.

    The interactions of user u are rows start[u] : start[u + 1]. RecBole's internal ids are these
    indices + 1, because both number tokens by first appearance in the file.

    Attributes
    ----------
    name : str
        Name of the dataset.
    users : ndarray of str, [n_users]
        Tokens of the users.
    items : ndarray of str, [n_items]
        Tokens of the items.
    start : ndarray of int64, [n_users + 1]
        First row of each user, and the number of rows at the end.
    item : ndarray of int32, [n_interactions]
        Item of each interaction, as an index into `items`.
    time : ndarray of float64, [n_interactions]
        Time of each interaction; its row number if the file has no time column.
    file_order : ndarray of int64, [n_interactions]
        `item[file_order]` is in the order of the file; so is every other column.
    columns : dict of str to ndarray, [n_interactions] each
        Further columns of the .inter file.
    item_table : DataFrame
        Row i describes items[i]. Cells are str, and "" where unknown.
    item_types : dict of str to str
        Atomic type of each column of `item_table`.
    user_table : DataFrame or None
        Row u describes users[u]; None without a .user file.
    user_types : dict of str to str
        Atomic type of each column of `user_table`.
    has_time : bool
        Whether the .inter file has a time column.
    log : tuple of str
        What was read and what was filtered out, one line each.
    cases : dict of str to ndarray of int64, [n_cases, 2], or None
        Pre-split files only: per split, the (begin, end) rows of its cases.
    strangers : str or None
        A sentence for an error message if the .item file describes none of the items in the
        interactions (ids are probably written differently); else None.
    item_row : ndarray of int64, [n_items], or None
        Row of each item in the unfiltered .item file, -1 for an item without a row; None without
        that file.
    folder : Path or None
        Where the arrays lie that are mapped into memory; None if none is.
    """

    name: str
    users: np.ndarray
    items: np.ndarray
    start: np.ndarray
    item: np.ndarray
    time: np.ndarray
    file_order: np.ndarray
    columns: dict[str, np.ndarray]
    item_table: "pd.DataFrame"
    item_types: dict[str, str]
    user_table: "pd.DataFrame | None" = None
    user_types: dict[str, str] = field(default_factory=dict)
    has_time: bool = True
    log: tuple[str, ...] = ()
    cases: dict[str, np.ndarray] | None = None
    strangers: str | None = None
    item_row: np.ndarray | None = None
    folder: Path | None = None

    @cached_property
    def user(self) -> np.ndarray:
        """User index of each interaction, int32 [n_interactions]."""
        return np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.start))

    @cached_property
    def position(self) -> np.ndarray:
        """Index of each interaction within its user's sequence, int64 [n_interactions]."""
        position: np.ndarray = np.arange(len(self.item)) - self.start[self.user]
        return position

    def block(self, first: int, last: int) -> "UserBlock":
        """Cut out the interactions of the users first : last."""
        begin, end = self.start[first], self.start[last]
        return UserBlock(self.start[first : last + 1] - begin, self.time[begin:end])

    @cached_property
    def met(self) -> np.ndarray:
        """Number of distinct items in each user's interactions, int64 [n_users]."""
        pairs = np.unique(self.user.astype(np.int64) * len(self.items) + self.item)
        return np.bincount(pairs // len(self.items), minlength=len(self.users))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of users, items, order, times and side tables, 16 hex digits.

        Equal data have equal fingerprints. The type of a side table's column is part of it, because
        the type decides what a model makes of the cells.
        """
        digest = hashlib.sha256()
        for tokens in (self.users, self.items):
            for first in range(0, len(tokens), HASHED):
                between = "\0" if first else ""
                digest.update((between + "\0".join(tokens[first : first + HASHED])).encode())
        further = [self.columns[name] for name in sorted(self.columns)]
        for array in (self.start, self.item, self.time, *further):
            if array.dtype == object:
                array = array.astype(str)
            for first in range(0, len(array), HASHED):
                digest.update(np.ascontiguousarray(array[first : first + HASHED]).tobytes())
        _hash_side_table(digest, self.item_table, self.item_types)
        if self.user_table is not None:
            _hash_side_table(digest, self.user_table, self.user_types)
        for split, rows in sorted((self.cases or {}).items()):
            digest.update(split.encode() + rows.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class UserBlock:
    """The interactions of some neighbouring users.

    Attributes
    ----------
    start : ndarray of int64, [n_users + 1]
        First row of each user in the block, and the number of rows at the end.
    time : ndarray of float64, [n_interactions]
        Time of each interaction.
    """

    start: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def user(self) -> np.ndarray:
        """User of each interaction, counted from the block's first, int64 [n_interactions]."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @cached_property
    def position(self) -> np.ndarray:
        """Index of each interaction within its user's sequence, int64 [n_interactions]."""
        position: np.ndarray = np.arange(len(self)) - self.start[self.user]
        return position


def _hash_side_table(digest: "hashlib._Hash", table: "pd.DataFrame", types: dict[str, str]) -> None:
    """Add the columns of a side table, with their types, to a digest."""
    for name in table:
        digest.update(f"{name}:{types[str(name)]}\0".encode() + "\0".join(table[name]).encode())
